//! Libraries inside an APK. Android maps those that are stored there as they are, without unpacking them.
//!
//! Source: PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.4; Android's zipalign.

use std::path::{Path, PathBuf};

use super::{
    elf::{Bytes, InFile},
    find::Part,
};

/// What separates the APK's path from that of the entry.
pub const SEPARATOR: &str = "!/";

/// The folder of the libraries for this CPU.
#[cfg(target_arch = "aarch64")]
const FOLDER: &str = "lib/arm64-v8a/";
#[cfg(target_arch = "x86_64")]
const FOLDER: &str = "lib/x86_64/";

/// The record at the end, without its comment, and the longest comment.
const END: usize = 22;
const COMMENT: usize = 0xffff;
/// An entry's header in the directory at the end, and before its content; without name and extra fields.
const DIRECTORY_HEADER: usize = 46;
const LOCAL_HEADER: usize = 30;
/// The directory of an APK with 100,000 files.
const MAX_DIRECTORY: usize = 16 << 20;
/// More libraries than any app has.
const MAX_LIBRARIES: usize = 1024;
/// What the linker asks of a library's place; a page of most devices.
const ALIGNMENT: u64 = 4096;

const BROKEN: &str = "its zip structure is broken";
/// Why an entry can't be probed.
pub const COMPRESSED: &str =
    "it is compressed inside of the APK; only what is stored there as it is can be mapped and probed";
const UNALIGNED: &str = "it does not begin at a page's start inside of the APK, and so can't be mapped";

/// A library in an APK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its path in the APK.
    pub name: String,
    /// Where its bytes are, or why they can't be mapped.
    pub part: Result<Part, &'static str>,
}

/// Whether the file begins as an APK, or any zip file, does.
pub fn is(bytes: &impl Bytes) -> bool {
    let mut start = [0; 4];
    bytes.read(0, &mut start) && start == *b"PK\x03\x04"
}

/// The APK and the entry that `path` names, if it names one: `base.apk!/lib/arm64-v8a/libx.so`.
pub fn split(path: &Path) -> Option<(PathBuf, &str)> {
    let (apk, entry) = path.to_str()?.split_once(SEPARATOR)?;
    Some((apk.into(), entry))
}

/// The path of an entry.
pub fn join(apk: &Path, entry: &str) -> PathBuf {
    let mut path = apk.as_os_str().to_owned();
    path.push(SEPARATOR);
    path.push(entry);
    path.into()
}

/// The libraries for this CPU.
pub fn libraries(bytes: InFile<'_>) -> Result<Vec<Library>, &'static str> {
    let directory = directory(bytes).ok_or(BROKEN)?;
    let mut libraries = Vec::new();
    let mut rest = &directory[..];
    while let Some(header) = rest.get(..DIRECTORY_HEADER).filter(|header| header.starts_with(b"PK\x01\x02")) {
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(half(header, at)));
        let path = rest.get(DIRECTORY_HEADER..DIRECTORY_HEADER + name).ok_or(BROKEN)?;
        if let Ok(path) = str::from_utf8(path)
            && path.starts_with(FOLDER)
            && path.ends_with(".so")
            && libraries.len() < MAX_LIBRARIES
        {
            let part = part(bytes, header);
            // Several entries may name the same bytes, each of which would be looked through.
            if part.is_err() || libraries.iter().all(|library: &Library| library.part != part) {
                libraries.push(Library { name: path.to_owned(), part });
            }
        }
        rest = rest.get(DIRECTORY_HEADER + name + extra + comment..).ok_or(BROKEN)?;
    }
    Ok(libraries)
}

/// The headers of all entries.
fn directory(bytes: InFile<'_>) -> Option<Vec<u8>> {
    let length = usize::try_from(bytes.length).ok()?.min(END + COMMENT);
    let mut tail = vec![0; length];
    let tail_at = bytes.length - length as u64;
    bytes.read(tail_at, &mut tail).then_some(())?;
    // A comment may hold anything, so what says that it goes on to the file's end is the record.
    let starts = (0..=length.checked_sub(END)?).rev();
    let end = starts.filter_map(|start| tail.get(start..)).find(|record| {
        record.starts_with(b"PK\x05\x06") && usize::from(half(record, 20)) == record.len() - END
    })?;
    let [size, offset] = [12, 16].map(|at| word(end, at));
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_DIRECTORY)?;
    let mut directory = vec![0; size];
    bytes.read(offset.into(), &mut directory).then_some(directory)
}

/// Where the content of the entry with this header is.
fn part(bytes: InFile<'_>, header: &[u8]) -> Result<Part, &'static str> {
    const ENCRYPTED: u16 = 1;
    let [flags, method] = [8, 10].map(|at| half(header, at));
    let [packed, length, place] = [20, 24, 42].map(|at| word(header, at));
    if method != 0 || flags & ENCRYPTED != 0 || packed != length {
        return Err(COMPRESSED);
    }
    let mut local = [0; LOCAL_HEADER];
    if !bytes.read(place.into(), &mut local) || !local.starts_with(b"PK\x03\x04") {
        return Err(BROKEN);
    }
    let [name, extra] = [26, 28].map(|at| u64::from(half(&local, at)));
    let offset = u64::from(place) + LOCAL_HEADER as u64 + name + extra;
    let length = u64::from(length);
    if offset + length > bytes.length {
        return Err(BROKEN);
    }
    if offset.is_multiple_of(ALIGNMENT) { Ok(Part { offset, length }) } else { Err(UNALIGNED) }
}

/// The number at `at`, or 0 where there is none.
fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
pub mod tests {
    use std::{fs::File, io::Write};

    use proptest::prelude::*;

    use super::{super::find::Budget, *};

    /// The folder's name.
    pub const ABI: &str = if cfg!(target_arch = "aarch64") { "arm64-v8a" } else { "x86_64" };

    /// An APK of entries: path in the libraries' folder, content, whether it is said to be compressed, and how its content is
    /// aligned.
    pub fn apk(entries: &[(&str, &[u8], bool, usize)]) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        for (name, content, is_compressed, alignment) in entries {
            let name = format!("{FOLDER}{name}");
            let place = file.len();
            let unpadded = place + LOCAL_HEADER + name.len();
            let padding = unpadded.next_multiple_of(*alignment) - unpadded;
            let mut common = [0; 26];
            common[4] = if *is_compressed { 8 } else { 0 };
            common[14..18].copy_from_slice(&(content.len() as u32).to_le_bytes());
            common[18..22].copy_from_slice(&(content.len() as u32).to_le_bytes());
            common[22..24].copy_from_slice(&(name.len() as u16).to_le_bytes());
            let mut local = common;
            local[24..26].copy_from_slice(&(padding as u16).to_le_bytes());
            file.extend(b"PK\x03\x04");
            file.extend(local);
            file.extend(name.bytes().chain(vec![0; padding]).chain(content.iter().copied()));
            directory.extend(b"PK\x01\x02\0\0");
            directory.extend(common);
            directory.extend([0; 10]);
            directory.extend((place as u32).to_le_bytes());
            directory.extend(name.bytes());
        }
        let place = file.len();
        file.extend(&directory);
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend([entries.len() as u16; 2].iter().flat_map(|half| half.to_le_bytes()));
        file.extend([directory.len() as u32, place as u32].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([5, 0]);
        file.extend(b"PK\x05\x06!");
        file
    }

    fn libraries_of(content: &[u8]) -> Result<Vec<Library>, &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        libraries(InFile { file: &file, offset: 0, length: content.len() as u64, budget: &Budget::default() })
    }

    #[test]
    fn stored_libraries_are_where_they_are_and_others_say_why_not() {
        let apk = apk(&[
            ("liba.so", b"first", false, 4096),
            ("libb.so", b"second", true, 1),
            ("libc.so", b"third", false, 4096),
            ("libd.so", b"fourth", false, 1),
            ("readme.txt", b"fifth", false, 1),
        ]);
        let found = libraries_of(&apk).unwrap();
        let names: Vec<_> = found.iter().map(|library| library.name.strip_prefix(FOLDER).unwrap()).collect();
        assert_eq!(names, ["liba.so", "libb.so", "libc.so", "libd.so"]);
        for (library, content) in [(&found[0], &b"first"[..]), (&found[2], b"third")] {
            let Part { offset, length } = library.part.unwrap();
            assert_eq!(&apk[offset as usize..][..length as usize], content);
        }
        assert_eq!((found[1].part, found[3].part), (Err(COMPRESSED), Err(UNALIGNED)));
    }

    #[test]
    fn bytes_that_two_entries_name_are_one_library() {
        let mut apk = apk(&[("liba.so", b"first", false, 4096), ("libb.so", b"other", false, 4096)]);
        let entry = |name: &[u8]| apk.windows(name.len()).rposition(|it| it == name).unwrap() - FOLDER.len();
        let [first, second] = [&b"liba.so"[..], b"libb.so"].map(entry);
        // Where its content is stands in the last 4 bytes before its name.
        apk.copy_within(first - 4..first, second - 4);
        let found = libraries_of(&apk).unwrap();
        assert!(found.len() == 1 && found[0].name.ends_with("liba.so"), "{found:?}");
    }

    #[test]
    fn what_zip_makes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join(FOLDER)).unwrap();
        std::fs::write(folder.path().join(FOLDER).join("libx.so"), vec![b'x'; 100_000]).unwrap();
        let made = std::process::Command::new("python3")
            .args(["-m", "zipfile", "-c", "a.apk", "lib"])
            .current_dir(folder.path())
            .status();
        assert!(made.expect("python3 is missing: bash ci/setup.sh test").success());
        let file = File::open(folder.path().join("a.apk")).unwrap();
        let length = file.metadata().unwrap().len();
        let found = libraries(InFile { file: &file, offset: 0, length, budget: &Budget::default() }).unwrap();
        assert_eq!(found, [Library { name: format!("{FOLDER}libx.so"), part: Err(COMPRESSED) }]);
    }

    #[test]
    fn a_path_names_an_apk_and_an_entry() {
        assert_eq!(split(Path::new("/a/b.apk!/lib/x.so")), Some(("/a/b.apk".into(), "lib/x.so")));
        assert_eq!(split(Path::new("/a/b!.apk")), None);
        assert_eq!(join(Path::new("/a/b.apk"), "lib/x.so"), Path::new("/a/b.apk!/lib/x.so"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(bytes: Vec<u8>) {
            let _ = libraries_of(&bytes);
        }

        #[test]
        fn a_broken_file_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            length: prop::sample::Index,
        ) {
            let whole = apk(&[("liba.so", b"first", false, 64), ("libb.so", b"second", true, 1)]);
            let mut file = whole.clone();
            for (place, byte) in changes {
                *place.get_mut(&mut file) = byte;
            }
            let _ = libraries_of(&file);
            let _ = libraries_of(&whole[..length.index(whole.len())]);
        }
    }
}
