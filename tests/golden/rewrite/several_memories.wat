;; Only what involves the heap memory changes: the one exported as "memory".
(module
  (memory $other (export "other") 1)
  (memory $heap (export "memory") 1)
  (func (export "within_other") (memory.copy $other $other (i32.const 0) (i32.const 8) (i32.const 8)))
  (func (export "to_other") (param $to i32) (param $source i32) (param $length i32)
    (memory.copy $other $heap (local.get $to) (local.get $source) (local.get $length))))
