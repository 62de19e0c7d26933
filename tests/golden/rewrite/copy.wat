;; memory.copy within the heap memory: a length that is known is kept at the site, another one is put into a local.
(module
  (memory (export "memory") 1)
  (func (export "constant") (param $to i32) (param $source i32) (local $mine f32)
    (memory.copy (local.get $to) (local.get $source) (i32.const 16)))
  (func (export "computed") (param $to i32) (param $source i32) (param $length i32)
    (memory.copy (local.get $to) (local.get $source) (local.get $length)))
  (func (export "untouched") (result i32)
    (memory.size)))
