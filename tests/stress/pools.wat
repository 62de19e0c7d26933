;; A guest of pools, each of whose calls leaves a trace: it adds 1 to a cell, a byte of a shared heap that is this call's own, before
;; anything else. So the host knows what ran, and how often.
(module
  (memory (export "memory") 1 64)
  (global $ticket (mut i32) (i32.const -1))
  (global $count (mut i32) (i32.const 0))
  (global $stopped (mut i32) (i32.const 0))  ;; calls that have begun and not ended: such as trapped, or were interrupted

  ;; The pool's init: takes a ticket, a number that no other instance has, from a word of a shared heap.
  (func (export "prepare") (param $tickets i32)
    (global.set $ticket (i32.atomic.rmw.add (local.get $tickets) (i32.const 1))))

  (func $begin (param $cell i32)
    (drop (i32.atomic.rmw8.add_u (local.get $cell) (i32.const 1)))
    (global.set $stopped (i32.add (global.get $stopped) (i32.const 1)))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 1))))

  (func $end
    (global.set $stopped (i32.sub (global.get $stopped) (i32.const 1))))

  ;; `rounds` steps of a linear congruential generator from `seed` on.
  (func (export "note") (param $cell i32) (param $seed i64) (param $rounds i32) (result i64)
    (call $begin (local.get $cell))
    (loop $next
      (if (local.get $rounds)
        (then
          (local.set $seed (i64.add (i64.mul (local.get $seed) (i64.const 0x5851f42d4c957f2d)) (i64.const 0x14057b7ef767814f)))
          (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
          (br $next))))
    (call $end)
    (local.get $seed))

  ;; Who this is: its ticket, which of its calls this is by a global and by memory, and how many of them were stopped.
  (func (export "who") (param $cell i32) (result i32 i32 i32 i32)
    (call $begin (local.get $cell))
    (call $end)
    (global.get $ticket) (global.get $count) (i32.load (i32.const 64)) (global.get $stopped))

  ;; Grow the memory by so many pages, and use the last; how many there were, what the instruction said, and how many there are.
  (func (export "grow") (param $cell i32) (param $pages i32) (result i32 i32 i32) (local $before i32) (local $answer i32)
    (call $begin (local.get $cell))
    (local.set $before (memory.size))
    (local.set $answer (memory.grow (local.get $pages)))
    (i32.store8 (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 1)) (i32.const 1))
    (call $end)
    (local.get $before) (local.get $answer) (memory.size))

  (func (export "fail") (param $cell i32) (call $begin (local.get $cell)) (unreachable))
  (func (export "spin") (param $cell i32) (call $begin (local.get $cell)) (loop $forever (br $forever))))
