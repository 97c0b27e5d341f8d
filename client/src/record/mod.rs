//! `plaintap record`: the stream kept in files.
//!
//! A [`Recording`] is what one file holds, as bytes; [`Output`] owns the files, and a `Sink` is one of them. Each message is
//! handed to the system whole, so that a recording that ends in a crash ends between two messages.

mod blocks;
mod har;
mod output;
mod pcapng;
mod plain;
mod segment;
mod sink;

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::{DecodeError, bytes::Bytes};

use crate::{
    commands::RecordArgs,
    consume::{self, Consumer},
    note::{self, note},
    text,
};
use output::Output;

/// What a recording is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Every message as it came, each after its length as a varint.
    Pb,
    /// A JSON object a line.
    Jsonl,
    /// TCP connections that carry the plaintext, for Wireshark.
    Pcapng,
    /// Exchanges of HTTP, for browsers' developer tools.
    Har,
}

const FORMATS: &[(&str, Format)] =
    &[("pb", Format::Pb), ("jsonl", Format::Jsonl), ("pcapng", Format::Pcapng), ("har", Format::Har)];

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
        let found = FORMATS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, format)| *format).ok_or_else(|| format!("{text:?} is none of {}", names.join(", ")))
    }
}

/// Why nothing is recorded, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not go on, or can't be written.
    #[error(transparent)]
    Consume(#[from] consume::Error),
    /// The file's ending says nothing.
    #[error("{0}: what is it to be? Give it the ending .pb, .jsonl, .pcapng or .har, or say --format")]
    Format(String),
    /// The file can't be begun.
    #[error("{0}")]
    Begin(String, #[source] io::Error),
    /// Stdout has no other file to go on with, and nothing to replace.
    #[error("-o - is one stream: leave out {0}, or name a file")]
    Stdout(&'static str),
    /// There is never more than one file.
    #[error("--keep is for --rotate-size and --rotate-time, which make more than one file: add one of them")]
    Keep,
    /// A terminal would obey it.
    #[error("-o - is a terminal here, and {0} is not text: pipe it, or name a file")]
    Terminal(&'static str),
}

impl Error {
    /// Whether the command line is what is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Format(_) | Self::Stdout(_) | Self::Keep | Self::Terminal(_))
    }
}

/// What one file holds, made message by message.
pub trait Recording: Send {
    /// What a file begins with. Forgets what an earlier file held.
    fn begin(&mut self) -> Vec<u8>;

    /// What a message adds, in pieces behind each of which the file may end.
    fn message(&mut self, bytes: &Bytes, entry: &LogEntry) -> Vec<Vec<u8>>;

    /// What was begun in this file and not completed, in such pieces.
    fn end(&mut self) -> Vec<Vec<u8>> {
        vec![]
    }

    /// What makes a file whole whose recording ends here.
    fn trailer(&self) -> &'static [u8] {
        b""
    }

    /// Each piece is an exchange of HTTP, whatever number of events it took.
    fn holds_exchanges(&self) -> bool {
        false
    }
}

/// Records until there are enough events, the stream ends, or Ctrl-C.
pub fn run(args: RecordArgs) -> Result<(), Error> {
    let stdout = args.output.as_os_str() == "-";
    let ending = args.output.extension().and_then(|ending| ending.to_str()).and_then(|e| e.parse().ok());
    let format = args.format.or(ending).or(stdout.then_some(Format::Pcapng));
    let format = format.ok_or_else(|| Error::Format(args.output.display().to_string()))?;
    let flags = [
        ("--rotate-size", args.rotate_size.is_some()),
        ("--rotate-time", args.rotate_time.is_some()),
        ("--keep", args.keep.is_some()),
        ("--force", args.force),
    ];
    if let Some((flag, _)) = flags.into_iter().find(|(_, said)| stdout && *said) {
        return Err(Error::Stdout(flag));
    }
    if args.keep.is_some() && args.rotate_size.is_none() && args.rotate_time.is_none() {
        return Err(Error::Keep);
    }
    if stdout && io::stdout().is_terminal() {
        // The others are text.
        match format {
            Format::Pb => return Err(Error::Terminal("pb")),
            Format::Pcapng => return Err(Error::Terminal("pcapng")),
            Format::Jsonl | Format::Har => {}
        }
    }
    let recording: Box<dyn Recording> = match format {
        Format::Pb => Box::new(plain::Pb),
        Format::Jsonl => Box::new(plain::Jsonl),
        Format::Pcapng => Box::new(pcapng::Pcapng::default()),
        Format::Har => Box::new(har::Har::default()),
    };
    let trailer = recording.trailer();
    let output = if stdout { Output::stdout(trailer) } else { Output::files(&args, trailer) };
    let output =
        output.map_err(|error| Error::Begin(format!("can't begin {}", args.output.display()), error))?;
    let (count, reconnect) = (args.count.map(|count| count.get()), !args.no_reconnect);
    let mut recorder =
        Recorder { output, recording, is_for_stdout: stdout, count, received: false, events: 0, left_out: 0 };
    recorder.begin().map_err(|error| Error::Begin(format!("can't begin {}", recorder.place()), error))?;
    Ok(consume::run(recorder, &args.url, reconnect)?)
}

struct Recorder {
    output: Output,
    recording: Box<dyn Recording>,
    is_for_stdout: bool,
    count: Option<u64>,
    /// Something came, be it only a heartbeat.
    received: bool,
    events: u64,
    left_out: u64,
}

impl Recorder {
    fn begin(&mut self) -> io::Result<()> {
        let head = self.recording.begin();
        self.output.sink().begin(&head).inspect_err(|_| {
            // That it can't be begun is what the person is told; what is left of it is empty.
            let _ = self.output.sink().remove();
        })
    }

    /// Adds pieces, each of which holds so many events.
    fn add(&mut self, pieces: Vec<Vec<u8>>, events: u64) -> io::Result<()> {
        let count = if self.recording.holds_exchanges() { 1 } else { events };
        pieces.iter().try_for_each(|piece| self.output.sink().add(piece, count))
    }

    /// Adds what was begun in this file and not completed.
    fn add_end(&mut self) -> io::Result<()> {
        let end = self.recording.end();
        self.add(end, 0)
    }

    /// Makes the file whole; or removes it, if nothing ever came or nothing of it could be written.
    fn complete(&mut self) -> io::Result<()> {
        let added = self.add_end();
        let sink = self.output.sink();
        if !self.received && sink.is_ours() {
            return added.and(sink.remove());
        }
        added.and_then(|()| sink.end()).inspect_err(|_| {
            if sink.is_empty() {
                // What went wrong first is what the person is told.
                let _ = sink.remove();
            }
        })
    }

    /// Tells of the 1st, 2nd, 4th, 8th … such message.
    fn leave_out(&mut self, why: &str) {
        self.received = true;
        self.left_out += 1;
        if self.left_out.is_power_of_two() {
            note(&format!("a message was left out ({} so far): {}", self.left_out, text::one_line(why)));
        }
    }
}

impl Consumer for Recorder {
    fn message(&mut self, bytes: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()> {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                self.leave_out(&note::chain(error));
                return Ok(());
            }
        };
        self.received = true;
        if self.output.is_full() {
            self.add_end()?;
            let head = self.recording.begin();
            self.output.next(&head)?;
        }
        let events = u64::from(matches!(entry.payload, Some(Payload::EventPayload(_))));
        self.events += events;
        let pieces = self.recording.message(bytes, entry);
        self.add(pieces, events)
    }

    fn text(&mut self, _: &str) -> io::Result<()> {
        self.leave_out("it is text, where binary belongs");
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        self.output.sink().flush()
    }

    fn enough(&self) -> bool {
        self.count.is_some_and(|count| self.events >= count)
    }

    fn finish(&mut self) -> io::Result<()> {
        let done = self.complete();
        let thing = if self.recording.holds_exchanges() { "exchange" } else { "event" };
        note(&self.output.summary(thing));
        done
    }

    fn place(&self) -> String {
        self.output.place()
    }

    fn is_for_stdout(&self) -> bool {
        self.is_for_stdout
    }
}
