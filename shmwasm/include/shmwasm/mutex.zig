//! A mutex in a shared heap, between processes, that survives the death of whoever holds it. See mutex.h for what its word means.

const base = @import("base.zig");

const inconsistent: u32 = 0x4000_0000;
const waiters: u32 = 0x8000_0000;

pub const Mutex = extern struct {
    word: u32 = 0,

    /// How a mutex was locked.
    pub const Locked = enum {
        clean,
        /// The one before died while it held the mutex: repair what it protects, and call `consistent`.
        owner_died,
    };

    pub const LockError = error{
        /// Whoever was told of a death unlocked the mutex without having called `consistent`.
        NotRecoverable,
        /// This instance holds the mutex already.
        Deadlock,
    };

    /// Locks, however long that takes.
    pub inline fn lock(mutex: *Mutex) LockError!Locked {
        return mutex.timedLock(null) catch |failure| switch (failure) {
            error.TimedOut => unreachable,
            else => |other| other,
        };
    }

    /// Locks, waiting for so many nanoseconds at most; null: for ever. With 0 it does not wait, but notices the death of the
    /// holder.
    pub inline fn timedLock(mutex: *Mutex, timeout_ns: ?u64) (LockError || error{TimedOut})!Locked {
        return if (mutex.swap(0, base.self())) .clean else mutex.lockSlowly(timeout_ns);
    }

    /// Locks if nobody holds it; does not ask whether a holder lives.
    pub inline fn tryLock(mutex: *Mutex) bool {
        return mutex.swap(0, base.self());
    }

    pub inline fn unlock(mutex: *Mutex) error{NotOwner}!void {
        if (!mutex.swap(base.self(), 0)) try mutex.unlockSlowly();
    }

    /// Says that what the mutex protects is as it should be, after `owner_died`.
    pub fn consistent(mutex: *Mutex) error{NotOwner}!void {
        if (!mutex.isMine()) return error.NotOwner;
        // A process that dies before this leaves the bit to the next holder.
        _ = @atomicRmw(u32, &mutex.word, .And, ~inconsistent, .seq_cst);
    }

    /// Tells whether this instance holds the mutex: an earlier call may have been interrupted while it did.
    pub fn isMine(mutex: *const Mutex) bool {
        return mutex.load() & base.peer_mask == base.self();
    }

    inline fn load(mutex: *const Mutex) u32 {
        return @atomicLoad(u32, &mutex.word, .seq_cst); // a hint: what is done with it is checked by the swap
    }

    // Whoever locks so sees what the one that unlocked wrote. Dying before changes nothing; after, the number says who holds it.
    inline fn swap(mutex: *Mutex, expected: u32, desired: u32) bool {
        return @cmpxchgStrong(u32, &mutex.word, expected, desired, .seq_cst, .seq_cst) == null;
    }

    noinline fn lockSlowly(mutex: *Mutex, timeout_ns: ?u64) (LockError || error{TimedOut})!Locked {
        const self = base.self();
        for (0..base.spins(timeout_ns)) |_| {
            const word = mutex.load();
            if (word == 0 and mutex.swap(0, self)) return .clean;
            if (word & base.peer_mask == self) return error.Deadlock;
        }
        var patience: base.Patience = .{ .remaining = timeout_ns };
        while (true) {
            const word = mutex.load();
            const holder = word & base.peer_mask;
            if (word == inconsistent) return error.NotRecoverable;
            if (holder == self) return error.Deadlock;
            if (holder == 0) {
                // Others may still wait: keep the bit, so that our unlock wakes the next one.
                if (mutex.swap(word, self | waiters)) return .clean;
                continue;
            }
            // The unlock either sees the bit and wakes, or came first, and the wait returns at once.
            if (timeout_ns != 0 and word & waiters == 0 and !mutex.swap(word, word | waiters)) continue;
            const waited = patience.wait(&mutex.word, word | waiters);
            if (waited == .try_again) continue;
            if (mutex.inherit(holder)) return .owner_died;
            if (waited == .timed_out) return error.TimedOut;
        }
    }

    /// Takes the place of a dead holder; false if another has, or if the holder lives.
    fn inherit(mutex: *Mutex, holder: u32) bool {
        if (base.peerAlive(holder)) return false;
        while (true) {
            // The dead change nothing: the word can only gain the waiters' bit, or be replaced by one heir.
            const word = mutex.load();
            if (word & base.peer_mask != holder) return false;
            if (mutex.swap(word, base.self() | waiters | inconsistent)) return true;
        }
    }

    noinline fn unlockSlowly(mutex: *Mutex) error{NotOwner}!void {
        if (!mutex.isMine()) return error.NotOwner;
        const left = mutex.load() & inconsistent;
        // Publishes what was done under the mutex, and finds the bit of everyone who waits.
        const word = @atomicRmw(u32, &mutex.word, .Xchg, left, .seq_cst);
        if (word & waiters != 0) _ = base.futexWake(&mutex.word, if (left != 0) base.everyone else 1);
    }
};

comptime {
    if (@sizeOf(Mutex) != 4) @compileError("a mutex is as mutex.h says");
}
