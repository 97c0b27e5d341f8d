//! Which TCP connection an SSL object speaks over.
//!
//! Most SSL objects use a socket themselves: a thread that is inside one of the TLS library's calls sends or receives, and
//! that is the socket. Others work over memory (Conscrypt's engine): the thread receives, then has the SSL object read,
//! and has it write, then sends. There a socket is believed only on evidence from both ways, without a contradiction:
//! in a loop that writes to two objects and then sends on two sockets, nothing counts.
//!
//! One body, two ways to attach: kprobes on tcp_sendmsg and tcp_recvmsg, or the raw tracepoints sock_send_length and
//! sock_recv_length (since 6.3). Either way the socket is argument 0.

use aya_ebpf::{
    bindings::BPF_ANY,
    macros::{kprobe, map, raw_tracepoint},
    maps::{HashMap, LruHashMap},
    programs::{ProbeContext, RawTracePointContext},
};
use plaintap_abi::{Endpoints, NO_OFFSET, SocketOffsets, family, opener};

use crate::{
    memory::kernel_value,
    state::{self, Connection, Engine, Failure, SEVERAL, connection_or_new, note},
};

/// Source: linux, include/net/tcp_states.h.
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

/// Source: linux, include/uapi/linux/in.h. Of a u16, so that MPTCP's 262 is no TCP.
const IPPROTO_TCP: u16 = 6;

/// What TLS adds to a record at least and at most, in bytes: its header and tag; an IV, a MAC and padding.
const RECORD_OVERHEAD: (u64, u64) = (17, 128);
/// log2 of the most plaintext that a TLS record carries. Source: RFC 8446, section 5.1.
const RECORD_SHIFT: u32 = 14;

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
};

/// Which side opened a TCP connection, by its `struct sock`'s address.
#[map]
static OPENERS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(8192, 0);

/// The ports that are listened on; the agent puts in those that were before it came.
#[map]
static LISTENERS: HashMap<u16, u8> = HashMap::with_max_entries(4096, 0);

/// On tcp_sendmsg, whose argument 2 is the length.
#[kprobe]
pub fn socket_send(ctx: ProbeContext) -> u32 {
    if let (Some(socket), Some(length)) = (ctx.arg(0), ctx.arg(2)) {
        used(socket, Some(length));
    }
    0
}

/// On tcp_recvmsg.
#[kprobe]
pub fn socket_receive(ctx: ProbeContext) -> u32 {
    if let Some(socket) = ctx.arg(0) {
        used(socket, None);
    }
    0
}

/// On sock_send_length, whose argument 1 is what was sent, or an error.
#[raw_tracepoint]
pub fn socket_sent(ctx: RawTracePointContext) -> i32 {
    let length: i32 = ctx.arg(1);
    used(ctx.arg(0), Some(length.max(0) as u64));
    0
}

/// On sock_recv_length, whose argument 1 is what was received, or an error.
#[raw_tracepoint]
pub fn socket_received(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) > 0 {
        used(ctx.arg(0), None);
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
        (_, TCP_LISTEN) => {
            match offsets().and_then(|offsets| kernel_value::<u16>(socket, offsets.local_port)) {
                Some(port) => LISTENERS.insert(port, 0, BPF_ANY.into()),
                None => Ok(()),
            }
        }
        (_, TCP_CLOSE) => OPENERS.remove(socket),
        _ => Ok(()),
    };
    0
}

/// The layout of this kernel's `struct sock`, if the agent knows it.
#[inline(always)]
fn offsets() -> Option<SocketOffsets> {
    // SAFETY: a static of this program. Volatile, because the loader writes the value that counts.
    let offsets = unsafe { core::ptr::read_volatile(&raw const SOCKET_OFFSETS) };
    (offsets.local_port != 0).then_some(offsets)
}

/// The current thread uses `socket`: it sends `sent` bytes, or receives.
#[inline(always)]
fn used(socket: u64, sent: Option<u64>) {
    if let Err(failure) = try_used(socket, sent) {
        note(failure);
    }
}

#[inline(always)]
fn try_used(socket: u64, sent: Option<u64>) -> Result<(), Failure> {
    // Nearly every call ends here: the thread has nothing to do with TLS.
    let thread = state::thread().ok_or(Failure::NotOurs)?;
    let active = thread.engine.active != 0;
    let Some(call) = thread.current() else {
        return match sent {
            _ if !active => Err(Failure::NotOurs),
            Some(length) => sent_beside(&mut thread.engine, socket, length),
            None => received_beside(&mut thread.engine, socket),
        };
    };
    let offsets = offsets().ok_or(Failure::NotOurs)?;
    if !is_tcp(socket, &offsets) {
        return Err(Failure::NotOurs);
    }
    call.used_socket = 1;
    let connection = connection_or_new(call.ssl)?;
    let known = &connection.endpoints;
    // The ports too: a socket's memory is used again.
    if connection.socket == socket && ports(socket, &offsets)? == (known.local_port, known.remote_port) {
        return Ok(());
    }
    connection.endpoints = endpoints(socket, &offsets)?;
    connection.socket = socket;
    Ok(())
}

/// A thread that has SSL objects work over memory received from a socket, beside their calls.
#[inline(never)]
fn received_beside(engine: &mut Engine, socket: u64) -> Result<(), Failure> {
    let offsets = offsets().ok_or(Failure::NotOurs)?;
    if !is_tcp(socket, &offsets) {
        return Err(Failure::NotOurs);
    }
    if engine.read != 0 || engine.received_from == 0 {
        engine.read = 0;
        engine.received_from = socket;
        engine.received_ends = endpoints(socket, &offsets)?;
    } else if engine.received_from != socket {
        engine.received_from = SEVERAL;
    }
    Ok(())
}

/// Such a thread sends `length` bytes, beside their calls.
#[inline(never)]
fn sent_beside(engine: &mut Engine, socket: u64, length: u64) -> Result<(), Failure> {
    let offsets = offsets().ok_or(Failure::NotOurs)?;
    if !is_tcp(socket, &offsets) {
        return Err(Failure::NotOurs);
    }
    let (ssl, written) = (engine.wrote, engine.written);
    engine.wrote = 0;
    engine.written = 0;
    if ssl == 0 || ssl == SEVERAL {
        return Ok(());
    }
    let records = (written >> RECORD_SHIFT) + 1;
    let fits = length >= written + RECORD_OVERHEAD.0 && length <= written + records * RECORD_OVERHEAD.1;
    let connection = connection_or_new(ssl)?;
    // A handshake's flight may have any length.
    if written == 0 || fits {
        connection.vote(&endpoints(socket, &offsets)?, true);
    } else {
        // It may still be the one, and have sent a part. But lengths that fit by chance must not add up.
        connection.sent_votes = 0;
    }
    Ok(())
}

/// An SSL object that has no socket was read from or written to, without a socket call inside: `moved` bytes of
/// plaintext, 0 for a handshake.
#[inline(always)]
pub fn used_memory(connection: &mut Connection, ssl: u64, written: bool, moved: u64) {
    let Some(thread) = state::thread() else { return };
    let engine = &mut thread.engine;
    engine.active = 1;
    if written {
        engine.written += moved;
        engine.wrote = if engine.wrote == 0 || engine.wrote == ssl { ssl } else { SEVERAL };
    } else if engine.received_from != 0 && (engine.read == 0 || engine.read == ssl) {
        let first = engine.read == 0;
        engine.read = ssl;
        if first && engine.received_from != SEVERAL {
            connection.vote(&engine.received_ends, false);
        }
    }
}

impl Connection {
    /// Takes note that the socket with these ends did for this SSL object over memory what its own socket would do.
    #[inline(always)]
    fn vote(&mut self, ends: &Endpoints, sent: bool) {
        const ENOUGH_SENT: u16 = 2;
        const ENOUGH_RECEIVED: u16 = 1;
        const TOO_MANY_CONTRADICTIONS: u16 = 2;
        if self.contradictions >= TOO_MANY_CONTRADICTIONS || self.endpoints.family != family::UNKNOWN {
            return;
        }
        let candidate = &self.candidate;
        if candidate.family == family::UNKNOWN {
            self.candidate = *ends;
        } else if candidate.local_port != ends.local_port
            || candidate.remote_port != ends.remote_port
            || candidate.remote_address[0] != ends.remote_address[0]
            || candidate.remote_address[1] != ends.remote_address[1]
        {
            self.contradictions += 1;
            self.sent_votes = 0;
            self.received_votes = 0;
            self.candidate = *ends;
        }
        if sent {
            self.sent_votes += 1;
        } else {
            self.received_votes += 1;
        }
        if self.sent_votes >= ENOUGH_SENT && self.received_votes >= ENOUGH_RECEIVED {
            self.endpoints = self.candidate;
        }
    }
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
