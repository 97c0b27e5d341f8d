//! What a function does, as far as it takes to know it again: the errors that it raises, whom it calls, what it keeps.
//!
//! One pass over its instructions from the first to the last, with the constants that registers hold on the way. Where the
//! way there was another one than straight on, a constant may be missed or be of another way: both make evidence that fits
//! no function, or no evidence at all.

/// What an instruction does, as far as it matters here. Registers are numbered by `Cpu`: arguments from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A register gets a value: a number, or an address.
    Set(u8, u64),
    /// The first register gets the second's value plus a number.
    Add(u8, u8, u64),
    /// A register gets a value that is not known.
    Unknown(u8),
    /// A word of 8 bytes or more is read this far behind where a register points.
    Load(u8, u64),
    /// Such a word is written.
    Store(u8, u64),
    /// A call, of this address if that is known.
    Call(Option<u64>),
    /// Goes on here or at this address.
    Branch(u64),
    /// Goes on elsewhere, and never with what follows here: a jump, to this address if that is known, or a return.
    Leave(Option<u64>),
}

/// What tells one CPU's registers from another's.
#[derive(Clone, Debug)]
pub struct Registers {
    /// Those that a call leaves as they are.
    pub kept: std::ops::Range<u8>,
    /// Those that point to the stack.
    pub stack: [u8; 2],
}

/// How many registers there are at most.
pub const REGISTERS: usize = 32;

/// An error that a function raises. Source: BoringSSL, `ERR_put_error(library, unused, reason, file, line)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Raise {
    /// Where in the source.
    pub line: u64,
    /// Why.
    pub reason: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// The errors that it raises, by line.
    pub raises: Vec<Raise>,
    /// Where the names stand that it gives for itself. Source: OpenSSL 3's `ERR_set_debug(file, line, function)`.
    pub names: Vec<u64>,
    /// Where it calls and jumps, with the fourth argument if that is known.
    pub calls: Vec<(u64, Option<u64>)>,
    /// Whether it reads a word of what something points to, and writes there too.
    pub writes_back: bool,
}

/// Follows a function's instructions.
pub struct Follower<'a> {
    registers: Registers,
    /// Whether the name of the wanted source file is at an address.
    is_file: &'a dyn Fn(u64) -> bool,
    values: [Option<u64>; REGISTERS],
    loads: Vec<u64>,
    stores: Vec<u64>,
    body: Body,
}

/// Past these no line and no reason is one.
const MAX_LINE: u64 = 20_000;
const MAX_REASON: u64 = 4095;
/// What is kept of a function, of each kind: those that are looked for have fewer.
const MAX_EACH: usize = 256;

/// Stands for wherever the stack is: no address of a file.
const STACK: u64 = 1 << 63;

/// Whether a value is an address on the stack.
pub fn is_on_stack(value: u64) -> bool {
    const MOST: u64 = 1 << 20;
    (STACK - MOST..STACK + MOST).contains(&value)
}

impl<'a> Follower<'a> {
    /// At a function's beginning.
    pub fn new(registers: Registers, is_file: &'a dyn Fn(u64) -> bool) -> Self {
        let (loads, stores, body) = (Vec::new(), Vec::new(), Body::default());
        let mut values = [None; REGISTERS];
        for register in registers.stack {
            if let Some(value) = values.get_mut(usize::from(register)) {
                *value = Some(STACK);
            }
        }
        Self { registers, is_file, values, loads, stores, body }
    }

    /// Takes the next instruction, or a part of what it does.
    pub fn take(&mut self, op: Op) {
        match op {
            Op::Branch(_) => {}
            Op::Set(register, value) => self.set(register, Some(value)),
            Op::Add(to, from, number) => {
                let value = self.value(from).map(|value| value.wrapping_add(number));
                self.set(to, value);
            }
            Op::Unknown(register) => self.set(register, None),
            Op::Load(base, _) | Op::Store(base, _) if self.registers.stack.contains(&base) => {}
            Op::Load(_, place) => push(&mut self.loads, place),
            Op::Store(_, place) => push(&mut self.stores, place),
            Op::Call(target) | Op::Leave(target) => {
                if let Some(target) = target {
                    let fourth = self.value(3);
                    push(&mut self.body.calls, (target, fourth));
                }
                self.raised(matches!(op, Op::Call(_)));
                self.forget();
            }
        }
    }

    /// What the function does, at its end.
    pub fn finish(mut self) -> Body {
        self.body.writes_back = self.loads.iter().any(|place| *place > 0 && self.stores.contains(place));
        self.body
    }

    /// Takes note of the error that the arguments at hand make, if they do. Before a jump, to what several errors have in common,
    /// the file may be missing.
    fn raised(&mut self, call: bool) {
        let is_file = |value: Option<u64>| value.map(|value| (self.is_file)(value));
        if call && is_file(self.value(0)) == Some(true) {
            if let Some(name) = self.value(2) {
                push(&mut self.body.names, name);
            }
            return;
        }
        let (Some(reason), Some(line)) = (self.value(2), self.value(4)) else { return };
        let (reason, line) = (reason & 0xffff_ffff, line & 0xffff_ffff);
        let is_one = match is_file(self.value(3)) {
            Some(is_file) => is_file,
            None => !call,
        };
        if is_one && (1..=MAX_LINE).contains(&line) && (1..=MAX_REASON).contains(&reason) {
            let raises = &mut self.body.raises;
            let raise = Raise { line, reason };
            if raises.len() < MAX_EACH
                && let Err(place) = raises.binary_search(&raise)
            {
                raises.insert(place, raise);
            }
        }
    }

    fn value(&self, register: u8) -> Option<u64> {
        self.values.get(usize::from(register)).copied().flatten()
    }

    fn set(&mut self, register: u8, value: Option<u64>) {
        if self.registers.stack.contains(&register) {
            return;
        }
        if let Some(place) = self.values.get_mut(usize::from(register)) {
            *place = value;
        }
    }

    /// Forgets what a call may have changed.
    fn forget(&mut self) {
        for (register, value) in (0..).zip(&mut self.values) {
            if !self.registers.kept.contains(&register) && !self.registers.stack.contains(&register) {
                *value = None;
            }
        }
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() < MAX_EACH {
        list.push(item);
    }
}
