//! Which TCP connection an SSL object speaks over.
//!
//! An SSL object uses a socket itself: a thread that is inside one of the TLS library's calls sends or receives, and that is
//! the socket. Of objects that work over memory, `engines` tells what they wrote when a socket sends it.
//!
//! One body, two ways to attach: kprobes on tcp_sendmsg and tcp_recvmsg, or the raw tracepoints sock_send_length and
//! sock_recv_length (since 6.3). Either way the socket is argument 0.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{kprobe, map, raw_tracepoint},
    maps::{HashMap, LruHashMap},
    programs::{ProbeContext, RawTracePointContext},
};
use plaintap_abi::{Endpoints, NO_OFFSET, SocketOffsets, family, opener};

use crate::{
    engines,
    memory::kernel_value,
    state::{self, Failure, connection_or_new, note},
};

/// Source: linux, include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

/// Source: linux, include/uapi/linux/in.h. Of a u16, so that MPTCP's 262 is no TCP.
const IPPROTO_TCP: u16 = 6;

#[unsafe(no_mangle)]
static SOCKET_OFFSETS: SocketOffsets = SocketOffsets {
    family: 0,
    remote_v4: 0,
    local_v4: 0,
    remote_v6: 0,
    local_v6: 0,
    remote_port: 0,
    local_port: 0,
    protocol: 0,
    source_port: 0,
};

/// Which side opened a TCP connection, by its `struct sock`'s address.
#[map]
static OPENERS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(8192, 0);

/// The ports that are listened on, and by how many sockets that were seen to begin it: IPv4's, IPv6's, other network
/// namespaces' and those with SO_REUSEPORT share one. 0: nobody knows how many, and the port stays; the agent puts in so what was
/// there before it came.
#[map]
static LISTENERS: HashMap<u16, u8> = HashMap::with_max_entries(4096, 0);

/// On tcp_sendmsg.
#[kprobe]
pub fn socket_send(ctx: ProbeContext) -> u32 {
    if let Some(socket) = ctx.arg(0) {
        used(socket, true);
    }
    0
}

/// On tcp_recvmsg.
#[kprobe]
pub fn socket_receive(ctx: ProbeContext) -> u32 {
    if let Some(socket) = ctx.arg(0) {
        used(socket, false);
    }
    0
}

/// On sock_send_length.
#[raw_tracepoint]
pub fn socket_sent(ctx: RawTracePointContext) -> i32 {
    used(ctx.arg(0), true);
    0
}

/// On sock_recv_length.
#[raw_tracepoint]
pub fn socket_received(ctx: RawTracePointContext) -> i32 {
    used(ctx.arg(0), false);
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
        (_, TCP_LISTEN) => {
            begins_to_listen(socket);
            Ok(())
        }
        (TCP_LISTEN, TCP_CLOSE) => {
            ends_listening(socket);
            Ok(())
        }
        (_, TCP_CLOSE) => OPENERS.remove(socket),
        _ => Ok(()),
    };
    0
}

#[inline(always)]
fn begins_to_listen(socket: u64) {
    let Some(port) = offsets().and_then(|offsets| kernel_value::<u16>(socket, offsets.local_port)) else {
        return;
    };
    match LISTENERS.get_ptr_mut(port) {
        // SAFETY: a map value is aligned and outlives the program's run. Of two CPUs that count at once one may lose its count: then
        // the port goes too early, and matters only to a connection that was forgotten in `OPENERS`.
        Some(place) => unsafe {
            // One more than can be counted, and nobody knows how many.
            if *place != 0 {
                *place = (*place).wrapping_add(1);
            }
        },
        None => drop(LISTENERS.insert(port, 1, BPF_NOEXIST.into())),
    }
}

#[inline(always)]
fn ends_listening(socket: u64) {
    let Some(port) = offsets().and_then(|offsets| port_listened_on(socket, &offsets)) else { return };
    let Some(place) = LISTENERS.get_ptr_mut(port) else { return };
    // SAFETY: as above.
    unsafe {
        match *place {
            0 => {}
            1 => drop(LISTENERS.remove(port)),
            count => *place = count - 1,
        }
    }
}

/// The port of a socket that listens no more: where the kernel had chosen it, the socket has given it back by now, and only a
/// copy of it is left. Source: linux, net/ipv4/tcp.c, tcp_set_state.
#[inline(always)]
fn port_listened_on(socket: u64, offsets: &SocketOffsets) -> Option<u16> {
    match offsets.source_port {
        NO_OFFSET => kernel_value(socket, offsets.local_port),
        copy => kernel_value(socket, copy).map(u16::from_be),
    }
}

/// The layout of this kernel's `struct sock`, if the agent knows it.
#[inline(always)]
fn offsets() -> Option<SocketOffsets> {
    // SAFETY: a static of this program. Volatile, because the loader writes the value that counts.
    let offsets = unsafe { core::ptr::read_volatile(&raw const SOCKET_OFFSETS) };
    (offsets.local_port != 0).then_some(offsets)
}

/// The current thread sends on `socket`, or receives.
#[inline(always)]
fn used(socket: u64, sends: bool) {
    if let Err(failure) = try_used(socket, sends) {
        note(failure);
    }
}

#[inline(always)]
fn try_used(socket: u64, sends: bool) -> Result<(), Failure> {
    let caller = state::thread().and_then(|thread| thread.object());
    // Nearly every call ends here: the thread is inside no TLS call, and the process has no TLS connections.
    let (ssl, life) = match caller {
        Some(object) => object,
        None if sends => (engines::writer().ok_or(Failure::NotOurs)?, state::current_life()),
        None => return Err(Failure::NotOurs),
    };
    let offsets = offsets().ok_or(Failure::NotOurs)?;
    if !is_tcp(socket, &offsets) {
        return Err(Failure::NotOurs);
    }
    let connection = connection_or_new(ssl, life)?;
    // What an SSL object wrote may pass through several sockets, as through a proxy's: the first is its own.
    if caller.is_none() && connection.socket != 0 {
        return Ok(());
    }
    let known = &connection.endpoints;
    // The ports too: a socket's memory is used again.
    if connection.socket == socket && ports(socket, &offsets)? == (known.local_port, known.remote_port) {
        return Ok(());
    }
    let connection = if connection.socket != 0 && connection.offsets != [0, 0] {
        // The object's end was not seen, as in a library without symbols, and this is another at its address.
        state::end_connection(ssl);
        connection_or_new(ssl, life)?
    } else {
        connection
    };
    connection.endpoints = endpoints(socket, &offsets)?;
    connection.socket = socket;
    Ok(())
}

#[inline(always)]
fn is_tcp(socket: u64, offsets: &SocketOffsets) -> bool {
    offsets.protocol == NO_OFFSET || kernel_value::<u16>(socket, offsets.protocol) == Some(IPPROTO_TCP)
}

/// The local and the remote port, in host order.
#[inline(always)]
fn ports(socket: u64, offsets: &SocketOffsets) -> Result<(u16, u16), Failure> {
    let local = kernel_value(socket, offsets.local_port).ok_or(Failure::NotOurs)?;
    let remote = kernel_value(socket, offsets.remote_port).ok_or(Failure::NotOurs)?;
    Ok((local, u16::from_be(remote)))
}

#[inline(never)]
fn endpoints(socket: u64, offsets: &SocketOffsets) -> Result<Endpoints, Failure> {
    let (local_port, remote_port) = ports(socket, offsets)?;
    let mut ends = Endpoints {
        local_address: [0; 2],
        remote_address: [0; 2],
        local_port,
        remote_port,
        family: kernel_value::<u16>(socket, offsets.family).ok_or(Failure::NotOurs)? as u8,
        opener: opener_of(socket, local_port),
        reserved: [0; 2],
    };
    match ends.family {
        family::INET => {
            // Little-endian: the first 4 bytes of the word.
            ends.local_address[0] =
                kernel_value::<u32>(socket, offsets.local_v4).ok_or(Failure::NotOurs)?.into();
            ends.remote_address[0] =
                kernel_value::<u32>(socket, offsets.remote_v4).ok_or(Failure::NotOurs)?.into();
        }
        family::INET6 => {
            ends.local_address = kernel_value(socket, offsets.local_v6).ok_or(Failure::NotOurs)?;
            ends.remote_address = kernel_value(socket, offsets.remote_v6).ok_or(Failure::NotOurs)?;
        }
        _ => return Err(Failure::NotOurs),
    }
    Ok(ends)
}

/// Who opened a connection: as seen, or else as its local port tells, which a server listens on and a client does not.
#[inline(always)]
fn opener_of(socket: u64, local_port: u16) -> u8 {
    match OPENERS.get_ptr(socket) {
        // SAFETY: a map value is aligned and outlives the program's run.
        Some(seen) => unsafe { *seen },
        None if LISTENERS.get_ptr(local_port).is_some() => opener::REMOTE,
        None => opener::LOCAL,
    }
}
