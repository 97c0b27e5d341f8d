//! Entry and return of the TLS library's functions: what they carried goes into the ring.
//!
//! Entry keeps the arguments; the return knows how many bytes moved, and sends them as records of fitting size classes,
//! each straight into a reservation of the ring: per-CPU scratch would be shared by threads on kernels that preempt
//! uprobe programs.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        generated::bpf_probe_read_user_str,
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use plaintap_abi::{CLASSES, Counter, Header, MAX_PIECES, PIECE, PIECE_SHIFT, Record, kind};

use crate::{
    filter::{comm, settings, wanted},
    memory::{at_most, read_user, user_value},
    state::{
        self, Call, Connection, Failure, RING, Tally, Thread, connection_or_new, count, current_life, note,
    },
};

/// OpenSSL's `SSL_ctrl` command for a host name. Source: openssl, include/openssl/tls1.h and ssl.h.
const SSL_CTRL_SET_TLSEXT_HOSTNAME: i32 = 55;
/// Source: openssl, include/openssl/ssl.h.
const SSL_EARLY_DATA_REJECTED: i32 = 1;

/// Functions that take an SSL object alone.
#[uprobe]
pub fn ssl_call(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ, 0)
}

/// `int SSL_read(SSL *ssl, void *buf, int num)`
#[uprobe]
pub fn ssl_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ, 0)
}

/// `int SSL_write(SSL *ssl, const void *buf, int num)`
#[uprobe]
pub fn ssl_write(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::WRITTEN, 0)
}

/// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`; OpenSSL's call for early data goes through it.
#[uprobe]
pub fn ssl_read_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ, ctx.arg(3).unwrap_or(0))
}

/// `int SSL_write_ex(SSL *ssl, const void *buf, size_t num, size_t *written)`, and as above.
#[uprobe]
pub fn ssl_write_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::WRITTEN, ctx.arg(3).unwrap_or(0))
}

/// The return of all four. One program, because the verifier follows each of the pieces that a call may have: most of what
/// loading takes.
#[uretprobe]
pub fn ssl_return(ctx: RetProbeContext) -> u32 {
    if let Err(failure) = try_leave(&ctx) {
        note(failure);
    }
    0
}

/// `int SSL_do_handshake(SSL *ssl)`, for the sockets that it uses.
#[uretprobe]
pub fn ssl_handshake_return(ctx: RetProbeContext) -> u32 {
    if let Err(failure) = left_call(&ctx) {
        note(failure);
    }
    0
}

/// `int SSL_set_tlsext_host_name(SSL *ssl, const char *name)`
#[uprobe]
pub fn ssl_host_name(ctx: ProbeContext) -> u32 {
    if let (Some(ssl), Some(name)) = (ctx.arg(0), ctx.arg(1)) {
        if let Err(failure) = try_host_name(ssl, name) {
            note(failure);
        }
    }
    0
}

/// `long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg)`
#[uprobe]
pub fn ssl_ctrl(ctx: ProbeContext) -> u32 {
    if ctx.arg(1) != Some(SSL_CTRL_SET_TLSEXT_HOSTNAME) {
        return 0;
    }
    if let (Some(ssl), Some(name)) = (ctx.arg(0), ctx.arg(3)) {
        if let Err(failure) = try_host_name(ssl, name) {
            note(failure);
        }
    }
    0
}

/// `void SSL_reset_early_data_reject(SSL *ssl)`: BoringSSL has a client call it before it sends again.
#[uprobe]
pub fn ssl_early_data_reset(ctx: ProbeContext) -> u32 {
    if let Some(ssl) = ctx.arg(0) {
        if let Err(failure) = try_early_data_rejected(ssl) {
            note(failure);
        }
    }
    0
}

/// `int SSL_get_early_data_status(const SSL *ssl)`: OpenSSL has a client ask before it sends again.
#[uretprobe]
pub fn ssl_early_data_status_return(ctx: RetProbeContext) -> u32 {
    let rejected = ctx.ret::<i32>() == SSL_EARLY_DATA_REJECTED;
    let result = left_call(&ctx)
        .and_then(|(call, _)| if rejected { try_early_data_rejected(call.ssl) } else { Ok(()) });
    if let Err(failure) = result {
        note(failure);
    }
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext, kind: u8, length_at: u64) -> u32 {
    if let Err(failure) = try_enter(ctx, kind, length_at) {
        note(failure);
    }
    0
}

#[inline(always)]
fn try_enter(ctx: &ProbeContext, kind: u8, length_at: u64) -> Result<(), Failure> {
    if !settings().is_some_and(wanted) {
        return Err(Failure::NotOurs);
    }
    let ssl = ctx.arg(0).ok_or(Failure::NotOurs)?;
    let buffer = ctx.arg(1).ok_or(Failure::NotOurs)?;
    let stack = stack_at_return(ctx);
    state::thread_or_new()?.enter(Call { ssl, buffer, length_at, stack, kind: kind.into() })
}

/// The call that returns now, and its thread.
#[inline(always)]
fn left_call(ctx: &RetProbeContext) -> Result<(Call, &'static mut Thread), Failure> {
    // Asked again: the filters may have changed since the call began, and what they leave out now stays out. Its bytes count
    // for nothing, as those of a call that was left out from its start.
    let wanted = settings().is_some_and(wanted);
    match state::thread() {
        Some(thread) => match thread.leave(stack_now(ctx)) {
            Ok(call) if wanted => Ok((call, thread)),
            Err(failure) if wanted => Err(failure),
            _ => Err(Failure::NotOurs),
        },
        None if !wanted => Err(Failure::NotOurs),
        // The thread was forgotten inside its call, or the call is older than the probes.
        None => Err(Failure::Counted(Counter::UnmatchedReturns)),
    }
}

#[inline(always)]
fn try_leave(ctx: &RetProbeContext) -> Result<(), Failure> {
    let (call, thread) = left_call(ctx)?;
    let result: i32 = ctx.ret();
    if result <= 0 {
        return Err(Failure::NotOurs);
    }
    let moved = if call.length_at == 0 {
        result as u64
    } else {
        user_value(call.length_at).ok_or(Failure::Counted(Counter::UnreadableLengths))?
    };
    if moved == 0 {
        return Err(Failure::NotOurs);
    }
    let written = call.kind == u64::from(kind::WRITTEN);
    let connection = connection_or_new(call.ssl, thread.life)?;
    let snaplen = settings().map_or(0, |settings| settings.snaplen);
    let kept = if moved > snaplen { snaplen } else { moved };
    let mut header = header(connection, call.kind as u8);
    let way = usize::from(written);
    header.call_start = connection.offsets[way];
    header.kept_end = header.call_start + kept;
    header.call_end = header.call_start + moved;
    header.snapped = connection.snapped[way];
    connection.offsets[way] = header.call_end;
    if moved > kept {
        connection.snapped[way] += moved - kept;
        count(Counter::SnappedBytes, moved - kept);
    }
    send(&mut header, call.buffer, &mut thread.tally);
    thread.tally.settle(header.connection_id, written, header.snapped);
    Ok(())
}

#[inline(always)]
fn try_host_name(ssl: u64, name: u64) -> Result<(), Failure> {
    if name == 0 || !settings().is_some_and(wanted) {
        return Err(Failure::NotOurs);
    }
    let connection = connection_or_new(ssl, current_life())?;
    let mut entry =
        RING.reserve::<Record<{ CLASSES[0] }>>(0).ok_or(Failure::Counted(Counter::RingFullRecords))?;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is as large as the record and ours until it is submitted; the helper writes what has room
    // in it, a final NUL included.
    let length = unsafe {
        let data = (&raw mut (*record).data).cast();
        let length = bpf_probe_read_user_str(data, CLASSES[0] as u32, name as *const _);
        let mut header = header(connection, kind::SERVER_NAME);
        header.length = (length as u32).wrapping_sub(1);
        (&raw mut (*record).header).write(header);
        length
    };
    if length > 1 {
        entry.submit(0);
        Ok(())
    } else {
        entry.discard(0);
        Err(if length < 0 { Failure::Counted(Counter::UnreadableRecords) } else { Failure::NotOurs })
    }
}

#[inline(always)]
fn try_early_data_rejected(ssl: u64) -> Result<(), Failure> {
    if !settings().is_some_and(wanted) {
        return Err(Failure::NotOurs);
    }
    let connection = connection_or_new(ssl, current_life())?;
    if connection.early_data_rejected != 0 {
        return Err(Failure::NotOurs);
    }
    connection.early_data_rejected = 1;
    let mut entry = RING.reserve::<Record<0>>(0).ok_or(Failure::Counted(Counter::RingFullRecords))?;
    let mut header = header(connection, kind::EARLY_DATA_REJECTED);
    header.stream_offset = connection.offsets[1];
    // SAFETY: the reservation is as large as the record and ours until it is submitted.
    unsafe { (&raw mut (*entry.as_mut_ptr()).header).write(header) };
    entry.submit(0);
    Ok(())
}

/// A header for a record of `connection` and the current thread, all but its place and length.
#[inline(always)]
fn header(connection: &Connection, kind: u8) -> Header {
    let id = bpf_get_current_pid_tgid();
    Header {
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        connection_id: connection.id,
        stream_offset: 0,
        call_start: 0,
        kept_end: 0,
        call_end: 0,
        snapped: 0,
        life: connection.life,
        pid: (id >> 32) as u32,
        tid: id as u32,
        uid: bpf_get_current_uid_gid() as u32,
        length: 0,
        comm: comm(),
        endpoints: connection.endpoints,
        kind,
        reserved: [0; 7],
    }
}

/// Sends a call's bytes, which stand at `buffer`: full pieces first, then the rest in the smallest class that holds it.
#[inline(always)]
fn send(header: &mut Header, buffer: u64, tally: &mut Tally) {
    let start = header.call_start;
    let kept = header.kept_end - start;
    let full = kept >> PIECE_SHIFT;
    let mut piece = 0;
    while piece < MAX_PIECES {
        if piece >= full {
            break;
        }
        let done = piece << PIECE_SHIFT;
        header.stream_offset = start + done;
        send_record::<PIECE>(header, tally, buffer + done, PIECE as u64);
        piece += 1;
    }
    if full > MAX_PIECES {
        count(Counter::OversizeBytes, kept - (MAX_PIECES << PIECE_SHIFT));
        tally.end = header.kept_end;
        return;
    }
    let done = full << PIECE_SHIFT;
    let rest = kept & (PIECE as u64 - 1);
    header.stream_offset = start + done;
    let buffer = buffer + done;
    if rest == 0 {
    } else if rest <= CLASSES[0] as u64 {
        send_record::<{ CLASSES[0] }>(header, tally, buffer, rest);
    } else if rest <= CLASSES[1] as u64 {
        send_record::<{ CLASSES[1] }>(header, tally, buffer, rest);
    } else if rest <= CLASSES[2] as u64 {
        send_record::<{ CLASSES[2] }>(header, tally, buffer, rest);
    } else {
        send_record::<{ CLASSES[3] }>(header, tally, buffer, rest);
    }
}

/// Sends one record of class `N` with the `length` bytes at `address`, or tallies what it could not send.
#[inline(always)]
fn send_record<const N: usize>(header: &mut Header, tally: &mut Tally, address: u64, length: u64) {
    let length = at_most::<N>(length);
    header.length = length as u32;
    let Some(mut entry) = RING.reserve::<Record<N>>(0) else {
        tally.full_records += 1;
        tally.full_bytes += length;
        tally.end = header.stream_offset + length;
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is as large as the record and ours until it is submitted.
    let read = unsafe {
        (&raw mut (*record).header).write(*header);
        read_user((&raw mut (*record).data).cast(), length, address)
    };
    if read {
        entry.submit(0);
    } else {
        entry.discard(0);
        tally.unreadable_records += 1;
        tally.unreadable_bytes += length;
        tally.end = header.stream_offset + length;
    }
}

/// The stack pointer that this call's return probe will see.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn stack_at_return(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a kprobe program is the pt_regs, readable as such. The call instruction pushed the return
    // address, which the return will have popped.
    unsafe { (*ctx.regs).rsp + 8 }
}

/// The stack pointer now, in a return probe.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn stack_now(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).rsp }
}

/// The stack pointer that this call's return probe will see: the return address travels in a register.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn stack_at_return(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a kprobe program is the pt_regs, readable as such.
    unsafe { (*ctx.regs).sp }
}

/// The stack pointer now, in a return probe.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn stack_now(ctx: &RetProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*ctx.regs).sp }
}
