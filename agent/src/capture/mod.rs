//! The kernel side, seen from the attaching half: loads the eBPF programs, puts them on functions and sockets.
//!
//! Owns the loaded programs: dropping a `Capture` detaches everything, as does the end of the process.

pub mod btf;
pub mod counters;
pub mod ring;

use std::{
    error::Error as _,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map},
    programs::{KProbe, ProgramError, RawTracePoint, UProbe, uprobe::UProbeScope},
};
use nix::{
    errno::Errno,
    sys::resource::{Resource, setrlimit},
};
use plaintap_abi::{SocketOffsets, names};

use crate::discover::{Function, Target};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.o"));

/// The kernel's description of its types. Source: linux, Documentation/bpf/btf.rst.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
/// Shows that the kernel has uprobes. Source: linux, Documentation/ABI/testing/sysfs-bus-event_source-devices.
const UPROBE_EVENTS: &str = "/sys/bus/event_source/devices/uprobe/type";

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not use eBPF.
    #[error("not permitted to {what}; run as root (on Android by su), or with CAP_BPF and CAP_PERFMON")]
    NotPermitted {
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
    /// The layout of this kernel's sockets is unknown.
    #[error(
        "this kernel does not say where a socket keeps its addresses: {KERNEL_BTF} {0}; it needs CONFIG_DEBUG_INFO_BTF"
    )]
    NoOffsets(btf::Error),
    /// The object is not the one that this program was written for.
    #[error("the eBPF object lacks {0}; rebuild it with bpf/build.sh")]
    Object(&'static str),
}

/// What the programs should look at.
#[derive(Debug)]
pub struct Options {
    /// Only these processes; all if empty.
    pub pids: Vec<u32>,
    /// The ring's size in bytes, a power of two.
    pub ring_size: u32,
}

/// How the addresses of connections are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketHook {
    /// kprobes on tcp_sendmsg and tcp_recvmsg.
    Kprobe,
    /// The raw tracepoints sock_send_length and sock_recv_length, since 6.3.
    Tracepoint,
}

/// The loaded programs and what they are attached to.
#[derive(Debug)]
pub struct Capture {
    ebpf: Ebpf,
    /// Why the programs can't read a socket's addresses.
    no_offsets: Option<btf::Error>,
}

impl Capture {
    /// Loads the programs into the kernel; nothing is attached yet.
    pub fn load(options: &Options) -> Result<Self, Error> {
        if !Path::new(UPROBE_EVENTS).exists() {
            return Err(Error::NoUprobes);
        }
        // Before 5.11 maps count against this limit; later it is of no account, so failing is no error.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX) {
            log::debug!("can't raise RLIMIT_MEMLOCK: {error}");
        }
        let (offsets, no_offsets) = match btf::socket_offsets(Path::new(KERNEL_BTF)) {
            Ok(offsets) => (offsets, None),
            Err(error) => (SocketOffsets::default(), Some(error)),
        };
        let filter = u32::from(!options.pids.is_empty());
        let mut ebpf = EbpfLoader::new()
            // The object carries no types, so that the kernel's need not be held in memory to match them.
            .btf(None)
            .override_global(names::SOCKET_OFFSETS, bytemuck::bytes_of(&offsets), true)
            .override_global(names::FILTER_PIDS, &filter, true)
            .map_max_entries(names::RING, options.ring_size)
            .load(OBJECT)
            .map_err(|source| Error::from_aya("load eBPF maps", source))?;
        let pids = ebpf.map_mut(names::PIDS).ok_or(Error::Object(names::PIDS))?;
        let mut pids = HashMap::<_, u32, u8>::try_from(pids).map_err(|_| Error::Object(names::PIDS))?;
        for pid in &options.pids {
            pids.insert(pid, 1, 0).map_err(|error| Error::from_aya("fill an eBPF map", error.into()))?;
        }
        for (name, program) in ebpf.programs_mut() {
            let what = format!("load the eBPF program {name}");
            match program {
                aya::programs::Program::UProbe(program) => program.load(),
                aya::programs::Program::KProbe(program) => program.load(),
                aya::programs::Program::RawTracePoint(program) => program.load(),
                _ => return Err(Error::Object("programs of known kinds only")),
            }
            .map_err(|error| Error::from_aya(&what, error.into()))?;
        }
        Ok(Self { ebpf, no_offsets })
    }

    /// Puts the probes on a library's functions.
    pub fn attach(&mut self, target: &Target) -> Result<(), Error> {
        for (function, offset) in &target.functions {
            let returns = match function {
                Function::SslRead => "ssl_read_return",
                Function::SslWrite => "ssl_write_return",
            };
            // The return first: an entry without its return would leave a call in the thread's state.
            for name in [returns, "ssl_call"] {
                let program: &mut UProbe = self.program(name)?;
                program.attach(*offset, &target.path, UProbeScope::AllProcesses).map_err(|error| {
                    Error::from_aya(
                        &format!("probe {} in {}", function.name(), target.path.display()),
                        error.into(),
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Attaches what finds out connections' addresses, in the way that this kernel has.
    ///
    /// Everything works without; connections then have no addresses.
    pub fn hook_sockets(&mut self) -> Result<SocketHook, Error> {
        if let Some(error) = self.no_offsets.take() {
            return Err(Error::NoOffsets(error));
        }
        if let Err(error) = self.attach_tracepoints("socket_state", &["inet_sock_set_state"]) {
            log::warn!("who opened a connection will be a guess: {}", crate::run::chain(&error));
        }
        if self.attach_kprobes().is_ok() {
            return Ok(SocketHook::Kprobe);
        }
        self.attach_tracepoints("socket_length", &["sock_send_length", "sock_recv_length"])?;
        Ok(SocketHook::Tracepoint)
    }

    /// The ring that the programs fill.
    pub fn ring(&self) -> Result<BorrowedFd<'_>, Error> {
        self.map(names::RING)
    }

    /// The counters that the programs keep.
    pub fn counters(&self) -> Result<BorrowedFd<'_>, Error> {
        self.map(names::COUNTERS)
    }

    fn map(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        match self.ebpf.map(name) {
            Some(Map::RingBuf(data) | Map::Array(data)) => Ok(data.fd().as_fd()),
            _ => Err(Error::Object(name)),
        }
    }

    fn attach_kprobes(&mut self) -> Result<(), Error> {
        let program: &mut KProbe = self.program("socket_call")?;
        let mut links = Vec::new();
        for function in ["tcp_sendmsg", "tcp_recvmsg"] {
            match program.attach(function, 0) {
                Ok(link) => links.push(link),
                Err(error) => {
                    // Half of it would be worse than the other way.
                    for link in links {
                        let _ = program.detach(link);
                    }
                    return Err(Error::from_aya(&format!("put a kprobe on {function}"), error.into()));
                }
            }
        }
        Ok(())
    }

    fn attach_tracepoints(&mut self, name: &'static str, tracepoints: &[&str]) -> Result<(), Error> {
        let program: &mut RawTracePoint = self.program(name)?;
        for tracepoint in tracepoints {
            program.attach(tracepoint).map_err(|error| {
                Error::from_aya(&format!("attach to the tracepoint {tracepoint}"), error.into())
            })?;
        }
        Ok(())
    }

    fn program<'a, T>(&'a mut self, name: &'static str) -> Result<&'a mut T, Error>
    where
        &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(Error::Object(name))?;
        program.try_into().map_err(|_| Error::Object(name))
    }
}

impl Error {
    /// Sorts out what the kernel meant, from the error number at the end of aya's chain.
    fn from_aya(what: &str, error: aya::EbpfError) -> Self {
        let what = what.to_owned();
        let mut cause = error.source();
        while let Some(error) = cause {
            let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if let Some(errno @ (Errno::EPERM | Errno::EACCES)) = number.map(Errno::from_raw) {
                return Self::NotPermitted { what, source: errno.into() };
            }
            cause = error.source();
        }
        Self::Kernel { what, source: Box::new(error) }
    }
}
