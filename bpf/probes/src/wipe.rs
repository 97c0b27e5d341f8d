//! Overwrites what is left in the ring of records that were taken out of it.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use plaintap_abi::Blank;

use crate::state::RING;

/// On no tracepoint: the agent has it run, as often as it takes to fill the ring. Returns how many records it made, which is 0
/// while the ring is full: aya's macro would make it return 0 always.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
extern "C" fn wipe(_ctx: *mut c_void) -> u32 {
    let Some(mut entry) = RING.reserve::<Blank>(0) else { return 0 };
    let size = size_of::<Blank>() as u32;
    // SAFETY: the reservation is as large as the record and ours until it is discarded. Nobody has anything at address 0, and
    // where the helper can't read it leaves zeroes: the one way to fill so much that every verifier takes.
    // Source: linux 5.10 to 6.18, kernel/trace/bpf_trace.c, bpf_probe_read_user_common.
    unsafe { bpf_probe_read_user(entry.as_mut_ptr().cast(), size, ptr::null()) };
    entry.discard(0);
    1
}
