//! The functions of a TLS library in a file that names none of them: found by what their code does.
//!
//! Both libraries say where an error comes from: file, line, and why, or the function's own name. Whatever refers to their
//! `ssl_lib` is looked at, function by function; `boringssl` and `openssl` know by which errors to tell theirs. Only where
//! exactly one function fits is it taken, and only at an address that is a function's beginning for certain: see `bounds`.

#[cfg(any(test, target_arch = "aarch64"))]
mod arm64;
mod boringssl;
mod bounds;
mod code;
mod cpu;
mod openssl;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use super::{
    Function,
    elf::{self, Bytes, InFile, Layout},
    find::{self, Flavour},
};
use code::{Body, Follower};
use cpu::Cpu;

/// What is referred to: the paths by which the libraries name their source. The second is BoringSSL's only.
const SOURCES: [&[u8]; 2] = [b"/ssl_lib.c", b"/bio/bio.c"];
const FOLDER: &[u8] = b"ssl";
/// The longest such path, in bytes.
const LONGEST_PATH: usize = 256;
/// How many of them a file may have, and how many places may refer to them: more are no one library's.
const MAX_PATHS: usize = 8;
const MAX_REFERENCES: usize = 4096;
/// How much code a file may have, in bytes: a browser has some 250 MiB.
const MAX_CODE: u64 = 1 << 30;
/// The largest function that is looked at, in bytes, and how many bytes of all: the functions of both sources have some 100 KiB.
const MAX_FUNCTION: u64 = 64 << 10;
const MAX_FUNCTIONS: u64 = 16 << 20;

/// What was found: each function with its address, and whose library it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    /// At least those that read and write.
    pub functions: Vec<(Function, u64)>,
    /// By whose rules.
    pub flavour: Flavour,
}

/// Why nothing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// No code refers to a library's source: it is a text like any other there.
    NoLibrary,
    /// It can't be told which of its functions is which.
    Functions,
}

/// A function at an address, and what it does.
#[derive(Debug)]
struct Seen {
    start: u64,
    body: Body,
}

/// Where in a file the paths of the libraries' source are, each as the addresses at which it may be taken to begin.
#[derive(Debug, Default)]
pub struct Sources {
    boringssl: Vec<Range<u64>>,
    openssl: Vec<Range<u64>>,
}

/// The paths of a library's source that a file has; none if it has none, or too many to be a library's.
pub fn sources(bytes: InFile<'_>, layout: &Layout) -> Option<Sources> {
    let mut places: Vec<(Range<u64>, bool)> = Vec::new();
    let mut has_ssl = false;
    let (start, length) = layout.constants?;
    let span = (start, length.min(find::MAX_CONSTANTS));
    elf::pieces(&bytes, span, LONGEST_PATH, &mut |piece, offset| {
        for (place, source) in
            SOURCES.into_iter().flat_map(|source| find::all(piece, source).map(move |place| (place, source)))
        {
            // Their folder is the library's. This very program has the file's name alone.
            let is_ssl = source == SOURCES[0];
            if is_ssl && !piece[..place].ends_with(FOLDER) {
                continue;
            }
            has_ssl |= is_ssl;
            let is_boringssl = match piece[place + source.len()..] {
                [b'c', 0, ..] => true,
                [0, ..] => source == SOURCES[1],
                _ => continue,
            };
            let before = piece[..place].iter().rev().take_while(|byte| (32..127).contains(*byte)).count();
            let found = offset + (place - before) as u64..offset + place as u64 + 1;
            // Others were seen in the piece before, perhaps with more of their beginning.
            if places.iter().all(|(known, _)| known.end != found.end) {
                places.push((found, is_boringssl));
            }
        }
        places.len() <= MAX_PATHS
    })
    .ok()?;
    let mut sources = Sources::default();
    for (place, is_boringssl) in &places {
        let address = |offset: u64| layout.address_of(span.0.checked_add(offset)?);
        let paths = if *is_boringssl { &mut sources.boringssl } else { &mut sources.openssl };
        paths.push(address(place.start)?..address(place.end - 1)? + 1);
    }
    (has_ssl && places.len() <= MAX_PATHS).then_some(sources)
}

/// Whether a function begins at `address` for certain.
pub fn begins(bytes: InFile<'_>, layout: &Layout, address: u64) -> bool {
    let functions = bounds::functions::<cpu::Native>(&bytes, layout, &[address]);
    functions.is_some_and(|functions| functions.iter().any(|function| function.start == address))
}

/// Looks at the code of a file with such sources.
pub fn infer(bytes: InFile<'_>, layout: &Layout, sources: &Sources) -> Result<Inferred, Unclear> {
    infer_for::<cpu::Native>(bytes, layout, sources)
}

fn infer_for<C: Cpu>(bytes: InFile<'_>, layout: &Layout, sources: &Sources) -> Result<Inferred, Unclear> {
    let boringssl = look::<C>(bytes, layout, &sources.boringssl)
        .and_then(|seen| boringssl::functions(&seen).ok_or(Unclear::Functions));
    let openssl = look::<C>(bytes, layout, &sources.openssl).and_then(|seen| {
        openssl::functions(&seen, &|address| text(bytes, layout, address)).ok_or(Unclear::Functions)
    });
    match (boringssl, openssl) {
        (Ok(functions), Err(_)) => Ok(Inferred { functions, flavour: Flavour::BoringSsl }),
        (Err(_), Ok(functions)) => Ok(Inferred { functions, flavour: Flavour::OpenSsl }),
        (Err(Unclear::NoLibrary), Err(Unclear::NoLibrary)) => Err(Unclear::NoLibrary),
        // Where there are two libraries, nobody knows which one is used.
        _ => Err(Unclear::Functions),
    }
}

/// The functions near those that refer to one of `paths`, in the order of their addresses.
fn look<C: Cpu>(bytes: InFile<'_>, layout: &Layout, paths: &[Range<u64>]) -> Result<Vec<Seen>, Unclear> {
    let references = references::<C>(bytes, layout, paths).ok_or(Unclear::Functions)?;
    if references.is_empty() {
        return Err(Unclear::NoLibrary);
    }
    let is_path = |address: u64| paths.iter().any(|path| path.contains(&address));
    let (mut seen, mut looked_at) = (Vec::new(), 0);
    for function in bounds::functions::<C>(&bytes, layout, &references).ok_or(Unclear::Functions)? {
        let length = function.end.saturating_sub(function.start);
        let mut code = vec![0; usize::try_from(length.min(MAX_FUNCTION)).unwrap_or_default()];
        let Some(offset) = layout.file_offset(function.start) else { continue };
        if length > MAX_FUNCTION || !bytes.read(offset, &mut code) {
            continue;
        }
        looked_at += length;
        if looked_at > MAX_FUNCTIONS {
            return Err(Unclear::Functions);
        }
        let mut follower = Follower::new(C::REGISTERS, &is_path);
        C::decode(&code, function.start, &mut |_, op| follower.take(op));
        seen.push(Seen { start: function.start, body: follower.finish() });
    }
    Ok(seen)
}

/// The instructions that make one of the addresses in `paths`, by address. None: there are too many, or there is too much code.
fn references<C: Cpu>(bytes: InFile<'_>, layout: &Layout, paths: &[Range<u64>]) -> Option<Vec<u64>> {
    if paths.is_empty() {
        return Some(Vec::new());
    }
    let is_path = |address: u64| paths.iter().any(|path| path.contains(&address));
    if layout.code().map(|segment| segment.length).fold(0, u64::saturating_add) > MAX_CODE {
        return None;
    }
    let mut references = Vec::new();
    for segment in layout.code() {
        C::references(&bytes, segment, &is_path, &mut |address| {
            references.push(address);
            references.len() <= MAX_REFERENCES
        })?;
    }
    if references.len() > MAX_REFERENCES {
        return None;
    }
    // Segments stand in the order of their addresses. Source: System V ABI, Program Header, PT_LOAD.
    if !references.is_sorted() {
        return None;
    }
    Some(references)
}

/// The short text at an address.
fn text(bytes: InFile<'_>, layout: &Layout, address: u64) -> Option<String> {
    let mut text = [0; 32];
    if !bytes.read(layout.offset_of(address)?, &mut text) {
        return None;
    }
    let end = text.iter().position(|byte| *byte == 0)?;
    str::from_utf8(&text[..end]).ok().map(str::to_owned)
}

/// The only one of what there is; none if there are several.
fn only<T>(items: impl IntoIterator<Item = T>) -> Option<T> {
    let mut items = items.into_iter();
    items.next().filter(|_| items.next().is_none())
}

#[cfg(test)]
mod tests;
