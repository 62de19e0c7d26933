;; memory.fill is expanded where it stands; memory.init becomes a call of a function for its segment.
(module
  (memory (export "memory") 1)
  (data $text "text")
  (func (export "fill") (param $to i32) (param $value i32) (param $length i32)
    (memory.fill (local.get $to) (local.get $value) (local.get $length)))
  (func (export "clear") (param $to i32)
    (memory.fill (local.get $to) (i32.const 0) (i32.const 64)))
  (func (export "init") (param $to i32)
    (memory.init $text (local.get $to) (i32.const 1) (i32.const 3))))
