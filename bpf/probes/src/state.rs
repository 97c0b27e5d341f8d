//! The maps: what the programs remember of threads, connections and sockets, and what they count.
//!
//! Every map is bounded. The LRU ones forget the entry that was unused longest: a thread that is inside no call loses
//! nothing by it, and a connection starts anew, with another id.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap, RingBuf},
};
use plaintap_abi::{Counter, Endpoints, MAX_NESTING, SocketOffsets};

/// The agent sets its size.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(Counter::COUNT as u32, BPF_F_MMAPABLE);

#[map]
static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(8192, 0);

#[map]
static CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::with_max_entries(8192, 0);

/// Which side opened a TCP connection, by its `struct sock`'s address.
#[map]
pub static OPENERS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(8192, 0);

#[map]
static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);

#[unsafe(no_mangle)]
static FILTER_PIDS: u32 = 0;

#[unsafe(no_mangle)]
static SOCKET_OFFSETS: SocketOffsets = SocketOffsets {
    family: 0,
    state: 0,
    remote_v4: 0,
    local_v4: 0,
    remote_v6: 0,
    local_v6: 0,
    remote_port: 0,
    local_port: 0,
    protocol: 0,
};

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
    /// The user stack pointer that the return will show.
    pub stack: u64,
}

/// The calls that one thread is inside, outermost first. Only that thread touches it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    depth: u64,
    calls: [Call; MAX_NESTING],
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
    /// Bytes read and bytes written so far.
    pub offsets: [u64; 2],
    /// The `struct sock` that `endpoints` was read from; 0: none yet.
    pub socket: u64,
    pub endpoints: Endpoints,
}

/// Adds `amount` to a counter that userspace reads.
pub fn count(counter: Counter, amount: u64) {
    if let Some(place) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map's value is an aligned u64 that lives as long as the program. Assembly, because Rust's BPF
        // target has no atomic add, not even the one that 5.10 knows.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) place, in(reg) amount, options(nostack)) };
    }
}

/// Counts what a program gave up on.
pub fn note(failure: Failure) {
    if let Failure::Counted(counter) = failure {
        count(counter, 1);
    }
}

/// Whether the person asked to see process `pid`.
pub fn wanted(pid: u32) -> bool {
    // SAFETY: a static of this program. Volatile, because the loader writes the value that counts.
    let filter = unsafe { core::ptr::read_volatile(&raw const FILTER_PIDS) };
    filter == 0 || PIDS.get_ptr(pid).is_some()
}

/// The layout of this kernel's `struct sock`, if the agent knows it.
pub fn socket_offsets() -> Option<SocketOffsets> {
    // SAFETY: a static of this program. Volatile, because the loader writes the value that counts.
    let offsets = unsafe { core::ptr::read_volatile(&raw const SOCKET_OFFSETS) };
    (offsets.protocol != 0).then_some(offsets)
}

/// The current thread's state, if it was ever seen inside a call.
pub fn thread() -> Option<&'static mut Thread> {
    let place = THREADS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: a map value is aligned and outlives the program's run; only this thread uses this one, and its programs
    // never interrupt one another.
    Some(unsafe { &mut *place })
}

/// The current thread's state, made if there is none.
pub fn thread_or_new() -> Result<&'static mut Thread, Failure> {
    if let Some(thread) = thread() {
        return Ok(thread);
    }
    let none = Call { ssl: 0, buffer: 0, stack: 0 };
    let new = Thread { depth: 0, calls: [none; MAX_NESTING] };
    let _ = THREADS.insert(bpf_get_current_pid_tgid(), new, 0);
    thread().ok_or(Failure::Counted(Counter::MapFullCalls))
}

/// What is known of the SSL object `ssl` of process `pid`; made if it is new.
pub fn connection_or_new(pid: u32, ssl: u64) -> Result<&'static mut Connection, Failure> {
    let key = ConnectionKey { ssl, pid: pid.into() };
    if CONNECTIONS.get_ptr_mut(key).is_none() {
        let new = Connection { id: new_id(), offsets: [0; 2], socket: 0, endpoints: NO_ENDPOINTS };
        // Another thread may have been faster: then its entry is the one.
        let _ = CONNECTIONS.insert(key, new, BPF_NOEXIST.into());
    }
    let place = CONNECTIONS.get_ptr_mut(key).ok_or(Failure::Counted(Counter::MapFullCalls))?;
    // SAFETY: a map value is aligned and outlives the program's run. Threads that share an SSL object take turns, as
    // the TLS library asks of them; should they not, offsets are off and nothing worse.
    Ok(unsafe { &mut *place })
}

const NO_ENDPOINTS: Endpoints = Endpoints {
    local_address: [0; 2],
    remote_address: [0; 2],
    local_port: 0,
    remote_port: 0,
    family: 0,
    opener: 0,
    reserved: [0; 2],
};

/// Unlike every other id since boot: no CPU makes two connections within 16 ns.
///
/// 5.10 has no atomic add that tells the sum, so a plain counter can't serve.
fn new_id() -> u64 {
    // SAFETY: helpers without arguments.
    let (time, cpu) = unsafe { (bpf_ktime_get_boot_ns(), bpf_get_smp_processor_id()) };
    (time >> 4) << 12 | u64::from(cpu & 0xfff)
}

impl Thread {
    /// Remembers a call whose return will show the stack pointer `call.stack`.
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
    pub fn leave(&mut self, stack: u64) -> Result<Call, Failure> {
        // What lies below on the stack, which grows downwards, is gone.
        self.unwind(stack - 1);
        match self.current() {
            Some(call) if call.stack == stack => {
                self.depth -= 1;
                Ok(call)
            }
            _ => Err(Failure::Counted(Counter::UnmatchedReturns)),
        }
    }

    /// The innermost call that the thread is inside.
    #[inline(always)]
    pub fn current(&mut self) -> Option<Call> {
        if self.depth == 0 { None } else { Some(*self.place(self.depth - 1)) }
    }

    /// Forgets calls whose frames are no longer on the stack: left by longjmp or an exception, they never return.
    #[inline(always)]
    fn unwind(&mut self, stack: u64) {
        for _ in 0..MAX_NESTING {
            match self.current() {
                Some(call) if call.stack <= stack => self.depth -= 1,
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

/// `value`, or `N` where it is larger: a bound that the verifier must see, in a form that LLVM can't reason away.
#[inline(always)]
pub fn at_most<const N: usize>(mut value: u64) -> u64 {
    // SAFETY: changes no register but its own, touches no memory.
    unsafe {
        asm!("if {0} <= {max} goto +1", "{0} = {max}", inout(reg) value, max = const N, options(pure, nomem, nostack));
    }
    value
}
