//! `plaintap watch`: the stream on stdout, HTTP put together or as it comes, and on stderr what happens to it.

use std::{
    env,
    io::{self, BufWriter, IsTerminal, Write},
};

use plaintap_proto::{Event, Heartbeat, LogEntry, json, log_entry::Payload};
use prost::Message as _;
use tungstenite::Message;

use crate::{
    args::WatchArgs,
    follow::{self, Follow, Incoming},
    http::{Assembler, Item, Limits, page::Page},
    note::{self, note},
    seen::Seen,
    show::{self, Show},
};

/// A body that ends with its connection is shown when there was no more of it for so many seconds.
const QUIET: i64 = 2;

/// Why watching ended before it was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not go on.
    #[error(transparent)]
    Stream(#[from] follow::Error),
    /// What was seen can't be shown.
    #[error("can't write to stdout")]
    Output(#[from] io::Error),
}

/// Watches until there are enough events, or the connection ends and is not to be tried again, or nobody reads stdout.
pub fn run(args: WatchArgs) -> Result<(), Error> {
    let stdout = io::stdout().lock();
    let colour = !args.no_color
        && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && stdout.is_terminal();
    let mut follow = Follow::new(args.url.clone(), !args.no_reconnect);
    let show = Show { colour, hex: args.hex, max_payload: args.max_payload };
    let limits = Limits::default();
    let limits = Limits { body: limits.body.max(args.max_body), ..limits };
    let mut watch = Watch {
        out: BufWriter::with_capacity(64 << 10, stdout),
        page: Page { show, no_body: args.no_body, max_body: args.max_body },
        assembler: Assembler::new(limits),
        run_id: String::new(),
        args,
        seen: Seen::default(),
        events: 0,
        not_understood: 0,
    };
    let watched = watch.follow(&mut follow);
    // What was begun is shown even if there is no more.
    let watched = match watched {
        Err(Error::Output(error)) => Err(Error::Output(error)),
        watched => watch.finish().and(watched),
    };
    match watched.and(watch.out.flush().map_err(Error::from)) {
        Err(Error::Stream(follow::Error::Ended(ended))) if ended.in_good_order() => Ok(()),
        // As `head` does when it has enough.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        watched => watched,
    }
}

struct Watch<W> {
    out: W,
    page: Page,
    assembler: Assembler,
    /// The run whose connections are being put together; empty until a heartbeat names it.
    run_id: String,
    args: WatchArgs,
    seen: Seen,
    events: u64,
    not_understood: u64,
}

impl<W: Write> Watch<W> {
    fn follow(&mut self, follow: &mut Follow) -> Result<(), Error> {
        while self.args.count.is_none_or(|count| self.events < count.get()) {
            match follow.receive()? {
                Incoming::Message(Message::Binary(bytes)) => match LogEntry::decode(bytes) {
                    Ok(entry) => self.entry(&entry)?,
                    Err(error) => self.not_understood(&note::chain(&error))?,
                },
                Incoming::Message(_) => self.not_understood("it is text, where binary belongs")?,
                // Under load there is always more, and the buffer is written when it is full.
                Incoming::Idle => self.out.flush()?,
                Incoming::Down(why, delay) => {
                    follow.resume_after(self.seen.place());
                    self.note(&format!("{why}; trying again in {} s", delay.as_secs_f32()))?;
                }
                Incoming::Connected { again: false } => self.note(&format!("watching {}", self.args.url))?,
                Incoming::Connected { again: true } => {
                    self.seen.reconnected();
                    self.note("connected again")?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &LogEntry) -> Result<(), Error> {
        for what in self.seen.entry(entry) {
            self.note(&what)?;
        }
        let text = match &entry.payload {
            Some(Payload::EventPayload(event)) => {
                self.events += 1;
                return self.event(entry, event);
            }
            Some(Payload::HeartbeatPayload(heartbeat)) => {
                self.beat(heartbeat)?;
                self.args.heartbeats.then(|| show::heartbeat(heartbeat))
            }
            Some(Payload::RunLog(line)) => self.args.logs.then(|| show::run_log(line)),
            // A script may know what we don't.
            None if self.args.json => Some(String::new()),
            None => return self.not_understood(&format!("it is of an unknown kind, {}", entry.log_type)),
        };
        if let Some(text) = text {
            let text = if self.args.json { json::line(entry) + "\n" } else { text };
            self.out.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    fn event(&mut self, entry: &LogEntry, event: &Event) -> Result<(), Error> {
        if !self.args.json && !self.args.raw {
            let items = self.assembler.push(event);
            return self.items(&items);
        }
        if self.args.filter.as_ref().is_none_or(|filter| filter.matches_event(event)) {
            let text = if self.args.json { json::line(entry) + "\n" } else { self.page.show.event(event) };
            self.out.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// A heartbeat is a moment to see what has come to rest, and which run of the agent this is.
    fn beat(&mut self, heartbeat: &Heartbeat) -> Result<(), Error> {
        if !self.run_id.is_empty() && self.run_id != heartbeat.run_id {
            // Another run gives its connections the same numbers.
            self.finish()?;
        }
        self.run_id.clone_from(&heartbeat.run_id);
        let items =
            self.assembler.rest(heartbeat.timestamp.saturating_sub(QUIET).saturating_mul(1_000_000_000));
        self.items(&items)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let items = self.assembler.finish();
        self.items(&items)
    }

    fn items(&mut self, items: &[Item]) -> Result<(), Error> {
        for item in items {
            if self.args.filter.as_ref().is_none_or(|filter| filter.matches(item)) {
                self.out.write_all(self.page.item(item).as_bytes())?;
            }
        }
        Ok(())
    }

    /// Tells of the 1st, 2nd, 4th, 8th … such message, so that a stream of nothing else does not drown the screen.
    fn not_understood(&mut self, why: &str) -> Result<(), Error> {
        self.not_understood += 1;
        if self.not_understood.is_power_of_two() {
            self.note(&format!("a message was not understood ({} so far): {why}", self.not_understood))?;
        }
        Ok(())
    }

    /// Says something between what was shown so far and what comes.
    fn note(&mut self, what: &str) -> Result<(), Error> {
        self.out.flush()?;
        note(what);
        Ok(())
    }
}
