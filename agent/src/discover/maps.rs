//! What processes have mapped to run: the lines of /proc/PID/maps.
//!
//! A process chooses the paths in its lines, and how many there are: a line is read up to [`MAX_LINE`] bytes, a process's
//! lines up to [`MAX_LINES`].

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The longest line that is read: 100 bytes of fields, and a path of `PATH_MAX` whose bytes may all be escaped.
const MAX_LINE: u64 = 100 + 4 * 4096;
/// The kernel's usual bound on a process's mappings, several times over. Source: linux, sysctl vm.max_map_count.
const MAX_LINES: usize = 1 << 20;
/// What stands behind the path of a file that is gone. Source: proc_pid_maps(5).
const DELETED: &[u8] = b" (deleted)";

/// Part of a file that a process has mapped to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// The file's device, major and minor number, as the kernel's memory management sees it: not always what stat says.
    pub device: (u32, u32),
    /// The file's number on that device.
    pub inode: u64,
    /// The file's path in the process's own mount namespace.
    pub path: PathBuf,
    /// Whether the file had that path once, and no more.
    pub deleted: bool,
}

/// Reads one line; none for memory that is not run or has no file.
pub fn parse(line: &[u8]) -> Option<Mapping> {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    let mut word = || {
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (word, tail) = rest.split_at(end);
        rest = &tail[1..];
        str::from_utf8(word).ok()
    };
    let (start, end) = word()?.split_once('-')?;
    if word()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = word()?;
    let (major, minor) = word()?.split_once(':')?;
    let inode: u64 = word()?.parse().ok()?;
    let path = &rest[rest.iter().position(|byte| *byte != b' ')?..];
    if inode == 0 || !path.starts_with(b"/") {
        return None;
    }
    let (path, deleted) = path.strip_suffix(DELETED).map_or((path, false), |path| (path, true));
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    (start < end).then_some(Mapping {
        start,
        end,
        offset: hex(offset)?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        path: OsStr::from_bytes(path).into(),
        deleted,
    })
}

/// Hands each mapping of process `pid` to `found`; `proc` is normally `/proc`.
pub fn each(proc: &Path, pid: u32, found: impl FnMut(Mapping)) -> io::Result<()> {
    let file = File::open(proc.join(format!("{pid}/maps")))?;
    each_line(BufReader::with_capacity(16 << 10, file), found)
}

fn each_line(mut lines: impl BufRead, mut found: impl FnMut(Mapping)) -> io::Result<()> {
    let mut line = Vec::new();
    let mut whole = true;
    for _ in 0..MAX_LINES {
        line.clear();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let begins = std::mem::replace(&mut whole, line.ends_with(b"\n"));
        // The rest of a line that was too long is no line.
        if begins && let Some(mapping) = parse(&line) {
            found(mapping);
        }
    }
    Ok(())
}

/// The ids of the processes that there are.
pub fn processes(proc: &Path) -> io::Result<impl Iterator<Item = u32> + use<>> {
    Ok(fs::read_dir(proc)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Cursor,
        os::unix::fs::{FileExt, MetadataExt},
    };

    use proptest::prelude::*;

    use super::*;

    const LINE: &[u8] =
        b"7f01000-7f02000 r-xp 0001a000 fe:00 4711                       /usr/lib/libssl.so.3\n";

    #[test]
    fn a_line_says_what_is_mapped_and_where() {
        let mapping = parse(LINE).unwrap();
        let expected = Mapping {
            start: 0x7f01000,
            end: 0x7f02000,
            offset: 0x1a000,
            device: (0xfe, 0),
            inode: 4711,
            path: "/usr/lib/libssl.so.3".into(),
            deleted: false,
        };
        assert_eq!(mapping, expected);
    }

    #[test]
    fn a_path_may_hold_spaces_and_be_gone() {
        let mapping = parse(b"1-2 r-xp 0 0:1 5   /a b  c.so (deleted)").unwrap();
        assert_eq!((mapping.path, mapping.deleted), ("/a b  c.so".into(), true));
    }

    #[test]
    fn what_is_not_run_or_has_no_file_is_left_out() {
        for line in [
            &b"1-2 r--p 0 0:1 5 /a"[..],
            b"1-2 rw-p 0 0:1 5 /a",
            b"1-2 r-xp 0 0:0 0 ",
            b"1-2 r-xp 0 0:0 0 [vdso]",
            b"1-2 r-xp 0 0:0 0 /anon_hugepage (deleted)",
            b"2-1 r-xp 0 0:1 5 /a",
            b"",
            b"\n",
        ] {
            assert_eq!(parse(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn the_mappings_of_a_process_are_those_of_its_files() {
        let executable = std::env::current_exe().unwrap();
        let mut found = Vec::new();
        each(Path::new("/proc"), std::process::id(), |mapping| found.push(mapping)).unwrap();
        let mapping = found.iter().find(|mapping| mapping.path == executable).unwrap();
        assert_eq!(mapping.inode, executable.metadata().unwrap().ino());
        let mut magic = [0; 4];
        File::open(&executable).unwrap().read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert!(processes(Path::new("/proc")).unwrap().any(|pid| pid == std::process::id()));
        assert!(each(Path::new("/proc"), u32::MAX, |_| ()).is_err());
    }

    #[test]
    fn a_line_that_is_too_long_costs_itself_only() {
        let long = [&LINE[..LINE.len() - 1], &b"x".repeat(1 << 20), b"\n"].concat();
        // A piece of it may even look like a line.
        let mut lookalike = long.clone();
        lookalike[MAX_LINE as usize..][..LINE.len()].copy_from_slice(LINE);
        let text = [&long[..], LINE, &lookalike, LINE].concat();
        let mut found = 0;
        each_line(Cursor::new(text), |mapping| {
            assert!(mapping.path.as_os_str().len() < MAX_LINE as usize);
            found += usize::from(mapping.path == Path::new("/usr/lib/libssl.so.3"));
        })
        .unwrap();
        assert!(found >= 2, "{found}");
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line: Vec<u8>, place in 0..LINE.len(), byte: u8) {
            let _ = parse(&line);
            let mut nearly = LINE.to_vec();
            nearly[place] = byte;
            let _ = parse(&nearly);
            nearly.truncate(place);
            let _ = parse(&nearly);
        }

        #[test]
        fn any_text_has_an_end(text: Vec<u8>) {
            each_line(Cursor::new(text), |_| ()).unwrap();
        }
    }
}
