//! What gives out memory. In the serving half, what is given back is cleared first: payloads pass through many hands, ours and
//! libraries', and a freed copy would stay until something else takes its place.
//!
//! In the static program it stands in for what that is linked with, too (`pieces`).

#[cfg(not(target_env = "musl"))]
use std::alloc::System;
use std::{
    alloc::{GlobalAlloc, Layout},
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
};

#[cfg(target_env = "musl")]
use crate::pieces::Pieces;

#[cfg(not(target_env = "musl"))]
#[global_allocator]
static ALLOCATOR: Clearing<System> = Clearing(System);

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: Clearing<Pieces> = Clearing(Pieces::new());

/// Whether what is given back is cleared.
static CLEARS: AtomicBool = AtomicBool::new(false);

/// Has what is given back cleared from now on.
pub fn clear_freed() {
    CLEARS.store(true, Ordering::Relaxed);
}

/// Gives the system back what is free at the heap's end.
#[cfg(target_env = "musl")]
pub fn trim() {
    ALLOCATOR.0.trim();
}

/// Clears what is given back, if that is asked for.
struct Clearing<A>(A);

// SAFETY: all pieces are of what is below, and go back there as they came.
#[expect(unsafe_code, reason = "an allocator")]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Clearing<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: it is that large, and nobody uses it any more.
        unsafe {
            if CLEARS.load(Ordering::Relaxed) {
                piece.write_bytes(0, layout.size());
                // Else it would be left out, as nobody reads it.
                black_box(piece);
            }
            self.0.dealloc(piece, layout);
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; what it says of `size` makes the new layout a sound one.
        unsafe {
            if !CLEARS.load(Ordering::Relaxed) {
                return self.0.realloc(piece, layout, size);
            }
            // What is below might move it, and leave behind what is in it.
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(piece, size.min(layout.size()));
                self.dealloc(piece, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{alloc::System, cell::Cell};

    use super::*;

    /// Counts what comes back and is not clear.
    #[derive(Default)]
    struct Below {
        back: Cell<usize>,
        dirty: Cell<usize>,
    }

    // SAFETY: all of it is the system's.
    #[expect(unsafe_code, reason = "an allocator")]
    unsafe impl GlobalAlloc for Below {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
            self.back.set(self.back.get() + 1);
            // SAFETY: the caller's promise.
            unsafe {
                let bytes = std::slice::from_raw_parts(piece, layout.size());
                self.dirty.set(self.dirty.get() + bytes.iter().filter(|byte| **byte != 0).count());
                System.dealloc(piece, layout);
            }
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "an allocator")]
    fn what_is_given_back_is_clear_whether_it_is_freed_or_changes_its_size() {
        clear_freed();
        let allocator = Clearing(Below::default());
        for (size, then) in [(1, 3), (100, 50), (100_000, 300_000)] {
            let layout = |size| Layout::from_size_align(size, 8).unwrap();
            // SAFETY: sizes are not 0, and no more is written than there is.
            unsafe {
                let piece = allocator.alloc(layout(size));
                piece.write_bytes(7, size);
                let piece = allocator.realloc(piece, layout(size), then);
                let kept = std::slice::from_raw_parts(piece, size.min(then));
                assert!(kept.iter().all(|byte| *byte == 7));
                allocator.dealloc(piece, layout(then));
            }
        }
        assert_eq!((allocator.0.back.get(), allocator.0.dirty.get()), (6, 0));
    }
}
