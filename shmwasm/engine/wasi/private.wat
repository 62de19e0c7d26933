;; What the private adapter is made of beside a function for each of WASI's: see text.py.

;; How many of the buffers to pass to WASI: all; or those before the first that does not lie below the chain; or none, if nothing
;; is in those. An array that is not in private memory is WASI's to refuse.
(func $leading (param $at i32) (param $count i32) (result i32)
  (local $index i32) (local $length i32) (local $found i32)
  (if (i64.gt_u (i64.add (i64.extend_i32_u (local.get $at)) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)))
        (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
    (then (return (local.get $count))))
  (loop $next (result i32)
    (if (i32.eq (local.get $index) (local.get $count)) (then (return (local.get $count))))
    (if (local.tee $length (i32.load $guest offset=4 (local.get $at)))
      (then
        (if (i64.gt_u (i64.add (i64.extend_i32_u (i32.load $guest (local.get $at))) (i64.extend_i32_u (local.get $length)))
              (global.get $start))
          (then (return (select (local.get $index) (i32.const 0) (local.get $found)))))
        (local.set $found (i32.const 1))))
    (local.set $at (i32.add (local.get $at) (i32.const 8)))
    (local.set $index (i32.add (local.get $index) (i32.const 1)))
    (br $next)))
