//! How the functions of a TLS library are found in a file.
//!
//! So far: in its dynamic symbols.

use std::{fmt, fs::File};

use object::{
    LittleEndian, ReadCache,
    elf::{FileHeader64, NT_GNU_BUILD_ID, PT_NOTE},
    read::elf::{FileHeader, ProgramHeader},
};

use super::{Function, elf};

/// Where the offsets of a file's functions come from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its dynamic symbols.
    Symbols,
    /// Its full symbol table.
    SymbolTable,
    /// The symbols of its `.gnu_debugdata`.
    DebugData,
    /// A table of offsets by build ID.
    Offsets,
    /// Its code.
    Inferred,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symbols => "symbols",
            Self::SymbolTable => "symbol-table",
            Self::DebugData => "debug-data",
            Self::Offsets => "offsets",
            Self::Inferred => "inferred",
        })
    }
}

/// Whose library it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Google's.
    BoringSsl,
    /// The OpenSSL project's.
    OpenSsl,
    /// Not known.
    Unknown,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BoringSsl => "BoringSSL",
            Self::OpenSsl => "OpenSSL",
            Self::Unknown => "unknown",
        })
    }
}

/// What was found in a file.
#[derive(Clone, Debug)]
pub struct Found {
    /// What to probe, each at its offset in the file in bytes; at least one carries plaintext, or it is `BIO_write`.
    pub functions: Vec<(Function, u64)>,
    /// Where the offsets come from.
    pub how: How,
    /// Whose library it is.
    pub flavour: Flavour,
    /// Its version, as it says itself.
    pub version: Option<String>,
    /// Its build ID, in hexadecimal.
    pub build_id: Option<String>,
}

impl Found {
    /// Whether plaintext goes through any of the functions: it is more than a libcrypto.
    pub fn carries(&self) -> bool {
        self.functions.iter().any(|(function, _)| function.carries())
    }
}

/// Why nothing can be probed in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no ELF file of this device's kind: this instead.
    Foreign(&'static str),
    /// It is sound, and has nothing to probe.
    NoFunctions,
}

/// The ELF file inside a file: all of it, or an entry of an APK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// Looks for the functions in a part of `file`.
pub fn find(file: &File, _part: Part) -> Result<Found, Why> {
    let functions = elf::functions(file).map_err(Why::Foreign)?;
    if !functions.iter().any(|(function, _)| function.carries() || *function == Function::BioWrite) {
        return Err(Why::NoFunctions);
    }
    let has = |wanted| functions.iter().any(|(function, _)| *function == wanted);
    let flavour = match (has(Function::SetHostName), has(Function::ReadEx)) {
        (true, _) => Flavour::BoringSsl,
        (false, true) => Flavour::OpenSsl,
        (false, false) => Flavour::Unknown,
    };
    Ok(Found { functions, how: How::Symbols, flavour, version: None, build_id: build_id(file) })
}

/// The build ID that the linker put into a file, in hexadecimal.
fn build_id(file: &File) -> Option<String> {
    // Linkers make one or two segments of notes, small ones; a file may claim anything.
    const MAX_SEGMENTS: usize = 4;
    const MAX_SIZE: u64 = 64 << 10;
    let data = &ReadCache::new(file);
    let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?.iter();
    let notes = segments
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
