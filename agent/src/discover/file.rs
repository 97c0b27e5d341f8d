//! Files as the scan meets them: which one it is, and what to call it.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs},
};

use super::find::Budget;

/// Stands for the device of a file beneath an overlay, which nobody tells.
const OVERLAID: u64 = 0;

/// Tells a file from another, and from itself before it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    /// In bytes.
    pub size: u64,
}

impl Stamp {
    /// Of the file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }

    /// The number of its inode.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether it is the same inode, with the same content or not.
    pub fn same_inode(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether both are of one file, where either may be of what an overlay shows of it.
    pub fn is_beneath(&self, other: &Self) -> bool {
        let same = |stamp: &Self| (stamp.inode, stamp.modified, stamp.size);
        let overlaid = self.device == OVERLAID || other.device == OVERLAID;
        same(self) == same(other) && (overlaid || self.device == other.device)
    }

    /// Of the file beneath an overlay: every container's overlay is a device of its own, over the same files. A probe
    /// belongs to the file beneath, so two on it would see everything twice.
    fn beneath(self, file: &File) -> Self {
        match fstatfs(file) {
            Ok(system) if system.filesystem_type() == OVERLAYFS_SUPER_MAGIC => {
                Self { device: OVERLAID, ..self }
            }
            _ => self,
        }
    }
}

/// An open regular file.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Which one it is.
    pub stamp: Stamp,
    /// Which one it is beneath an overlay.
    pub beneath: Stamp,
    /// What may be read of it, of all its parts together.
    pub budget: Budget,
}

impl Opened {
    /// A regular file that is open already.
    pub fn of(file: File) -> io::Result<Self> {
        let stamp = Stamp::of(&regular(file.metadata()?)?);
        Ok(Self { beneath: stamp.beneath(&file), file, stamp, budget: Budget::default() })
    }
}

/// Opens a regular file and nothing else: merely opening a device may do something.
pub fn open(path: &Path) -> io::Result<Opened> {
    stamp(path)?;
    // Somebody may put a FIFO in its place just now: not to wait for it.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    Opened::of(file)
}

/// Whether it failed for want of something that may be there later.
pub fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

/// Which regular file is at `path`.
pub fn stamp(path: &Path) -> io::Result<Stamp> {
    Ok(Stamp::of(&regular(fs::metadata(path)?)?))
}

fn regular(metadata: Metadata) -> io::Result<Metadata> {
    if metadata.is_file() { Ok(metadata) } else { Err(io::Error::other(NOT_REGULAR)) }
}

/// What [`open`] says of anything else.
pub const NOT_REGULAR: &str = "it is not a regular file";

/// The path that leads to what process `pid` has mapped at these addresses, in whatever mount namespace, deleted or not.
/// Source: linux, Documentation/filesystems/proc.rst, map_files.
pub fn mapped(proc: &Path, pid: u32, start: u64, end: u64) -> PathBuf {
    proc.join(format!("{pid}/map_files/{start:x}-{end:x}"))
}

/// The path of the mapped file in its process's own mount namespace, and whether it has it no more.
pub fn name(link: &Path) -> io::Result<(PathBuf, bool)> {
    let path = fs::read_link(link)?;
    let gone = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(gone.map_or((path, false), |path| (path, true)))
}

/// Whether `text` fits `pattern`, in which `*` stands for any bytes and `?` for any one.
pub fn fits(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on if the last star must take one byte more.
    let (mut at, mut from, mut retry) = (0, 0, None);
    while at < text.len() {
        match pattern.get(from) {
            Some(b'*') => {
                from += 1;
                retry = Some((from, at));
            }
            Some(byte) if *byte == b'?' || *byte == text[at] => (at, from) = (at + 1, from + 1),
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    (from, at) = (star, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[from..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_was_written_to_is_the_same_inode_with_another_stamp() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let before = stamp(file.path()).unwrap();
        assert_eq!(stamp(file.path()).unwrap(), before);
        file.write_all(b"more").unwrap();
        let after = open(file.path()).unwrap().stamp;
        assert!(after != before && after.same_inode(&before));
        let copy = tempfile::NamedTempFile::new().unwrap();
        assert!(!stamp(copy.path()).unwrap().same_inode(&before));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [folder.path(), Path::new("/dev/null"), &fifo] {
            assert_eq!(open(path).unwrap_err().to_string(), NOT_REGULAR);
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_pattern_fits_a_whole_path() {
        for (pattern, text) in [
            ("/a/b", "/a/b"),
            ("/a/*", "/a/b/c"),
            ("*/libssl.so*", "/usr/lib/libssl.so.3"),
            ("*a?c*", "xxabxabc"),
            ("**", ""),
            ("*", "/x"),
        ] {
            assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in
            [("/a", "/a/b"), ("/a/?", "/a/"), ("*.so", "/x.so.3"), ("", "/"), ("*ab", "aab?")]
        {
            assert!(!fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_path_fits_itself_and_its_beginning_with_a_star(path in "[a-c*?]{0,20}", more in "[a-c]{0,20}") {
            proptest::prop_assert!(fits(path.as_bytes(), path.as_bytes()));
            let (star, longer) = (format!("{path}*"), format!("{path}{more}"));
            proptest::prop_assert!(fits(star.as_bytes(), longer.as_bytes()));
        }

        #[test]
        fn no_pattern_takes_for_ever(pattern in "[ab*]{0,64}", text in "a{0,512}") {
            let _ = fits(pattern.as_bytes(), text.as_bytes());
        }
    }
}
