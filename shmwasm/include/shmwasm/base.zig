//! What the other files have in common: who this process is, waiting for words, events. See base.h and futex.h.

const builtin = @import("builtin");

comptime {
    if (!builtin.cpu.arch.isWasm()) @compileError("the guest kit for Zig is for WebAssembly");
    if (!builtin.cpu.has(.wasm, .atomics)) @compileError("the guest kit needs atomics: -mcpu generic+atomics");
}

const env = struct {
    extern "env" fn shared_heap_self() u32;
    extern "env" fn shared_heap_peer_alive(peer: u32) u32;
};

/// The bits of a mutex's word that name its holder, and so the highest peer number that the kit can do with.
pub const peer_mask: u32 = 0x3fff_ffff;

var own_number: u32 = 0;

/// Returns the peer number of this process, having asked for it once: above zero, and never used again for another.
pub inline fn self() u32 {
    if (own_number == 0) {
        @branchHint(.unlikely);
        const number = env.shared_heap_self();
        if (number == 0 or number > peer_mask) @trap();
        own_number = number;
    }
    return own_number;
}

/// Returns false if the process with that number is gone for sure. Asks the coordinator: tens of microseconds.
pub fn peerAlive(peer: u32) bool {
    return env.shared_heap_peer_alive(peer) != 0;
}

pub const Waited = enum(u32) { woken = 0, different = 1, timed_out = 2 };

/// Waits while `word` is `expected`, until it is woken, perhaps for no reason, or for `timeout_ns` nanoseconds unless that is
/// negative.
pub inline fn futexWait(word: *u32, expected: u32, timeout_ns: i64) Waited {
    return @fromBackingInt(@intCast(asm volatile (
        \\local.get %[word]
        \\local.get %[expected]
        \\local.get %[timeout]
        \\memory.atomic.wait32 0
        \\local.set %[result]
        : [result] "=r" (-> u32),
        : [word] "r" (word),
          [expected] "r" (expected),
          [timeout] "r" (timeout_ns),
        : .{ .memory = true })));
}

/// Wakes at most `count` of those who wait for the word; returns how many.
pub inline fn futexWake(word: *u32, count: u32) u32 {
    return asm volatile (
        \\local.get %[word]
        \\local.get %[count]
        \\memory.atomic.notify 0
        \\local.set %[result]
        : [result] "=r" (-> u32),
        : [word] "r" (word),
          [count] "r" (count),
        : .{ .memory = true });
}

pub const everyone: u32 = 0x7fff_ffff;

/// How often a blocking function tries before it waits.
pub fn spins(timeout_ns: ?u64) usize {
    return if (timeout_ns == 0) 0 else 3000;
}

/// How long a blocking function still waits, in slices.
pub const Patience = struct {
    /// Nanoseconds; null: for ever.
    remaining: ?u64,
    slice: u64 = 1_000_000,

    const longest_slice = 64_000_000;

    pub const Outcome = enum { try_again, slice_passed, timed_out };

    /// Waits for a word, for a slice at most. After `slice_passed` it is time to ask who lives.
    pub noinline fn wait(patience: *Patience, word: *u32, expected: u32) Outcome {
        const slice = if (patience.remaining) |remaining| @min(remaining, patience.slice) else patience.slice;
        if (slice == 0) return .timed_out;
        if (futexWait(word, expected, @intCast(slice)) != .timed_out) return .try_again;
        if (patience.remaining) |*remaining| remaining.* -= slice;
        if (patience.slice < longest_slice) patience.slice *= 2;
        return .slice_passed;
    }
};

/// What waiters wait for, and makers of what they wait for signal. Bit 0: somebody may wait. The rest: how often that was
/// cleared.
pub const Event = extern struct {
    word: u32 = 0,

    /// Says that somebody may wait, and returns what to wait with, after having looked once more whether there is nothing.
    /// Publishes to the load in `signal`.
    pub inline fn expect(event: *Event) u32 {
        return @atomicRmw(u32, &event.word, .Or, 1, .seq_cst) | 1;
    }

    pub inline fn expected(event: *const Event) bool {
        return @atomicLoad(u32, &event.word, .seq_cst) & 1 != 0;
    }

    /// Wakes at most `count` of those who wait, if anybody may; returns how many. One load where nobody waits. Pairs with
    /// `expect`.
    pub inline fn signal(event: *Event, count: u32) u32 {
        const word = @atomicLoad(u32, &event.word, .seq_cst);
        return if (word & 1 == 0) 0 else event.wake(word, count);
    }

    noinline fn wake(event: *Event, word: u32, count: u32) u32 {
        // See shmwasm_event_wake: who has a ticket but does not wait yet looks again, as the word changes.
        if (@cmpxchgStrong(u32, &event.word, word, word +% 1, .seq_cst, .seq_cst) != null) return 0;
        return futexWake(&event.word, count);
    }
};

/// How a ring and a queue begin: what is in them, whether more will come, and what their ends wait for.
pub const Header = extern struct {
    magic: u32,
    capacity: u32,
    message_size: u32,
    stride: u32,
    closed: u32,
    filled: Event,
    freed: Event,

    /// Publishes what was made to `isOf`.
    pub inline fn publish(header: *Header, magic: u32) void {
        @atomicStore(u32, &header.magic, magic, .seq_cst);
    }

    /// Tells whether it begins what has that magic number, with messages of that size.
    pub inline fn isOf(header: *const Header, magic: u32, message_size: usize) bool {
        return @atomicLoad(u32, &header.magic, .seq_cst) == magic and header.message_size == message_size;
    }

    /// Says that nothing more will be sent.
    pub fn close(header: *Header) void {
        @atomicStore(u32, &header.closed, 1, .seq_cst); // before the signals, as any other news
        _ = header.filled.signal(everyone);
        _ = header.freed.signal(everyone);
    }

    pub inline fn isClosed(header: *const Header) bool {
        return @atomicLoad(u32, &header.closed, .seq_cst) != 0;
    }
};

/// Atomic 64-bit words, all sequentially consistent. As instructions, since Zig has no 64-bit atomics for wasm32, which does have
/// them.
pub const word64 = struct {
    pub inline fn load(place: *const u64) u64 {
        return asm volatile (
            \\local.get %[place]
            \\i64.atomic.load 0
            \\local.set %[result]
            : [result] "=r" (-> u64),
            : [place] "r" (place),
            : .{ .memory = true });
    }

    pub inline fn store(place: *u64, value: u64) void {
        asm volatile (
            \\local.get %[place]
            \\local.get %[value]
            \\i64.atomic.store 0
            :
            : [place] "r" (place),
              [value] "r" (value),
            : .{ .memory = true });
    }

    /// Replaces the word if it is `expected`; returns whether it was.
    pub inline fn swap(place: *u64, expected: u64, desired: u64) bool {
        return expected == asm volatile (
            \\local.get %[place]
            \\local.get %[expected]
            \\local.get %[desired]
            \\i64.atomic.rmw.cmpxchg 0
            \\local.set %[result]
            : [result] "=r" (-> u64),
            : [place] "r" (place),
              [expected] "r" (expected),
              [desired] "r" (desired),
            : .{ .memory = true });
    }
};
