//! Entry and return of `SSL_read` and `SSL_write`: what they carried goes into the ring.
//!
//! Entry keeps the arguments; the return knows how many bytes moved, and sends them as records of fitting size classes,
//! each straight into a reservation of the ring: per-CPU scratch would be shared by threads on kernels that preempt
//! uprobe programs.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        generated::{bpf_get_current_comm, bpf_probe_read_user},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use plaintap_abi::{CLASSES, COMM_LEN, Counter, Header, MAX_PIECES, PIECE, PIECE_SHIFT, Record, direction};

use crate::state::{self, Call, Failure, RING, at_most, connection_or_new, count, note, wanted};

/// `int SSL_read(SSL *ssl, void *buf, int num)` and `int SSL_write(SSL *ssl, const void *buf, int num)`.
#[uprobe]
pub fn ssl_call(ctx: ProbeContext) -> u32 {
    if let Err(failure) = try_enter(&ctx) {
        note(failure);
    }
    0
}

#[uretprobe]
pub fn ssl_read_return(ctx: RetProbeContext) -> u32 {
    if let Err(failure) = try_leave(&ctx, direction::READ) {
        note(failure);
    }
    0
}

#[uretprobe]
pub fn ssl_write_return(ctx: RetProbeContext) -> u32 {
    if let Err(failure) = try_leave(&ctx, direction::WRITTEN) {
        note(failure);
    }
    0
}

#[inline(always)]
fn try_enter(ctx: &ProbeContext) -> Result<(), Failure> {
    if !wanted((bpf_get_current_pid_tgid() >> 32) as u32) {
        return Err(Failure::NotOurs);
    }
    let ssl: u64 = ctx.arg(0).ok_or(Failure::NotOurs)?;
    let buffer: u64 = ctx.arg(1).ok_or(Failure::NotOurs)?;
    let stack = stack_at_return(ctx);
    state::thread_or_new()?.enter(Call { ssl, buffer, stack })
}

#[inline(always)]
fn try_leave(ctx: &RetProbeContext, direction: u8) -> Result<(), Failure> {
    let id = bpf_get_current_pid_tgid();
    let pid = (id >> 32) as u32;
    // A process that is filtered out has no state, nor has one that was inside its call when the probes came.
    let thread = state::thread().ok_or(Failure::NotOurs)?;
    let call = thread.leave(stack_now(ctx))?;
    let moved: i32 = ctx.ret();
    if moved <= 0 {
        return Err(Failure::NotOurs);
    }
    let moved = moved as u32;
    let connection = connection_or_new(pid, call.ssl)?;
    let offset = &mut connection.offsets[usize::from(direction == direction::WRITTEN)];
    let stream_offset = *offset;
    *offset += u64::from(moved);
    send(
        Header {
            // SAFETY: a helper without arguments.
            time_ns: unsafe { bpf_ktime_get_boot_ns() },
            connection_id: connection.id,
            stream_offset,
            pid,
            tid: id as u32,
            uid: bpf_get_current_uid_gid() as u32,
            call_length: moved,
            call_offset: 0,
            length: 0,
            comm: comm(),
            endpoints: connection.endpoints,
            direction,
            reserved: [0; 7],
        },
        untagged(call.buffer),
    );
    Ok(())
}

/// Sends a call's bytes, which stand at `buffer`: full pieces first, then the rest in the smallest class that holds it.
#[inline(always)]
fn send(mut header: Header, buffer: u64) {
    let moved = u64::from(header.call_length);
    let start = header.stream_offset;
    let full = moved >> PIECE_SHIFT;
    let mut piece = 0;
    while piece < MAX_PIECES {
        if piece >= full {
            break;
        }
        let done = piece << PIECE_SHIFT;
        header.call_offset = done as u32;
        header.stream_offset = start + done;
        send_record::<PIECE>(&mut header, buffer + done, PIECE as u64);
        piece += 1;
    }
    let done = piece << PIECE_SHIFT;
    let rest = moved - done;
    if piece == MAX_PIECES && rest > 0 {
        count(Counter::OversizeBytes, rest);
        return;
    }
    let rest = rest & (PIECE as u64 - 1);
    header.call_offset = done as u32;
    header.stream_offset = start + done;
    let buffer = buffer + done;
    if rest == 0 {
    } else if rest <= CLASSES[0] as u64 {
        send_record::<{ CLASSES[0] }>(&mut header, buffer, rest);
    } else if rest <= CLASSES[1] as u64 {
        send_record::<{ CLASSES[1] }>(&mut header, buffer, rest);
    } else if rest <= CLASSES[2] as u64 {
        send_record::<{ CLASSES[2] }>(&mut header, buffer, rest);
    } else {
        send_record::<{ CLASSES[3] }>(&mut header, buffer, rest);
    }
}

/// Sends one record of class `N` with the `length` bytes at `address`, or counts what it could not send.
#[inline(always)]
fn send_record<const N: usize>(header: &mut Header, address: u64, length: u64) {
    let length = at_most::<N>(length);
    let Some(mut entry) = RING.reserve::<Record<N>>(0) else {
        count(Counter::RingFullRecords, 1);
        count(Counter::RingFullBytes, length);
        return;
    };
    header.length = length as u32;
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is as large as the record and ours until it is submitted; the helper writes `length`
    // bytes, at most N, and reads through the process's page tables, failing where there is no page.
    let read = unsafe {
        (&raw mut (*record).header).write(*header);
        bpf_probe_read_user((&raw mut (*record).data).cast(), length as u32, address as *const _)
    };
    if read == 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
        count(Counter::UnreadableRecords, 1);
        count(Counter::UnreadableBytes, length);
    }
}

/// The current thread's name; empty where the kernel won't tell.
#[inline(always)]
fn comm() -> [u64; COMM_LEN / 8] {
    let mut comm = [0; COMM_LEN / 8];
    // SAFETY: the helper writes COMM_LEN bytes at most.
    unsafe { bpf_get_current_comm((&raw mut comm).cast(), COMM_LEN as u32) };
    comm
}

/// A user address without the tag that Android's heap puts into its top byte, which newer kernels refuse to read
/// through. No user address of either architecture has bits there.
#[inline(always)]
fn untagged(address: u64) -> u64 {
    address & 0x00ff_ffff_ffff_ffff
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
