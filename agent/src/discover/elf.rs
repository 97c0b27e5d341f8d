//! Functions of an ELF file and their file offsets.
//!
//! A uprobe wants a file offset: a symbol's address is converted through the segment that holds it, as the two differ in
//! many libraries (by 0x10000 in Android 14's libssl.so).

use std::fs::File;

use object::{
    LittleEndian, ReadCache,
    elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_LOAD, STT_FUNC},
    read::elf::{Dyn, FileHeader, ProgramHeader, Sym},
};

use super::Function;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = EM_X86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = EM_AARCH64;

/// The functions that `file` exports, with their file offsets; an error says what the file is instead of a library.
pub fn functions(file: &File) -> Result<Vec<(Function, u64)>, &'static str> {
    const BROKEN: &str = "its ELF structure is broken";
    let data = &ReadCache::new(file);
    let header = FileHeader64::<LittleEndian>::parse(data).map_err(|_| "it is not a 64-bit ELF file")?;
    let endian = header.endian().map_err(|_| "it is not little-endian")?;
    match header.e_machine(endian) {
        machine if machine == MACHINE => {}
        EM_AARCH64 | EM_X86_64 => return Err("it is for another CPU"),
        _ => return Err("it is for an unknown CPU"),
    }
    let segments = header.program_headers(endian, data).map_err(|_| BROKEN)?;
    let sections = header.sections(endian, data).map_err(|_| BROKEN)?;
    let symbols = sections.symbols(endian, data, object::elf::SHT_DYNSYM).map_err(|_| BROKEN)?;
    let mut found: Vec<(Function, u64)> = Vec::new();
    for symbol in symbols.iter() {
        if symbol.st_type() != STT_FUNC || !symbol.is_definition(endian, symbols.strings()) {
            continue;
        }
        let Ok(name) = symbol.name(endian, symbols.strings()) else { continue };
        let Some(function) = Function::ALL.into_iter().find(|function| function.name().as_bytes() == name)
        else {
            continue;
        };
        // A symbol may have several versions, of which the first is the one.
        if found.iter().all(|(other, _)| *other != function) {
            found.push((function, file_offset(segments, endian, symbol.st_value(endian)).ok_or(BROKEN)?));
        }
    }
    found.sort_by_key(|(function, _)| *function);
    Ok(found)
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

/// The file offset of the code at `address`, through the executable segment that holds it.
fn file_offset(
    segments: &[object::elf::ProgramHeader64<LittleEndian>],
    endian: LittleEndian,
    address: u64,
) -> Option<u64> {
    segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0)
        .find_map(|segment| {
            let inside = address.checked_sub(segment.p_vaddr(endian))?;
            (inside < segment.p_filesz(endian)).then_some(segment.p_offset(endian).checked_add(inside)?)
        })
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
        functions(&file)
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
