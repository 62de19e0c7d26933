;; A 64-bit memory is declared over the whole range; its size is a global, and data beyond the guest's own pages cannot be placed.
(module
  (memory (export "memory") i64 2 16)
  (data (i64.const 8) "here")
  (data (i64.const 0x20000) "beyond")
  (func $first (drop (memory.grow (i64.const 1))))
  (start $first)
  (func (export "size") (result i64) (memory.size))
  (func (export "clear") (param $to i64)
    (memory.fill (local.get $to) (i32.const 0) (i64.const 64))))
