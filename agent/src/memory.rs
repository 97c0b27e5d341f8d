//! How much memory there may be: one ceiling shared out between ring, tables and journal, and what was needed for a moment only.

use crate::args::{Args, RingSize, Size};

/// What an entry of each of the tables takes in the kernel, in all; measured on 6.18 (`memlock` in /proc/PID/fdinfo): 712.
const TABLE_ENTRY: usize = 720;
/// What the maps take that have one size always; measured in the same way: 690 KiB.
const OTHER_MAPS: usize = 768 << 10;
/// What the two processes have of their own: at rest 0.8 MiB, and 1.5 MiB more once as many connections, processes and files were
/// seen as are remembered.
const OWN: usize = 5 << 19;
/// The smallest ring and journal that hold some of the largest records.
const LEAST_RING: u32 = 256 << 10;
const LEAST_JOURNAL: usize = 512 << 10;
/// Entries of a table: as many as bpf/probes says, or where memory is short. Each CPU keeps up to 128 entries of a table
/// for itself, so that far fewer would be used up by 8 CPUs. Source: linux, kernel/bpf/bpf_lru_list.c, LOCAL_FREE_TARGET.
const MANY_ENTRIES: u32 = 8192;
const FEW_ENTRIES: u32 = 2048;
/// From this limit on, the tables have their usual size.
const ROOMY: usize = 16 << 20;

/// The sizes of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The ring's, in bytes: a power of two.
    pub ring: u32,
    /// The journal's, in bytes.
    pub journal: usize,
    /// Entries of each of the kernel's tables.
    pub table_entries: u32,
}

/// A limit that can't be kept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It is less than what must be there.
    #[error("--memory-limit is too small: the least that works is {0}K")]
    TooSmall(usize),
    /// Two flags say how large something is.
    #[error("--memory-limit sizes the ring and the journal: leave out {0}")]
    SizedTwice(&'static str),
}

impl Sizes {
    /// What is enough to try whether it works.
    pub const SMALLEST: Self = Self { ring: LEAST_RING, journal: LEAST_JOURNAL, table_entries: FEW_ENTRIES };

    /// What there is if nobody says how much.
    pub const USUAL: Self = Self { ring: 4 << 20, journal: 8 << 20, table_entries: MANY_ENTRIES };

    /// The sizes that the command line asks for.
    pub fn of(args: &Args) -> Result<Self, Error> {
        match (args.memory_limit, args.ring_size, args.journal_size) {
            (Some(_), Some(_), _) => Err(Error::SizedTwice("--ring-size")),
            (Some(_), _, Some(_)) => Err(Error::SizedTwice("--journal-size")),
            (Some(Size(limit)), None, None) => Self::within(limit),
            (None, ring, journal) => Ok(Self {
                ring: ring.map_or(Self::USUAL.ring, |RingSize(bytes)| bytes),
                journal: journal.map_or(Self::USUAL.journal, |Size(bytes)| bytes),
                ..Self::USUAL
            }),
        }
    }

    /// What ring and tables take in the kernel, in bytes. Beside it are the programs: 108 KiB on 5.10 and 6.12, arm64.
    pub fn in_kernel(&self) -> usize {
        self.ring as usize + OTHER_MAPS + self.table_entries as usize * TABLE_ENTRY
    }

    /// The next sizes that take less in the kernel, if there are any that work.
    pub fn smaller(self) -> Option<Self> {
        match self {
            Self { table_entries: MANY_ENTRIES, .. } => Some(Self { table_entries: FEW_ENTRIES, ..self }),
            Self { ring, .. } if ring > LEAST_RING => Some(Self { ring: ring / 2, ..self }),
            _ => None,
        }
    }

    /// Sizes that stay within `limit` bytes together with all else that is kept. Of what is left to share, the ring has at
    /// most a third: it bridges milliseconds, and the journal seconds.
    fn within(limit: usize) -> Result<Self, Error> {
        let table_entries = if limit < ROOMY { FEW_ENTRIES } else { MANY_ENTRIES };
        let fixed = OWN + Self { ring: 0, journal: 0, table_entries }.in_kernel();
        let left = limit.saturating_sub(fixed);
        let least = LEAST_RING as usize + LEAST_JOURNAL;
        if left < least {
            return Err(Error::TooSmall((fixed + least).div_ceil(1 << 10)));
        }
        let third = u32::try_from(left / 3).unwrap_or(u32::MAX);
        // The largest power of two that is no more.
        let ring = (1 << third.ilog2()).max(LEAST_RING);
        Ok(Self { ring, journal: left - ring as usize, table_entries })
    }
}

/// Gives freed memory back to the system: what is read of the kernel's types and of many libraries takes some 15 MiB for a
/// moment, and glibc would keep the room for good. musl and Android's C library give it back by themselves.
pub fn give_back() {
    #[cfg(target_env = "musl")]
    crate::allocator::trim();
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call it at any time.
    #[expect(unsafe_code, reason = "malloc_trim")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_shared_out_and_never_passed() {
        let mut last = 0;
        for limit in (0..64).map(|step| (6 << 20) + step * (1 << 19)) {
            let Sizes { ring, journal, table_entries } = Sizes::within(limit).unwrap();
            assert!(ring.is_power_of_two() && ring >= LEAST_RING && journal >= LEAST_JOURNAL, "{limit}");
            assert!(ring as usize <= journal, "{limit}");
            assert_eq!(
                ring as usize + journal + table_entries as usize * TABLE_ENTRY + OTHER_MAPS + OWN,
                limit
            );
            assert!(ring >= last || table_entries == MANY_ENTRIES, "{limit}");
            last = ring;
        }
        assert_eq!(Sizes::within(8 << 20).map(|sizes| sizes.ring), Ok(1 << 20));
    }

    #[test]
    fn sizes_shrink_in_the_kernel_only_and_down_to_the_smallest() {
        let steps: Vec<_> = std::iter::successors(Some(Sizes::USUAL), |sizes| sizes.smaller()).collect();
        assert!(steps.is_sorted_by(|larger, smaller| larger.in_kernel() > smaller.in_kernel()));
        assert!(
            steps.iter().all(|sizes| sizes.journal == Sizes::USUAL.journal && sizes.ring.is_power_of_two())
        );
        let last = Sizes { journal: Sizes::SMALLEST.journal, ..*steps.last().unwrap() };
        assert_eq!(last, Sizes::SMALLEST);
    }

    #[test]
    fn a_limit_that_is_too_small_is_told_the_least_that_works() {
        let Err(Error::TooSmall(kib)) = Sizes::within(1 << 20) else { panic!("1 MiB was enough") };
        assert!(Sizes::within(kib << 10).is_ok());
        assert_eq!(Sizes::within((kib << 10) - 1024), Err(Error::TooSmall(kib)));
        assert_eq!(Sizes::within(0), Err(Error::TooSmall(kib)));
    }
}
