//! What the analysis asks of a CPU.

use std::ops::Range;

use super::code::{Op, Registers};
use crate::discover::elf::{self, Bytes, Segment};

/// A CPU's code.
pub trait Cpu {
    /// Its registers.
    const REGISTERS: Registers;

    /// Tells `sink` what the instructions of a function at `address` do, each with where the next one is.
    fn decode(code: &[u8], address: u64, sink: &mut dyn FnMut(u64, Op));

    /// Tells `sink` which instructions of a segment make a wanted address, until it has enough (false). None: the segment
    /// can't be read.
    fn references(
        bytes: &dyn Bytes,
        segment: &Segment,
        is_wanted: &dyn Fn(u64) -> bool,
        sink: &mut dyn FnMut(u64) -> bool,
    ) -> Option<()>;

    /// Tells `sink` the targets of the direct calls in a segment. None: it can't be read.
    fn calls(bytes: &dyn Bytes, segment: &Segment, sink: &mut dyn FnMut(u64)) -> Option<()>;

    /// Whether a compiler begins a function as this code begins.
    fn begins(code: &[u8]) -> bool;

    /// Whether a function may end with this code, behind which `address` is.
    fn may_end(before: &[u8], address: u64) -> bool;

    /// Whether this code is nothing but room between functions.
    fn is_padding(code: &[u8]) -> bool;
}

/// This device's.
#[cfg(target_arch = "x86_64")]
pub type Native = X86_64;
#[cfg(target_arch = "aarch64")]
pub type Native = Arm64;

/// aarch64.
#[cfg(any(test, target_arch = "aarch64"))]
#[derive(Debug)]
pub struct Arm64;

#[cfg(any(test, target_arch = "aarch64"))]
impl Cpu for Arm64 {
    const REGISTERS: Registers = super::arm64::REGISTERS;

    fn decode(code: &[u8], address: u64, sink: &mut dyn FnMut(u64, Op)) {
        for (word, address) in words(code, address) {
            let next = address.wrapping_add(super::arm64::INSTRUCTION as u64);
            super::arm64::decode(word, address, &mut |op| sink(next, op));
        }
    }

    fn references(
        bytes: &dyn Bytes,
        segment: &Segment,
        is_wanted: &dyn Fn(u64) -> bool,
        sink: &mut dyn FnMut(u64) -> bool,
    ) -> Option<()> {
        let mut addresses = super::arm64::Addresses::default();
        elf::pieces(bytes, (segment.offset, segment.length), 0, &mut |piece, done| {
            words(piece, segment.address.wrapping_add(done))
                .all(|(word, address)| !addresses.take(word, address).is_some_and(is_wanted) || sink(address))
        })
        .ok()
    }

    fn calls(bytes: &dyn Bytes, segment: &Segment, sink: &mut dyn FnMut(u64)) -> Option<()> {
        elf::pieces(bytes, (segment.offset, segment.length), 0, &mut |piece, done| {
            let words = words(piece, segment.address.wrapping_add(done));
            words.filter_map(|(word, address)| super::arm64::call(word, address)).for_each(&mut *sink);
            true
        })
        .ok()
    }

    fn begins(code: &[u8]) -> bool {
        words(code, 0).next().is_some_and(|(word, _)| super::arm64::begins(word))
    }

    fn may_end(before: &[u8], _: u64) -> bool {
        // What was called is an instruction for certain, as all of them are looked at one by one.
        !before.is_empty()
    }

    fn is_padding(code: &[u8]) -> bool {
        const NOP: u32 = 0xd503_201f;
        words(code, 0).next().is_none_or(|(word, _)| word == NOP)
    }
}

/// The instructions in `code`, which is at `address`, with their addresses.
#[cfg(any(test, target_arch = "aarch64"))]
fn words(code: &[u8], address: u64) -> impl Iterator<Item = (u32, u64)> {
    let (words, _) = code.as_chunks::<{ super::arm64::INSTRUCTION }>();
    let addresses = (0..).map(move |index: u64| address.wrapping_add(index * 4));
    words.iter().map(|word| u32::from_le_bytes(*word)).zip(addresses)
}

/// x86_64.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct X86_64;

#[cfg(target_arch = "x86_64")]
impl X86_64 {
    /// The longest instruction that is looked for at every byte.
    const LONGEST: usize = 7;

    /// Hands `take` each [`LONGEST`](Self::LONGEST) bytes of a segment, with their address, until it has enough (false).
    fn each_byte(
        bytes: &dyn Bytes,
        segment: &Segment,
        mut take: impl FnMut(&[u8], u64) -> bool,
    ) -> Option<()> {
        // What begins in the overlap was not whole in the piece before.
        elf::pieces(bytes, (segment.offset, segment.length), Self::LONGEST - 1, &mut |piece, offset| {
            let address = segment.address.wrapping_add(offset);
            (0..)
                .zip(piece.windows(Self::LONGEST))
                .all(|(place, code)| take(code, address.wrapping_add(place)))
        })
        .ok()
    }
}

#[cfg(target_arch = "x86_64")]
impl Cpu for X86_64 {
    const REGISTERS: Registers = super::x86_64::REGISTERS;

    fn decode(code: &[u8], address: u64, sink: &mut dyn FnMut(u64, Op)) {
        super::x86_64::decode(code, address, sink);
    }

    fn references(
        bytes: &dyn Bytes,
        segment: &Segment,
        is_wanted: &dyn Fn(u64) -> bool,
        sink: &mut dyn FnMut(u64) -> bool,
    ) -> Option<()> {
        // At every byte, as nothing says where instructions begin: such an address by chance is rare, and does no harm.
        Self::each_byte(bytes, segment, |code, address| {
            !super::x86_64::makes_address(code, address).is_some_and(is_wanted) || sink(address)
        })
    }

    fn calls(bytes: &dyn Bytes, segment: &Segment, sink: &mut dyn FnMut(u64)) -> Option<()> {
        Self::each_byte(bytes, segment, |code, address| {
            super::x86_64::call(code, address).into_iter().for_each(&mut *sink);
            true
        })
    }

    fn begins(code: &[u8]) -> bool {
        super::x86_64::begins(code)
    }

    fn may_end(before: &[u8], address: u64) -> bool {
        super::x86_64::may_end(before, address)
    }

    fn is_padding(code: &[u8]) -> bool {
        super::x86_64::is_padding(code)
    }
}

/// The addresses within `reach` of an address in a sorted list.
pub fn is_near(list: &[u64], address: u64, reach: u64) -> bool {
    let around: Range<u64> = address.saturating_sub(reach)..address.saturating_add(reach);
    list.get(list.partition_point(|place| *place < around.start)).is_some_and(|place| around.contains(place))
}
