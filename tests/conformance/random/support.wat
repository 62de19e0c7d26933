;; What binaryen's random modules import. Everything they log is written to a trace, so that two runs can be compared.
(module
  (type $plain (func))
  (memory (export "trace") 1)
  (global $end (export "end") (mut i32) (i32.const 0))
  (tag (export "wasmtag") (param i32))
  (tag $js (export "jstag") (param externref))
  (global (export "object") (ref extern) (extern.convert_any (ref.i31 (i32.const 7))))

  ;; Returns where the next `size` bytes of the trace go, from its beginning again when it is full.
  (func $room (param $size i32) (result i32)
    (if (i32.gt_u (global.get $end) (i32.const 65000)) (then (global.set $end (i32.const 0))))
    (global.set $end (i32.add (global.get $end) (local.get $size)))
    (i32.sub (global.get $end) (local.get $size)))

  (func (export "log-i32") (param i32) (i32.store (call $room (i32.const 4)) (local.get 0)))
  (func (export "log-i64") (param i64) (i64.store (call $room (i32.const 8)) (local.get 0)))
  (func (export "log-f32") (param f32) (f32.store (call $room (i32.const 4)) (local.get 0)))
  (func (export "log-f64") (param f64) (f64.store (call $room (i32.const 8)) (local.get 0)))
  (func (export "log-v128") (param v128) (v128.store (call $room (i32.const 16)) (local.get 0)))
  (func (export "log-anyref") (param anyref) (i32.store8 (call $room (i32.const 1)) (ref.is_null (local.get 0))))
  (func (export "log-funcref") (param funcref) (i32.store8 (call $room (i32.const 1)) (ref.is_null (local.get 0))))
  (func (export "log-externref") (param externref) (i32.store8 (call $room (i32.const 1)) (ref.is_null (local.get 0))))
  (func (export "throw") (param i32) (throw $js (extern.convert_any (ref.i31 (local.get 0)))))
  (func (export "table-get") (param i32) (result funcref) (ref.null func))
  (func (export "table-set") (param i32 funcref))
  (func (export "call-export") (param i32 i32))
  (func (export "call-export-catch") (param i32) (result i32) (local.get 0))
  (func (export "sleep") (param i32 i32) (result i32) (local.get 1))

  ;; Calls what takes and returns nothing; JavaScript, for which these are meant, could call more.
  (func $call (export "call-ref") (param $function funcref) (param i32)
    (if (ref.test (ref $plain) (local.get $function))
      (then (call_ref $plain (ref.cast (ref $plain) (local.get $function))))))
  (func (export "call-ref-catch") (param $function funcref) (result i32)
    (block $caught
      (try_table (catch_all $caught) (call $call (local.get $function) (i32.const 0)))
      (return (i32.const 0)))
    (i32.const 1)))
