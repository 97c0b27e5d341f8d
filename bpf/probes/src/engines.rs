//! Whose bytes a socket sends that no TLS call is sending: those of SSL objects over memory, as Conscrypt's engine is.
//!
//! Such an object writes what is to be sent into a BIO, and the program sends it later, on any thread. What goes into the
//! BIO is encrypted, and so no two have the same bytes: a socket that is sent bytes that an SSL object wrote is its socket.
//! Order, length and time say nothing: they are alike between connections, and have shown to be no proof.
//!
//! A sender's bytes are where the system call's second argument says. Which call it is need not be known, as only the
//! right bytes are believed.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::{map, uprobe},
    maps::LruHashMap,
    programs::ProbeContext,
};

use crate::{
    memory::{kernel_value, task_offsets, user_value},
    state::{self, Failure, connection_or_new, note},
};

/// The start of what was written: a record's header, and enough behind it that was encrypted or random.
type Start = [u64; 4];

#[derive(Clone, Copy)]
#[repr(C)]
struct Ciphertext {
    pid: u64,
    start: Start,
}

/// Starts of what SSL objects wrote whose socket is not known, with the object's address.
#[map]
static CIPHERTEXTS: LruHashMap<Ciphertext, u64> = LruHashMap::with_max_entries(2048, 0);

/// `int BIO_write(BIO *bio, const void *data, int len)`
#[uprobe]
pub fn bio_write(ctx: ProbeContext) -> u32 {
    if let (Some(data), Some(length)) = (ctx.arg(1), ctx.arg(2)) {
        if let Err(failure) = try_bio_write(data, length) {
            note(failure);
        }
    }
    0
}

#[inline(always)]
fn try_bio_write(data: u64, length: i32) -> Result<(), Failure> {
    if length < size_of::<Start>() as i32 {
        return Err(Failure::NotOurs);
    }
    let (ssl, life) = state::thread().and_then(|thread| thread.object()).ok_or(Failure::NotOurs)?;
    if connection_or_new(ssl, life)?.socket != 0 {
        return Err(Failure::NotOurs);
    }
    let start = user_value(data).ok_or(Failure::NotOurs)?;
    let _ = CIPHERTEXTS.insert(Ciphertext { pid: pid(), start }, &ssl, 0);
    Ok(())
}

/// The SSL object that wrote what the current thread sends, in a system call that reached a socket.
#[inline(always)]
pub fn writer() -> Option<u64> {
    let offsets = task_offsets();
    if offsets.argument == 0 || !state::has_connections(pid() as u32) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let stack: u64 = kernel_value(task, offsets.stack)?;
    let argument: u64 = kernel_value(stack, offsets.argument)?;
    // The buffer of write and sendto,
    let there: Start = user_value(argument)?;
    // or writev's struct iovec, whose first word is the buffer's address,
    find(there)
        .or_else(|| find(user_value(there[0])?))
        // or sendmsg's struct msghdr, whose third word is the address of such. Source: linux, include/linux/socket.h.
        .or_else(|| find(user_value(user_value(there[2])?)?))
}

#[inline(never)]
fn find(start: Start) -> Option<u64> {
    // SAFETY: a map value is aligned and outlives the program's run.
    CIPHERTEXTS.get_ptr(Ciphertext { pid: pid(), start }).map(|ssl| unsafe { *ssl })
}

#[inline(always)]
fn pid() -> u64 {
    bpf_get_current_pid_tgid() >> 32
}
