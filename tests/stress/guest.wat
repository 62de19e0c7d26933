;; A guest that allocates, hands over and frees at random, and checks every byte that it relies on.
;;
;; A ledger is an array of cells in a shared heap, each 0 or the address of a block. A cell is only ever exchanged atomically, so
;; a block is in one cell or in one process's hand, and a process that is killed takes at most the one in its hand with it.
;; The first word of a block is its own address, scrambled; its last byte is that word's lowest.
(module
  (import "env" "shared_heap_malloc" (func $malloc (param i32) (result i32)))
  (import "env" "shared_heap_free" (func $free (param i32)))
  (memory (export "memory") 1)
  (table $table (export "table") 1 funcref)
  (global $seed (mut i32) (i32.const 1))

  (func $random (result i32)  ;; xorshift32
    (global.set $seed (i32.xor (global.get $seed) (i32.shl (global.get $seed) (i32.const 13))))
    (global.set $seed (i32.xor (global.get $seed) (i32.shr_u (global.get $seed) (i32.const 17))))
    (global.set $seed (i32.xor (global.get $seed) (i32.shl (global.get $seed) (i32.const 5))))
    (global.get $seed))

  (func $random_size (result i32)  ;; 8 to 1031 bytes; one in 32 up to 160 KiB
    (if (result i32) (i32.and (call $random) (i32.const 31))
      (then (i32.add (i32.and (call $random) (i32.const 1023)) (i32.const 8)))
      (else (i32.add (i32.rem_u (call $random) (i32.const 163840)) (i32.const 8)))))

  (func $scrambled (param $block i32) (result i32) (i32.xor (local.get $block) (i32.const 0x5bd1e995)))

  (func $allocate (export "allocate") (param $size i32) (result i32) (local $block i32)
    (local.set $block (call $malloc (local.get $size)))
    (if (local.get $block)
      (then
        (i32.store8 (i32.sub (i32.add (local.get $block) (local.get $size)) (i32.const 1)) (i32.const 0))
        (i32.store (local.get $block) (call $scrambled (local.get $block)))))
    (local.get $block))

  (func $release (export "release") (param $block i32)
    (if (i32.ne (i32.load (local.get $block)) (call $scrambled (local.get $block))) (then (unreachable)))
    (i32.store (local.get $block) (i32.const 0))
    (call $free (local.get $block)))

  (func (export "free") (param $block i32) (call $free (local.get $block)))

  ;; Put a block into, or take one out of, a random cell of a ledger, `rounds` times. `entries` is a power of two.
  (func $churn (export "churn") (param $ledger i32) (param $entries i32) (param $rounds i32) (param $seed i32) (result i32)
    (local $cell i32) (local $block i32) (local $allocated i32)
    (global.set $seed (i32.or (local.get $seed) (i32.const 1)))
    (loop $next
      (local.set $cell (i32.add (local.get $ledger)
        (i32.shl (i32.and (call $random) (i32.sub (local.get $entries) (i32.const 1))) (i32.const 2))))
      (local.set $block (i32.atomic.rmw.xchg (local.get $cell) (i32.const 0)))
      (if (i32.eqz (local.get $block))
        (then
          (local.set $block (call $allocate (call $random_size)))
          (if (local.get $block)
            (then
              (local.set $allocated (i32.add (local.get $allocated) (i32.const 1)))
              (local.set $block (i32.atomic.rmw.xchg (local.get $cell) (local.get $block)))))))
      (if (local.get $block) (then (call $release (local.get $block))))
      (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
      (br_if $next (i32.gt_s (local.get $rounds) (i32.const 0))))
    (local.get $allocated))

  (func $clear (export "clear") (param $ledger i32) (param $entries i32)
    (local $block i32)
    (loop $next
      (local.set $entries (i32.sub (local.get $entries) (i32.const 1)))
      (local.set $block (i32.atomic.rmw.xchg
        (i32.add (local.get $ledger) (i32.shl (local.get $entries) (i32.const 2))) (i32.const 0)))
      (if (local.get $block) (then (call $release (local.get $block))))
      (br_if $next (local.get $entries))))

  (func (export "churn_and_clear") (param $ledger i32) (param $entries i32) (param $rounds i32) (param $seed i32) (result i32)
    (local $allocated i32)
    (local.set $allocated (call $churn (local.get $ledger) (local.get $entries) (local.get $rounds) (local.get $seed)))
    (call $clear (local.get $ledger) (local.get $entries))
    (local.get $allocated))

  ;; Write pseudo-random words over [from, to), again and again, `rounds` times.
  (func (export "scribble") (param $from i32) (param $to i32) (param $rounds i32) (param $seed i32)
    (local $at i32)
    (global.set $seed (i32.or (local.get $seed) (i32.const 1)))
    (loop $again
      (local.set $at (local.get $from))
      (loop $next
        (i32.store (local.get $at) (call $random))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $next (i32.ne (local.get $at) (local.get $to))))
      (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
      (br_if $again (i32.gt_s (local.get $rounds) (i32.const 0)))))

  (func (export "load") (param $at i32) (result i32) (i32.load (local.get $at)))
  (func (export "store") (param $at i32) (param $value i32) (i32.store (local.get $at) (local.get $value)))
  (func (export "add") (param $at i32) (param $value i32) (result i32) (i32.atomic.rmw.add (local.get $at) (local.get $value)))
  (func (export "nothing"))
  (func (export "spin") (loop $forever (br $forever)))
  (func (export "spin_allocating")
    (loop $forever (call $free (call $malloc (call $random_size))) (br $forever)))
  (func (export "unreachable") (unreachable))
  (func $recurse (export "recurse") (param i32) (result i32)
    (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "size") (result i32) (memory.size))
  (func (export "grow_table") (param i32) (result i32) (table.grow $table (ref.null func) (local.get 0)))
  (func (export "call_null") (call_indirect (i32.const 0))))
