//! The maps: what the programs remember of threads and connections, and what they count.
//!
//! Every map is bounded. The LRU ones forget the entry that was unused longest: a thread that is inside no call loses
//! nothing by it, and a connection goes on as a new one.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, LruHashMap, RingBuf},
};
use plaintap_abi::{Counter, Endpoints, MAX_NESTING, TAIL_WAYS, TAILS, Tail, tail_place};

use crate::{filter::settings, memory::at_most};

/// The agent sets its size.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(Counter::COUNT as u32, BPF_F_MMAPABLE);

#[map(name = "TAILS")]
static TAIL_PLACES: Array<Tail> = Array::with_max_entries(TAILS as u32, BPF_F_MMAPABLE);

#[map]
static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(8192, 0);

#[map]
static CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::with_max_entries(8192, 0);

/// Processes that have connections; the values say nothing.
#[map]
static PROCESSES: LruHashMap<u32, u8> = LruHashMap::with_max_entries(8192, 0);

/// When the last process with this id ended, or turned into another program: where a life of the id begins.
#[map]
static ENDED: LruHashMap<u32, u64> = LruHashMap::with_max_entries(8192, 0);

/// Why a program had to give up.
pub enum Failure {
    /// Nothing is wrong: the call is not ours, or carried nothing.
    NotOurs,
    /// Something was lost, and this counts it.
    Counted(Counter),
}

/// A call of the TLS library that has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Call {
    /// The SSL object's address: argument 0.
    pub ssl: u64,
    /// The buffer's address: argument 1.
    pub buffer: u64,
    /// Where the call leaves its length, for those that return only success; else 0.
    pub length_at: u64,
    /// The user stack pointer that the return will show.
    pub stack: u64,
    /// What the call's bytes are, one of [`kind`](plaintap_abi::kind).
    pub kind: u64,
}

/// What one thread is doing. Only that thread touches it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    depth: u64,
    /// The calls that it is inside, outermost first.
    calls: [Call; MAX_NESTING],
    pub tally: Tally,
    /// The life of the thread's process id, as in [`Header`](plaintap_abi::Header): it lasts as long as the thread.
    pub life: u64,
}

/// What of one call could not be sent. Kept in a map and not on the stack: there the verifier would follow each way that a
/// piece may go on its own, and run out of patience after some hundred pieces.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tally {
    /// Records that found no room in the ring.
    pub full_records: u64,
    pub full_bytes: u64,
    /// Records whose payload could not be read.
    pub unreadable_records: u64,
    pub unreadable_bytes: u64,
    /// The offset in the stream at which the last of them ends.
    pub end: u64,
}

/// An SSL object's address means nothing outside its process.
#[derive(Clone, Copy)]
#[repr(C)]
struct ConnectionKey {
    ssl: u64,
    pid: u64,
}

/// What is known of an SSL object.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Connection {
    pub id: u64,
    /// The life of the process id that it belongs to, as in [`Header`](plaintap_abi::Header).
    pub life: u64,
    /// Bytes read and bytes written so far.
    pub offsets: [u64; 2],
    /// Of them, what the snap length kept out.
    pub snapped: [u64; 2],
    /// The `struct sock` that `endpoints` was read from; 0: none yet.
    pub socket: u64,
    pub endpoints: Endpoints,
    /// Not 0 once its early data was rejected.
    pub early_data_rejected: u64,
}

/// Adds `amount` to a counter that userspace reads.
#[inline(never)]
pub fn count(counter: Counter, amount: u64) {
    if let Some(place) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map's value is an aligned u64 that lives as long as the program. Assembly, because Rust's BPF
        // target has no atomic add, not even the one that 5.10 knows.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) place, in(reg) amount, options(nostack)) };
    }
}

/// Counts what a program gave up on.
#[inline(always)]
pub fn note(failure: Failure) {
    if let Failure::Counted(counter) = failure {
        count(counter, 1);
    }
}

impl Tally {
    /// Counts what could not be sent of a call on a connection, and leaves word of where the connection's bytes end: it may
    /// have been the last of them. `snapped` is as in the call's header.
    #[inline(never)]
    pub fn settle(&mut self, connection_id: u64, written: bool, snapped: u64) {
        if self.end == 0 {
            return;
        }
        count(Counter::RingFullRecords, self.full_records);
        count(Counter::RingFullBytes, self.full_bytes);
        count(Counter::UnreadableRecords, self.unreadable_records);
        count(Counter::UnreadableBytes, self.unreadable_bytes);
        leave_tail(connection_id, (self.end - snapped) << 1 | u64::from(written));
        *self = Self { full_records: 0, full_bytes: 0, unreadable_records: 0, unreadable_bytes: 0, end: 0 };
    }
}

/// Keeps where a connection's bytes end: over its last word, else in a free place, else over the oldest connection's.
#[inline(never)]
fn leave_tail(connection_id: u64, end: u64) {
    let first = tail_place(connection_id, end & 1 == 1);
    let mut oldest = (u64::MAX, first);
    for way in 0..TAIL_WAYS {
        let Some(place) = TAIL_PLACES.get_ptr(first + way) else { return };
        // SAFETY: a map value is aligned and outlives the program's run. Another thread may write it now: `check` tells.
        let tail = unsafe { place.read_volatile() };
        if tail.connection() == (connection_id, end & 1 == 1) {
            oldest.1 = first + way;
            break;
        }
        // Ids grow with time, and a free place's is 0.
        if tail.connection().0 < oldest.0 {
            oldest = (tail.connection().0, first + way);
        }
    }
    if let Some(place) = TAIL_PLACES.get_ptr_mut(oldest.1) {
        // SAFETY: as above.
        unsafe { place.write_volatile(Tail { check: connection_id ^ end, end }) };
    }
}

/// The current thread's state, if it was seen inside a call since capturing began.
#[inline(always)]
pub fn thread() -> Option<&'static mut Thread> {
    let place = THREADS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: a map value is aligned and outlives the program's run; only this thread uses this one, and its programs
    // never interrupt one another.
    let thread = unsafe { &mut *place };
    (thread.life >= epoch()).then_some(thread)
}

/// When capturing began.
#[inline(always)]
fn epoch() -> u64 {
    settings().map_or(0, |settings| settings.epoch)
}

/// The current thread's state, made if there is none.
#[inline(always)]
pub fn thread_or_new() -> Result<&'static mut Thread, Failure> {
    if let Some(thread) = thread() {
        return Ok(thread);
    }
    new_thread();
    thread().ok_or(Failure::Counted(Counter::MapFullCalls))
}

#[inline(never)]
fn new_thread() {
    // SAFETY: all words are plain numbers, for which zero is a value.
    let mut new: Thread = unsafe { core::mem::zeroed() };
    new.life = current_life();
    let _ = THREADS.insert(bpf_get_current_pid_tgid(), &new, 0);
}

/// What is known of the SSL object `ssl` in this `life` of the current process's id; made if it is new.
#[inline(always)]
pub fn connection_or_new(ssl: u64, life: u64) -> Result<&'static mut Connection, Failure> {
    let pid = bpf_get_current_pid_tgid() >> 32;
    let key = ConnectionKey { ssl, pid };
    if let Some(place) = CONNECTIONS.get_ptr_mut(key) {
        // SAFETY: as below.
        let connection = unsafe { &mut *place };
        if connection.life == life {
            return Ok(connection);
        }
        let _ = CONNECTIONS.remove(key);
    }
    new_connection(ssl, life);
    let place = CONNECTIONS.get_ptr_mut(key).ok_or(Failure::Counted(Counter::MapFullCalls))?;
    // SAFETY: a map value is aligned and outlives the program's run. Threads that share an SSL object take turns, as
    // the TLS library asks of them; should they not, offsets are off and nothing worse.
    Ok(unsafe { &mut *place })
}

/// Which life of the current process's id this is. A [`Thread`] knows it too.
#[inline(always)]
pub fn current_life() -> u64 {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a map value is aligned and outlives the program's run.
    let began = ENDED.get_ptr(pid).map_or(0, |ended| unsafe { *ended });
    if began < epoch() { epoch() } else { began }
}

#[inline(never)]
fn new_connection(ssl: u64, life: u64) {
    // SAFETY: all words are plain numbers, for which zero is a value; the helpers take no arguments.
    let (mut new, time, cpu): (Connection, u64, u32) =
        unsafe { (core::mem::zeroed(), bpf_ktime_get_boot_ns(), bpf_get_smp_processor_id()) };
    // No CPU makes two connections within 16 ns. 5.10 has no atomic add that tells the sum, so a counter can't serve.
    new.id = (time >> 4) << 12 | u64::from(cpu & 0xfff);
    new.life = life;
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let _ = PROCESSES.insert(pid, 0, 0);
    // Another thread may have been faster: then its entry is the one.
    let _ = CONNECTIONS.insert(ConnectionKey { ssl, pid: pid.into() }, &new, BPF_NOEXIST.into());
}

/// Whether process `pid` has SSL objects that are captured.
#[inline(always)]
pub fn has_connections(pid: u32) -> bool {
    PROCESSES.get_ptr(pid).is_some()
}

/// Whether bytes went through an SSL object of the current process.
#[inline(always)]
pub fn has_carried(ssl: u64) -> bool {
    let pid = bpf_get_current_pid_tgid() >> 32;
    // SAFETY: a map value is aligned and outlives the program's run.
    CONNECTIONS.get_ptr(ConnectionKey { ssl, pid }).is_some_and(|place| unsafe { (*place).offsets != [0, 0] })
}

/// Forgets an SSL object of the current process: its address may come to mean another one.
#[inline(always)]
pub fn end_connection(ssl: u64) {
    let pid = bpf_get_current_pid_tgid() >> 32;
    let _ = CONNECTIONS.remove(ConnectionKey { ssl, pid });
}

/// Forgets the thread `tid` of the current process.
#[inline(always)]
pub fn end_thread(tid: u32) {
    let pid = bpf_get_current_pid_tgid() >> 32;
    let _ = THREADS.remove(pid << 32 | u64::from(tid));
}

/// Ends this life of the current process's id: what it left behind is not the next one's.
#[inline(always)]
pub fn end_process() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if PROCESSES.remove(pid).is_ok() {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        let _ = ENDED.insert(pid, now, 0);
    }
}

impl Thread {
    /// Remembers a call whose return will show the stack pointer `call.stack`.
    #[inline(always)]
    pub fn enter(&mut self, call: Call) -> Result<(), Failure> {
        self.unwind(call.stack);
        if self.depth >= MAX_NESTING as u64 {
            return Err(Failure::Counted(Counter::TooDeepCalls));
        }
        *self.place(self.depth) = call;
        self.depth += 1;
        Ok(())
    }

    /// Takes back the call that returns with stack pointer `stack`.
    #[inline(always)]
    pub fn leave(&mut self, stack: u64) -> Result<Call, Failure> {
        // What lies below on the stack, which grows downwards, is gone.
        self.unwind(stack - 1);
        match self.current().map(|call| *call) {
            Some(call) if call.stack == stack => {
                self.depth -= 1;
                Ok(call)
            }
            _ => Err(Failure::Counted(Counter::UnmatchedReturns)),
        }
    }

    /// The innermost call that the thread is inside.
    #[inline(always)]
    pub fn current(&mut self) -> Option<&mut Call> {
        if self.depth == 0 { None } else { Some(self.place(self.depth - 1)) }
    }

    /// The SSL object of that call, and the life of the process id that it belongs to.
    #[inline(always)]
    pub fn object(&mut self) -> Option<(u64, u64)> {
        let life = self.life;
        self.current().map(|call| (call.ssl, life))
    }

    /// Forgets calls whose frames are no longer on the stack: left by longjmp or an exception, they never return.
    #[inline(always)]
    fn unwind(&mut self, stack: u64) {
        for _ in 0..MAX_NESTING {
            match self.current().map(|call| call.stack) {
                Some(entered) if entered <= stack => self.depth -= 1,
                _ => return,
            }
        }
    }

    #[inline(always)]
    fn place(&mut self, index: u64) -> &mut Call {
        let index = at_most::<{ MAX_NESTING - 1 }>(index);
        // SAFETY: it is a place of the array now.
        unsafe { self.calls.get_unchecked_mut(index as usize) }
    }
}
