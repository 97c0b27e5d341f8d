//! What the eBPF programs and the agent agree on: records of the ring, counters, globals, and the names that join them.
//!
//! Everything is `repr(C)`, native-endian, without padding; sizes are asserted here, once, for both sides.
#![no_std]
#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

/// The largest payload of one record, in bytes; one TLS record's worth.
pub const PIECE: usize = 1 << PIECE_SHIFT;
/// log2 of [`PIECE`].
pub const PIECE_SHIFT: u32 = 14;
/// How many pieces one call is cut into at most: 16 MiB. What a call moves beyond that is counted as lost.
pub const MAX_PIECES: u64 = 1024;

/// The payload sizes that records come in, in bytes: the ring only takes reservations of a constant size.
pub const CLASSES: [usize; 4] = [256, 1024, 4096, PIECE];

/// Bytes of a thread's comm, the final NUL included. Source: linux, include/linux/sched.h, TASK_COMM_LEN.
pub const COMM_LEN: usize = 16;

/// Names of the maps and globals that the agent fills or reads.
pub mod names {
    /// The ring buffer of [`Record`](crate::Record)s.
    pub const RING: &str = "RING";
    /// `u64` per [`Counter`](crate::Counter); may be mapped into memory.
    pub const COUNTERS: &str = "COUNTERS";
    /// The process ids to capture, when [`FILTER_PIDS`] is not 0.
    pub const PIDS: &str = "PIDS";
    /// `u32`: not 0 if only processes in [`PIDS`] are captured.
    pub const FILTER_PIDS: &str = "FILTER_PIDS";
    /// A [`SocketOffsets`](crate::SocketOffsets).
    pub const SOCKET_OFFSETS: &str = "SOCKET_OFFSETS";
}

/// Which way a call moved its bytes. The values are those of eCaptureQ's `Event.direction`.
pub mod direction {
    /// The process received them.
    pub const READ: u8 = 1;
    /// The process sent them.
    pub const WRITTEN: u8 = 2;
}

/// Which side opened a connection.
pub mod opener {
    /// It was opened before anybody looked.
    pub const UNKNOWN: u8 = 0;
    /// The traced process's side.
    pub const LOCAL: u8 = 1;
    /// The other side.
    pub const REMOTE: u8 = 2;
}

/// Address families, as `Endpoints::family` has them. Source: linux, include/linux/socket.h.
pub mod family {
    /// No socket was seen.
    pub const UNKNOWN: u8 = 0;
    /// IPv4.
    pub const INET: u8 = 2;
    /// IPv6.
    pub const INET6: u8 = 10;
}

/// Both ends of a TCP connection, seen from the traced process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Endpoints {
    /// Bytes in network order; IPv4 uses the first 4. Words, because a probe copies words faster than bytes.
    pub local_address: [u64; 2],
    /// As `local_address`.
    pub remote_address: [u64; 2],
    /// In host order.
    pub local_port: u16,
    /// In host order.
    pub remote_port: u16,
    /// One of [`family`].
    pub family: u8,
    /// One of [`opener`].
    pub opener: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What stands before the payload in every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// When the call returned: nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// One life of one SSL object; unique while the system is up.
    pub connection_id: u64,
    /// Bytes of this connection and direction before this record's payload, lost ones included.
    pub stream_offset: u64,
    /// The process id, in the initial PID namespace.
    pub pid: u32,
    /// The thread id.
    pub tid: u32,
    /// The effective user id.
    pub uid: u32,
    /// Bytes the whole call moved.
    pub call_length: u32,
    /// This payload's place in the call, in bytes.
    pub call_offset: u32,
    /// Bytes of payload that follow; the record itself is as long as its class.
    pub length: u32,
    /// The thread's name: bytes, NUL-padded.
    pub comm: [u64; COMM_LEN / 8],
    /// The connection's ends as far as known.
    pub endpoints: Endpoints,
    /// One of [`direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A record of the ring: `N` is one of [`CLASSES`].
#[repr(C)]
pub struct Record<const N: usize> {
    /// Says how much of `data` counts.
    pub header: Header,
    /// The payload; what lies past `header.length` is left over from older records.
    pub data: [u8; N],
}

const _: () = {
    assert!(size_of::<Endpoints>() == 40);
    assert!(size_of::<Header>() == 112);
    assert!(size_of::<Record<256>>() == 112 + 256);
    assert!(size_of::<SocketOffsets>() == 36);
};

/// What the kernel side counts. Each is a place in the array [`names::COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Records that found no room in the ring.
    RingFullRecords,
    /// Their payloads' bytes.
    RingFullBytes,
    /// Records whose payload could not be read from the process.
    UnreadableRecords,
    /// Their payloads' bytes.
    UnreadableBytes,
    /// Bytes past [`MAX_PIECES`] in one call.
    OversizeBytes,
    /// Calls that a map had no room for.
    MapFullCalls,
    /// Calls nested deeper than [`MAX_NESTING`] in one thread.
    TooDeepCalls,
    /// Returns whose call was not found.
    UnmatchedReturns,
}

impl Counter {
    /// Every counter, in the array's order.
    pub const ALL: [Self; 8] = [
        Self::RingFullRecords,
        Self::RingFullBytes,
        Self::UnreadableRecords,
        Self::UnreadableBytes,
        Self::OversizeBytes,
        Self::MapFullCalls,
        Self::TooDeepCalls,
        Self::UnmatchedReturns,
    ];
    /// Length of the array.
    pub const COUNT: usize = Self::ALL.len();
}

/// How many calls of one thread may be under way: TLS inside TLS nests `SSL_write`.
pub const MAX_NESTING: usize = 4;

/// Where the kernel keeps what the socket hooks read: byte offsets in `struct sock`; bits never come into it.
///
/// All zero: unknown, and the hooks do nothing (`protocol` can't be 0 where the others are known).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketOffsets {
    /// `__sk_common.skc_family`, u16.
    pub family: u32,
    /// `__sk_common.skc_state`, u8.
    pub state: u32,
    /// `__sk_common.skc_daddr`, 4 bytes.
    pub remote_v4: u32,
    /// `__sk_common.skc_rcv_saddr`, 4 bytes.
    pub local_v4: u32,
    /// `__sk_common.skc_v6_daddr`, 16 bytes.
    pub remote_v6: u32,
    /// `__sk_common.skc_v6_rcv_saddr`, 16 bytes.
    pub local_v6: u32,
    /// `__sk_common.skc_dport`, u16, network order.
    pub remote_port: u32,
    /// `__sk_common.skc_num`, u16, host order.
    pub local_port: u32,
    /// `sk_protocol`, u16.
    pub protocol: u32,
}
