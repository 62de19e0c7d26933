;; A guest whose answers the host can work out for itself, with every way in which a call can end.
(module
  (memory (export "memory") 1)
  (global $count (mut i32) (i32.const 0))

  ;; `rounds` steps of a linear congruential generator from `seed` on.
  (func (export "weave") (param $seed i64) (param $rounds i32) (result i64)
    (loop $next
      (if (local.get $rounds)
        (then
          (local.set $seed (i64.add (i64.mul (local.get $seed) (i64.const 0x5851f42d4c957f2d)) (i64.const 0x14057b7ef767814f)))
          (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
          (br $next))))
    (local.get $seed))

  (func (export "turn") (param i32 i64 f64) (result f64 i64 i32) (local.get 2) (local.get 1) (local.get 0))
  (func (export "divide") (param i32 i32) (result i32) (i32.div_u (local.get 0) (local.get 1)))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (global.get $count))
  (func (export "nothing"))
  (func (export "spin") (loop $forever (br $forever))))
