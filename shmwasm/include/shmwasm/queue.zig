//! A bounded lock-free queue in a shared heap, for any number of producers and consumers. See queue.h for how it works, what each
//! atomic publishes, and what becomes of what the dead have left half done.

const base = @import("base.zig");
const heap = @import("heap.zig");
const word64 = base.word64;

const magic: u32 = 0x7565_7551;
const void_owner: u32 = 0xffff_ffff;

/// A queue of messages of one type, which must have the same layout in all instances: an extern struct of fixed-width fields.
pub fn Queue(comptime Message: type) type {
    return extern struct {
        header: base.Header,
        /// Messages whose producers died while they wrote them.
        voided: u32,
        /// Messages whose consumers died while they read them.
        lost: u32,
        zero_1: [23]u32,
        tail: u64,
        zero_2: [15]u64,
        head: u64,
        zero_3: [15]u64,

        const Self = @This();

        pub const Slot = extern struct {
            state: u64,
            message: Message align(8),

            inline fn load(slot: *const Slot) u64 {
                return word64.load(&slot.state);
            }

            /// Changes a state. With an owner it is a claim: whoever dies before has left no trace, after, its number.
            inline fn swap(slot: *Slot, expected: u64, desired: u64) bool {
                return word64.swap(&slot.state, expected, desired);
            }
        };

        comptime {
            if (@sizeOf(Self) != 384 or @offsetOf(Self, "tail") != 128 or @offsetOf(Self, "head") != 256)
                @compileError("a queue is as queue.h says");
            if (@alignOf(Message) > 8 or @sizeOf(Slot) != ((@sizeOf(Message) + 7) & ~@as(usize, 7)) + 8)
                @compileError("a slot is as queue.h says");
        }

        /// Returns a new queue in the shared heap; `capacity` must be a power of two from 2 on. Free it with `destroy`.
        pub fn create(capacity: u32) error{ OutOfMemory, InvalidCapacity }!*Self {
            if (capacity < 2 or @popCount(capacity) != 1 or capacity > 1 << 30) return error.InvalidCapacity;
            const block = try heap.allocator.alignedAlloc(u8, .@"16", @sizeOf(Self) + @sizeOf(Slot) * capacity);
            const queue: *Self = @ptrCast(block.ptr);
            @memset(@as(*[@sizeOf(Self) / 8]u64, @ptrCast(queue)), 0);
            queue.header.capacity = capacity;
            queue.header.message_size = @sizeOf(Message);
            queue.header.stride = @sizeOf(Slot);
            for (0..capacity) |position| queue.slotAt(position).state = position;
            queue.header.publish(magic); // and with it the rest, to `open`
            return queue;
        }

        /// Returns the queue at an address that was handed over.
        pub fn open(address: *anyopaque) error{NoSuchQueue}!*Self {
            const queue: *Self = @ptrCast(@alignCast(address));
            return if (queue.header.isOf(magic, @sizeOf(Message))) queue else error.NoSuchQueue;
        }

        /// Frees a queue that nobody uses any more.
        pub fn destroy(queue: *Self) void {
            const bytes: [*]align(16) u8 = @ptrCast(@alignCast(queue));
            heap.allocator.free(bytes[0 .. @sizeOf(Self) + @sizeOf(Slot) * queue.header.capacity]);
        }

        inline fn slotAt(queue: *Self, position: u64) *Slot {
            const slots: [*]Slot = @ptrCast(@as([*]Self, @ptrCast(queue)) + 1);
            return &slots[@intCast(position & (queue.header.capacity - 1))];
        }

        inline fn slotOf(message: *const Message) *Slot {
            return @alignCast(@constCast(@fieldParentPtr("message", @as(*align(8) const Message, @alignCast(message)))));
        }

        inline fn stateOf(position: u64, owner: u32) u64 {
            return @as(u64, owner) << 32 | (position & 0xffff_ffff);
        }

        inline fn serves(state: u64, position: u64) bool {
            return @as(u32, @truncate(state)) == @as(u32, @truncate(position));
        }

        inline fn isBefore(state: u64, position: u64) bool {
            return @as(i32, @bitCast(@as(u32, @truncate(state)) -% @as(u32, @truncate(position)))) < 0;
        }

        /// Moves `tail` or `head` past a position, unless it is beyond it already; anyone may.
        inline fn pass(counter: *u64, position: u64) void {
            _ = word64.swap(counter, position, position + 1);
        }

        noinline fn wake(queue: *Self, event: *base.Event, counter: *u64, ready: u32) void {
            // See shmwasm_queue_wake: one at a time, and another only while there is something for it.
            while (event.signal(1) > 0) {
                _ = event.expect();
                const position = word64.load(counter);
                if (serves(queue.slotAt(position).load(), position + ready)) continue;
                if (!(if (event == &queue.header.filled) queue.isDrained() else queue.isClosed())) return;
            }
        }

        inline fn signalFilled(queue: *Self) void {
            if (queue.header.filled.expected()) queue.wake(&queue.header.filled, &queue.head, 1);
        }

        inline fn signalFreed(queue: *Self) void {
            if (queue.header.freed.expected()) queue.wake(&queue.header.freed, &queue.tail, 0);
        }

        inline fn endWriting(queue: *Self, slot: *Slot, owner: u32) void {
            // Publishes the message to the swap of the consumer that claims it. Dying before: it becomes void.
            word64.store(&slot.state, stateOf(slot.load() + 1, owner));
            queue.signalFilled();
        }

        /// Returns where the caller may write a message, which it must then publish.
        pub inline fn claim(queue: *Self) error{ Full, Closed }!*Message {
            if (queue.isClosed()) return error.Closed;
            while (true) {
                const position = word64.load(&queue.tail);
                const slot = queue.slotAt(position);
                const state = slot.load();
                if (state == stateOf(position, 0)) {
                    if (!slot.swap(state, stateOf(position, base.self()))) continue;
                    pass(&queue.tail, position);
                    if (!queue.isClosed()) return &slot.message;
                    // Closed meanwhile: whoever saw that before our claim may have left.
                    queue.endWriting(slot, void_owner);
                    return error.Closed;
                }
                if (serves(state, position)) {
                    pass(&queue.tail, position);
                } else if (isBefore(state, position) and word64.load(&queue.tail) == position) {
                    return error.Full;
                }
            }
        }

        /// Sends the message that was written to where `claim` said.
        pub inline fn publish(queue: *Self, message: *Message) void {
            queue.endWriting(slotOf(message), 0);
        }

        /// Returns the next message, which is the caller's until it releases it; null if there is none, or if it is still being
        /// written.
        pub inline fn front(queue: *Self) ?*const Message {
            while (true) {
                const position = word64.load(&queue.head);
                const slot = queue.slotAt(position);
                const state = slot.load();
                if (serves(state, position + 1)) {
                    const owner: u32 = @intCast(state >> 32);
                    if (owner == 0 or owner == void_owner) {
                        if (!slot.swap(state, stateOf(position + 1, base.self()))) continue;
                        pass(&queue.head, position);
                        if (owner == 0) return &slot.message;
                        queue.release(&slot.message);
                    } else pass(&queue.head, position);
                } else if (isBefore(state, position + 1) and word64.load(&queue.head) == position) {
                    return null;
                }
            }
        }

        /// Gives the place of the message back that `front` returned.
        pub inline fn release(queue: *Self, message: *const Message) void {
            const slot = slotOf(message);
            // Publishes to the swap of the next producer that it was read. Dying before: the message is lost with its reader.
            word64.store(&slot.state, stateOf(slot.load() - 1 + queue.header.capacity, 0));
            queue.signalFreed();
        }

        /// Ends the claims of all who are gone, and of this instance, which must be in the middle of none. Returns how many.
        pub fn recover(queue: *Self) u32 {
            const tail = word64.load(&queue.tail);
            var ended: u32 = 0;
            var position = tail -| queue.header.capacity;
            while (position <= tail) : (position += 1) ended += @intFromBool(queue.recoverAt(position));
            return ended;
        }

        noinline fn recoverAt(queue: *Self, position: u64) bool {
            const slot = queue.slotAt(position);
            const state = slot.load();
            const owner: u32 = @intCast(state >> 32);
            const writing = serves(state, position);
            if (owner == 0 or owner == void_owner or !(writing or serves(state, position + 1))) return false;
            if (owner != base.self() and base.peerAlive(owner)) return false;
            // It may have died before it moved the counter on. One swap of all who try succeeds.
            pass(if (writing) &queue.tail else &queue.head, position);
            const ended = if (writing) stateOf(position + 1, void_owner) else stateOf(position + queue.header.capacity, 0);
            if (!slot.swap(state, ended)) return false;
            _ = @atomicRmw(u32, if (writing) &queue.voided else &queue.lost, .Add, 1, .seq_cst);
            if (writing) queue.signalFilled() else queue.signalFreed();
            return true;
        }

        /// Returns how many messages are in it, with those being written or read: exact if nobody else is at it.
        pub fn count(queue: *const Self) u64 {
            const head = word64.load(&queue.head); // first, so that it is not beyond the tail
            return word64.load(&queue.tail) - head;
        }

        /// Says that nothing more will be sent: pushes are refused from now on, and pops once all that was sent is out.
        pub fn close(queue: *Self) void {
            queue.header.close();
        }

        pub inline fn isClosed(queue: *const Self) bool {
            return queue.header.isClosed();
        }

        /// Tells whether the queue was closed, and nothing will come out of it any more.
        pub fn isDrained(queue: *Self) bool {
            if (!queue.isClosed()) return false;
            // A producer claims before it looks whether the queue is closed, and we do the opposite.
            const head = word64.load(&queue.head);
            const state = queue.slotAt(head).load();
            return state == stateOf(head, 0) or isBefore(state, head);
        }

        pub inline fn tryPush(queue: *Self, message: Message) error{ Full, Closed }!void {
            const at = try queue.claim();
            at.* = message;
            queue.publish(at);
        }

        pub inline fn tryPop(queue: *Self) error{ Empty, Closed }!Message {
            const at = queue.front() orelse return if (queue.isDrained()) error.Closed else error.Empty;
            const message = at.*;
            queue.release(at);
            return message;
        }

        /// Sends a message, waiting for room for so many nanoseconds at most; null: for ever. With 0 it does not wait, but
        /// notices deaths.
        pub fn push(queue: *Self, message: Message, timeout_ns: ?u64) error{ TimedOut, Closed }!void {
            for (0..base.spins(timeout_ns)) |_| return queue.tryPush(message) catch |failure| switch (failure) {
                error.Full => continue,
                error.Closed => error.Closed,
            };
            var patience: base.Patience = .{ .remaining = timeout_ns };
            while (true) {
                const ticket = if (timeout_ns == 0) 0 else queue.header.freed.expect();
                if (queue.tryPush(message)) return else |failure| if (failure == error.Closed) return error.Closed;
                const waited = patience.wait(&queue.header.freed.word, ticket);
                if (waited == .try_again) continue;
                // What keeps the queue full is the position of a round ago.
                const tail = word64.load(&queue.tail);
                const ended = tail >= queue.header.capacity and queue.recoverAt(tail - queue.header.capacity);
                if (waited == .timed_out and !ended) return error.TimedOut;
            }
        }

        /// Returns the next message, waiting for it likewise. `error.Closed`: there will be none.
        pub fn pop(queue: *Self, timeout_ns: ?u64) error{ TimedOut, Closed }!Message {
            for (0..base.spins(timeout_ns)) |_| return queue.tryPop() catch |failure| switch (failure) {
                error.Empty => continue,
                error.Closed => error.Closed,
            };
            var patience: base.Patience = .{ .remaining = timeout_ns };
            while (true) {
                const ticket = if (timeout_ns == 0) 0 else queue.header.filled.expect();
                if (queue.tryPop()) |message| return message else |failure| if (failure == error.Closed) return error.Closed;
                const waited = patience.wait(&queue.header.filled.word, ticket);
                if (waited == .try_again) continue;
                const ended = queue.recoverAt(word64.load(&queue.head));
                if (waited == .timed_out and !ended) return error.TimedOut;
            }
        }
    };
}
