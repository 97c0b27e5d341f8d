//! Where on this system the TLS code is: files, and the file offsets of the functions to probe.
//!
//! A uprobe belongs to an inode, so one target covers every process that maps the file, now or later. `finder` knows the
//! targets: from the usual `places`, from what processes have mapped (`maps`), and from the kernel's word on what they map
//! from now on (`events`), which `watch` waits for. `survey` looks at it all once, for a person. `find` looks for the functions inside a file.

mod abi;
mod apk;
mod debugdata;
mod elf;
pub mod events;
mod file;
pub mod find;
pub mod finder;
mod infer;
pub mod maps;
pub mod offsets;
mod other;
mod places;
pub mod survey;
pub mod watch;

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use elf::InFile;
use file::Opened;
use find::{Found, How, Part, Why};
use offsets::Offsets;

/// Which files to look into, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files whose whole path fits one of these patterns are left alone.
    pub exclude: Vec<String>,
    /// Functions are taken from a file's symbols or from `offsets`, and from nothing else.
    pub no_inferred: bool,
    /// What a person knows of files without symbols.
    pub offsets: Offsets,
}

/// A function that the probes know how to watch. Sources: BoringSSL's and OpenSSL's include/openssl/ssl.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// `int SSL_read(SSL *ssl, void *buf, int num)`
    Read,
    /// `int SSL_write(SSL *ssl, const void *buf, int num)`
    Write,
    /// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`; OpenSSL's, as all that ends in ex.
    ReadEx,
    /// `int SSL_write_ex(SSL *s, const void *buf, size_t num, size_t *written)`
    WriteEx,
    /// `int SSL_do_handshake(SSL *ssl)`
    DoHandshake,
    /// `void SSL_free(SSL *ssl)`
    Free,
    /// `int SSL_clear(SSL *ssl)`
    Clear,
    /// `int SSL_set_tlsext_host_name(SSL *ssl, const char *name)`; BoringSSL's.
    SetHostName,
    /// `long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg)`; OpenSSL's, for the host name.
    Ctrl,
    /// `void SSL_reset_early_data_reject(SSL *ssl)`; BoringSSL's.
    ResetEarlyDataReject,
    /// `int SSL_get_early_data_status(const SSL *s)`; OpenSSL's.
    GetEarlyDataStatus,
    /// `int BIO_write(BIO *bio, const void *data, int len)`, which SSL objects write encrypted bytes with. In libcrypto.
    BioWrite,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Read,
        Self::Write,
        Self::ReadEx,
        Self::WriteEx,
        Self::DoHandshake,
        Self::Free,
        Self::Clear,
        Self::SetHostName,
        Self::Ctrl,
        Self::ResetEarlyDataReject,
        Self::GetEarlyDataStatus,
        Self::BioWrite,
    ];

    /// Its symbol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "SSL_read",
            Self::Write => "SSL_write",
            Self::ReadEx => "SSL_read_ex",
            Self::WriteEx => "SSL_write_ex",
            Self::DoHandshake => "SSL_do_handshake",
            Self::Free => "SSL_free",
            Self::Clear => "SSL_clear",
            Self::SetHostName => "SSL_set_tlsext_host_name",
            Self::Ctrl => "SSL_ctrl",
            Self::ResetEarlyDataReject => "SSL_reset_early_data_reject",
            Self::GetEarlyDataStatus => "SSL_get_early_data_status",
            Self::BioWrite => "BIO_write",
        }
    }

    /// Whether plaintext goes through it; the others only tell about it.
    pub fn carries(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::ReadEx | Self::WriteEx)
    }
}

/// A file to put probes on: a TLS library, or a libcrypto beside one.
#[derive(Debug)]
pub struct Target {
    /// Tells it from every other target of this run.
    pub id: u64,
    /// What to call it: where it was found, in the mount namespace of who maps it.
    pub path: PathBuf,
    /// The file itself, which may have no path here.
    pub file: File,
    /// What to probe.
    pub found: Found,
}

impl Target {
    /// Whether its SSL objects may well be over memory, with what they write with in the same file: browsers' and gRPC's are,
    /// whose copies have no symbols.
    pub fn may_have_engines(&self) -> bool {
        self.found.how == How::Inferred
    }

    /// Whether its SSL objects are over memory as a rule: Conscrypt's are, since Android 10.
    pub fn has_engines(&self) -> bool {
        self.path.iter().any(|part| part.as_encoded_bytes().starts_with(b"com.android.conscrypt"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "library={} functions=", self.path.display())?;
        let tells = |function: Function| function.carries() || !self.found.carries();
        let carrying = self.found.functions.iter().filter(|(function, _)| tells(*function));
        for (index, (function, _)) in carrying.enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "," }, function.name())?;
        }
        write!(f, " found={}", self.found.how)
    }
}

/// Why a file can't be probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be opened or read.
    #[error("can't read the library {path}; check the path and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no ELF file of this device's kind.
    #[error(
        "{path} is no library for this device: {why}; name a 64-bit ELF file for {}",
        std::env::consts::ARCH
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// It is sound, and has nothing to probe.
    #[error(
        "{path} has symbols for neither SSL_read nor SSL_write; name the file that contains BoringSSL or OpenSSL"
    )]
    NoFunctions {
        /// The file.
        path: PathBuf,
    },
    /// It has BoringSSL or OpenSSL in it, and nothing that names their functions.
    #[error(
        "{path} has BoringSSL or OpenSSL in it and no symbols, and {why}; name its functions with --offsets"
    )]
    Unnamed {
        /// The file.
        path: PathBuf,
        /// Why its code was of no help.
        why: &'static str,
    },
    /// Nobody knows what it has.
    #[error("{path} was not looked through: {why}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How large it is, and what to do.
        why: &'static str,
    },
    /// Its TLS is of another make.
    #[error(
        "{path} has {what}, whose plaintext goes through neither BoringSSL nor OpenSSL: it can't be captured"
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: &'static str,
    },
    /// Nothing usable stands in the usual places.
    #[error("no TLS library found in the usual places; name one with --library PATH")]
    Nothing,
}

/// The targets in the files that a person named; an error names the first file that is not usable.
pub fn named(paths: &[PathBuf], options: &Options) -> Result<Vec<Target>, Error> {
    let (mut targets, mut seen, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for named in paths {
        let (path, entry) = entry(named).map_or((named.clone(), None), |(apk, entry)| (apk, Some(entry)));
        let opened = open(&path)?;
        let mut parts = parts(&path, &opened)?;
        if let Some(entry) = entry {
            parts.retain(|(name, _)| *name == apk::join(&path, entry));
            if parts.is_empty() {
                let why = "there is no such library for this CPU in the APK".into();
                return Err(Error::Foreign { path: named.clone(), why });
            }
        }
        let mut found_any = false;
        for (path, part) in parts {
            let found = examine(&path, &opened, part, options);
            // In an APK that is named as a whole, what has no TLS code or can't be probed is passed by.
            let found = if entry.is_none() && *named != path { found.ok() } else { Some(found?) };
            let Some(found) = found.filter(Found::carries) else { continue };
            found_any = true;
            let place = (opened.beneath, part.ok().map(|part| part.offset));
            if !seen.contains(&place) {
                seen.push(place);
                beside.extend(libcrypto(&path, &opened));
                let file = again(&path, &opened)?;
                targets.push(Target { id: targets.len() as u64, path, file, found });
            }
        }
        if !found_any {
            return Err(Error::NoFunctions { path: named.clone() });
        }
    }
    // What only SSL objects over memory need; if it is not where it should be, they do without.
    for path in beside {
        let Ok(opened) = open(&path) else { continue };
        let place = (opened.beneath, Some(0));
        if !seen.contains(&place)
            && let Ok(found) = examine(&path, &opened, Ok(whole(&opened)), options)
        {
            seen.push(place);
            targets.push(Target { id: targets.len() as u64, path, file: opened.file, found });
        }
    }
    Ok(targets)
}

/// The APK and its entry that a path names, if it names one.
fn entry(path: &Path) -> Option<(PathBuf, &str)> {
    // A folder's name may end in that too.
    apk::split(path).filter(|(apk, _)| apk.is_file())
}

/// The same open file once more: each target has one of its own.
fn again(path: &Path, opened: &Opened) -> Result<File, Error> {
    opened.file.try_clone().map_err(|source| Error::Read { path: path.into(), source })
}

/// The libcrypto that the library at `path` asks for, in the same folder, as it is on Android and Linux.
fn libcrypto(path: &Path, opened: &Opened) -> Option<PathBuf> {
    Some(path.canonicalize().ok()?.with_file_name(elf::libcrypto(&bytes(opened, whole(opened)))?))
}

fn open(path: &Path) -> Result<Opened, Error> {
    file::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::Other => Error::Foreign { path: path.into(), why: source.to_string() },
        _ => Error::Read { path: path.into(), source },
    })
}

/// The bytes of a part of a file.
fn bytes(opened: &Opened, Part { offset, length }: Part) -> InFile<'_> {
    InFile { file: &opened.file, offset, length, budget: &opened.budget }
}

/// All of a file.
fn whole(opened: &Opened) -> Part {
    Part { offset: 0, length: opened.stamp.size }
}

/// A part of a file, or why it can't be mapped, and what to call it.
type NamedPart = (PathBuf, Result<Part, &'static str>);

/// Where in a file there may be TLS code, with what to call it: all of it, or the libraries in an APK, some of which can't be
/// mapped.
fn parts(path: &Path, opened: &Opened) -> Result<Vec<NamedPart>, Error> {
    let bytes = bytes(opened, whole(opened));
    if !apk::is(&bytes) {
        return Ok(vec![(path.into(), Ok(whole(opened)))]);
    }
    let libraries =
        apk::libraries(bytes).map_err(|why| Error::Foreign { path: path.into(), why: why.into() })?;
    Ok(libraries.into_iter().map(|library| (apk::join(path, &library.name), library.part)).collect())
}

/// What there is to probe in a part of a file, which is called `path`.
fn examine(
    path: &Path,
    opened: &Opened,
    part: Result<Part, &'static str>,
    options: &Options,
) -> Result<Found, Error> {
    let foreign = |why: &str| Error::Foreign { path: path.into(), why: why.into() };
    let part = part.map_err(foreign)?;
    if let Some(why) = abi::unprobed(&opened.file, part) {
        return Err(foreign(why));
    }
    find::find(&opened.file, part, &opened.budget, options).map_err(|why| match why {
        Why::Foreign(why) => foreign(why),
        Why::NoFunctions => match other::by_name(path) {
            Some(what) => Error::Other { path: path.into(), what },
            None => Error::NoFunctions { path: path.into() },
        },
        Why::Other(what) => Error::Other { path: path.into(), what },
        Why::Unnamed(why) => Error::Unnamed { path: path.into(), why },
        Why::TooLarge(why) => Error::TooLarge { path: path.into(), why },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file for this machine that exports functions of these names, one byte each, and nothing else.
    pub(super) fn library(names: &[&str]) -> Vec<u8> {
        const TABLES: u64 = 64 + 56;
        let mut strings = vec![0];
        // The first symbol is none.
        let mut symbols = vec![0; 24];
        for (index, name) in names.iter().enumerate() {
            symbols.extend((strings.len() as u32).to_le_bytes());
            // A global function in section 1.
            symbols.extend([0x12, 0, 1, 0]);
            symbols.extend((index as u64).to_le_bytes());
            symbols.extend(1u64.to_le_bytes());
            strings.extend(name.bytes().chain([0]));
        }
        strings.resize(strings.len().next_multiple_of(8), 0);
        let (strings_at, symbols_at) = (TABLES, TABLES + strings.len() as u64);
        let sections_at = symbols_at + symbols.len() as u64;
        let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
        file.extend(machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(words(&[0, 64, sections_at]));
        file.extend(0u32.to_le_bytes());
        file.extend([64u16, 56, 1, 64, 3, 1].iter().flat_map(|half| half.to_le_bytes()));
        // One segment that is read and run: the whole file.
        file.extend(words(&[1 | 5 << 32, 0, 0, 0, 1 << 20, 1 << 20, 4096]));
        file.extend(strings.iter().chain(&symbols));
        file.extend([0; 64]);
        let section = |kind: u64, at: u64, size: usize, link: u64, info: u64, entry: u64| {
            words(&[kind << 32, 2, 0, at, size as u64, link | info << 32, 8, entry])
        };
        file.extend(section(3, strings_at, strings.len(), 0, 0, 0));
        file.extend(section(11, symbols_at, symbols.len(), 1, 1, 24));
        file
    }

    #[test]
    fn a_file_that_is_named_twice_is_one_target() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, &library(&["SSL_read", "other", "SSL_write"])).unwrap();
        let targets = named(&[file.path().into(), file.path().into()], &Options::default()).unwrap();
        let [target] = &targets[..] else { panic!("{targets:?}") };
        assert_eq!(target.found.functions, [(Function::Read, 0), (Function::Write, 2)]);
        let path = file.path().display();
        assert_eq!(target.to_string(), format!("library={path} functions=SSL_read,SSL_write found=symbols"));
    }
    #[test]
    fn a_library_in_an_apk_is_named_by_both_paths_or_by_the_apks() {
        let library = library(&["SSL_read"]);
        let apk = apk::tests::apk(&[
            ("liba.so", &library, false, 4096),
            ("libb.so", b"text", false, 4096),
            ("libc.so", &library, true, 1),
            ("libd.so", &library, false, 4096),
        ]);
        let mut file = tempfile::NamedTempFile::with_suffix(".apk").unwrap();
        io::Write::write_all(&mut file, &apk).unwrap();
        let names = |targets: Vec<Target>| -> Vec<String> {
            let name = |target: &Target| target.path.file_name().unwrap().to_string_lossy().into_owned();
            targets.iter().map(name).collect()
        };
        assert_eq!(names(named(&[file.path().into()], &Options::default()).unwrap()), ["liba.so", "libd.so"]);
        let folder = format!("{}!/lib/{}/", file.path().display(), apk::tests::ABI);
        assert_eq!(
            names(named(&[format!("{folder}libd.so").into()], &Options::default()).unwrap()),
            ["libd.so"]
        );
        for (entry, why) in [("libb.so", "ELF"), ("libc.so", "compressed"), ("libe.so", "no such library")] {
            let error =
                named(&[format!("{folder}{entry}").into()], &Options::default()).unwrap_err().to_string();
            assert!(error.contains(entry) && error.contains(why), "{error}");
        }
    }
}
