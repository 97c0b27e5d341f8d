//! Which TCP connection an SSL object speaks over: seen when a thread that is inside one of the TLS library's calls
//! sends or receives.
//!
//! One body, two ways to attach: kprobes on tcp_sendmsg and tcp_recvmsg, or the raw tracepoints sock_send_length and
//! sock_recv_length (since 6.3). Either way the socket is argument 0.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel},
    macros::{kprobe, raw_tracepoint},
    programs::{ProbeContext, RawTracePointContext},
};
use plaintap_abi::{Endpoints, SocketOffsets, family, opener};

use crate::state::{self, Failure, OPENERS, connection_or_new, note, socket_offsets};

/// Source: linux, include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;

/// Source: linux, include/uapi/linux/in.h. Of a u16, so that MPTCP's 262 is no TCP.
const IPPROTO_TCP: u16 = 6;

/// On tcp_sendmsg and tcp_recvmsg.
#[kprobe]
pub fn socket_call(ctx: ProbeContext) -> u32 {
    if let Some(socket) = ctx.arg(0) {
        if let Err(failure) = try_socket(socket) {
            note(failure);
        }
    }
    0
}

/// On sock_send_length and sock_recv_length.
#[raw_tracepoint]
pub fn socket_length(ctx: RawTracePointContext) -> i32 {
    if let Err(failure) = try_socket(ctx.arg(0)) {
        note(failure);
    }
    0
}

/// On inet_sock_set_state: who opens a connection is plain while it is being opened.
#[raw_tracepoint]
pub fn socket_state(ctx: RawTracePointContext) -> i32 {
    let socket: u64 = ctx.arg(0);
    let (before, after): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let _ = match (before, after) {
        (TCP_SYN_SENT, TCP_ESTABLISHED) => OPENERS.insert(socket, opener::LOCAL, 0),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => OPENERS.insert(socket, opener::REMOTE, 0),
        (_, TCP_CLOSE) => OPENERS.remove(socket),
        _ => Ok(()),
    };
    0
}

#[inline(always)]
fn try_socket(socket: u64) -> Result<(), Failure> {
    // Nearly every call ends here: the thread is inside no TLS call.
    let call = state::thread().and_then(|thread| thread.current()).ok_or(Failure::NotOurs)?;
    let offsets = socket_offsets().ok_or(Failure::NotOurs)?;
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if read::<u16>(socket, offsets.protocol)? != IPPROTO_TCP {
        return Err(Failure::NotOurs);
    }
    let connection = connection_or_new(pid, call.ssl)?;
    let local_port = read(socket, offsets.local_port)?;
    let remote_port = u16::from_be(read(socket, offsets.remote_port)?);
    let known = &connection.endpoints;
    // The ports too: a socket's memory is used again.
    if connection.socket == socket && known.local_port == local_port && known.remote_port == remote_port {
        return Ok(());
    }
    connection.endpoints = endpoints(socket, &offsets, local_port, remote_port)?;
    connection.socket = socket;
    Ok(())
}

#[inline(always)]
fn endpoints(
    socket: u64,
    offsets: &SocketOffsets,
    local_port: u16,
    remote_port: u16,
) -> Result<Endpoints, Failure> {
    let mut ends = Endpoints {
        local_address: [0; 2],
        remote_address: [0; 2],
        local_port,
        remote_port,
        family: family::UNKNOWN,
        opener: OPENERS.get_ptr(socket).map_or(opener::UNKNOWN, |place| {
            // SAFETY: a map value is aligned and outlives the program's run.
            unsafe { *place }
        }),
        reserved: [0; 2],
    };
    match read::<u16>(socket, offsets.family)? as u8 {
        family::INET => {
            ends.family = family::INET;
            // Little-endian: the first 4 bytes of the word.
            ends.local_address[0] = read::<u32>(socket, offsets.local_v4)?.into();
            ends.remote_address[0] = read::<u32>(socket, offsets.remote_v4)?.into();
        }
        family::INET6 => {
            ends.family = family::INET6;
            ends.local_address = read(socket, offsets.local_v6)?;
            ends.remote_address = read(socket, offsets.remote_v6)?;
        }
        _ => return Err(Failure::NotOurs),
    }
    Ok(ends)
}

/// The value at `offset` in the kernel's object at `base`.
#[inline(always)]
fn read<T: Default>(base: u64, offset: u32) -> Result<T, Failure> {
    let mut value = T::default();
    let address = (base + u64::from(offset)) as *const c_void;
    // SAFETY: the helper writes size_of::<T>() bytes to `value`, plain old data, and fails on a bad address.
    let result = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address) };
    if result == 0 { Ok(value) } else { Err(Failure::NotOurs) }
}
