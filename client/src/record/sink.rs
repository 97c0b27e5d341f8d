//! One file of a recording, or a stream as stdout or a pipe. It owns what was not yet handed to the system.
//!
//! It takes whole pieces and remembers where each ends. When the system takes only a part of them, as on a full disk, a
//! regular file is cut back to the last piece that is whole, and what ends the file stands behind it. A stream can't be
//! cut, but the count of what it holds is right, too.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Bytes that may wait.
const ROOM: usize = 64 << 10;

/// Where pieces go.
pub struct Sink {
    file: File,
    path: PathBuf,
    kind: Kind,
    /// What a regular file ends with at any time, and a stream at its end.
    trailer: &'static [u8],
    waiting: Vec<u8>,
    /// Where each waiting piece ends, and how many things it holds.
    ends: Vec<(usize, u64)>,
    /// Bytes of what the file begins with.
    head: u64,
    /// Bytes in the file, without the trailer.
    whole: u64,
    /// Things in the file.
    count: u64,
    broken: Option<io::ErrorKind>,
}

enum Kind {
    /// Stdout, a pipe or a device, which is not ours.
    Stream,
    /// A regular file that we made.
    Made,
    /// A regular file that we made, under this name until it has something to replace the one that is there with.
    Beside(PathBuf),
    /// One that we made and removed.
    Removed,
}

impl Sink {
    /// Stdout.
    pub fn stdout(trailer: &'static [u8]) -> io::Result<Self> {
        // Not what `io::stdout` is, which has a buffer of its own: what is in there is not in the file.
        #[cfg(unix)]
        let file = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
        #[cfg(windows)]
        let file = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned()?;
        Ok(Self::new(file.into(), Path::new("stdout"), Kind::Stream, trailer))
    }

    /// A file that did not exist, and which only its owner may read; or a pipe or device that does exist. With `force` a
    /// file that does exist is replaced as soon as a piece is to be in it.
    pub fn create(path: &Path, force: bool, trailer: &'static [u8]) -> io::Result<Self> {
        let found = fs::metadata(path);
        if found.as_ref().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Self::new(file, path, Kind::Stream, trailer));
        }
        if force && fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
            let beside = path.with_file_name(format!(".plaintap-{:016x}.part", fastrand::u64(..)));
            return Ok(Self::new(create_new(&beside)?, path, Kind::Beside(beside), trailer));
        }
        match create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let why = format!("{} is there already: choose another name, or say --force", path.display());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
            }
            created => Ok(Self::new(created?, path, Kind::Made, trailer)),
        }
    }

    fn new(file: File, path: &Path, kind: Kind, trailer: &'static [u8]) -> Self {
        let (path, waiting, ends) = (path.to_owned(), vec![], vec![]);
        Self { file, path, kind, trailer, waiting, ends, head: 0, whole: 0, count: 0, broken: None }
    }

    /// The name that it has or is to have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that it has.
    pub fn lies_at(&self) -> &Path {
        if let Kind::Beside(beside) = &self.kind { beside } else { &self.path }
    }

    /// Bytes of all that was added.
    pub fn size(&self) -> u64 {
        self.whole + self.waiting.len() as u64
    }

    /// How many things the file holds, as far as was handed to the system.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Nothing was added that is still there.
    pub fn is_empty(&self) -> bool {
        self.size() == self.head
    }

    /// It is a file that we made, and no stream.
    pub fn is_ours(&self) -> bool {
        !matches!(self.kind, Kind::Stream)
    }

    /// It was ours and is there no more.
    pub fn is_removed(&self) -> bool {
        matches!(self.kind, Kind::Removed)
    }

    /// Writes what the file begins with.
    pub fn begin(&mut self, head: &[u8]) -> io::Result<()> {
        self.waiting.extend(head);
        self.ends.push((head.len(), 0));
        self.put()?;
        self.head = head.len() as u64;
        Ok(())
    }

    /// Adds a piece that holds `count` things.
    pub fn add(&mut self, piece: &[u8], count: u64) -> io::Result<()> {
        self.usable()?;
        if piece.is_empty() {
            // What it holds is there already, as when it was sent again.
            *self.ends.last_mut().map_or(&mut self.count, |(_, before)| before) += count;
            return Ok(());
        }
        self.waiting.extend(piece);
        self.ends.push((self.waiting.len(), count));
        // Without its trailer a file is not whole, so nothing may be lost by a crash.
        let at_once = self.is_ours() && !self.trailer.is_empty();
        if at_once || self.waiting.len() >= ROOM { self.flush() } else { Ok(()) }
    }

    /// Hands what waits to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.usable()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let put = self.put();
        let named = if self.is_empty() { Ok(()) } else { self.take_its_name() };
        put.and(named)
    }

    /// Makes it whole and gives it its name, whatever it holds.
    pub fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        if !self.is_ours() {
            self.file.write_all(self.trailer)?;
        }
        self.take_its_name()
    }

    /// Removes the file if we made it; one that it was to replace stays.
    pub fn remove(&mut self) -> io::Result<()> {
        let made = match &self.kind {
            Kind::Stream | Kind::Removed => return Ok(()),
            Kind::Made | Kind::Beside(_) => self.lies_at(),
        };
        match fs::remove_file(made) {
            // The person was quicker.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.kind = Kind::Removed,
        }
        Ok(())
    }

    fn usable(&self) -> io::Result<()> {
        self.broken.map_or(Ok(()), |why| Err(why.into()))
    }

    fn take_its_name(&mut self) -> io::Result<()> {
        if let Kind::Beside(beside) = &self.kind {
            fs::rename(beside, &self.path)?;
            self.kind = Kind::Made;
        }
        Ok(())
    }

    /// Writes what waits behind what is whole. If it can't, what fits stays.
    fn put(&mut self) -> io::Result<()> {
        let behind = if self.is_ours() { self.trailer } else { b"" };
        self.waiting.extend(behind);
        let mut put = 0;
        let mut done = self.seek(self.whole);
        while done.is_ok() && put < self.waiting.len() {
            match self.file.write(&self.waiting[put..]) {
                Ok(0) => done = Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => put += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => done = Err(error),
            }
        }
        let fit = self.ends.iter().take_while(|(end, _)| end + behind.len() <= put);
        let (end, count) = fit.fold((0, 0), |(_, sum), (end, count)| (*end, sum + count));
        self.whole += end as u64;
        self.count += count;
        self.waiting.clear();
        self.waiting.shrink_to(ROOM);
        self.ends.clear();
        done.map_err(|error| {
            self.broken = Some(error.kind());
            match self.cut() {
                Ok(()) => error,
                Err(cut) => io::Error::new(
                    error.kind(),
                    format!("{error}; nor can it be cut to what is whole: {cut}"),
                ),
            }
        })
    }

    /// Has a regular file end behind what is whole. The trailer goes first, since it lies where something was written
    /// already: once cut, that room might be somebody else's.
    fn cut(&mut self) -> io::Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        self.seek(self.whole)?;
        self.file.write_all(self.trailer)?;
        self.file.set_len(self.whole + self.trailer.len() as u64)
    }

    fn seek(&mut self, to: u64) -> io::Result<()> {
        if self.is_ours() { self.file.seek(SeekFrom::Start(to)).map(drop) } else { Ok(()) }
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}
