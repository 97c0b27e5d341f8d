//! Instructions of aarch64: all of them 4 bytes, of which a dozen kinds matter here.
//!
//! Source: Arm Architecture Reference Manual for A-profile, DDI 0487, chapter C4. A crate for it would take more room on the device
//! than all the rest of the analysis.

use super::code::{Op, Registers};

/// Register 31 is the stack pointer, or none.
pub const REGISTERS: Registers = Registers { kept: 19..29, stack: [29, 31] };

/// Bytes of an instruction.
pub const INSTRUCTION: usize = 4;

/// The register in the 5 bits at `place`.
fn register(word: u32, place: u32) -> u8 {
    (word >> place & 31) as u8
}

/// The `bits` at `place`, with the topmost as their sign.
fn signed(word: u32, place: u32, bits: u32) -> i64 {
    let top = 64 - bits;
    (u64::from(word >> place) << top).cast_signed() >> top
}

/// The address that an `adr` or `adrp` at `address` makes, and where it puts it.
fn page(word: u32, address: u64) -> Option<(u8, u64)> {
    let distance = signed(word, 5, 19) << 2 | i64::from(word >> 29 & 3);
    let to = register(word, 0);
    match word & 0x9f00_0000 {
        0x9000_0000 => Some((to, (address & !0xfff).wrapping_add_signed(distance << 12))),
        0x1000_0000 => Some((to, address.wrapping_add_signed(distance))),
        _ => None,
    }
}

/// The registers and the number of an `add` of 64 bits with a number: to, from, number.
fn add(word: u32) -> Option<(u8, u8, u64)> {
    let number = u64::from(word >> 10 & 0xfff) << if word & 1 << 22 == 0 { 0 } else { 12 };
    (word & 0xff80_0000 == 0x9100_0000).then_some((register(word, 0), register(word, 5), number))
}

/// Where a direct call at `address` goes.
pub fn call(word: u32, address: u64) -> Option<u64> {
    (word & 0xfc00_0000 == 0x9400_0000).then(|| address.wrapping_add_signed(signed(word, 0, 26) << 2))
}

/// Where a direct jump at `address` goes.
fn jump(word: u32, address: u64) -> Option<u64> {
    (word & 0xfc00_0000 == 0x1400_0000).then(|| address.wrapping_add_signed(signed(word, 0, 26) << 2))
}

/// Whether a compiler begins a function so: signs the return address, or makes room on the stack.
pub fn begins(word: u32) -> bool {
    // paciasp, pacibsp, bti c; stp x29, x30 or others with sp written back; str with it; sub sp, sp, #n
    matches!(word, 0xd503_233f | 0xd503_237f | 0xd503_245f)
        || word & 0xffc0_03e0 == 0xa980_03e0
        || word & 0xffe0_0fe0 == 0xf800_0fe0
        || word & 0xff80_03ff == 0xd100_03ff
}

/// Whether nothing runs on from this instruction to the next one: a jump, a return, or what no program runs.
pub fn ends(word: u32) -> bool {
    is_jump(word) || word & 0xffe0_001f == 0xd420_0000 || word >> 16 == 0
}

fn is_jump(word: u32) -> bool {
    // b; br, ret and those that check a signature
    word & 0xfc00_0000 == 0x1400_0000 || word & 0xfe00_0000 == 0xd600_0000 && word >> 21 & 7 != 1
}

/// Tells `sink` what the instruction at `address` does.
pub fn decode(word: u32, address: u64, sink: &mut dyn FnMut(Op)) {
    let (first, base) = (register(word, 0), register(word, 5));
    if let Some((to, value)) = page(word, address) {
        sink(Op::Set(to, value));
    } else if let Some((to, from, number)) = add(word) {
        sink(Op::Add(to, from, number));
    } else if let Some(target) = call(word, address) {
        sink(Op::Call(Some(target)));
    } else if word & 0xfe00_0000 == 0xd600_0000 && word >> 21 & 7 == 1 {
        sink(Op::Call(None));
    } else if ends(word) {
        sink(Op::Leave(jump(word, address)));
    } else if matches!(word & 0x7e00_0000, 0x3400_0000 | 0x3600_0000) || word & 0xfe00_0000 == 0x5400_0000 {
        let bits = if word & 0x7e00_0000 == 0x3600_0000 { 14 } else { 19 };
        sink(Op::Branch(address.wrapping_add_signed(signed(word, 5, bits) << 2)));
    } else if word & 0x7f80_0000 == 0x5280_0000 {
        let value = u64::from(word >> 5 & 0xffff) << ((word >> 21 & 3) * 16);
        sink(Op::Set(first, value));
    } else if word & 0x7fe0_ffe0 == 0x2a00_03e0 {
        match register(word, 16) {
            31 => sink(Op::Set(first, 0)),
            from => sink(Op::Add(first, from, 0)),
        }
    } else if word & 0x0a00_0000 == 0x0800_0000 {
        memory(word, first, base, sink);
    } else if first != 31 {
        sink(Op::Unknown(first));
    }
}

/// The same for loads and stores.
fn memory(word: u32, first: u8, base: u8, sink: &mut dyn FnMut(Op)) {
    let is_load = word & 1 << 22 != 0;
    let is_vector = word & 1 << 26 != 0;
    let is_pair = word & 0x3a00_0000 == 0x2800_0000;
    // The words of 8 bytes that it moves, if it is of the forms that compilers use for them.
    let (place, words) = match word & 0xffc0_0000 {
        0xf900_0000 | 0xf940_0000 => (u64::from(word >> 10 & 0xfff) * 8, 1),
        0x3d80_0000 | 0x3dc0_0000 => (u64::from(word >> 10 & 0xfff) * 16, 2),
        0xa900_0000 | 0xa940_0000 => (signed(word, 15, 7).wrapping_mul(8).cast_unsigned(), 2),
        _ => (0, 0),
    };
    for index in 0..words {
        let place = place.wrapping_add(index * 8);
        sink(if is_load { Op::Load(base, place) } else { Op::Store(base, place) });
    }
    // Loads that extend a sign have another bit; one too many that is not known does no harm.
    if !is_vector && (is_load || word & 1 << 23 != 0) {
        sink(Op::Unknown(first));
        if is_pair {
            sink(Op::Unknown(register(word, 10)));
        }
    }
}

/// Finds the instructions that make an address: an `adrp` with the `add` that follows it.
#[derive(Debug, Default)]
pub struct Addresses {
    pages: [Option<u64>; 32],
}

impl Addresses {
    /// Takes the next instruction; the address that it makes, if it does.
    pub fn take(&mut self, word: u32, address: u64) -> Option<u64> {
        if let Some((to, value)) = page(word, address) {
            self.pages[usize::from(to)] = Some(value);
            return Some(value);
        }
        let (to, from, number) = add(word)?;
        let value = self.pages[usize::from(from)]?.wrapping_add(number);
        // Through one more addition, where many constants share a beginning.
        self.pages[usize::from(to)] = Some(value);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(word: u32) -> Vec<Op> {
        let mut ops = Vec::new();
        decode(word, 0x28_2438, &mut |op| ops.push(op));
        ops
    }

    // The words and what they mean are objdump's.
    #[test]
    fn instructions_are_read_as_objdump_reads_them() {
        for (word, expected) in [
            (0xd000_0d23, Op::Set(3, 0x42_8000)),
            (0x913d_3063, Op::Add(3, 3, 0xf4c)),
            (0x5280_0842, Op::Set(2, 66)),
            (0x2a1f_03e1, Op::Set(1, 0)),
            (0xaa01_03f4, Op::Add(20, 1, 0)),
            (0x9403_1f1e, Op::Call(Some(0x28_2438 + 0xc_7c78))),
            (0xd63f_0100, Op::Call(None)),
            (0x17ff_ffdd, Op::Leave(Some(0x28_2438 - 0x8c))),
            (0xd65f_03c0, Op::Leave(None)),
            (0x1280_0013, Op::Unknown(19)),
        ] {
            assert_eq!(ops(word), [expected], "{word:#x}");
        }
        assert_eq!(ops(0x5400_034b), [Op::Branch(0x28_2438 + 0x68)]);
        assert_eq!(ops(0x37ff_fd80), [Op::Branch(0x28_2438 - 0x50)]);
        assert_eq!(ops(0xf940_4509), [Op::Load(8, 136), Op::Unknown(9)]);
        assert_eq!(ops(0xa908_250a), [Op::Store(8, 128), Op::Store(8, 136)]);
        assert_eq!(ops(0xa948_0c01), [Op::Load(0, 128), Op::Load(0, 136), Op::Unknown(1), Op::Unknown(3)]);
    }

    #[test]
    fn what_begins_a_function_is_known() {
        // paciasp; stp x29, x30, [sp, #-48]!; sub sp, sp, #0x50; str x30, [sp, #-16]!
        for word in [0xd503_233f, 0xa9bd_7bfd, 0xd101_43ff, 0xf81f_0ffe] {
            assert!(begins(word), "{word:#x}");
        }
        // mov w19, w2; stp x10, x9, [x8, #128]; ret
        for word in [0x2a02_03f3, 0xa908_250a, 0xd65f_03c0] {
            assert!(!begins(word), "{word:#x}");
        }
    }
}
