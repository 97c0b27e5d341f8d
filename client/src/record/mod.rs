//! `plaintap record`: the stream kept in files.
//!
//! A [`Recording`] is what one file holds, as bytes; [`Output`] owns the files. Each message is handed to the system whole,
//! so that a recording that ends in a crash ends between two messages.

mod blocks;
mod har;
mod output;
mod pcapng;
mod plain;
mod segment;

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use plaintap_proto::{LogEntry, log_entry::Payload};
use prost::{DecodeError, bytes::Bytes};

use crate::{
    commands::RecordArgs,
    consume::{self, Consumer},
    note::{self, counted, note},
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
    /// Stdout has no other file to go on with.
    #[error("-o - is one stream: leave out --rotate-size, --rotate-time and --keep, or name a file")]
    Rotation,
    /// A terminal would obey it.
    #[error("-o - is a terminal here, and {0} is not text: pipe it, or name a file")]
    Terminal(&'static str),
}

impl Error {
    /// Whether the command line is what is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Format(_) | Self::Rotation | Self::Terminal(_))
    }
}

/// What one file holds, made message by message.
pub trait Recording: Send {
    /// What a file begins with. Forgets what an earlier file held.
    fn begin(&mut self) -> Vec<u8>;

    /// What a message adds.
    fn message(&mut self, bytes: &Bytes, entry: &LogEntry) -> Vec<u8>;

    /// What was begun in this file and not completed.
    fn end(&mut self) -> Vec<u8> {
        vec![]
    }

    /// What makes a file whole whose recording ends here.
    fn trailer(&self) -> &'static [u8] {
        b""
    }
}

/// Records until there are enough events, the stream ends, or Ctrl-C.
pub fn run(args: RecordArgs) -> Result<(), Error> {
    let stdout = args.output.as_os_str() == "-";
    let ending = args.output.extension().and_then(|ending| ending.to_str()).and_then(|e| e.parse().ok());
    let format = args.format.or(ending).or(stdout.then_some(Format::Pcapng));
    let format = format.ok_or_else(|| Error::Format(args.output.display().to_string()))?;
    if stdout && (args.rotate_size.is_some() || args.rotate_time.is_some() || args.keep.is_some()) {
        return Err(Error::Rotation);
    }
    if stdout && io::stdout().is_terminal() {
        // The others are text.
        match format {
            Format::Pb => return Err(Error::Terminal("pb")),
            Format::Pcapng => return Err(Error::Terminal("pcapng")),
            Format::Jsonl | Format::Har => {}
        }
    }
    let output = if stdout { Ok(Output::stdout()) } else { Output::files(&args) };
    let output =
        output.map_err(|error| Error::Begin(format!("can't begin {}", args.output.display()), error))?;
    record(args, format, output)
}

fn record(args: RecordArgs, format: Format, output: Output) -> Result<(), Error> {
    let recording: Box<dyn Recording> = match format {
        Format::Pb => Box::new(plain::Pb),
        Format::Jsonl => Box::new(plain::Jsonl),
        Format::Pcapng => Box::new(pcapng::Pcapng::default()),
        Format::Har => Box::new(har::Har::default()),
    };
    let (url, reconnect) = (args.url.clone(), !args.no_reconnect);
    let mut recorder =
        Recorder { output, recording, count: args.count.map(|count| count.get()), events: 0, left_out: 0 };
    let head = recorder.recording.begin();
    let begun = recorder.output.write(&head, recorder.recording.trailer());
    begun.and_then(|()| recorder.output.flush()).map_err(|error| Error::Begin(recorder.place(), error))?;
    Ok(consume::run(recorder, &url, reconnect)?)
}

struct Recorder {
    output: Output,
    recording: Box<dyn Recording>,
    count: Option<u64>,
    events: u64,
    left_out: u64,
}

impl Recorder {
    /// Tells of the 1st, 2nd, 4th, 8th … such message.
    fn leave_out(&mut self, why: &str) {
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
        if self.output.is_full() {
            let end = self.recording.end();
            self.output.write(&end, self.recording.trailer())?;
            self.output.end(self.recording.trailer())?;
            self.output.next()?;
            let head = self.recording.begin();
            self.output.write(&head, self.recording.trailer())?;
        }
        self.events += u64::from(matches!(entry.payload, Some(Payload::EventPayload(_))));
        let more = self.recording.message(bytes, entry);
        self.output.write(&more, self.recording.trailer())
    }

    fn text(&mut self, _: &str) -> io::Result<()> {
        self.leave_out("it is text, where binary belongs");
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    fn enough(&self) -> bool {
        self.count.is_some_and(|count| self.events >= count)
    }

    fn finish(&mut self) -> io::Result<()> {
        let end = self.recording.end();
        self.output.write(&end, self.recording.trailer())?;
        self.output.end(self.recording.trailer())?;
        note(&format!("{} in {}", counted(self.events, "event"), self.place()));
        Ok(())
    }

    fn place(&self) -> String {
        self.output.to_string()
    }
}
