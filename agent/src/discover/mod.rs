//! Where on this system the TLS code is: files, and the file offsets of the functions to probe.
//!
//! A uprobe belongs to an inode, so one target covers every process that maps the file, now or later.

mod elf;
mod places;

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

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

/// A file to put probes on.
#[derive(Debug)]
pub struct Target {
    /// Where the file was found.
    pub path: PathBuf,
    /// What to probe, each at its offset in the file in bytes; at least one of them carries plaintext.
    pub functions: Vec<(Function, u64)>,
    /// The file and the offset in it of its `BIO_write`, which only SSL objects over memory need.
    pub bio_write: Option<(PathBuf, u64)>,
}

impl Target {
    /// Whether its SSL objects are over memory as a rule: Conscrypt's are, since Android 10.
    pub fn has_engines(&self) -> bool {
        self.path.iter().any(|part| part.as_encoded_bytes().starts_with(b"com.android.conscrypt"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "library={} functions=", self.path.display())?;
        let carrying = self.functions.iter().filter(|(function, _)| function.carries());
        for (index, (function, _)) in carrying.enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "," }, function.name())?;
        }
        Ok(())
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
        why: &'static str,
    },
    /// It is sound, and has nothing to probe.
    #[error(
        "{path} exports neither SSL_read nor SSL_write; name the file that contains BoringSSL or OpenSSL"
    )]
    NoFunctions {
        /// The file.
        path: PathBuf,
    },
    /// Nothing usable stands in the usual places.
    #[error("no TLS library found in the usual places; name one with --library PATH")]
    Nothing,
}

/// The targets in the files that a person named; an error names the first file that is not usable.
pub fn named(paths: &[PathBuf]) -> Result<Vec<Target>, Error> {
    let mut seen = HashSet::new();
    paths.iter().map(|path| examine(path, &mut seen)).filter_map(Result::transpose).collect()
}

/// The targets in the system's usual places, and why other files there are none.
pub fn scan() -> Result<(Vec<Target>, Vec<Error>), Error> {
    let mut seen = HashSet::new();
    let mut targets = Vec::new();
    let mut unusable = Vec::new();
    for path in places::candidates(Path::new("/")) {
        match examine(&path, &mut seen) {
            Ok(target) => targets.extend(target),
            Err(error) => unusable.push(error),
        }
    }
    if targets.is_empty() { Err(Error::Nothing) } else { Ok((targets, unusable)) }
}

/// The target in one file; none if the same file was seen under another name.
fn examine(path: &Path, seen: &mut HashSet<(u64, u64)>) -> Result<Option<Target>, Error> {
    let unreadable = |source| Error::Read { path: path.into(), source };
    // Not to block on a FIFO that was put in a library's place.
    let file =
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::Foreign { path: path.into(), why: "it is not a regular file" });
    }
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return Ok(None);
    }
    let foreign = |why| Error::Foreign { path: path.into(), why };
    let mut functions = elf::functions(&file).map_err(foreign)?;
    if !functions.iter().any(|(function, _)| function.carries()) {
        return Err(Error::NoFunctions { path: path.into() });
    }
    let own = bio_write(&functions).map(|offset| (path.into(), offset));
    functions.retain(|(function, _)| *function != Function::BioWrite);
    Ok(Some(Target { path: path.into(), functions, bio_write: own.or_else(|| beside(path, &file)) }))
}

fn bio_write(functions: &[(Function, u64)]) -> Option<u64> {
    functions.iter().find(|(function, _)| *function == Function::BioWrite).map(|(_, offset)| *offset)
}

/// `BIO_write` in the libcrypto that `file` at `path` asks for, if it stands in the same folder, as it does on Android and
/// Linux.
fn beside(path: &Path, file: &File) -> Option<(PathBuf, u64)> {
    let libcrypto = path.canonicalize().ok()?.with_file_name(elf::libcrypto(file)?);
    let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&libcrypto).ok()?;
    let offset = bio_write(&elf::functions(&opened).ok()?)?;
    Some((libcrypto, offset))
}
