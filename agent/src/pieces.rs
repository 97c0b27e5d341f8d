//! What gives out memory in the static program, in place of what it is linked with.
//!
//! The C library there (zig's) rounds what is asked for up to a power of two and never gives small pieces back to the system:
//! messages of 4.2 KiB took 8, and a full journal twice its limit. Source: zig 0.17, lib/c/malloc.zig and
//! lib/std/heap/SmpAllocator.zig. Large pieces it maps one by one, which is right for what is needed for a moment only.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dlmalloc::Dlmalloc;

/// From this size on, a piece is mapped by itself.
const LARGE: usize = 64 << 10;

/// See the module.
pub struct Pieces {
    small: Mutex<Dlmalloc>,
}

impl Pieces {
    /// With nothing given out yet.
    pub const fn new() -> Self {
        Self { small: Mutex::new(Dlmalloc::new()) }
    }

    /// Gives the system back what is free at the heap's end.
    #[expect(unsafe_code, reason = "an allocator")]
    pub fn trim(&self) {
        // SAFETY: nobody else uses it while we hold the lock.
        unsafe { self.small().trim(0) };
    }

    fn small(&self) -> MutexGuard<'_, Dlmalloc> {
        self.small.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_large(size: usize) -> bool {
    size >= LARGE
}

// SAFETY: a piece is given back, or made larger, by that of the two that gave it, which its size tells.
#[expect(unsafe_code, reason = "an allocator")]
unsafe impl GlobalAlloc for Pieces {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if is_large(layout.size()) {
                System.alloc(layout)
            } else {
                self.small().malloc(layout.size(), layout.align())
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if is_large(layout.size()) {
                System.alloc_zeroed(layout)
            } else {
                self.small().calloc(layout.size(), layout.align())
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe {
            if is_large(layout.size()) {
                System.dealloc(piece, layout)
            } else {
                self.small().free(piece, layout.size(), layout.align())
            }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; what it says of `size` makes the new layout a sound one.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => System.realloc(piece, layout, size),
                (false, false) => self.small().realloc(piece, layout.size(), layout.align(), size),
                _ => {
                    let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !new.is_null() {
                        new.copy_from_nonoverlapping(piece, size.min(layout.size()));
                        self.dealloc(piece, layout);
                    }
                    new
                }
            }
        }
    }
}
