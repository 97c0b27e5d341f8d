//! What a program prints, line by line, as it comes: a thread reads, anyone waits for a line with a bound.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::PATIENCE;

/// The lines so far, and whether more can come.
#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    ended: bool,
}

/// The lines of one pipe.
#[derive(Clone)]
pub struct Lines {
    name: String,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Lines {
    /// Reads `pipe` to its end, on a thread of its own. `name` is what errors call it.
    pub fn of(name: impl Into<String>, pipe: impl Read + Send + 'static) -> Self {
        let lines = Self { name: name.into(), seen: Arc::default() };
        let shared = Arc::clone(&lines.seen);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // A pipe that can't be read any more is one that has ended.
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.push(text);
                shared.1.notify_all();
                line.clear();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.1.notify_all();
        });
        lines
    }

    /// The lines so far.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// All lines there will ever be: waits for the pipe's end.
    pub fn to_the_end(&self) -> Result<Vec<String>> {
        self.wait("its end", |seen| seen.ended.then(|| seen.lines.clone()))
    }

    /// The first line from number `from` on that `wanted` takes, once it is there, with its number.
    pub fn wait_for(
        &self,
        from: usize,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(usize, String)> {
        self.wait(what, |seen| {
            let found = seen.lines.iter().enumerate().skip(from).find(|(_, line)| wanted(line));
            found.map(|(number, line)| (number, line.clone()))
        })
    }

    fn wait<T>(&self, what: &str, answer: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.lock();
        loop {
            if let Some(answer) = answer(&seen) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.ended || left.is_zero() {
                let why = if seen.ended { "it ended" } else { "it went on without" };
                bail!("{}: waited for {what}, but {why}; it said:\n{}", self.name, seen.lines.join("\n"));
            }
            seen = self.seen.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_once_they_are_there() {
        let lines = Lines::of("the example", &b"one\ntwo\nthree"[..]);
        assert_eq!(lines.wait_for(0, "t", |line| line.starts_with('t')).unwrap(), (1, "two".to_owned()));
        assert_eq!(lines.wait_for(2, "t", |line| line.starts_with('t')).unwrap(), (2, "three".to_owned()));
        assert_eq!(lines.to_the_end().unwrap(), ["one", "two", "three"]);
    }

    #[test]
    fn an_end_without_the_line_is_told_with_what_was_said() {
        let error =
            Lines::of("the example", &b"one\n"[..]).wait_for(0, "two", |line| line == "two").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("the example: waited for two") && text.contains("one"), "{text}");
    }
}
