//! What tests/integration/test_guest_kit.py does with the guest kit, in Zig: the same exports as kit.c, for what both can do.

const shmwasm = @import("shmwasm");

const Message = extern struct {
    producer: u32,
    number: u32,
    check: u64,
};

const Queue = shmwasm.Queue(Message);
const Ring = shmwasm.Ring(Message);

fn checkOf(producer: u32, number: u32) u64 {
    return (@as(u64, producer) << 32 | number) *% 0x9e37_79b9_7f4a_7c15;
}

export fn new_queue(capacity: u32) ?*anyopaque {
    return Queue.create(capacity) catch null;
}

export fn new_ring(capacity: u32) ?*anyopaque {
    return Ring.create(capacity) catch null;
}

export fn queue_push_many(address: *anyopaque, producer: u32, count: u32) u32 {
    const queue = Queue.open(address) catch @trap();
    for (0..count) |number| {
        const sent: Message = .{ .producer = producer, .number = @intCast(number), .check = checkOf(producer, @intCast(number)) };
        queue.push(sent, null) catch @trap();
    }
    return count;
}

export fn ring_push_many(address: *anyopaque, count: u32) u32 {
    const ring = Ring.open(address) catch @trap();
    for (0..count) |number| {
        const sent: Message = .{ .producer = 0, .number = @intCast(number), .check = checkOf(0, @intCast(number)) };
        ring.push(sent, null) catch @trap();
    }
    ring.close();
    return count;
}

/// Receives until the queue is closed and empty; checks contents and the order of each producer; counts into
/// `received[producer]`.
export fn queue_pop_all(address: *anyopaque, received: [*]u32, producers: u32) u32 {
    const queue = Queue.open(address) catch @trap();
    var next: [16]u32 = @splat(0);
    var count: u32 = 0;
    while (queue.pop(null)) |got| : (count += 1) {
        if (got.check != checkOf(got.producer, got.number) or got.producer >= producers or got.number < next[got.producer]) @trap();
        next[got.producer] = got.number + 1;
        received[got.producer] += 1;
    } else |_| {}
    return count;
}

export fn ring_pop_all(address: *anyopaque) u32 {
    const ring = Ring.open(address) catch @trap();
    var count: u32 = 0;
    while (ring.pop(null)) |got| : (count += 1) {
        if (got.number != count or got.check != checkOf(0, got.number)) @trap();
    } else |_| {}
    return count;
}

export fn queue_close(address: *anyopaque) void {
    (Queue.open(address) catch @trap()).close();
}

/// Adds to a counter that the mutex protects, in two steps; returns how often the one before had died.
export fn add_under_mutex(mutex: *shmwasm.Mutex, counters: *volatile [2]u64, times: u32) u32 {
    var died: u32 = 0;
    for (0..times) |_| {
        if ((mutex.lock() catch @trap()) == .owner_died) {
            died += 1;
            counters[1] = counters[0];
            mutex.consistent() catch @trap();
        }
        if (counters[0] != counters[1]) @trap();
        counters[0] += 1;
        counters[1] += 1;
        mutex.unlock() catch @trap();
    }
    return died;
}

export fn relative_round_trip(cell: *shmwasm.Relative(u64)) u64 {
    return if (cell.get()) |value| value.* else 0;
}
