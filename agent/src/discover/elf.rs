//! The functions that an ELF file's symbol tables name, and their file offsets.
//!
//! A uprobe wants a file offset: a symbol's address is converted through the segment that holds it, as the two differ in
//! many libraries (by 0x10000 in Android 14's libssl.so). Tables are read in pieces: a browser's are some hundred MiB.

use std::{fs::File, os::unix::fs::FileExt};

use object::{
    LittleEndian, ReadCache, ReadRef,
    elf::{
        DT_NEEDED, EM_AARCH64, EM_X86_64, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_GNU_EH_FRAME, PT_LOAD,
        PT_NOTE, SHT_DYNSYM, SHT_SYMTAB,
    },
    read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader},
};

use super::Function;

/// The CPU that this device has.
#[cfg(target_arch = "x86_64")]
pub const MACHINE: u16 = EM_X86_64;
#[cfg(target_arch = "aarch64")]
pub const MACHINE: u16 = EM_AARCH64;

/// What is said of a file whose parts don't fit.
pub const BROKEN: &str = "its ELF structure is broken";

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

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub struct InFile<'a> {
    /// The file.
    pub file: &'a File,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl Bytes for InFile<'_> {
    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let inside = offset.checked_add(into.len() as u64).is_some_and(|end| end <= self.length);
        let Some(place) = self.offset.checked_add(offset).filter(|_| inside) else { return false };
        self.file.read_exact_at(into, place).is_ok()
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
        let cache = ReadCache::new(part.file);
        Self::of(cache.range(part.offset, part.length), machine)
    }

    /// Of a file in memory.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        Self::of(bytes, MACHINE)
    }

    fn of<'a>(data: impl ReadRef<'a>, wanted: u16) -> Result<Self, &'static str> {
        let header = FileHeader64::<LittleEndian>::parse(data).map_err(|_| "it is not a 64-bit ELF file")?;
        let endian = header.endian().map_err(|_| "it is not little-endian")?;
        match header.e_machine(endian) {
            machine if machine == wanted => {}
            EM_AARCH64 | EM_X86_64 => return Err("it is for another CPU"),
            _ => return Err("it is for an unknown CPU"),
        }
        let segments = header.program_headers(endian, data).map_err(|_| BROKEN)?;
        let loaded = segments
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr(endian),
                offset: segment.p_offset(endian),
                length: segment.p_filesz(endian),
                is_code: segment.p_flags(endian) & PF_X != 0,
            })
            .collect();
        let frames = segments.iter().find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME);
        let frames = frames.map(|segment| (segment.p_offset(endian), segment.p_filesz(endian)));
        let sections = header.sections(endian, data).map_err(|_| BROKEN)?;
        let build_id = build_id(segments, endian, data);
        let mut layout = Self { segments: loaded, frames, build_id, ..Self::default() };
        for section in sections.iter() {
            let span = (section.sh_offset(endian), section.sh_size(endian));
            let kind = section.sh_type(endian);
            if matches!(kind, SHT_DYNSYM | SHT_SYMTAB) {
                let strings = sections.section(section.link(endian)).map_err(|_| BROKEN)?;
                let strings = (strings.sh_offset(endian), strings.sh_size(endian));
                let table = if kind == SHT_DYNSYM { &mut layout.dynamic } else { &mut layout.full };
                table.get_or_insert(Table { symbols: span, strings });
            }
            match sections.section_name(endian, section) {
                Ok(b".gnu_debugdata") => layout.debug_data = Some(span),
                Ok(b".rodata") => layout.constants = Some(span),
                Ok(b".go.buildinfo") => layout.is_go = true,
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
    let mut names = Vec::new();
    pieces(bytes, strings, LONGEST, &mut |piece, offset| {
        let ends = piece.iter().enumerate().filter(|(_, byte)| **byte == 0);
        for (end, _) in ends {
            let text = &piece[..end];
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
fn build_id<'a>(
    segments: &[object::elf::ProgramHeader64<LittleEndian>],
    endian: LittleEndian,
    data: impl ReadRef<'a>,
) -> Option<String> {
    // Linkers make one or two segments of notes, small ones; a file may claim anything.
    const MAX_SEGMENTS: usize = 4;
    const MAX_SIZE: u64 = 64 << 10;
    let notes = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_NOTE && segment.p_filesz(endian) <= MAX_SIZE)
        .take(MAX_SEGMENTS)
        .filter_map(|segment| segment.notes(endian, data).ok()?);
    for mut notes in notes {
        while let Ok(Some(note)) = notes.next() {
            if note.n_type(endian) == NT_GNU_BUILD_ID && note.name() == b"GNU" {
                return Some(note.desc().iter().map(|byte| format!("{byte:02x}")).collect());
            }
        }
    }
    None
}

/// The name of the libcrypto that `file` says it needs.
pub fn libcrypto(file: &File) -> Option<String> {
    let data = &ReadCache::new(file);
    let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, data).ok()?;
    let (entries, strings) = sections.dynamic(endian, data).ok()??;
    let strings = sections.strings(endian, data, strings).ok()?;
    let needed = entries.iter().filter(|entry| entry.d_tag(endian) == DT_NEEDED);
    let names = needed.filter_map(|entry| str::from_utf8(entry.string(endian, strings).ok()?).ok());
    // A name and not a path.
    names.filter(|name| !name.contains('/')).find(|name| name.starts_with("libcrypto")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::LazyLock};

    use proptest::prelude::*;

    use super::*;

    /// This very test: a real ELF file, without the functions.
    fn real() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    fn functions_of(bytes: &[u8]) -> Result<Vec<(Function, u64)>, &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let bytes = InFile { file: &file, offset: 0, length: file.metadata().unwrap().len() };
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

    proptest! {
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
