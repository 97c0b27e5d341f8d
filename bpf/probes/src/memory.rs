//! Reading memory that is not ours, in the ways that every kernel's verifier takes.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use plaintap_abi::TaskOffsets;

#[unsafe(no_mangle)]
static TASK_OFFSETS: TaskOffsets = TaskOffsets { signal: 0, live: 0, stack: 0, argument: 0 };

/// The layout of this kernel's tasks, as far as the agent knows it.
#[inline(always)]
pub fn task_offsets() -> TaskOffsets {
    // SAFETY: a static of this program. Volatile, because the loader writes the value that counts.
    unsafe { core::ptr::read_volatile(&raw const TASK_OFFSETS) }
}

/// `value`, or `N` where it is larger: a bound that the verifier must see, in a form that LLVM can't reason away.
#[inline(always)]
pub fn at_most<const N: usize>(mut value: u64) -> u64 {
    // SAFETY: changes no register but its own, touches no memory.
    unsafe {
        asm!("if {0} <= {max} goto +1", "{0} = {max}", inout(reg) value, max = const N, options(pure, nomem, nostack));
    }
    value
}

/// Reads `length` bytes, which the verifier must know the bound of, at the process's `address` into `to`; tells whether
/// all could be read.
///
/// # Safety
///
/// `to` must have room for them.
#[inline(always)]
pub unsafe fn read_user(to: *mut c_void, length: u64, address: u64) -> bool {
    // SAFETY: the caller's for `to`; the helper walks the process's page tables, and fails where there is no page.
    unsafe { bpf_probe_read_user(to, length as u32, untagged(address) as *const c_void) == 0 }
}

/// The value at the process's `address`.
#[inline(always)]
pub fn user_value<T: Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: there is room for a T, plain old data.
    unsafe { read_user((&raw mut value).cast(), size_of::<T>() as u64, address) }.then_some(value)
}

/// A user address without the tag that Android's heap puts into its top byte, which newer kernels refuse to read
/// through. No user address of either architecture has bits there.
#[inline(always)]
fn untagged(address: u64) -> u64 {
    address & 0x00ff_ffff_ffff_ffff
}

/// The value at `offset` in the kernel's object at `base`.
#[inline(always)]
pub fn kernel_value<T: Default>(base: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    let address = (base + u64::from(offset)) as *const c_void;
    // SAFETY: there is room for a T, plain old data; the helper fails on a bad address.
    let result = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address) };
    (result == 0).then_some(value)
}
