//! The guest kit: what a guest in Zig needs to work with others in a shared heap. The same as shmwasm.h, with the same layouts,
//! so that guests in both languages share one mutex or queue; the headers say how it works, and what holds when a process dies.
//!
//!     python -m ziglang build-exe -target wasm32-freestanding -mcpu generic+atomics -O ReleaseFast -fno-entry -rdynamic \
//!         --dep shmwasm -Mroot=guest.zig -Mshmwasm="$(shmwasm include-path)/shmwasm.zig" -femit-bin=guest.wasm

const base = @import("shmwasm/base.zig");

pub const Event = base.Event;
pub const Mutex = @import("shmwasm/mutex.zig").Mutex;
pub const Queue = @import("shmwasm/queue.zig").Queue;
pub const Relative = @import("shmwasm/heap.zig").Relative;
pub const Ring = @import("shmwasm/ring.zig").Ring;
pub const allocator = @import("shmwasm/heap.zig").allocator;
pub const futexWait = base.futexWait;
pub const futexWake = base.futexWake;
pub const peerAlive = base.peerAlive;
pub const self = base.self;
