//! Primes, from one process to the next through a ring: one sieves, in its private memory, and sends; the other sums up.

const shmwasm = @import("shmwasm");

const Ring = shmwasm.Ring(u64);

var is_composite: [1 << 20]bool = undefined;

/// Returns a new ring with room for 1024 numbers, or null.
export fn create() ?*Ring {
    return Ring.create(1024) catch null;
}

/// Sends the primes below `limit`, at most a million or so, and then says that there are no more.
export fn sieve(ring: *Ring, limit: u32) void {
    @memset(&is_composite, false);
    for (2..@min(limit, is_composite.len)) |number| {
        if (is_composite[number]) continue;
        ring.push(number, null) catch return; // whoever receives has closed it
        var multiple = number * number;
        while (multiple < is_composite.len) : (multiple += number) is_composite[multiple] = true;
    }
    ring.close();
}

/// Returns the sum of what arrives.
export fn sum(ring: *Ring) u64 {
    var total: u64 = 0;
    while (ring.pop(null)) |prime| total += prime else |_| return total;
}
