//! What the eBPF programs and the agent agree on: records of the ring, counters, settings, and the names that join them.
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
    /// [`Tail`](crate::Tail)s, in the place that [`tail_place`](crate::tail_place) says; may be mapped into memory.
    pub const TAILS: &str = "TAILS";
    /// One [`Settings`](crate::Settings).
    pub const SETTINGS: &str = "SETTINGS";
    /// `u32` process id to [`choice`](crate::choice).
    pub const PIDS: &str = "PIDS";
    /// A comm, NUL-padded, to [`choice`](crate::choice).
    pub const COMMS: &str = "COMMS";
    /// `u16` TCP ports, in host order, that are listened on, to how many sockets were seen to begin it; 0: some were there
    /// before, and the port stays.
    pub const LISTENERS: &str = "LISTENERS";
    /// See there.
    pub const OPENERS: &str = "OPENERS";
    /// `u32` process id to the [`life`](crate::Header::life) that it is in.
    pub const ENDED: &str = "ENDED";
    /// `u32` place in a page to [`Calls`](crate::Calls).
    pub const GUESSES: &str = "GUESSES";
    /// A [`SocketOffsets`](crate::SocketOffsets).
    pub const SOCKET_OFFSETS: &str = "SOCKET_OFFSETS";
    /// A [`TaskOffsets`](crate::TaskOffsets).
    pub const TASK_OFFSETS: &str = "TASK_OFFSETS";
}

/// What a record tells.
pub mod kind {
    /// Plaintext that the process received. The value is that of eCaptureQ's `Event.direction`.
    pub const READ: u8 = 1;
    /// Plaintext that the process sent. The value is that of eCaptureQ's `Event.direction`.
    pub const WRITTEN: u8 = 2;
    /// The payload is the host name that the client side asks for.
    pub const SERVER_NAME: u8 = 3;
    /// The peer rejected early data: what was written so far is not with it, and may be sent again. No payload.
    pub const EARLY_DATA_REJECTED: u8 = 4;
}

/// Which side opened a connection.
pub mod opener {
    /// Nobody knows.
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

/// What a filter's entry does with what matches it.
pub mod choice {
    /// Only what matches such an entry is captured.
    pub const INCLUDE: u8 = 1;
    /// What matches is not captured.
    pub const EXCLUDE: u8 = 2;
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
    /// Where in that count the call began that this record is of.
    pub call_start: u64,
    /// Where the call's part ends that the snap length keeps.
    pub kept_end: u64,
    /// Where the call ended.
    pub call_end: u64,
    /// Bytes that the snap length kept out of this connection and direction before this call.
    pub snapped: u64,
    /// Which life of the process id this is: when the one before ended, or turned into another program, in nanoseconds of
    /// `CLOCK_BOOTTIME`; 0: none is known.
    pub life: u64,
    /// The process id, in the initial PID namespace.
    pub pid: u32,
    /// The thread id.
    pub tid: u32,
    /// The effective user id.
    pub uid: u32,
    /// Bytes of payload that follow; the record itself is as long as its class.
    pub length: u32,
    /// The thread's name: bytes, NUL-padded.
    pub comm: [u64; COMM_LEN / 8],
    /// The connection's ends as far as known.
    pub endpoints: Endpoints,
    /// One of [`kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A record of the ring: `N` is one of [`CLASSES`], or 0 where there is no payload.
#[repr(C)]
pub struct Record<const N: usize> {
    /// Says how much of `data` counts.
    pub header: Header,
    /// The payload; what lies past `header.length` is left over from older records.
    pub data: [u8; N],
}

/// What overwrites the ring, piece by piece: small enough that every ring that the kernel makes has room for it.
pub type Blank = Record<{ CLASSES[1] }>;

const _: () = {
    assert!(size_of::<Endpoints>() == 40);
    assert!(size_of::<Header>() == 144);
    assert!(size_of::<Record<256>>() == 144 + 256);
    assert!(size_of::<SocketOffsets>() == 36);
    assert!(size_of::<TaskOffsets>() == 16);
    assert!(size_of::<Settings>() == 24 + 12 * MAX_UID_RANGES);
    assert!(size_of::<Tail>() == 16);
    assert!(size_of::<Calls>() == 8);
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
    /// Calls whose length could not be read from the process.
    UnreadableLengths,
    /// Bytes that the snap length kept out: asked for, and so no loss.
    SnappedBytes,
}

impl Counter {
    /// Every counter, in the array's order.
    pub const ALL: [Self; 10] = [
        Self::RingFullRecords,
        Self::RingFullBytes,
        Self::UnreadableRecords,
        Self::UnreadableBytes,
        Self::OversizeBytes,
        Self::MapFullCalls,
        Self::TooDeepCalls,
        Self::UnmatchedReturns,
        Self::UnreadableLengths,
        Self::SnappedBytes,
    ];
    /// Length of the array.
    pub const COUNT: usize = Self::ALL.len();
}

/// Where a connection's bytes end whose last record was lost, so that the loss shows even if nothing comes after it.
///
/// Two threads may write one place at once: `check` tells whether both words are of one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tail {
    /// The connection's id, exclusive-or `end`.
    pub check: u64,
    /// Bytes of the connection and direction so far, those aside that the snap length kept out, times 2, plus 1 if they were
    /// written. 0: nothing here.
    pub end: u64,
}

impl Tail {
    /// The connection's id, and whether it is its written bytes.
    pub fn connection(self) -> (u64, bool) {
        (self.check ^ self.end, self.end & 1 == 1)
    }
}

/// Places for [`Tail`]s.
pub const TAILS: u64 = 2048;
/// Places side by side that a connection's tail may take. Where others have them all, the oldest connection's goes.
pub const TAIL_WAYS: u32 = 4;

/// The first of the places of a connection's tail.
pub fn tail_place(connection_id: u64, written: bool) -> u32 {
    // Fibonacci hashing: ids differ in their time bits, which this spreads. Source: Knuth, TAOCP 3, section 6.4.
    let hash = (connection_id ^ written as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (64 - TAILS.trailing_zeros())) as u32 & !(TAIL_WAYS - 1)
}

/// How a function was called that only its code tells to be SSL_read or SSL_write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Calls {
    /// Its calls.
    pub all: u32,
    /// Those whose arguments are none of SSL_read's or SSL_write's.
    pub odd: u32,
}

/// How many such functions are looked at.
pub const MAX_GUESSES: u32 = 512;
/// The bits of an address that are the same wherever the smallest page is mapped.
pub const PAGE_OFFSET: u32 = 4095;

/// How many calls of one thread may be under way: TLS inside TLS nests `SSL_write`.
pub const MAX_NESTING: usize = 4;

/// How many ranges of user ids a filter may have.
pub const MAX_UID_RANGES: usize = 16;

/// What the person asked for; changed while the programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// Bytes to keep of each call.
    pub snaplen: u64,
    /// When capturing began, again perhaps, in nanoseconds since boot: what is remembered of before counts no more. 0: it has
    /// gone on since the programs were loaded.
    pub epoch: u64,
    /// Bits of [`filter`]; 0: everything is captured.
    pub filters: u32,
    /// How many of `uids` count.
    pub uid_ranges: u32,
    /// The user ids to include or exclude.
    pub uids: [UidRange; MAX_UID_RANGES],
}

/// Which filters there are, as bits.
pub mod filter {
    /// There are entries in the map of process ids.
    pub const PIDS: u32 = 1;
    /// Of them, some include.
    pub const PIDS_INCLUDE: u32 = 2;
    /// There are ranges of user ids.
    pub const UIDS: u32 = 4;
    /// Of them, some include.
    pub const UIDS_INCLUDE: u32 = 8;
    /// There are entries in the map of comms.
    pub const COMMS: u32 = 16;
    /// Of them, some include.
    pub const COMMS_INCLUDE: u32 = 32;
}

/// User ids from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UidRange {
    /// The lowest.
    pub first: u32,
    /// The highest.
    pub last: u32,
    /// One of [`choice`].
    pub choice: u32,
}

/// Where the kernel keeps what the socket hooks read: byte offsets in `struct sock`.
///
/// `local_port` 0: nothing is known, and the hooks do nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketOffsets {
    /// `__sk_common.skc_family`, u16.
    pub family: u32,
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
    /// `sk_protocol`, u16; [`NO_OFFSET`] where unknown, which only kprobes on TCP's own functions can do with.
    pub protocol: u32,
    /// `inet_sport` of the `struct inet_sock` around it, u16, network order; [`NO_OFFSET`] where unknown.
    pub source_port: u32,
}

/// Where the kernel keeps how many threads of a process live, and the arguments of system calls: byte offsets.
///
/// `signal` 0: nothing is known, and a process is taken to end with its first thread. `argument` 0: SSL objects over memory
/// have no addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskOffsets {
    /// `signal` in `struct task_struct`, a pointer.
    pub signal: u32,
    /// `live` in `struct signal_struct`, an i32.
    pub live: u32,
    /// `stack` in `struct task_struct`, a pointer.
    pub stack: u32,
    /// A system call's second argument, a u64, on that stack.
    pub argument: u32,
}

/// What stands for an unknown offset.
pub const NO_OFFSET: u32 = u32::MAX;
