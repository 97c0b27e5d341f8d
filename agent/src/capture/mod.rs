//! The kernel side, seen from the attaching half: loads the eBPF programs, puts them on functions and sockets.
//!
//! Owns the loaded programs: dropping a `Capture` detaches everything, as does the end of the process. The kernel takes its
//! time over each probe, one after the other: some 80 ms on 6.18.

pub mod btf;
pub mod counters;
pub mod filters;
mod guesses;
pub mod listeners;
pub mod ring;
mod shared;
mod tables;
pub mod tails;

use std::{
    hash::Hash,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, RawTracePointRunOptions, TestRun, VerifierLogLevel,
    maps::{Array, HashMap, Map, MapData, MapError},
    programs::{
        KProbe, Program, ProgramError, RawTracePoint, UProbe,
        kprobe::KProbeLinkId,
        raw_trace_point::RawTracePointLinkId,
        uprobe::{UProbeLinkId, UProbeScope},
    },
};
use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use plaintap_abi::{Calls, NO_OFFSET, PAGE_OFFSET, Settings, SocketOffsets, TaskOffsets, choice, names};

use filters::Filters;
use guesses::Guesses;

use crate::{
    discover::{Function, Target},
    memory::Sizes,
    privileges::{self, Selinux},
    process,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.o"));

/// The kernel's description of its types. Source: linux, Documentation/bpf/btf.rst.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
/// Shows that the kernel has uprobes. Source: linux, Documentation/ABI/testing/sysfs-bus-event_source-devices.
const UPROBE_EVENTS: &str = "/sys/bus/event_source/devices/uprobe/type";

/// How often a program is given to a verifier that is interrupted. Source: libbpf, src/bpf.c, PROG_LOAD_ATTEMPTS.
const LOAD_ATTEMPTS: u32 = 5;

/// The program that looks at the calls of a guessed function.
const GUESSED_CALL: &str = "guessed_call";

/// The maps that remember threads, connections, processes and sockets: what is forgotten first where they are smaller was
/// unused longest. Their names are in bpf/probes.
const TABLES: [&str; 5] = ["THREADS", "CONNECTIONS", "PROCESSES", "ENDED", "OPENERS"];

/// Settings, as a type that aya writes into maps.
const SETTINGS_WORDS: usize = size_of::<Settings>() / size_of::<u64>();

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not use eBPF.
    #[error("not permitted to {what}; {remedy}")]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What to do.
        remedy: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There was no memory or no file descriptor left, or the kernel was interrupted; later it may go.
    #[error("can't {what} for now")]
    Short {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel was built without uprobes.
    #[error(
        "this kernel has no uprobes: {UPROBE_EVENTS} is missing; it needs CONFIG_UPROBE_EVENTS and a mounted /sys"
    )]
    NoUprobes,
    /// The kernel was built without eBPF, or is too old.
    #[error(
        "this kernel can't {what}; it must be 5.10 or newer, with CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS"
    )]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: Box<aya::EbpfError>,
    },
    /// Too little memory may be locked.
    #[error(
        "not permitted to load eBPF maps: RLIMIT_MEMLOCK allows {allowed} KiB for all of this user's, and {least} are \
         needed; run as root, or ulimit -l unlimited"
    )]
    Memlock {
        /// What is allowed, in KiB.
        allowed: u64,
        /// What the smallest maps take, in KiB.
        least: usize,
    },
    /// The layout of this kernel's sockets is unknown.
    #[error(
        "this kernel does not say where a socket keeps its addresses: {KERNEL_BTF} {0}; it needs CONFIG_DEBUG_INFO_BTF"
    )]
    NoOffsets(String),
    /// The object is not the one that this program was written for.
    #[error("the eBPF object lacks {0}; rebuild it with bpf/build.sh")]
    Object(&'static str),
}

/// How the addresses of connections are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketHook {
    /// kprobes on tcp_sendmsg and tcp_recvmsg.
    Kprobe,
    /// The raw tracepoints sock_send_length and sock_recv_length, since 6.3.
    Tracepoint,
}

/// A probe in its place.
#[derive(Debug)]
pub struct Probe {
    program: &'static str,
    link: UProbeLinkId,
    /// Where in its page the function begins, if its calls are counted.
    guess: Option<u32>,
}

/// A program on something other than a function of a library.
#[derive(Debug)]
enum Hook {
    Kprobe(&'static str, KProbeLinkId),
    Tracepoint(&'static str, RawTracePointLinkId),
}

/// The loaded programs and what they are attached to.
#[derive(Debug)]
pub struct Capture {
    ebpf: Ebpf,
    hooks: Vec<Hook>,
    /// When capturing began again: nanoseconds since boot.
    epoch: u64,
    guesses: Guesses,
    offsets: SocketOffsets,
    /// Why the programs can't read a socket's addresses.
    no_offsets: Option<btf::Error>,
    /// What is known of threads.
    task_offsets: TaskOffsets,
}

impl Capture {
    /// Loads the programs into the kernel, with maps of these sizes; nothing is attached yet.
    ///
    /// Before 5.11 maps count as locked memory. Where too little of that is allowed and the limit can't be raised, the maps
    /// are as large as they can be. Source: linux 5.11's log, "bpf: Eliminate rlimit-based memory accounting".
    pub fn load(sizes: Sizes, filters: &Filters) -> Result<Self, Error> {
        let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok();
        if raised || btf::release().is_none_or(|release| release >= (5, 11)) {
            return Self::load_with(sizes, filters);
        }
        let allowed = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard);
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, allowed, allowed);
        let mut tried = sizes;
        loop {
            match Self::load_with(tried, filters) {
                Err(Error::NotPermitted { .. }) => {
                    let least = Sizes::SMALLEST.in_kernel().div_ceil(1 << 10);
                    tried = tried.smaller().ok_or(Error::Memlock { allowed: allowed >> 10, least })?;
                }
                loaded => {
                    if loaded.is_ok() && tried != sizes {
                        log::warn!(
                            "RLIMIT_MEMLOCK allows {} KiB: the ring has {} KiB in place of {}, the tables {} entries in \
                             place of {}",
                            allowed >> 10,
                            tried.ring >> 10,
                            sizes.ring >> 10,
                            tried.table_entries,
                            sizes.table_entries
                        );
                    }
                    return loaded;
                }
            }
        }
    }

    /// aya asks for a log in each second attempt, which may be one after an interruption. Of what the verifier says, which
    /// takes megabytes, all is asked for only where the kernel has refused.
    fn load_with(sizes: Sizes, filters: &Filters) -> Result<Self, Error> {
        let refused = match Self::load_logged(sizes, filters, VerifierLogLevel::STATS) {
            Err(refused @ Error::Kernel { .. }) => refused,
            loaded => return loaded,
        };
        match Self::load_logged(sizes, filters, VerifierLogLevel::default()) {
            // More than aya takes of a log: what was refused says why, if not where.
            Err(Error::Kernel { source, .. }) if errno(&*source) == Some(Errno::ENOSPC) => Err(refused),
            loaded @ (Ok(_) | Err(Error::Kernel { .. })) => loaded,
            Err(_) => Err(refused),
        }
    }

    fn load_logged(sizes: Sizes, filters: &Filters, log: VerifierLogLevel) -> Result<Self, Error> {
        if !Path::new(UPROBE_EVENTS).exists() {
            return Err(Error::NoUprobes);
        }
        let ((offsets, task_offsets), no_offsets) = match btf::offsets(Path::new(KERNEL_BTF)) {
            Ok(offsets) => (offsets, None),
            Err(_) if btf::known_kernel() => ((btf::COMMON_OFFSETS, TaskOffsets::default()), None),
            Err(error) => ((SocketOffsets::default(), TaskOffsets::default()), Some(error)),
        };
        let mut loader = EbpfLoader::new();
        for table in TABLES {
            loader.map_max_entries(table, sizes.table_entries);
        }
        let ebpf = loader
            // The object carries no types, so that the kernel's need not be held in memory to match them.
            .btf(None)
            .override_global(names::SOCKET_OFFSETS, bytemuck::bytes_of(&offsets), true)
            .override_global(names::TASK_OFFSETS, bytemuck::bytes_of(&task_offsets), true)
            .map_max_entries(names::RING, sizes.ring)
            .verifier_log_level(log)
            .load(OBJECT)
            .map_err(|source| Error::from_aya("load eBPF maps", source))?;
        let mut capture = Self {
            ebpf,
            hooks: Vec::new(),
            epoch: 0,
            guesses: Guesses::default(),
            offsets,
            no_offsets,
            task_offsets,
        };
        capture.set_filters(filters)?;
        for (name, program) in capture.ebpf.programs_mut() {
            load(name, program)?;
        }
        capture.programs().iter().for_each(|program| log::debug!("loaded {program}"));
        Ok(capture)
    }

    /// The loaded programs by name, and how near each comes to the verifier's limit of a million, which is told since 5.16.
    pub fn programs(&self) -> Vec<String> {
        let programs = self.ebpf.programs().map(|(name, program)| {
            let info = program.info().ok();
            let count = info.as_ref().and_then(|info| info.verified_instruction_count());
            let count = count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
            let jited = info.map_or(0, |info| info.size_jitted());
            format!("program={name} verified_instructions={count} compiled_bytes={jited}")
        });
        programs.collect()
    }

    /// What this kernel keeps from being seen by not describing its types.
    pub fn reduced(&self) -> Option<&'static str> {
        match self.task_offsets {
            TaskOffsets { signal: 0, .. } | TaskOffsets { argument: 0, .. } => Some(
                "without the kernel's BTF, TLS over memory (as Conscrypt's engine) has no addresses, and a process counts as \
                 ended with its first thread; it needs CONFIG_DEBUG_INFO_BTF",
            ),
            _ => None,
        }
    }

    /// Changes what is captured from now on.
    pub fn set_filters(&mut self, filters: &Filters) -> Result<(), Error> {
        let failed = |error: MapError| Error::from_aya("fill an eBPF map", error.into());
        // Entries come before the settings that count on them, and go after those that did: who is wanted before and after is
        // so in between, too. Else there would be a hole that nobody is told of.
        let pids = add(self.map_as(names::PIDS)?, &filters.pids).map_err(failed)?;
        let comms = add(self.map_as(names::COMMS)?, &filters.comms).map_err(failed)?;
        let settings = Settings { epoch: self.epoch, ..filters.settings() };
        let settings = bytemuck::cast::<Settings, [u64; SETTINGS_WORDS]>(settings);
        let mut map: Array<_, [u64; SETTINGS_WORDS]> = self.map_as(names::SETTINGS)?;
        map.set(0, settings, 0).map_err(failed)?;
        remove(self.map_as(names::PIDS)?, &pids).map_err(failed)?;
        remove(self.map_as(names::COMMS)?, &comms).map_err(failed)
    }

    /// Puts the probes on one function of a target, and adds them to `probes`.
    pub fn attach(
        &mut self,
        target: &Target,
        function: Function,
        offset: u64,
        probes: &mut Vec<Probe>,
    ) -> Result<(), Error> {
        // By its descriptor, as it may have no path: the kernel follows this to the inode that was looked into.
        let path = format!("/proc/self/fd/{}", target.file.as_raw_fd());
        let (entry, returns) = programs(function);
        // The return first: an entry without its return would leave a call in the thread's state.
        for name in returns.into_iter().chain([entry]) {
            let program: &mut UProbe = self.program(name)?;
            let link = program.attach(offset, &path, UProbeScope::AllProcesses).map_err(|error| {
                let what = format!("probe {} in {}", function.name(), target.path.display());
                Error::from_aya(&what, error.into())
            })?;
            probes.push(Probe { program: name, link, guess: None });
        }
        Ok(())
    }

    /// Counts the first calls of a function of a target that only its code tells to be one that carries plaintext. None: as the
    /// programs count, its calls could not be told from those of another function that are counted already.
    pub fn watch_guess(&mut self, target: &Target, offset: u64) -> Result<Option<Probe>, Error> {
        let place = offset as u32 & PAGE_OFFSET;
        let Some(was_free) = self.guesses.take(place, &target.found.functions) else { return Ok(None) };
        let mut attach = || {
            if was_free {
                let mut guesses: HashMap<_, u32, [u32; 2]> = self.map_as(names::GUESSES)?;
                let failed = |error: MapError| Error::from_aya("fill an eBPF map", error.into());
                guesses.insert(place, [0; 2], 0).map_err(failed)?;
            }
            let path = format!("/proc/self/fd/{}", target.file.as_raw_fd());
            let what = || format!("probe a function in {}", target.path.display());
            let program: &mut UProbe = self.program(GUESSED_CALL)?;
            let link = program.attach(offset, &path, UProbeScope::AllProcesses);
            link.map_err(|error| Error::from_aya(&what(), error.into()))
        };
        match attach() {
            Ok(link) => Ok(Some(Probe { program: GUESSED_CALL, link, guess: Some(place) })),
            Err(error) => {
                self.forget_guess(place)?;
                Err(error)
            }
        }
    }

    /// How the function was called so far whose calls `probe` counts.
    pub fn calls(&mut self, probe: &Probe) -> Result<Calls, Error> {
        let guesses: HashMap<_, u32, [u32; 2]> = self.map_as(names::GUESSES)?;
        let counted = probe.guess.and_then(|place| guesses.get(&place, 0).ok());
        let [all, odd] = counted.unwrap_or_default();
        Ok(Calls { all, odd })
    }

    /// Makes room for another function that begins at the same place of its page.
    fn forget_guess(&mut self, place: u32) -> Result<(), Error> {
        if !self.guesses.give_back(place) {
            return Ok(());
        }
        let mut guesses: HashMap<_, u32, [u32; 2]> = self.map_as(names::GUESSES)?;
        guesses.remove(&place).map_err(|error| Error::from_aya("empty an eBPF map", error.into()))
    }

    /// Takes a probe away.
    pub fn detach(&mut self, probe: Probe) -> Result<(), Error> {
        let program: &mut UProbe = self.program(probe.program)?;
        let detached = program.detach(probe.link);
        probe.guess.map_or(Ok(()), |place| self.forget_guess(place))?;
        detached.map_err(|error| Error::from_aya("take a probe away", error.into()))
    }

    /// Attaches what tells the ends of threads and processes.
    pub fn hook_ends(&mut self) -> Result<(), Error> {
        self.attach_tracepoints("thread_exit", &["sched_process_exit"])?;
        self.attach_tracepoints("program_exec", &["sched_process_exec"])
    }

    /// Attaches what finds out connections' addresses, in the way that this kernel has.
    ///
    /// Everything works without; connections then have no addresses.
    pub fn hook_sockets(&mut self) -> Result<SocketHook, Error> {
        if let Some(error) = &self.no_offsets {
            return Err(Error::NoOffsets(error.to_string()));
        }
        // Before the ports are read, so that none is missed.
        self.attach_tracepoints("socket_state", &["inet_sock_set_state"])?;
        let mut listeners: HashMap<_, u16, u8> = self.map_as(names::LISTENERS)?;
        for port in listeners::ports(Path::new("/proc")) {
            // Where there are more than it holds, the local side is taken for the opener.
            let _ = listeners.insert(port, 0, 0);
        }
        let no_kprobes = match self.attach_kprobes() {
            Ok(()) => return Ok(SocketHook::Kprobe),
            Err(error) => error,
        };
        if self.offsets.protocol == NO_OFFSET {
            // The tracepoints show sockets of every kind, which only their protocol can tell apart.
            return Err(no_kprobes);
        }
        let attached = self
            .attach_tracepoints("socket_sent", &["sock_send_length"])
            .and_then(|()| self.attach_tracepoints("socket_received", &["sock_recv_length"]));
        match (attached, no_kprobes) {
            (Ok(()), _) => Ok(SocketHook::Tracepoint),
            // Before 6.3 there are none, which is less of a reason.
            (Err(_), not_permitted @ Error::NotPermitted { .. }) => Err(not_permitted),
            (Err(error), _) => Err(error),
        }
    }

    /// Forgets what was seen before, so that nothing of it is taken for what comes; to be called before hooks and probes are
    /// put in place again.
    pub fn begin_anew(&mut self) -> Result<(), Error> {
        let now =
            clock_gettime(ClockId::CLOCK_BOOTTIME).map(|now| now.tv_sec() * 1_000_000_000 + now.tv_nsec());
        // This clock always exists.
        self.epoch = now.map_or(0, |now| now as u64);
        self.empty::<u64, u8>(names::OPENERS)?;
        self.empty::<u16, u8>(names::LISTENERS)
    }

    /// Takes the programs off sockets, threads and processes.
    pub fn unhook(&mut self) {
        for hook in std::mem::take(&mut self.hooks) {
            let taken = match hook {
                Hook::Kprobe(name, link) => {
                    self.program(name).map(|program: &mut KProbe| program.detach(link).err())
                }
                Hook::Tracepoint(name, link) => {
                    self.program(name).map(|program: &mut RawTracePoint| program.detach(link).err())
                }
            };
            if let Ok(Some(error)) = taken {
                log::debug!("a hook could not be taken off: {error}");
            }
        }
    }

    /// Captures nothing more, at once; the probes stay where they are.
    pub fn pause(&mut self) -> Result<(), Error> {
        let nothing = Filters { pids: [(0, choice::INCLUDE)].into(), ..Filters::default() };
        self.set_filters(&nothing)
    }

    /// Overwrites a piece of the ring, a [`Blank`](plaintap_abi::Blank), behind what was written last; tells whether there was
    /// room.
    ///
    /// The kernel runs the program at our word, as it does to test programs: nothing is attached, and nobody else can set it off.
    /// Source: linux 5.10, net/bpf/test_run.c, bpf_prog_test_run_raw_tp.
    pub fn wipe(&mut self) -> Result<bool, Error> {
        let program: &mut RawTracePoint = self.program("wipe")?;
        let run = program.test_run(RawTracePointRunOptions::new());
        let run = run.map_err(|error| Error::from_aya("run an eBPF program", error.into()))?;
        Ok(run.return_value != 0)
    }

    /// Whether `program` is what its process id stands for.
    pub fn lives(&mut self, program: process::Program) -> bool {
        // What was before we began anew counts no more.
        let epoch = self.epoch;
        let ended: Result<HashMap<_, u32, u64>, _> = self.map_as(names::ENDED);
        // A process that none is known to have preceded has no entry.
        ended.is_ok_and(|ended| ended.get(&program.pid, 0).unwrap_or(0).max(epoch) == program.life)
    }

    /// The ring that the programs fill.
    pub fn ring(&self) -> Result<BorrowedFd<'_>, Error> {
        self.map(names::RING)
    }

    /// The counters that the programs keep.
    pub fn counters(&self) -> Result<BorrowedFd<'_>, Error> {
        self.map(names::COUNTERS)
    }

    /// The table of connections' ends that the programs keep.
    pub fn tails(&self) -> Result<BorrowedFd<'_>, Error> {
        self.map(names::TAILS)
    }

    fn map_as<'a, T>(&'a mut self, name: &'static str) -> Result<T, Error>
    where
        T: TryFrom<&'a mut Map, Error = MapError>,
    {
        self.ebpf.map_mut(name).ok_or(Error::Object(name))?.try_into().map_err(|_| Error::Object(name))
    }

    fn map(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        match self.ebpf.map(name) {
            Some(Map::RingBuf(data) | Map::Array(data)) => Ok(data.fd().as_fd()),
            _ => Err(Error::Object(name)),
        }
    }

    fn attach_kprobes(&mut self) -> Result<(), Error> {
        let failed = |function, error: ProgramError| {
            Error::from_aya(&format!("put a kprobe on {function}"), error.into())
        };
        let program: &mut KProbe = self.program("socket_send")?;
        let sending = program.attach("tcp_sendmsg", 0).map_err(|error| failed("tcp_sendmsg", error))?;
        let program: &mut KProbe = self.program("socket_receive")?;
        match program.attach("tcp_recvmsg", 0) {
            Ok(receiving) => {
                self.hooks.push(Hook::Kprobe("socket_send", sending));
                self.hooks.push(Hook::Kprobe("socket_receive", receiving));
                Ok(())
            }
            Err(error) => {
                // Half of it would be worse than the other way.
                let program: &mut KProbe = self.program("socket_send")?;
                let _ = program.detach(sending);
                Err(failed("tcp_recvmsg", error))
            }
        }
    }

    fn attach_tracepoints(&mut self, name: &'static str, tracepoints: &[&str]) -> Result<(), Error> {
        for tracepoint in tracepoints {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.attach(tracepoint).map_err(|error| {
                Error::from_aya(&format!("attach to the tracepoint {tracepoint}"), error.into())
            })?;
            self.hooks.push(Hook::Tracepoint(name, link));
        }
        Ok(())
    }

    fn program<T>(&mut self, name: &'static str) -> Result<&mut T, Error>
    where
        for<'a> &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(Error::Object(name))?;
        program.try_into().map_err(|_| Error::Object(name))
    }
}

/// An eBPF hash map of ours.
type Entries<'a, K> = HashMap<&'a mut MapData, K, u8>;

/// Puts `entries` into a map, and tells which others are there. Only where there is no room for all, some of these go before.
fn add<K: aya::Pod + Eq + Hash>(
    mut map: Entries<K>,
    entries: &std::collections::HashMap<K, u8>,
) -> Result<Vec<K>, MapError> {
    let mut others: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    others.retain(|key| !entries.contains_key(key));
    for (key, choice) in entries {
        while let Err(error) = map.insert(key, choice, 0) {
            // Source: linux, kernel/bpf/hashtab.c, alloc_htab_elem: a full map is E2BIG.
            let is_full = matches!(&error, MapError::SyscallError(error)
                if error.io_error.raw_os_error() == Some(Errno::E2BIG as i32));
            let Some(other) = others.pop_if(|_| is_full) else { return Err(error) };
            map.remove(&other)?;
        }
    }
    Ok(others)
}

/// Takes `keys` out of a map.
fn remove<K: aya::Pod>(mut map: Entries<K>, keys: &[K]) -> Result<(), MapError> {
    keys.iter().try_for_each(|key| map.remove(key))
}

/// The programs for a function's entry and return.
fn programs(function: Function) -> (&'static str, Option<&'static str>) {
    match function {
        Function::Read => ("ssl_read", Some("ssl_return")),
        Function::Write => ("ssl_write", Some("ssl_return")),
        Function::ReadEx => ("ssl_read_ex", Some("ssl_return")),
        Function::WriteEx => ("ssl_write_ex", Some("ssl_return")),
        Function::DoHandshake => ("ssl_call", Some("ssl_handshake_return")),
        Function::Free => ("ssl_free", None),
        Function::Clear => ("ssl_clear", None),
        Function::SetHostName => ("ssl_host_name", None),
        Function::Ctrl => ("ssl_ctrl", None),
        Function::ResetEarlyDataReject => ("ssl_early_data_reset", None),
        Function::GetEarlyDataStatus => ("ssl_call", Some("ssl_early_data_status_return")),
        Function::BioWrite => ("bio_write", None),
    }
}

/// Loads a program, though the verifier gives up where the process is stopped or frozen meanwhile, as by a suspend.
fn load(name: &str, program: &mut Program) -> Result<(), Error> {
    let loaded = match program {
        Program::UProbe(program) => uninterrupted(|| program.load()),
        Program::KProbe(program) => uninterrupted(|| program.load()),
        Program::RawTracePoint(program) => uninterrupted(|| program.load()),
        _ => return Err(Error::Object("programs of known kinds only")),
    };
    loaded.map_err(|error| Error::from_aya(&format!("load the eBPF program {name}"), error.into()))
}

/// Tries again what was interrupted, a few times.
fn uninterrupted(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut attempts = 1;
    loop {
        match load() {
            Err(error) if errno(&error) == Some(Errno::EAGAIN) && attempts < LOAD_ATTEMPTS => attempts += 1,
            loaded => return loaded,
        }
    }
}

impl Error {
    /// Sorts out what the kernel meant, from the error number at the end of aya's chain.
    fn from_aya(what: &str, error: aya::EbpfError) -> Self {
        let what = what.to_owned();
        let is_load = matches!(&error, aya::EbpfError::ProgramError(ProgramError::LoadError { .. }));
        match errno(&error) {
            // The verifier's word for code that it does not take is EACCES too.
            Some(errno @ (Errno::EPERM | Errno::EACCES)) if errno == Errno::EPERM || !is_load => {
                Self::NotPermitted { what, remedy: remedy(errno), source: errno.into() }
            }
            Some(errno @ Errno::EAGAIN) => Self::Short { what, source: errno.into() },
            Some(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) if !is_load => {
                Self::Short { what, source: errno.into() }
            }
            _ => Self::Kernel { what, source: Box::new(error) },
        }
    }
}

/// The error number at the end of aya's chain.
fn errno(error: &dyn std::error::Error) -> Option<Errno> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno::from_raw(number));
        }
        cause = error.source();
    }
    None
}

/// What to do where the kernel said `errno`. Source: linux, security/selinux/hooks.c: what SELinux denies is EACCES.
fn remedy(errno: Errno) -> String {
    match privileges::selinux() {
        Some(Selinux { enforcing: true, domain }) if errno == Errno::EACCES => format!(
            "SELinux denies it to the domain {domain}, and dmesg says what (avc: denied); start it from a domain that may, as \
             Magisk's su or adb root give it"
        ),
        _ => "run as root (on Android by su), or with CAP_BPF and CAP_PERFMON".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_is_interrupted_is_loaded_again_a_few_times_and_what_is_refused_is_not() {
        for (errno, failures, loads, done) in
            [(Errno::EAGAIN, 4, 5, true), (Errno::EAGAIN, 9, 5, false), (Errno::EACCES, 1, 1, false)]
        {
            let mut count = 0;
            let loaded = uninterrupted(|| {
                count += 1;
                if count > failures {
                    return Ok(());
                }
                let call = "bpf_prog_load";
                Err(ProgramError::SyscallError(SyscallError { call, io_error: errno.into() }))
            });
            assert_eq!((count, loaded.is_ok()), (loads, done), "{errno}");
            if let Err(error) = loaded {
                let error = Error::from_aya("load it", error.into());
                assert_eq!(matches!(error, Error::Short { .. }), errno == Errno::EAGAIN, "{error}");
            }
        }
    }
}
