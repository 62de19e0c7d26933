//! A histogram of a picture, in Rust: the bytes and the counts both live in a shared heap; a table for one call comes from its malloc.
//!
//! `rustup target add wasm32-unknown-unknown`, or on Debian `apt install rustc libstd-rust-dev-wasm32`, and then:
//!
//!     rustc --target wasm32-unknown-unknown --crate-type cdylib -C opt-level=3 -C strip=symbols \
//!         -C target-feature=+atomics,+bulk-memory -o histogram.wasm histogram.rs
//!
//! Without `+atomics` the compiler takes the guest to be alone, and makes ordinary loads and stores of atomics.

use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

#[link(wasm_import_module = "env")]
extern "C" {
    fn shared_heap_malloc(size: usize) -> *mut u8;
    fn shared_heap_free(block: *mut u8);
}

/// A block of the shared heap, freed when it is dropped.
struct Block(*mut u8);

impl Block {
    fn new(size: usize) -> Option<Self> {
        let start = unsafe { shared_heap_malloc(size) };
        if start.is_null() {
            None
        } else {
            Some(Block(start))
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        unsafe { shared_heap_free(self.0) }
    }
}

/// Counts how often each value occurs in `bytes`, and adds that to 256 counters, to which other instances add at the same time.
/// Returns 0 if the heap has no room.
///
/// # Safety
///
/// Both ranges must lie in memory of this instance.
#[no_mangle]
pub unsafe extern "C" fn count(bytes: *const u8, length: usize, totals: *const AtomicU32) -> u32 {
    let bytes = slice::from_raw_parts(bytes, length);
    let totals = slice::from_raw_parts(totals, 256);
    let table = match Block::new(256 * 4) {
        Some(block) => block,
        None => return 0,
    };
    let counts = slice::from_raw_parts_mut(table.0 as *mut u32, 256);
    counts.fill(0);
    for &byte in bytes {
        counts[byte as usize] += 1;
    }
    for (total, &mine) in totals.iter().zip(counts.iter()) {
        total.fetch_add(mine, Ordering::Relaxed);
    }
    1
}
