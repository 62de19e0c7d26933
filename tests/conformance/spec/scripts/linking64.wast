;; A 64-bit memory that modules share: the test suite only links such modules, and never runs them.

(module $Owner
  (memory (export "shared") i64 1 4)
  (data (i64.const 8) "\2a")
  (func (export "size") (result i64) memory.size)
  (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0)))
  (func (export "load") (param i64) (result i32) (i32.load8_u (local.get 0)))
  (func (export "store") (param i64 i32) (i32.store8 (local.get 0) (local.get 1))))
(register "owner" $Owner)

(module $User
  (memory (import "owner" "shared") i64 1 5)
  (data (i64.const 9) "\2b")
  (func (export "size") (result i64) memory.size)
  (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0)))
  (func (export "copy") (param i64 i64 i64) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
  (func (export "fill") (param i64 i32 i64) (memory.fill (local.get 0) (local.get 1) (local.get 2))))

(assert_return (invoke $Owner "load" (i64.const 9)) (i32.const 0x2b))
(invoke $User "copy" (i64.const 0xfffe) (i64.const 8) (i64.const 2))
(assert_return (invoke $Owner "load" (i64.const 0xfffe)) (i32.const 0x2a))
(assert_return (invoke $Owner "load" (i64.const 0xffff)) (i32.const 0x2b))
(assert_trap (invoke $User "fill" (i64.const 0xffff) (i32.const 0) (i64.const 2)) "out of bounds memory access")
(assert_return (invoke $Owner "load" (i64.const 0xffff)) (i32.const 0x2b))

;; Each sees how the other grows it; the owner's maximum holds.
(assert_return (invoke $User "grow" (i64.const 1)) (i64.const 1))
(assert_return (invoke $Owner "size") (i64.const 2))
(assert_return (invoke $Owner "grow" (i64.const 1)) (i64.const 2))
(assert_return (invoke $User "size") (i64.const 3))
(invoke $User "fill" (i64.const 0x2_fffe) (i32.const 7) (i64.const 2))
(assert_return (invoke $Owner "load" (i64.const 0x2_ffff)) (i32.const 7))
(assert_return (invoke $Owner "grow" (i64.const 2)) (i64.const -1))

;; Who comes later sees what is.
(module $Late
  (memory (import "owner" "shared") i64 3)
  (func (export "size") (result i64) memory.size))
(assert_return (invoke $Late "size") (i64.const 3))
(assert_return (invoke $Owner "load" (i64.const 0x2_ffff)) (i32.const 7))
(assert_unlinkable (module (memory (import "owner" "shared") i64 4)) "incompatible import type")
(assert_unlinkable (module (memory (import "owner" "shared") i64 1 3)) "incompatible import type")
