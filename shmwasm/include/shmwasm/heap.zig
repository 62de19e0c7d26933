//! Allocation in the shared heap, and pointers that can be stored in it. See heap.h.

const std = @import("std");

const env = struct {
    extern "env" fn shared_heap_malloc(size: usize) ?[*]align(16) u8;
    extern "env" fn shared_heap_free(block: [*]u8) void;
};

/// The shared heap: blocks are aligned to 16, any instance may free them, and a free of what is no live block traps.
pub const allocator: std.mem.Allocator = .{ .ptr = undefined, .vtable = &.{
    .alloc = alloc,
    .resize = std.mem.Allocator.noResize,
    .remap = std.mem.Allocator.noRemap,
    .free = free,
} };

fn alloc(_: *anyopaque, size: usize, alignment: std.mem.Alignment, _: usize) ?[*]u8 {
    return if (alignment.toByteUnits() > 16) null else env.shared_heap_malloc(size);
}

fn free(_: *anyopaque, block: []u8, _: std.mem.Alignment, _: usize) void {
    env.shared_heap_free(block.ptr);
}

/// A pointer from one place of a heap to another, as the distance from itself: the same in 32-bit and 64-bit instances.
pub fn Relative(comptime T: type) type {
    return extern struct {
        /// Zero is null.
        distance: i64 = 0,

        pub fn get(from: *const @This()) ?*T {
            if (from.distance == 0) return null;
            return @ptrFromInt(@intFromPtr(from) +% @as(usize, @truncate(@as(u64, @bitCast(from.distance)))));
        }

        pub fn set(from: *@This(), to: ?*const T) void {
            from.distance = if (to) |target| @as(i64, @intCast(@intFromPtr(target))) - @as(i64, @intCast(@intFromPtr(from))) else 0;
        }
    };
}
