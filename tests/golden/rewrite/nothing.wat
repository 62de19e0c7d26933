;; Loads, stores and 32-bit sizes need nothing.
(module
  (memory (export "memory") 1)
  (func (export "grow") (param $pages i32) (result i32)
    (i32.store (i32.const 0) (memory.size))
    (memory.grow (local.get $pages))))
