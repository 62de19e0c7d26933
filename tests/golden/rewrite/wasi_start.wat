;; The start function of a module that imports WASI becomes an export: the engine calls it once WASI knows the memory.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $first)
  (start $first))
