//! Whether a function that only its code tells to be SSL_read or SSL_write is called as one: a probe of its own looks at the first
//! calls, and the agent takes it off again when it has seen enough.

use aya_ebpf::{
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use plaintap_abi::{Calls, MAX_GUESSES, PAGE_OFFSET};

use crate::memory::user_value;

/// By where in its page the function begins, which is the same in every process.
#[map]
static GUESSES: HashMap<u32, Calls> = HashMap::with_max_entries(MAX_GUESSES, 0);

/// The largest length that is believed: no TLS library is handed more at once.
const MAX_LENGTH: i32 = 1 << 30;
/// No process has anything below.
const LOWEST_ADDRESS: u64 = 1 << 12;

/// `int SSL_read(SSL *ssl, void *buf, int num)` or `int SSL_write(SSL *ssl, const void *buf, int num)`, perhaps.
#[uprobe]
pub fn guessed_call(ctx: ProbeContext) -> u32 {
    let Some(place) = GUESSES.get_ptr_mut(place(&ctx)) else { return 0 };
    let looks_right = looks_right(&ctx);
    // SAFETY: a map value is aligned and outlives the program's run. Threads that count at once may lose a call of one another's.
    let calls = unsafe { &mut *place };
    calls.all += 1;
    if !looks_right {
        calls.odd += 1;
    }
    0
}

/// Whether the arguments are an object, a buffer and its length.
#[inline(always)]
fn looks_right(ctx: &ProbeContext) -> bool {
    let (Some(ssl), Some(buffer), Some(length)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<i32>(2))
    else {
        return false;
    };
    let is_object = ssl & 7 == 0 && user_value::<u64>(ssl).is_some();
    // What is read into may have no page yet.
    let is_buffer = buffer >= LOWEST_ADDRESS || length == 0;
    is_object && is_buffer && (0..=MAX_LENGTH).contains(&length)
}

/// Where in its page the function begins that is called.
#[inline(always)]
fn place(ctx: &ProbeContext) -> u32 {
    // SAFETY: the context of a kprobe program is the pt_regs, readable as such.
    #[cfg(bpf_target_arch = "x86_64")]
    let address = unsafe { (*ctx.regs).rip };
    // SAFETY: as above.
    #[cfg(bpf_target_arch = "aarch64")]
    let address = unsafe { (*ctx.regs).pc };
    address as u32 & PAGE_OFFSET
}
