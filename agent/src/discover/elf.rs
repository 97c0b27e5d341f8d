//! The functions that an ELF file's symbol tables name, and their file offsets.
//!
//! A uprobe wants a file offset: a symbol's address is converted through the segment that holds it, as the two differ in
//! many libraries (by 0x10000 in Android 14's libssl.so). Tables are read in pieces: a browser's are some hundred MiB.

use std::{cell::Cell, fs::File, os::unix::fs::FileExt};

use object::{
    LittleEndian,
    elf::{
        DT_NEEDED, Dyn64, EM_AARCH64, EM_X86_64, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_GNU_EH_FRAME,
        PT_LOAD, PT_NOTE, ProgramHeader64, SHT_DYNAMIC, SHT_DYNSYM, SHT_SYMTAB, SectionHeader64,
    },
    pod::{self, Pod},
    read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader},
};

use super::Function;

/// The CPU that this device has.
#[cfg(target_arch = "x86_64")]
pub const MACHINE: u16 = EM_X86_64;
#[cfg(target_arch = "aarch64")]
pub const MACHINE: u16 = EM_AARCH64;

/// What is said of a file whose parts don't fit.
pub const BROKEN: &str = "its ELF structure is broken";
/// What is said of one with more of them than a linker makes.
const TOO_MANY: &str = "it has more segments or sections than any library";

/// Headers that are read into memory. Linkers make a dozen segments and some forty sections; a count that says of itself that it
/// stands elsewhere, as it doesn't fit (PN_XNUM, or 0 for sections), is no library's.
const MAX_SEGMENTS: u16 = 128;
const MAX_SECTIONS: u16 = 4096;
/// The largest table of symbols or strings that is looked through, in bytes: those of an unstripped browser have some hundred MiB.
const MAX_TABLE: u64 = 512 << 20;
/// What is said of a file with a larger one.
pub const LARGE_TABLE: &str =
    "a table of its symbols has more than 512 MiB; strip it, or name its functions with --offsets";
/// How many dynamic entries are looked at: the names of the libraries that a file needs come first.
const MAX_DYNAMIC: u64 = 1024;
/// What may be read of a file in all, in bytes, again and again included: Chromium, of 297 MB and without symbols, takes 0.5 GiB.
const MAX_READ: u64 = 4 << 30;
/// What is said of a file that takes more.
pub const TOO_MUCH: &str = "more than 4 GiB would have to be read of it; leave it out with --exclude";
/// What a read costs at least, in bytes: a call of the system takes its time, however little it brings.
const LEAST_COST: u64 = 4096;

/// Bytes of a table that are looked at at a time.
const PIECE: usize = 64 << 10;
/// An entry of a symbol table: name (4 bytes), kind (1), other (1), section (2), address (8), size (8).
const SYMBOL: usize = 24;
/// Names that end in that of a function: linkers share the ends of strings.
const MAX_NAMES: usize = 4096;

/// Bytes that can be read at a place: an ELF file, wherever it is.
pub trait Bytes {
    /// Fills `into` with the bytes at `offset`; false where there are fewer.
    fn read(&self, offset: u64, into: &mut [u8]) -> bool;
}

/// What may still be read of a file while it is looked through: its headers say how large its tables are, and may say anything.
///
/// Counted in bytes and not in time, so that a slow disk changes nothing in what is found.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(MAX_READ))
    }
}

impl Budget {
    /// Takes what a read of so many bytes costs; false where there is less left, and from then on.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let left = self.0.get().checked_sub((bytes as u64).max(LEAST_COST));
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> u64 {
        self.0.get()
    }

    /// Whether something could not be read for want of it.
    pub fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub struct InFile<'a> {
    /// The file.
    pub file: &'a File,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What may be read of the file.
    pub budget: &'a Budget,
}

impl Bytes for InFile<'_> {
    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let inside = offset.checked_add(into.len() as u64).is_some_and(|end| end <= self.length);
        let Some(place) = self.offset.checked_add(offset).filter(|_| inside) else { return false };
        self.budget.take(into.len()) && self.file.read_exact_at(into, place).is_ok()
    }
}

impl Bytes for &[u8] {
    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let place = usize::try_from(offset).ok();
        let bytes = place.and_then(|place| self.get(place..)?.get(..into.len()));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
}

/// Where something stands: its offset and length in bytes.
pub type Span = (u64, u64);

/// A symbol table, and the strings with its names.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    symbols: Span,
    strings: Span,
}

impl Table {
    /// Whether it is too large to be looked through.
    pub fn is_too_large(&self) -> bool {
        self.symbols.1.max(self.strings.1) > MAX_TABLE
    }
}

/// A segment that is loaded: address, offset and length in the file, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it is in memory, from where the file's first byte would be.
    pub address: u64,
    /// Where it is in the file.
    pub offset: u64,
    /// How much of it is in the file.
    pub length: u64,
    /// Whether it is run.
    pub is_code: bool,
}

/// The byte order of all CPUs that there are probes for.
const ENDIAN: LittleEndian = LittleEndian;

/// What an ELF file begins with, and what that leads to.
struct Headers {
    segments: Vec<ProgramHeader64<LittleEndian>>,
    sections: Vec<SectionHeader64<LittleEndian>>,
    /// The names of the sections.
    names: Span,
}

impl Headers {
    /// Of a file for the CPU `wanted`.
    fn read(bytes: &dyn Bytes, wanted: u16) -> Result<Self, &'static str> {
        const NONE: &str = "it is not a 64-bit ELF file";
        let [header] = entries::<FileHeader64<LittleEndian>>(bytes, 0, 1).ok_or(NONE)?[..] else {
            return Err(NONE);
        };
        if !header.is_supported() {
            return Err(NONE);
        }
        header.endian().map_err(|_| "it is not little-endian")?;
        match header.e_machine(ENDIAN) {
            machine if machine == wanted => {}
            EM_AARCH64 | EM_X86_64 => return Err("it is for another CPU"),
            _ => return Err("it is for an unknown CPU"),
        }
        let segments = (header.e_phnum(ENDIAN), header.e_phentsize(ENDIAN));
        let sections = (header.e_shnum(ENDIAN), header.e_shentsize(ENDIAN));
        let segments = table(bytes, header.e_phoff(ENDIAN), segments, MAX_SEGMENTS)?;
        let sections: Vec<SectionHeader64<_>> = table(bytes, header.e_shoff(ENDIAN), sections, MAX_SECTIONS)?;
        let names = sections.get(usize::from(header.e_shstrndx(ENDIAN))).map(span);
        Ok(Self { segments, sections, names: names.unwrap_or_default() })
    }
}

/// A table of so many headers of that size each, but of no more than `most`.
fn table<T: Pod>(
    bytes: &dyn Bytes,
    offset: u64,
    (count, size): (u16, u16),
    most: u16,
) -> Result<Vec<T>, &'static str> {
    match count {
        0 => Ok(Vec::new()),
        _ if count > most => Err(TOO_MANY),
        _ if usize::from(size) != size_of::<T>() => Err(BROKEN),
        _ => entries(bytes, offset, count.into()).ok_or(BROKEN),
    }
}

/// So many entries of a table.
fn entries<T: Pod>(bytes: &dyn Bytes, offset: u64, count: usize) -> Option<Vec<T>> {
    // Words, as entries are aligned as these are.
    let mut words = vec![0u64; (count * size_of::<T>()).div_ceil(size_of::<u64>())];
    if !bytes.read(offset, pod::bytes_of_slice_mut(&mut words)) {
        return None;
    }
    let (entries, _) = pod::slice_from_bytes::<T>(pod::bytes_of_slice(&words), count).ok()?;
    Some(entries.to_vec())
}

fn span(section: &SectionHeader64<LittleEndian>) -> Span {
    (section.sh_offset(ENDIAN), section.sh_size(ENDIAN))
}

/// The text at a place of a string table; none if it has `MOST` bytes or more.
fn text<const MOST: usize>(bytes: &dyn Bytes, (start, length): Span, place: u64) -> Option<String> {
    let mut text = [0; MOST];
    let left = usize::try_from(length.checked_sub(place)?).unwrap_or(MOST).min(MOST);
    if !bytes.read(start.checked_add(place)?, &mut text[..left]) {
        return None;
    }
    let end = text[..left].iter().position(|byte| *byte == 0)?;
    str::from_utf8(&text[..end]).ok().map(str::to_owned)
}

/// Where the parts of an ELF file are.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// What is loaded into memory.
    pub segments: Vec<Segment>,
    /// `.eh_frame_hdr`
    pub frames: Option<Span>,
    /// `.dynsym`
    pub dynamic: Option<Table>,
    /// `.symtab`
    pub full: Option<Table>,
    /// `.gnu_debugdata`
    pub debug_data: Option<Span>,
    /// `.rodata`
    pub constants: Option<Span>,
    /// There is a section that Go's linker makes.
    pub is_go: bool,
    /// What the linker put in, in hexadecimal.
    pub build_id: Option<String>,
}

impl Segment {
    fn offset_of(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(self.address)?;
        (inside < self.length).then_some(self.offset.checked_add(inside)?)
    }
}

impl Layout {
    /// Of a file in part of another one; an error says what it is instead of a library for this device.
    pub fn of_file(part: InFile<'_>) -> Result<Self, &'static str> {
        Self::of_file_for(part, MACHINE)
    }

    /// The same for a device with another CPU.
    pub fn of_file_for(part: InFile<'_>, machine: u16) -> Result<Self, &'static str> {
        Self::of(&part, machine)
    }

    /// Of a file in memory.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        Self::of(&bytes, MACHINE)
    }

    fn of(bytes: &dyn Bytes, wanted: u16) -> Result<Self, &'static str> {
        let Headers { segments, sections, names } = Headers::read(bytes, wanted)?;
        let loaded = segments
            .iter()
            .filter(|segment| segment.p_type(ENDIAN) == PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr(ENDIAN),
                offset: segment.p_offset(ENDIAN),
                length: segment.p_filesz(ENDIAN),
                is_code: segment.p_flags(ENDIAN) & PF_X != 0,
            })
            .collect();
        let frames = segments.iter().find(|segment| segment.p_type(ENDIAN) == PT_GNU_EH_FRAME);
        let frames = frames.map(|segment| (segment.p_offset(ENDIAN), segment.p_filesz(ENDIAN)));
        let build_id = build_id(bytes, &segments);
        let mut layout = Self { segments: loaded, frames, build_id, ..Self::default() };
        for section in &sections {
            let kind = section.sh_type(ENDIAN);
            if matches!(kind, SHT_DYNSYM | SHT_SYMTAB) {
                let strings = span(sections.get(section.sh_link(ENDIAN) as usize).ok_or(BROKEN)?);
                let table = if kind == SHT_DYNSYM { &mut layout.dynamic } else { &mut layout.full };
                table.get_or_insert(Table { symbols: span(section), strings });
            }
            match text::<16>(bytes, names, section.sh_name(ENDIAN).into()).as_deref() {
                Some(".gnu_debugdata") => layout.debug_data = Some(span(section)),
                Some(".rodata") => layout.constants = Some(span(section)),
                Some(".go.buildinfo") => layout.is_go = true,
                _ => {}
            }
        }
        Ok(layout)
    }

    /// The file offset of the code at `address`, through the segment that holds it.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.code().find_map(|segment| segment.offset_of(address))
    }

    /// The segments that are run.
    pub fn code(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.is_code)
    }

    /// The file offset of whatever is at `address`.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| segment.offset_of(address))
    }

    /// The address of what stands at `offset` in the file.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let inside = offset.checked_sub(segment.offset)?;
            (inside < segment.length).then_some(segment.address.checked_add(inside)?)
        })
    }

    /// The functions that `table` in `bytes` names, with their offsets in the file of this layout.
    pub fn functions(&self, bytes: &dyn Bytes, table: Table) -> Result<Vec<(Function, u64)>, &'static str> {
        let names = names(bytes, table.strings)?;
        // One that others may use comes before one that is the file's own, and of versions the first.
        let mut found: Vec<(Function, u64, bool)> = Vec::new();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        pieces(bytes, table.symbols, 0, &mut |piece, _| {
            for symbol in piece.chunks_exact(SYMBOL) {
                let [n0, n1, n2, n3, kind, _, s0, s1, a0, a1, a2, a3, a4, a5, a6, a7, ..] = *symbol else {
                    continue;
                };
                let is_defined_function = kind & 0xf == 2 && (s0, s1) != (0, 0);
                let name = u32::from_le_bytes([n0, n1, n2, n3]);
                let Ok(place) = names.binary_search_by_key(&name, |(name, _)| *name) else { continue };
                if !is_defined_function {
                    continue;
                }
                let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
                let (function, is_local) = (names[place].1, kind >> 4 == 0);
                match found.iter_mut().find(|(other, ..)| *other == function) {
                    None => found.push((function, address, is_local)),
                    Some(known) if known.2 && !is_local => *known = (function, address, is_local),
                    Some(_) => {}
                }
            }
            true
        })?;
        found.sort_by_key(|(function, ..)| *function);
        let offset = |(function, address, _)| Some((function, self.file_offset(address)?));
        found.into_iter().map(|found| offset(found).ok_or(BROKEN)).collect()
    }
}

/// The offsets in `strings` at which the name of a function stands, sorted.
fn names(bytes: &dyn Bytes, strings: Span) -> Result<Vec<(u32, Function)>, &'static str> {
    const LONGEST: usize = 32;
    const SHORTEST: usize = 8;
    let mut names = Vec::new();
    pieces(bytes, strings, LONGEST, &mut |piece, offset| {
        let (mut start, ends) = (0, piece.iter().enumerate().filter(|(_, byte)| **byte == 0));
        for (end, _) in ends {
            let text = &piece[std::mem::replace(&mut start, end + 1)..end];
            // Most of a file that is made to take time.
            if text.len() < SHORTEST {
                continue;
            }
            let named =
                Function::ALL.into_iter().filter(|function| text.ends_with(function.name().as_bytes()));
            for function in named {
                let Ok(name) = u32::try_from(offset + (end - function.name().len()) as u64) else {
                    return false;
                };
                names.push((name, function));
            }
        }
        names.len() <= MAX_NAMES
    })?;
    // What stands where two pieces overlap was seen twice.
    names.sort_by_key(|(name, _)| *name);
    names.dedup();
    if names.len() > MAX_NAMES { Err(BROKEN) } else { Ok(names) }
}

/// Gives `take` the bytes of a span piece by piece, with each piece's offset in it, until it has enough (false). Each piece
/// begins with the last `overlap` bytes of the one before.
pub fn pieces(
    bytes: &dyn Bytes,
    (start, length): Span,
    overlap: usize,
    take: &mut dyn FnMut(&[u8], u64) -> bool,
) -> Result<(), &'static str> {
    const WHOLE: usize = PIECE / SYMBOL * SYMBOL;
    let mut buffer = vec![0; overlap + WHOLE];
    let (mut done, mut kept) = (0, 0);
    while done < length {
        let size = WHOLE.min(usize::try_from(length - done).unwrap_or(WHOLE));
        let place = start.checked_add(done).ok_or(BROKEN)?;
        let end = kept + size;
        if !bytes.read(place, &mut buffer[kept..end]) {
            return Err(BROKEN);
        }
        if !take(&buffer[..end], done - kept as u64) {
            break;
        }
        done += size as u64;
        let next = overlap.min(end);
        buffer.copy_within(end - next..end, 0);
        kept = next;
    }
    Ok(())
}

/// The build ID that the linker put into a file, in hexadecimal.
fn build_id(bytes: &dyn Bytes, segments: &[ProgramHeader64<LittleEndian>]) -> Option<String> {
    // Linkers make one or two segments of notes, small ones; a file may claim anything.
    const MAX_NOTES: usize = 4;
    const MAX_SIZE: u64 = 64 << 10;
    let notes = segments
        .iter()
        .filter(|segment| segment.p_type(ENDIAN) == PT_NOTE && segment.p_filesz(ENDIAN) <= MAX_SIZE)
        .take(MAX_NOTES);
    for segment in notes {
        let mut content = vec![0; usize::try_from(segment.p_filesz(ENDIAN)).unwrap_or_default()];
        if !bytes.read(segment.p_offset(ENDIAN), &mut content) {
            continue;
        }
        let notes =
            NoteIterator::<FileHeader64<LittleEndian>>::new(ENDIAN, segment.p_align(ENDIAN), &content);
        let Ok(mut notes) = notes else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.n_type(ENDIAN) == NT_GNU_BUILD_ID && note.name() == b"GNU" {
                return Some(note.desc().iter().map(|byte| format!("{byte:02x}")).collect());
            }
        }
    }
    None
}

/// The name of the libcrypto that a file says it needs.
pub fn libcrypto(bytes: &dyn Bytes) -> Option<String> {
    let Headers { sections, .. } = Headers::read(bytes, MACHINE).ok()?;
    let dynamic = sections.iter().find(|section| section.sh_type(ENDIAN) == SHT_DYNAMIC)?;
    let strings = span(sections.get(dynamic.sh_link(ENDIAN) as usize)?);
    let (offset, size) = span(dynamic);
    let count = usize::try_from((size / size_of::<Dyn64<LittleEndian>>() as u64).min(MAX_DYNAMIC)).ok()?;
    let needed = entries::<Dyn64<LittleEndian>>(bytes, offset, count)?;
    let needed = needed.iter().filter(|entry| entry.d_tag.get(ENDIAN) == DT_NEEDED);
    let mut names = needed.filter_map(|entry| text::<64>(bytes, strings, entry.d_val.get(ENDIAN)));
    // A name and not a path.
    names.find(|name| name.starts_with("libcrypto") && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::LazyLock};

    use proptest::prelude::*;

    use super::*;

    /// Where the header has the numbers of segments and sections.
    const E_PHNUM: usize = 56;
    const E_SHNUM: usize = 60;

    /// This very test: a real ELF file, without the functions.
    fn real() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    fn functions_of(bytes: &[u8]) -> Result<Vec<(Function, u64)>, &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let length = file.metadata().unwrap().len();
        let bytes = InFile { file: &file, offset: 0, length, budget: &Budget::default() };
        let layout = Layout::of_file(bytes)?;
        layout.dynamic.map_or(Ok(vec![]), |table| layout.functions(&bytes, table))
    }

    #[test]
    fn a_file_without_the_functions_has_none() {
        assert_eq!(functions_of(&real()), Ok(vec![]));
    }

    #[test]
    fn another_cpus_file_is_told_from_no_elf_file() {
        let mut file = real();
        file.truncate(1 << 16);
        file[18] = if MACHINE == EM_AARCH64 { EM_X86_64 as u8 } else { EM_AARCH64 as u8 };
        assert_eq!(functions_of(&file), Err("it is for another CPU"));
        file[18] = 3;
        assert_eq!(functions_of(&file), Err("it is for an unknown CPU"));
        assert_eq!(functions_of(b"text"), Err("it is not a 64-bit ELF file"));
        assert_eq!(functions_of(b""), Err("it is not a 64-bit ELF file"));
    }

    /// Looks into a file of 1 TiB, all of it a hole but for its start; and what that cost of the budget.
    fn look_into_a_hole(start: &[u8]) -> (Result<Layout, &'static str>, u64) {
        const SIZE: u64 = 1 << 40;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(start).unwrap();
        file.set_len(SIZE).unwrap();
        let budget = Budget::default();
        let layout = Layout::of_file(InFile { file: &file, offset: 0, length: SIZE, budget: &budget });
        (layout, MAX_READ - budget.left())
    }

    #[test]
    fn headers_without_number_are_refused_before_they_are_read() {
        for place in [E_PHNUM, E_SHNUM] {
            for count in [MAX_SECTIONS + 1, 0xfffe, 0xffff] {
                let mut file = super::super::tests::library(&["SSL_read"]);
                file[place..place + 2].copy_from_slice(&count.to_le_bytes());
                let (layout, cost) = look_into_a_hole(&file);
                assert_eq!(layout.map(|_| ()), Err(TOO_MANY));
                assert!(cost <= u64::from(MAX_SECTIONS) * 64, "{cost}");
            }
        }
    }

    #[test]
    fn as_many_headers_as_there_may_be_cost_little() {
        let mut file = super::super::tests::library(&["SSL_read"]);
        file[E_PHNUM..E_PHNUM + 2].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        file[E_SHNUM..E_SHNUM + 2].copy_from_slice(&MAX_SECTIONS.to_le_bytes());
        // The third holds the names.
        file[E_SHNUM + 2] = 2;
        let (layout, cost) = look_into_a_hole(&file);
        assert!(layout.is_ok() && cost <= 32 << 20, "{layout:?} {cost}");
    }

    #[test]
    fn tables_that_are_too_large_are_not_looked_through() {
        let file = super::super::tests::library(&["SSL_read"]);
        let at = u64::from_le_bytes(file[40..48].try_into().unwrap()) as usize;
        for section in [1, 2] {
            let mut file = file.clone();
            let size = at + section * 64 + 32;
            for (claimed, is_too_large) in [(MAX_TABLE, false), (MAX_TABLE + 1, true), (1 << 39, true)] {
                file[size..size + 8].copy_from_slice(&claimed.to_le_bytes());
                let (layout, cost) = look_into_a_hole(&file);
                assert_eq!(layout.unwrap().dynamic.unwrap().is_too_large(), is_too_large);
                assert!(cost <= 1 << 20, "{cost}");
            }
        }
    }

    #[test]
    fn a_budget_that_is_spent_stays_so() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let budget = Budget(Cell::new(3 * LEAST_COST));
        let bytes = InFile { file: &file, offset: 0, length: 1 << 20, budget: &budget };
        let read = |size| bytes.read(0, &mut vec![0; size]);
        assert!(read(1) && read(4096) && !read(8192) && !read(1));
        assert!(budget.is_spent());
    }

    proptest! {
        #[test]
        fn names_are_where_a_plain_search_finds_them(
            before in PIECE / SYMBOL * SYMBOL - 80..PIECE / SYMBOL * SYMBOL,
            filling in prop::sample::select(vec![0, b'x']),
            strings in prop::collection::vec(
                prop::sample::select(vec!["", "a", "SSL_read", "my_SSL_write", "SSL_read_ex", "SSL_rea", "xSSL_free"]),
                0..24,
            ),
        ) {
            let text = [vec![filling; before], strings.join("\0").into_bytes(), vec![0]].concat();
            let mut plain: Vec<(u32, Function)> = Vec::new();
            for function in Function::ALL {
                let name = [function.name().as_bytes(), b"\0"].concat();
                let places = (before..text.len()).filter(|place| text[*place..].starts_with(&name));
                plain.extend(places.map(|place| (place as u32, function)));
            }
            plain.sort_by_key(|(place, _)| *place);
            prop_assert_eq!(names(&text.as_slice(), (0, text.len() as u64)), Ok(plain));
        }

        #[test]
        fn any_file_is_read_or_refused(bytes: Vec<u8>) {
            let _ = functions_of(&bytes);
        }

        #[test]
        fn a_broken_file_is_read_or_refused(
            changes in prop::collection::vec((0usize..4096, any::<u8>()), 1..16),
            length in 64usize..65_536,
        ) {
            static START: LazyLock<Vec<u8>> = LazyLock::new(|| real()[..65_536].to_vec());
            let mut file = START.clone();
            for (place, byte) in changes {
                // The first page holds the headers, which say where everything else is.
                file[place] = byte;
            }
            file.truncate(length);
            let _ = functions_of(&file);
        }
    }
}
