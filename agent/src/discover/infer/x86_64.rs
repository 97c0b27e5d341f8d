//! Instructions of x86_64, read by iced-x86: they are of any length, so each must be understood to find the next one.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register, UsedMemory,
};

use super::code::{Op, Registers};

/// See [`number`].
pub const REGISTERS: Registers = Registers { kept: 9..15, stack: [STACK, STACK] };
const STACK: u8 = 15;
const RBP: u8 = 10;

/// The number of a register: those of the arguments first, then what a call may change, then what it keeps.
fn number(register: Register) -> Option<u8> {
    Some(match register.full_register() {
        Register::RDI => 0,
        Register::RSI => 1,
        Register::RDX => 2,
        Register::RCX => 3,
        Register::R8 => 4,
        Register::R9 => 5,
        Register::RAX => 6,
        Register::R10 => 7,
        Register::R11 => 8,
        Register::RBX => 9,
        Register::RBP => RBP,
        Register::R12 => 11,
        Register::R13 => 12,
        Register::R14 => 13,
        Register::R15 => 14,
        Register::RSP => STACK,
        _ => return None,
    })
}

/// Tells `sink` what the instructions in `code` do, which is a whole function at `address`, each with where the next one is.
pub fn decode(code: &[u8], address: u64, sink: &mut dyn FnMut(u64, Op)) {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let (mut instruction, mut infos) = (Instruction::default(), InstructionInfoFactory::new());
    let (mut has_frame, mut pushed) = (false, None);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let sink = &mut |op| sink(decoder.ip(), op);
        if instruction.is_invalid() {
            // What follows would be read at the wrong places.
            return sink(Op::Leave(None));
        }
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch => {
                sink(Op::Branch(instruction.near_branch_target()));
                continue;
            }
            FlowControl::Call => {
                sink(Op::Call(Some(instruction.near_branch_target())));
                continue;
            }
            FlowControl::IndirectCall => {
                sink(Op::Call(None));
                continue;
            }
            flow => {
                let target = instruction.near_branch_target();
                sink(Op::Leave((flow == FlowControl::UnconditionalBranch).then_some(target)));
                continue;
            }
        }
        let info = infos.info(&instruction);
        for used in info.used_memory() {
            memory(used, has_frame, sink);
        }
        let written = info.used_registers().iter().filter(|used| writes(used.access()));
        written.filter_map(|used| number(used.register())).for_each(|register| sink(Op::Unknown(register)));
        if let Some((to, from)) = moved(&instruction) {
            has_frame |= (to, from) == (RBP, STACK);
        }
        if let Some(op) = value(&instruction, pushed.take()) {
            sink(op);
        }
        if instruction.mnemonic() == Mnemonic::Push {
            pushed = instruction.try_immediate(0).ok();
        }
    }
}

/// What is known of the value that an instruction leaves in a register; `pushed` was put on the stack by the one before.
fn value(instruction: &Instruction, pushed: Option<u64>) -> Option<Op> {
    if let Some((to, from)) = moved(instruction) {
        return Some(Op::Add(to, from, 0));
    }
    let to = number(instruction.op0_register())?;
    let value = match instruction.mnemonic() {
        Mnemonic::Mov => instruction.try_immediate(1).ok()?,
        // Two instructions, as they are shorter than one that sets a number.
        Mnemonic::Pop => pushed?,
        Mnemonic::Xor if instruction.op0_register() == instruction.op1_register() => 0,
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => instruction.ip_rel_memory_address(),
        Mnemonic::Lea if instruction.memory_index() == Register::None => {
            let from = number(instruction.memory_base())?;
            // What it was before is gone by now.
            return (from != to).then_some(Op::Add(to, from, instruction.memory_displacement64()));
        }
        _ => return None,
    };
    Some(Op::Set(to, value))
}

/// The registers of a move from one to another: to, from.
fn moved(instruction: &Instruction) -> Option<(u8, u8)> {
    let is_move = instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Register;
    Some((number(instruction.op0_register())?, number(instruction.op1_register())?)).filter(|_| is_move)
}

/// The words of 8 bytes that are read and written where a register points.
fn memory(used: &UsedMemory, has_frame: bool, sink: &mut dyn FnMut(Op)) {
    let (size, base) = (used.memory_size().size(), number(used.base()));
    let Some(base) = base.filter(|base| size >= 8 && !(*base == RBP && has_frame)) else { return };
    if used.index() != Register::None {
        return;
    }
    for index in 0..size.min(16) as u64 / 8 {
        let place = used.displacement().wrapping_add(index * 8);
        if reads(used.access()) {
            sink(Op::Load(base, place));
        }
        if writes(used.access()) {
            sink(Op::Store(base, place));
        }
    }
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether a compiler begins a function so.
pub fn begins(code: &[u8]) -> bool {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let first = decoder.decode();
    first.code() == Code::Endbr64
        || first.mnemonic() == Mnemonic::Push && first.op0_kind() == OpKind::Register
        || first.mnemonic() == Mnemonic::Sub && first.op0_register() == Register::RSP
}

/// Whether a function may end with this code, behind which `address` is: what looks like a call may be a part of another instruction,
/// and what it seems to call the middle of a function.
pub fn may_end(before: &[u8], address: u64) -> bool {
    match *before {
        [] => false,
        _ if address.is_multiple_of(16) => true,
        // ret, int3, nop; ud2; a short jump.
        [.., 0xc3 | 0xcc | 0x90] | [.., 0x0f, 0x0b] | [.., 0xeb, _] => true,
        // A jump, or a call of what never returns.
        [.., 0xe9 | 0xe8, _, _, _, _] => true,
        _ => false,
    }
}

/// Whether there is nothing, or an instruction that does nothing.
pub fn is_padding(code: &[u8]) -> bool {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    !decoder.can_decode() || decoder.decode().mnemonic() == Mnemonic::Nop
}

/// The address that the instruction at the start of `code` makes, if it is one of those that do: `lea` with a distance, or
/// in a program that is always at the same address `mov` with the address itself.
pub fn makes_address(code: &[u8], address: u64) -> Option<u64> {
    match *code {
        [0x48 | 0x4c, 0x8d, form, a, b, c, d, ..] if form & 0xc7 == 0x05 => {
            let distance = i32::from_le_bytes([a, b, c, d]);
            Some(address.wrapping_add(7).wrapping_add_signed(distance.into()))
        }
        [0xb8..=0xbf, a, b, c, d, ..] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        _ => None,
    }
}

/// Where a direct call at the start of `code` goes.
pub fn call(code: &[u8], address: u64) -> Option<u64> {
    match *code {
        [0xe8, a, b, c, d, ..] => {
            Some(address.wrapping_add(5).wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(code: &[u8]) -> Vec<Op> {
        let mut ops = Vec::new();
        decode(code, 0x2d_5ad4, &mut |_, op| {
            // What a register gets comes after the word that it gets something.
            if let Op::Set(to, _) | Op::Add(to, ..) = op {
                ops.retain(|before| *before != Op::Unknown(to));
            }
            ops.push(op);
        });
        ops
    }

    // The bytes and what they mean are objdump's.
    #[test]
    fn instructions_are_read_as_objdump_reads_them() {
        let cases: [(&[u8], &[Op]); 11] = [
            (&[0x48, 0x8d, 0x0d, 0x21, 0xf0, 0x1f, 0x00], &[Op::Set(3, 0x4d_4afc)]),
            (&[0xbf, 0x10, 0, 0, 0], &[Op::Set(0, 16)]),
            (&[0x31, 0xf6], &[Op::Set(1, 0)]),
            (&[0x41, 0xb8, 0xc3, 0x03, 0, 0], &[Op::Set(4, 0x3c3)]),
            (&[0x49, 0x89, 0xf6], &[Op::Add(13, 1, 0)]),
            (&[0xe8, 0, 0, 0, 0], &[Op::Call(Some(0x2d_5ad9))]),
            (&[0xc3], &[Op::Leave(None)]),
            (&[0x74, 0x30], &[Op::Branch(0x2d_5b06)]),
            (&[0x48, 0x8b, 0x88, 0x88, 0, 0, 0], &[Op::Load(6, 0x88), Op::Unknown(3)]),
            (&[0x48, 0x01, 0x98, 0x80, 0, 0, 0], &[Op::Load(6, 0x80), Op::Store(6, 0x80)]),
            (&[0x48, 0x89, 0x88, 0x88, 0, 0, 0], &[Op::Store(6, 0x88)]),
        ];
        for (code, expected) in cases {
            assert_eq!(ops(code), expected, "{code:x?}");
        }
    }

    #[test]
    fn a_number_that_goes_by_the_stack_is_followed() {
        // push 0x42; pop rdx
        assert_eq!(ops(&[0x6a, 0x42, 0x5a]).last(), Some(&Op::Set(2, 0x42)));
    }

    #[test]
    fn what_the_frame_pointer_points_to_is_the_stack() {
        // push rbp; mov rbp, rsp; mov [rbp-8], rax
        let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x45, 0xf8];
        let stores = |code: &[u8]| -> Vec<Op> {
            let is_elsewhere = |op: &Op| matches!(op, Op::Store(base, _) if *base != STACK);
            ops(code).into_iter().filter(is_elsewhere).collect()
        };
        assert_eq!(stores(&code), []);
        assert_eq!(stores(&code[4..]), [Op::Store(RBP, 8u64.wrapping_neg())]);
    }
}
