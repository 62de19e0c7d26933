;; What a thread that is alone can see of waiting (threads proposal, "memory.atomic.wait" and "memory.atomic.notify"):
;; the test suite has hardly anything on it.

(module
  (memory 1 1 shared)
  (func (export "store32") (param i32 i32) (i32.atomic.store (local.get 0) (local.get 1)))
  (func (export "store64") (param i32 i64) (i64.atomic.store (local.get 0) (local.get 1)))
  (func (export "wait32") (param i32 i32 i64) (result i32)
    (memory.atomic.wait32 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "wait64") (param i32 i64 i64) (result i32)
    (memory.atomic.wait64 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "notify") (param i32 i32) (result i32)
    (memory.atomic.notify (local.get 0) (local.get 1)))
  (func (export "wait32 at 8") (param i32 i32 i64) (result i32)
    (memory.atomic.wait32 offset=8 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "notify at 8") (param i32 i32) (result i32)
    (memory.atomic.notify offset=8 (local.get 0) (local.get 1))))

;; Another value than the expected one: no waiting.
(invoke "store32" (i32.const 16) (i32.const 0xffff_ffff))
(assert_return (invoke "wait32" (i32.const 16) (i32.const 0) (i64.const -1)) (i32.const 1))
(invoke "store64" (i32.const 24) (i64.const 0x1_0000_0000))
(assert_return (invoke "wait64" (i32.const 24) (i64.const 0) (i64.const -1)) (i32.const 1))

;; The expected value, and nobody who notifies: the time is up.
(assert_return (invoke "wait32" (i32.const 16) (i32.const 0xffff_ffff) (i64.const 0)) (i32.const 2))
(assert_return (invoke "wait32" (i32.const 16) (i32.const -1) (i64.const 1_000_000)) (i32.const 2))
(assert_return (invoke "wait64" (i32.const 24) (i64.const 0x1_0000_0000) (i64.const 1_000_000)) (i32.const 2))
(assert_return (invoke "wait32 at 8" (i32.const 8) (i32.const -1) (i64.const 1)) (i32.const 2))

;; The last words there are.
(assert_return (invoke "wait32" (i32.const 0xfffc) (i32.const 0) (i64.const 1)) (i32.const 2))
(assert_return (invoke "wait64" (i32.const 0xfff8) (i64.const 0) (i64.const 1)) (i32.const 2))
(assert_return (invoke "wait32 at 8" (i32.const 0xfff4) (i32.const 0) (i64.const 1)) (i32.const 2))

;; Nobody waits.
(assert_return (invoke "notify" (i32.const 0) (i32.const 0)) (i32.const 0))
(assert_return (invoke "notify" (i32.const 16) (i32.const -1)) (i32.const 0))
(assert_return (invoke "notify" (i32.const 0xfffc) (i32.const 1)) (i32.const 0))
(assert_return (invoke "notify at 8" (i32.const 0xfff4) (i32.const 1)) (i32.const 0))

;; Out of bounds.
(assert_trap (invoke "wait32" (i32.const 0x1_0000) (i32.const 0) (i64.const 0)) "out of bounds memory access")
(assert_trap (invoke "wait64" (i32.const 0x1_0000) (i64.const 0) (i64.const 0)) "out of bounds memory access")
(assert_trap (invoke "wait32 at 8" (i32.const 0xfff8) (i32.const 0) (i64.const 0)) "out of bounds memory access")
(assert_trap (invoke "wait32 at 8" (i32.const 0xffff_fff8) (i32.const 0) (i64.const 0)) "out of bounds memory access")
(assert_trap (invoke "notify" (i32.const 0x1_0000) (i32.const 0)) "out of bounds memory access")
(assert_trap (invoke "notify at 8" (i32.const 0xffff_fffc) (i32.const 0)) "out of bounds memory access")

;; Not aligned, in bounds and beyond.
(assert_trap (invoke "wait32" (i32.const 2) (i32.const 0) (i64.const 0)) "unaligned atomic")
(assert_trap (invoke "wait64" (i32.const 4) (i64.const 0) (i64.const 0)) "unaligned atomic")
(assert_trap (invoke "wait32 at 8" (i32.const 1) (i32.const 0) (i64.const 0)) "unaligned atomic")
(assert_trap (invoke "notify" (i32.const 3) (i32.const 1)) "unaligned atomic")
(assert_trap (invoke "notify at 8" (i32.const 0x1_0001) (i32.const 1)) "unaligned atomic")
