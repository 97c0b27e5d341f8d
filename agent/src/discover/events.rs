//! The kernel's own word that a process mapped a file to run: perf's MMAP2 records, of every CPU.
//!
//! Nothing is polled: a system on which nothing is mapped costs nothing. Owns one small ring for each CPU. What does not fit
//! is told as lost, and the caller looks at all processes then. Source: linux, include/uapi/linux/perf_event.h.

use std::{
    ffi::{OsString, c_void},
    fs, io,
    num::NonZeroUsize,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

/// The CPUs that run now, as `0-3,5`.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Pages of records for each CPU, a power of two; a record takes some 120 bytes.
const PAGES: usize = 8;
/// The fields of `perf_event_mmap_page` that say where records begin and end, in bytes from its start.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

const RECORD_LOST: u32 = 2;
const RECORD_MMAP2: u32 = 10;
/// The longest record: its size has 16 bits.
const MAX_RECORD: usize = 1 << 16;

/// A process mapped a file to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The process.
    pub pid: u32,
    /// The mapping's first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// The file's device and inode number, as the kernel's memory management sees them, and the inode's generation.
    pub file: (u32, u32, u64, u64),
    /// The file's path in the process's mount namespace.
    pub path: PathBuf,
}

/// Records from all CPUs.
#[derive(Debug)]
pub struct Events {
    rings: Vec<Ring>,
    online: String,
}

impl Events {
    /// Begins to watch; needs CAP_PERFMON or root.
    pub fn open() -> io::Result<Self> {
        let online = fs::read_to_string(ONLINE)?;
        let mut rings = Vec::new();
        for cpu in cpus(&online) {
            match Ring::open(cpu) {
                Ok(ring) => rings.push(ring),
                // It went offline just now; the list will differ at the next look.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { rings, online })
    }

    /// What becomes readable when there are records.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|ring| ring.event.as_fd())
    }

    /// Whether other CPUs run now than are watched.
    pub fn outdated(&self) -> bool {
        fs::read_to_string(ONLINE).is_ok_and(|online| online != self.online)
    }

    /// Takes out all records; says whether some were lost.
    pub fn drain(&mut self, mut found: impl FnMut(Mapped)) -> bool {
        let mut lost = false;
        for ring in &mut self.rings {
            lost |= ring.drain(&mut found);
        }
        lost
    }
}

/// The numbers in a list as `0-3,5`; bounded, whatever it says.
fn cpus(list: &str) -> Vec<i32> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?)
    });
    ranges.flatten().take(4096).collect()
}

#[derive(Debug)]
struct Ring {
    event: OwnedFd,
    memory: NonNull<c_void>,
    page: usize,
}

// SAFETY: the memory belongs to this value alone, and the kernel does not care which thread reads it.
#[expect(unsafe_code, reason = "a mapping moves to another thread")]
unsafe impl Send for Ring {}

impl Ring {
    fn open(cpu: i32) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok());
        let page = page.ok_or(io::ErrorKind::Unsupported)?;
        // perf_event_attr in its first published size: a dummy software event that only brings the records along.
        // Flags: exclude_kernel (5), exclude_hv (6), mmap (8), watermark (14), mmap2 (23); wakeup_watermark is 1 byte.
        const SIZE: u64 = 64;
        const FLAGS: u64 = 1 << 5 | 1 << 6 | 1 << 8 | 1 << 14 | 1 << 23;
        let words = |low: u64, high: u64| {
            if cfg!(target_endian = "little") { low | high << 32 } else { high | low << 32 }
        };
        let attributes: [u64; 8] = [words(1, SIZE), 9, 0, 0, 0, FLAGS, words(1, 0), 0];
        // SAFETY: the attributes are as long as they say, and the kernel only reads them.
        #[expect(unsafe_code, reason = "perf_event_open")]
        let fd = unsafe {
            let cloexec: libc::c_ulong = 8;
            libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, cpu, -1, cloexec)
        };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel made it for us just now; nobody else knows it.
        #[expect(unsafe_code, reason = "a file descriptor from a system call")]
        let event = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
        let length = NonZeroUsize::new(page * (1 + PAGES)).ok_or(io::ErrorKind::Unsupported)?;
        // Writable, so that the kernel minds what has not been read yet.
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping, which nothing else points into.
        #[expect(unsafe_code, reason = "mmap")]
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &event, 0) }?;
        Ok(Self { event, memory, page })
    }

    fn drain(&mut self, found: &mut impl FnMut(Mapped)) -> bool {
        let head = self.word(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.word(DATA_TAIL).load(Ordering::Relaxed);
        let mut lost = false;
        let mut record = Vec::new();
        while tail < head {
            let header = self.word(self.page + self.within(tail)).load(Ordering::Relaxed).to_ne_bytes();
            let size = usize::from(u16::from_ne_bytes([header[6], header[7]]));
            if !(8..=MAX_RECORD).contains(&size) || size as u64 > head - tail {
                // No kernel writes this; begin anew behind it.
                lost = true;
                break;
            }
            match u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) {
                RECORD_MMAP2 => {
                    record.clear();
                    // Records begin and end at multiples of 8 bytes.
                    for place in (tail + 8..tail + size as u64).step_by(8) {
                        record.push(self.word(self.page + self.within(place)).load(Ordering::Relaxed));
                    }
                    if let Some(mapped) = mapped(&record) {
                        found(mapped);
                    }
                }
                RECORD_LOST => lost = true,
                _ => {}
            }
            tail += size as u64;
        }
        self.word(DATA_TAIL).store(if lost { head.max(tail) } else { tail }, Ordering::Release);
        lost
    }

    /// Where in the data the byte is that has this number since the beginning.
    fn within(&self, place: u64) -> usize {
        // The size is a power of two, so the low bits are all that counts.
        place as usize & (self.page * PAGES - 1)
    }

    /// The word at `offset`, a multiple of 8 below the mapping's length.
    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset < self.page * (1 + PAGES));
        // SAFETY: the mapping is page-aligned and lives as long as self; all callers keep within it: the two fields of its
        // first page, and `within`, which masks. The kernel writes it at the same time, hence the atomic.
        #[expect(unsafe_code, reason = "shared memory")]
        unsafe {
            self.memory.byte_add(offset & !7).cast::<AtomicU64>().as_ref()
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that open() made, and that nobody else unmaps.
        #[expect(unsafe_code, reason = "munmap")]
        let _ = unsafe { munmap(self.memory, self.page * (1 + PAGES)) };
    }
}

/// Reads an MMAP2 record: pid, tid, addr, len, pgoff, maj, min, ino, ino_generation, prot, flags, path; without its header; none for memory that is not run or has no file.
fn mapped(record: &[u64]) -> Option<Mapped> {
    let halves = |word: u64| {
        let bytes = word.to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (half(0), half(4))
    };
    let &[process, start, length, _, device, inode, generation, access, ref path @ ..] = record else {
        return None;
    };
    let (pid, (major, minor), (prot, _)) = (halves(process).0, halves(device), halves(access));
    let runs = prot & libc::PROT_EXEC as u32 != 0;
    if inode == 0 || !runs || length == 0 {
        return None;
    }
    let path: Vec<u8> =
        path.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Some(Mapped {
        pid,
        start,
        end: start.checked_add(length)?,
        file: (major, minor, inode, generation),
        path: OsString::from_vec(path).into(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn a_list_of_cpus_is_read_and_bounded() {
        assert_eq!(cpus("0-2,5\n"), [0, 1, 2, 5]);
        assert!(cpus("").is_empty());
        assert_eq!(cpus("x,3-y,7"), [7]);
        assert_eq!(cpus("0-2147483647").len(), 4096);
    }

    #[test]
    fn a_record_says_who_mapped_what() {
        let pair = |low: u32, high: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&low.to_ne_bytes());
            bytes[4..].copy_from_slice(&high.to_ne_bytes());
            u64::from_ne_bytes(bytes)
        };
        let record = [pair(7, 8), 0x1000, 0x200, 0, pair(0xfe, 1), 42, 9, pair(5, 2)];
        let record =
            [&record[..], &[u64::from_ne_bytes(*b"/a/long/"), u64::from_ne_bytes(*b"path\0\0\0\0")]].concat();
        let path = "/a/long/path".into();
        let expected = Mapped { pid: 7, start: 0x1000, end: 0x1200, file: (0xfe, 1, 42, 9), path };
        assert_eq!(mapped(&record), Some(expected));
        for (place, value) in [(1, u64::MAX), (2, 0), (5, 0), (7, pair(1, 2))] {
            let mut other = record.clone();
            other[place] = value;
            assert_eq!(mapped(&other), None, "{place}");
        }
        assert_eq!(mapped(&record[..7]), None);
    }

    #[test]
    fn a_file_mapped_to_run_is_told_and_rings_go_round() {
        let mut events = Events::open().expect("perf's records of all CPUs, which need root");
        let executable = std::env::current_exe().unwrap();
        let file = File::open(&executable).unwrap();
        let inode = file.metadata().unwrap().ino();
        let one = NonZeroUsize::MIN;
        // More than any ring holds, in steps.
        for _ in 0..200 {
            for _ in 0..20 {
                // SAFETY: a fresh mapping that nobody looks at.
                #[expect(unsafe_code, reason = "mmap")]
                unsafe {
                    let access = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
                    let memory = mmap(None, one, access, MapFlags::MAP_PRIVATE, &file, 0).unwrap();
                    munmap(memory, 1).unwrap();
                }
            }
            let mut seen = 0;
            let lost = events.drain(|mapped| {
                seen += usize::from(
                    mapped.pid == std::process::id() && mapped.file.2 == inode && mapped.path == executable,
                );
            });
            assert!(lost || seen == 20, "{seen}");
        }
        assert!(!events.outdated());
    }
}
