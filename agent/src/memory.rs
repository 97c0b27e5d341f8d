//! Memory that was needed for a moment only.

/// Gives freed memory back to the system: what is read of the kernel's types and of many libraries takes some 10 MiB for a
/// moment, and glibc would keep the room for good. musl and Android's C library give it back by themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call it at any time.
    #[expect(unsafe_code, reason = "malloc_trim")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
