//! The files that a recording goes into: who may read them, when the next one begins, and which are kept.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, SeekFrom, Stdout, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::commands::RecordArgs;

/// Where a recording goes.
pub struct Output {
    sink: Sink,
    /// The file being written; the name that was given, if there is only one.
    path: PathBuf,
    files: Option<Files>,
    /// Bytes in this file.
    written: u64,
    began: Instant,
    /// Nothing was written after the trailer's last copy, which what follows replaces.
    trailer: usize,
}

enum Sink {
    Stdout(BufWriter<Stdout>),
    /// `seekable`: a regular file.
    File {
        file: BufWriter<File>,
        seekable: bool,
    },
}

/// More than one file, one after another.
struct Files {
    given: PathBuf,
    number: u64,
    size: Option<u64>,
    time: Option<Duration>,
    keep: Option<usize>,
    begun: VecDeque<PathBuf>,
    force: bool,
}

impl Output {
    /// Stdout, which is one stream.
    pub fn stdout() -> Self {
        let sink = Sink::Stdout(BufWriter::with_capacity(64 << 10, io::stdout()));
        Self::new(sink, PathBuf::from("stdout"), None)
    }

    /// One file, or with rotation the first of several.
    pub fn files(args: &RecordArgs) -> io::Result<Self> {
        let given = args.output.clone();
        if args.rotate_size.is_none() && args.rotate_time.is_none() {
            return Ok(Self::new(create(&given, args.force)?, given, None));
        }
        let mut files = Files {
            given,
            number: 0,
            size: args.rotate_size.map(|size| size.0),
            time: args.rotate_time.map(|time| time.0),
            keep: args.keep.map(|keep| keep.get()),
            begun: VecDeque::new(),
            force: args.force,
        };
        let (sink, path) = files.next()?;
        Ok(Self::new(sink, path, Some(files)))
    }

    fn new(sink: Sink, path: PathBuf, files: Option<Files>) -> Self {
        Self { sink, path, files, written: 0, began: Instant::now(), trailer: 0 }
    }

    /// Adds `bytes` as one piece; after them a regular file ends with `trailer`, until more is added.
    pub fn write(&mut self, bytes: &[u8], trailer: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        match &mut self.sink {
            Sink::File { file, seekable: true } if !trailer.is_empty() => {
                if self.trailer > 0 {
                    file.seek(SeekFrom::Current(-(self.trailer as i64)))?;
                }
                self.trailer = trailer.len();
                file.write_all(&[bytes, trailer].concat())?;
                file.flush()
            }
            Sink::File { file, .. } => file.write_all(bytes),
            Sink::Stdout(stdout) => stdout.write_all(bytes),
        }
    }

    /// Hands what is buffered to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::File { file, .. } => file.flush(),
            Sink::Stdout(stdout) => stdout.flush(),
        }
    }

    /// Makes the file whole, where it is not so at any time.
    pub fn end(&mut self, trailer: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::File { seekable: true, .. } => {}
            Sink::File { file, .. } => file.write_all(trailer)?,
            Sink::Stdout(stdout) => stdout.write_all(trailer)?,
        }
        self.flush()
    }

    /// It is time for the next file.
    pub fn is_full(&self) -> bool {
        let Some(files) = &self.files else { return false };
        files.size.is_some_and(|size| self.written >= size)
            || files.time.is_some_and(|time| self.began.elapsed() >= time)
    }

    /// Goes on in the next file, and removes the oldest beyond those to be kept.
    pub fn next(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(files) = &mut self.files {
            (self.sink, self.path) = files.next()?;
            (self.written, self.began, self.trailer) = (0, Instant::now(), 0);
        }
        Ok(())
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Files {
    fn next(&mut self) -> io::Result<(Sink, PathBuf)> {
        self.number += 1;
        let path = numbered(&self.given, self.number);
        let sink = create(&path, self.force)?;
        self.begun.push_back(path.clone());
        while self.keep.is_some_and(|keep| self.begun.len() > keep) {
            if let Some(oldest) = self.begun.pop_front() {
                match fs::remove_file(oldest) {
                    // The person may have moved it away.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok((sink, path))
    }
}

/// `name.pb` as `name-0001.pb`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number:04}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// A file that did not exist, and which only its owner may read; or a pipe or device that does exist.
fn create(path: &Path, force: bool) -> io::Result<Sink> {
    let file = |file, seekable| Ok(Sink::File { file: BufWriter::with_capacity(64 << 10, file), seekable });
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return file(OpenOptions::new().write(true).open(path)?, false);
    }
    if force && fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
        fs::remove_file(path)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let why = format!("{} is there already: choose another name, or say --force", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
        }
        opened => file(opened?, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_has_its_number_before_its_ending() {
        for (path, expected) in
            [("a/b.pb", "a/b-0007.pb"), ("b", "b-0007"), ("b.x.jsonl", "b.x-0007.jsonl"), (".pb", ".pb-0007")]
        {
            assert_eq!(numbered(Path::new(path), 7), Path::new(expected));
        }
    }
}
