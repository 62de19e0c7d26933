;; A memory that is neither exported nor imported gets an export.
(module
  (memory 1)
  (func (export "load") (param $address i32) (result i32) (i32.load (local.get $address))))
