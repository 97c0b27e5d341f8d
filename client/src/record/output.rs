//! The files that a recording goes into: when the next one begins, and which are kept.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs, io, mem,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::sink::Sink;
use crate::{commands::RecordArgs, note::counted};

/// Where a recording goes.
pub struct Output {
    /// The file being written.
    sink: Sink,
    began: Instant,
    trailer: &'static [u8],
    files: Option<Files>,
}

/// More than one file, one after another.
struct Files {
    given: PathBuf,
    number: u64,
    size: Option<u64>,
    time: Option<Duration>,
    keep: Option<usize>,
    force: bool,
    /// Those that are complete and kept, and how many things each holds.
    complete: VecDeque<(PathBuf, u64)>,
}

impl Output {
    /// Stdout, which is one stream.
    pub fn stdout(trailer: &'static [u8]) -> io::Result<Self> {
        Ok(Self { sink: Sink::stdout(trailer)?, began: Instant::now(), trailer, files: None })
    }

    /// One file, or with rotation the first of several.
    pub fn files(args: &RecordArgs, trailer: &'static [u8]) -> io::Result<Self> {
        let (mut path, mut files) = (args.output.clone(), None);
        if args.rotate_size.is_some() || args.rotate_time.is_some() {
            let given = mem::replace(&mut path, numbered(&args.output, 1));
            files = Some(Files {
                given,
                number: 1,
                size: args.rotate_size.map(|size| size.0),
                time: args.rotate_time.map(|time| time.0),
                keep: args.keep.map(|keep| keep.get()),
                force: args.force,
                complete: VecDeque::new(),
            });
        }
        let sink = Sink::create(&path, args.force, trailer)?;
        Ok(Self { sink, began: Instant::now(), trailer, files })
    }

    /// The file being written.
    pub fn sink(&mut self) -> &mut Sink {
        &mut self.sink
    }

    /// The file being written, for a sentence.
    pub fn place(&self) -> String {
        self.sink.path().display().to_string()
    }

    /// It is time for the next file.
    pub fn is_full(&self) -> bool {
        let Some(files) = &self.files else { return false };
        files.size.is_some_and(|size| self.sink.size() >= size)
            || files.time.is_some_and(|time| self.began.elapsed() >= time)
    }

    /// Completes this file, removes the oldest beyond those to be kept, and goes on in the next one, which begins with
    /// `head`.
    pub fn next(&mut self, head: &[u8]) -> io::Result<()> {
        self.sink.end()?;
        let Some(files) = &mut self.files else { return Ok(()) };
        files.number += 1;
        let next = Sink::create(&numbered(&files.given, files.number), files.force, self.trailer)?;
        let complete = mem::replace(&mut self.sink, next);
        self.began = Instant::now();
        files.complete.push_back((complete.path().to_owned(), complete.count()));
        // Before anything is written, which may need the room.
        let removed = files.remove_oldest();
        self.sink.begin(head)?;
        removed
    }

    /// What there is now, as `3 events in session.pb`.
    pub fn summary(&self, thing: &str) -> String {
        let complete = self.files.iter().flat_map(|files| &files.complete);
        let mut files: Vec<(&Path, u64)> = complete.map(|(path, count)| (&**path, *count)).collect();
        if !self.sink.is_removed() {
            files.push((self.sink.lies_at(), self.sink.count()));
        }
        let all = counted(files.iter().map(|(_, count)| count).sum(), thing);
        match &files[..] {
            [] if self.sink.path().exists() => format!("{all}: {} is as it was", self.place()),
            [] => format!("{all}: {} is not kept", self.place()),
            [(path, _)] => format!("{all} in {}", path.display()),
            [.., (last, _)] => {
                let name = last.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
                format!("{all} in {} files, the last of them {name}", files.len())
            }
        }
    }
}

impl Files {
    /// Removes those beyond what is to be kept together with the one that is being written.
    fn remove_oldest(&mut self) -> io::Result<()> {
        while self.keep.is_some_and(|keep| self.complete.len() >= keep) {
            let Some((oldest, _)) = self.complete.pop_front() else { break };
            match fs::remove_file(oldest) {
                // The person may have moved it away.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
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
