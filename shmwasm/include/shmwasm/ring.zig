//! A bounded lock-free queue in a shared heap, from one producer to one consumer. See ring.h for how it works.

const base = @import("base.zig");
const heap = @import("heap.zig");

const magic: u32 = 0x676e_6952;

/// A ring of messages of one type, which must have the same layout in all instances: an extern struct of fixed-width fields.
pub fn Ring(comptime Message: type) type {
    return extern struct {
        header: base.Header,
        zero_1: [25]u32,
        tail: u32,
        head_seen: u32,
        zero_2: [30]u32,
        head: u32,
        tail_seen: u32,
        zero_3: [30]u32,

        const Self = @This();
        const own_stride = (@sizeOf(Message) + 7) & ~@as(usize, 7);

        comptime {
            if (@sizeOf(Self) != 384 or @offsetOf(Self, "tail") != 128 or @offsetOf(Self, "head") != 256)
                @compileError("a ring is as ring.h says");
            if (@alignOf(Message) > 8) @compileError("messages are aligned to 8");
        }

        /// Returns a new ring in the shared heap; `capacity` must be a power of two. Free it with `destroy`.
        pub fn create(capacity: u32) error{ OutOfMemory, InvalidCapacity }!*Self {
            if (@popCount(capacity) != 1 or capacity > 1 << 30) return error.InvalidCapacity;
            const block = try heap.allocator.alignedAlloc(u8, .@"16", @sizeOf(Self) + own_stride * capacity);
            const ring: *Self = @ptrCast(block.ptr);
            @memset(@as(*[@sizeOf(Self) / 4]u32, @ptrCast(ring)), 0);
            ring.header.capacity = capacity;
            ring.header.message_size = @sizeOf(Message);
            ring.header.stride = own_stride;
            ring.header.publish(magic); // and with it the rest, to `open`
            return ring;
        }

        /// Returns the ring at an address that was handed over.
        pub fn open(address: *anyopaque) error{NoSuchRing}!*Self {
            const ring: *Self = @ptrCast(@alignCast(address));
            return if (ring.header.isOf(magic, @sizeOf(Message))) ring else error.NoSuchRing;
        }

        /// Frees a ring that nobody uses any more.
        pub fn destroy(ring: *Self) void {
            const bytes: [*]align(16) u8 = @ptrCast(@alignCast(ring));
            heap.allocator.free(bytes[0 .. @sizeOf(Self) + own_stride * ring.header.capacity]);
        }

        inline fn place(ring: *Self, number: u32) *Message {
            const messages: [*]u8 = @ptrCast(@as([*]Self, @ptrCast(ring)) + 1);
            return @ptrCast(@alignCast(messages + @as(usize, number & (ring.header.capacity - 1)) * own_stride));
        }

        /// Returns how many messages are in it: exact if nobody else is at it.
        pub fn count(ring: *const Self) u32 {
            const head = @atomicLoad(u32, &ring.head, .seq_cst); // first, so that it is not beyond the tail
            return @atomicLoad(u32, &ring.tail, .seq_cst) -% head;
        }

        /// Returns where the producer may write its next message, or null if the ring is full.
        pub inline fn reserve(ring: *Self) ?*Message {
            if (ring.tail -% ring.head_seen == ring.header.capacity) {
                ring.head_seen = @atomicLoad(u32, &ring.head, .seq_cst); // pairs with the store in `release`
                if (ring.tail -% ring.head_seen == ring.header.capacity) return null;
            }
            return ring.place(ring.tail);
        }

        /// Hands over the message that was written to where `reserve` said.
        pub inline fn commit(ring: *Self) void {
            @atomicStore(u32, &ring.tail, ring.tail +% 1, .seq_cst); // publishes the message to `front`
            _ = ring.header.filled.signal(base.everyone);
        }

        /// Returns where the consumer's next message is, or null if the ring is empty.
        pub inline fn front(ring: *Self) ?*const Message {
            if (ring.head == ring.tail_seen) {
                ring.tail_seen = @atomicLoad(u32, &ring.tail, .seq_cst); // pairs with the store in `commit`
                if (ring.head == ring.tail_seen) return null;
            }
            return ring.place(ring.head);
        }

        /// Gives the place of the message back that `front` returned.
        pub inline fn release(ring: *Self) void {
            @atomicStore(u32, &ring.head, ring.head +% 1, .seq_cst); // publishes to `reserve` that it was read
            _ = ring.header.freed.signal(base.everyone);
        }

        /// Says that nothing more will be sent. For the producer.
        pub fn close(ring: *Self) void {
            ring.header.close();
        }

        pub inline fn isClosed(ring: *const Self) bool {
            return ring.header.isClosed();
        }

        pub inline fn tryPush(ring: *Self, message: Message) error{ Full, Closed }!void {
            if (ring.isClosed()) return error.Closed;
            (ring.reserve() orelse return error.Full).* = message;
            ring.commit();
        }

        pub inline fn tryPop(ring: *Self) error{ Empty, Closed }!Message {
            // What was sent before the ring was closed was sent before `closed` was stored: look again after having seen that.
            const at = ring.front() orelse if (ring.isClosed()) ring.front() orelse return error.Closed else return error.Empty;
            const message = at.*;
            ring.release();
            return message;
        }

        /// Sends a message, waiting for room for so many nanoseconds at most; null: for ever.
        pub fn push(ring: *Self, message: Message, timeout_ns: ?u64) error{ TimedOut, Closed }!void {
            for (0..base.spins(timeout_ns)) |_| return ring.tryPush(message) catch |failure| switch (failure) {
                error.Full => continue,
                error.Closed => error.Closed,
            };
            var patience: base.Patience = .{ .remaining = timeout_ns };
            while (true) {
                const ticket = if (timeout_ns == 0) 0 else ring.header.freed.expect();
                return ring.tryPush(message) catch |failure| switch (failure) {
                    error.Full => switch (patience.wait(&ring.header.freed.word, ticket)) {
                        .timed_out => error.TimedOut,
                        else => continue,
                    },
                    error.Closed => error.Closed,
                };
            }
        }

        /// Returns the next message, waiting for it likewise. `error.Closed`: there will be none.
        pub fn pop(ring: *Self, timeout_ns: ?u64) error{ TimedOut, Closed }!Message {
            for (0..base.spins(timeout_ns)) |_| return ring.tryPop() catch |failure| switch (failure) {
                error.Empty => continue,
                error.Closed => error.Closed,
            };
            var patience: base.Patience = .{ .remaining = timeout_ns };
            while (true) {
                const ticket = if (timeout_ns == 0) 0 else ring.header.filled.expect();
                return ring.tryPop() catch |failure| switch (failure) {
                    error.Empty => switch (patience.wait(&ring.header.filled.word, ticket)) {
                        .timed_out => error.TimedOut,
                        else => continue,
                    },
                    error.Closed => error.Closed,
                };
            }
        }
    };
}
