//! eBPF programs on the load's library without an agent: the empty pair, which is the floor for any tool of this kind, and
//! plaintap's own objects or variants of them, whose ring a thread here empties.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{UProbe, uprobe::UProbeScope},
};
use nix::poll::{PollFd, PollFlags, poll};
use object::{
    BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};
use plaintap_abi::{Settings, SocketOffsets, TaskOffsets, filter, names};

const FUNCTIONS: [&str; 2] = ["SSL_write", "SSL_read"];
/// plaintapd's default.
const RING_SIZE: u32 = 4 << 20;

/// How much of what plaintapd's programs can do they are made to do.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// A filter leaves the process out.
    pub filtered_out: bool,
    /// Bytes to keep of each call.
    pub snaplen: u64,
    /// The thread that empties the ring waits to be woken.
    pub wakes: bool,
}

/// Attached programs; gone when dropped.
pub struct Probes {
    _ebpf: Ebpf,
    drain: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Probes {
    /// A program that does nothing, on entry and on return.
    pub fn empty(library: &str) -> Result<Self> {
        let mut ebpf =
            EbpfLoader::new().btf(None).load(&empty_object()?).context("loading the empty object")?;
        for (name, _) in PROGRAMS {
            let program: &mut UProbe =
                ebpf.program_mut(name).context("the empty object's program")?.try_into()?;
            program.load()?;
            for function in FUNCTIONS {
                program.attach(function, library, UProbeScope::AllProcesses)?;
            }
        }
        Ok(Self { _ebpf: ebpf, drain: None })
    }

    /// The programs of `object` that plaintapd puts on these functions, made to do as much as `extent` says, and a thread that
    /// discards what they send.
    pub fn of(object: &[u8], extent: Extent, library: &str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global(names::SOCKET_OFFSETS, bytemuck::bytes_of(&SocketOffsets::default()), true)
            .override_global(names::TASK_OFFSETS, bytemuck::bytes_of(&TaskOffsets::default()), true)
            .map_max_entries(names::RING, RING_SIZE)
            .load(object)
            .context("loading the object")?;
        let settings = Settings {
            snaplen: extent.snaplen,
            // There are no process ids to include.
            filters: if extent.filtered_out { filter::PIDS | filter::PIDS_INCLUDE } else { 0 },
            ..bytemuck::Zeroable::zeroed()
        };
        let settings = bytemuck::cast::<Settings, [u64; size_of::<Settings>() / 8]>(settings);
        let mut map: Array<_, [u64; size_of::<Settings>() / 8]> =
            ebpf.map_mut(names::SETTINGS).context("no settings")?.try_into()?;
        map.set(0, settings, 0)?;
        for (name, functions) in
            [("ssl_return", &FUNCTIONS[..]), ("ssl_write", &FUNCTIONS[..1]), ("ssl_read", &FUNCTIONS[1..])]
        {
            let program: &mut UProbe = ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
            for function in functions {
                program.attach(*function, library, UProbeScope::AllProcesses)?;
            }
        }
        let ring = RingBuf::try_from(ebpf.take_map(names::RING).context("no ring")?)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || drain(ring, extent.wakes, &stopped));
        Ok(Self { _ebpf: ebpf, drain: Some((stop, thread)) })
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.drain.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

/// Empties the ring: whenever the kernel says that there is something, as an agent does, or else every millisecond, so that
/// the kernel wakes nobody.
fn drain(mut ring: RingBuf<MapData>, wakes: bool, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        while ring.next().is_some() {}
        if wakes {
            let mut ready = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, 100u8);
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Name and section of the empty object's programs. Source: aya-obj, `ProgramSection::from_str`.
const PROGRAMS: [(&str, &str); 2] = [("enter", "uprobe"), ("leave", "uretprobe")];
/// `r0 = 0; exit`. Source: linux, Documentation/bpf/standardization/instruction-set.rst.
const NOTHING: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

fn empty_object() -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, object::Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), object::SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    for (name, section) in PROGRAMS {
        let section = object.add_section(Vec::new(), section.into(), object::SectionKind::Text);
        object.append_section_data(section, &NOTHING, 8);
        object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: NOTHING.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
    }
    object.write().context("writing the empty object")
}
