;; What the window adapter is made of beside a function for each of WASI's: see text.py. A range of the guest's is *accessible* if it
;; lies whole in private memory and the chain, which may adjoin.

(global $top (mut i32) (i32.const 0)) ;; the scratch area is free from here on
(global $refusal (mut i32) (i32.const 0)) ;; what to answer after a function returned 0
(global $buffer (mut i32) (i32.const 0)) ;; where the guest has the buffer of `$vector`
(global $pointers (mut i32) (i32.const 0)) ;; where `$place_strings` has placed the array
(global $strings (mut i32) (i32.const 0)) ;; and the strings

(func $refuse (param $answer i32) (result i32)
  (global.set $refusal (local.get $answer)) (i32.const 0))

;; Whether a range that starts in the chain lies in it, and no heap of it is read-only if it is to be written.
(func $in_chain (param $from i64) (param $to i64) (param $write i32) (result i32)
  (local $entry i32) (local $last i32)
  (if (i64.gt_u (local.get $to) (global.get $end)) (then (return (i32.const 0))))
  (if (i32.eqz (select (global.get $mixed) (i32.const 0) (local.get $write))) (then (return (i32.const 1))))
  (local.set $entry (global.get $TABLE_ENTRIES))
  (local.set $last (i32.add (global.get $TABLE_ENTRIES) (i32.mul (i32.load $alias (i32.const 0)) (global.get $TABLE_ENTRY))))
  (loop $next (result i32)
    (if (i32.eq (local.get $entry) (local.get $last)) (then (return (i32.const 1))))
    (if (i32.and
          (i32.and
            (i64.lt_u (i64.load $alias (local.get $entry)) (local.get $to))
            (i64.gt_u (i64.load $alias offset=8 (local.get $entry)) (local.get $from)))
          (i32.eqz (i32.load $alias offset=16 (local.get $entry))))
      (then (return (i32.const 0))))
    (local.set $entry (i32.add (local.get $entry) (global.get $TABLE_ENTRY)))
    (br $next)))

;; Whether a range lies in private memory and the chain, which may adjoin.
(func $accessible (param $from i64) (param $to i64) (param $write i32) (result i32)
  (local $size i64)
  (if (i64.ge_u (local.get $from) (global.get $start))
    (then (return (call $in_chain (local.get $from) (local.get $to) (local.get $write)))))
  (local.set $size (call $guest_size))
  (if (i64.le_u (local.get $to) (local.get $size)) (then (return (i32.const 1))))
  (if (i64.ne (local.get $size) (global.get $start)) (then (return (i32.const 0))))
  (call $in_chain (global.get $start) (local.get $to) (local.get $write)))

;; Where an address of the chain is in the alias memory.
(func $alias_address (param $address i64) (result i32)
  (i32.wrap_i64 (i64.add (i64.sub (local.get $address) (global.get $start)) (i64.extend_i32_u (global.get $ALIAS_CHAIN)))))

;; How much of a range lies below the chain.
(func $below (param $from i64) (param $length i32) (result i32)
  (if (i64.ge_u (local.get $from) (global.get $start)) (then (return (i32.const 0))))
  (if (i64.le_u (i64.add (local.get $from) (i64.extend_i32_u (local.get $length))) (global.get $start))
    (then (return (local.get $length))))
  (i32.wrap_i64 (i64.sub (global.get $start) (local.get $from))))

;; Copy an accessible range to the scratch area.
(func $bring (param $at i32) (param $from i64) (param $length i32)
  (local $below i32)
  (local.set $below (call $below (local.get $from) (local.get $length)))
  (if (local.get $below)
    (then (call $from_guest (local.get $at) (local.get $from) (local.get $below))))
  (if (i32.lt_u (local.get $below) (local.get $length))
    (then
      (memory.copy $alias $alias (i32.add (local.get $at) (local.get $below))
        (call $alias_address (i64.add (local.get $from) (i64.extend_i32_u (local.get $below))))
        (i32.sub (local.get $length) (local.get $below))))))

;; Copy from the scratch area to an accessible range.
(func $give (param $at i32) (param $to i64) (param $length i32)
  (local $below i32)
  (local.set $below (call $below (local.get $to) (local.get $length)))
  (if (local.get $below)
    (then (call $to_guest (local.get $to) (local.get $at) (local.get $below))))
  (if (i32.lt_u (local.get $below) (local.get $length))
    (then
      (memory.copy $alias $alias
        (call $alias_address (i64.add (local.get $to) (i64.extend_i32_u (local.get $below))))
        (i32.add (local.get $at) (local.get $below))
        (i32.sub (local.get $length) (local.get $below))))))

;; The same, if the range was brought to the scratch area and not passed as it is.
(func $give_back (param $at i32) (param $to i32) (param $length i32)
  (if (i32.lt_u (local.get $at) (global.get $ALIAS_CHAIN))
    (then (call $give (local.get $at) (i64.extend_i32_u (local.get $to)) (local.get $length)))))

;; Room in the scratch area, or 0.
(func $take (param $length i64) (result i32)
  (local $at i32)
  (local.set $at (global.get $top))
  (if (i64.gt_u (local.get $length) (i64.extend_i32_u (i32.sub (global.get $ALIAS_CHAIN) (local.get $at))))
    (then (return (call $refuse (global.get $NO_MEMORY)))))
  (global.set $top
    (i32.and (i32.add (i32.add (local.get $at) (i32.wrap_i64 (local.get $length))) (i32.const 7)) (i32.const -8)))
  (local.get $at))

;; Where WASI finds a range of the guest's in the alias memory, or 0.
(func $place (param $pointer i32) (param $length i64) (param $access i32) (result i32)
  (local $from i64) (local $at i32)
  (local.set $from (i64.extend_i32_u (local.get $pointer)))
  (if (i32.eqz (call $accessible (local.get $from) (i64.add (local.get $from) (local.get $length))
        (i32.and (local.get $access) (global.get $WRITE))))
    (then (return (call $refuse (global.get $REFUSED)))))
  (if (i32.and (i64.ge_u (local.get $from) (global.get $start)) (i32.lt_u (local.get $access) (global.get $COPY)))
    (then (return (call $alias_address (local.get $from)))))
  (if (i32.eqz (local.tee $at (call $take (local.get $length)))) (then (return (i32.const 0))))
  (if (i32.and (local.get $access) (global.get $READ))
    (then (call $bring (local.get $at) (local.get $from) (i32.wrap_i64 (local.get $length)))))
  (local.get $at))

;; An array of one buffer, in the scratch area: as much of the guest's first one that is not empty as can be passed; or 0.
(func $vector (param $vectors i32) (param $count i32) (param $access i32) (result i32)
  (local $at i32) (local $buffer i32) (local $length i32) (local $room i32)
  (if (i32.or
        (i32.and (local.get $vectors) (i32.const 3))
        (i32.eqz (call $accessible (i64.extend_i32_u (local.get $vectors))
          (i64.add (i64.extend_i32_u (local.get $vectors)) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)))
          (i32.const 0))))
    (then (return (call $refuse (global.get $REFUSED)))))
  (if (i32.eqz (local.tee $at (call $take (i64.const 8)))) (then (return (i32.const 0))))
  (i64.store $alias (local.get $at) (i64.const 0))
  (loop $next
    (if (i32.eqz (local.get $count)) (then (return (local.get $at))))
    (local.set $buffer (call $load_guest (local.get $vectors)))
    (local.set $length (call $load_guest (i32.add (local.get $vectors) (i32.const 4))))
    (local.set $vectors (i32.add (local.get $vectors) (i32.const 8)))
    (local.set $count (i32.sub (local.get $count) (i32.const 1)))
    (br_if $next (i32.eqz (local.get $length))))
  (if (i32.eqz (call $accessible (i64.extend_i32_u (local.get $buffer))
        (i64.add (i64.extend_i32_u (local.get $buffer)) (i64.extend_i32_u (local.get $length)))
        (i32.and (local.get $access) (global.get $WRITE))))
    (then (return (call $refuse (global.get $REFUSED)))))
  (local.set $room (i32.sub (global.get $ALIAS_CHAIN) (global.get $top)))
  (if (i32.and
        (i64.lt_u (i64.extend_i32_u (local.get $buffer)) (global.get $start))
        (i32.gt_u (local.get $length) (local.get $room)))
    (then (local.set $length (local.get $room))))
  (global.set $buffer (local.get $buffer))
  (i32.store $alias (local.get $at)
    (call $place (local.get $buffer) (i64.extend_i32_u (local.get $length)) (local.get $access)))
  (i32.store $alias offset=4 (local.get $at) (local.get $length))
  (local.get $at))

;; Copy back what a call wrote to the buffer of `$vector`; how much that was stands at `$count` in the alias memory.
(func $give_vector (param $at i32) (param $count i32)
  (call $give_back (i32.load $alias (local.get $at)) (global.get $buffer)
    (call $smaller (i32.load $alias offset=4 (local.get $at)) (i32.load $alias (local.get $count)))))

;; Another process may have changed a count that lies in a heap: it is not trusted.
(func $smaller (param $length i32) (param $count i32) (result i32)
  (select (local.get $count) (local.get $length) (i32.lt_u (local.get $count) (local.get $length))))

;; Place an array of pointers, and the strings that they point to; return 0 if that cannot be. At TABLE_END stands how many
;; pointers there are, then how many bytes.
(func $place_strings (param $array i32) (param $buffer i32) (result i32)
  (local $array_end i64) (local $size i64)
  (local.set $array_end
    (i64.add (i64.extend_i32_u (local.get $array))
      (i64.shl (i64.extend_i32_u (i32.load $alias (global.get $TABLE_END))) (i64.const 2))))
  (local.set $size (i64.extend_i32_u (i32.load $alias offset=4 (global.get $TABLE_END))))
  (if (i32.or
        (i32.and (local.get $array) (i32.const 3))
        (i32.eqz (call $accessible (i64.extend_i32_u (local.get $array)) (local.get $array_end) (i32.const 1))))
    (then (return (call $refuse (global.get $REFUSED)))))
  (global.set $pointers (call $take (i64.sub (local.get $array_end) (i64.extend_i32_u (local.get $array)))))
  (if (i32.eqz (global.get $pointers)) (then (return (i32.const 0))))
  (global.set $strings (call $place (local.get $buffer) (local.get $size) (global.get $WRITE)))
  (global.get $strings))

;; Have the pointers point to where the guest sees the strings, and copy back.
(func $give_strings (param $array i32) (param $buffer i32)
  (local $at i32) (local $left i32)
  (local.set $at (global.get $pointers))
  (local.set $left (i32.load $alias (global.get $TABLE_END)))
  (loop $next
    (if (local.get $left)
      (then
        (i32.store $alias (local.get $at)
          (i32.add (i32.sub (i32.load $alias (local.get $at)) (global.get $strings)) (local.get $buffer)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next))))
  (call $give (global.get $pointers) (i64.extend_i32_u (local.get $array))
    (i32.shl (i32.load $alias (global.get $TABLE_END)) (i32.const 2)))
  (call $give_back (global.get $strings) (local.get $buffer) (i32.load $alias offset=4 (global.get $TABLE_END))))
