;; Waits and wakes with one static offset share a function.
(module
  (memory (export "memory") 1)
  (func (export "wait") (param $word i32) (result i32)
    (memory.atomic.wait32 (local.get $word) (i32.const 0) (i64.const -1)))
  (func (export "wait_again") (param $word i32) (result i32)
    (memory.atomic.wait32 (local.get $word) (i32.const 1) (i64.const -1)))
  (func (export "wake") (param $word i32) (result i32)
    (memory.atomic.notify offset=8 (local.get $word) (i32.const 1))))
