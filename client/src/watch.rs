//! `plaintap watch`: the stream on stdout, HTTP put together or as it comes, and on stderr what happens to it.

use std::{
    env,
    io::{self, BufWriter, IsTerminal, Write},
};

use plaintap_proto::{Event, Heartbeat, LogEntry, json, log_entry::Payload};
use prost::{DecodeError, bytes::Bytes};

use crate::{
    args::WatchArgs,
    consume::{self, Consumer, Error, Interrupt},
    http::{Assembler, Item, Limits, page::Page},
    note::{self, note},
    show::{self, Show},
};

/// A body that ends with its connection is shown when there was no more of it for so many seconds.
const QUIET: i64 = 2;

/// Watches until there are enough events, or the connection ends and is not to be tried again, or nobody reads stdout, or
/// the person has seen enough.
pub fn run(args: WatchArgs) -> Result<(), Error> {
    run_until(&Interrupt::new()?, args)
}

/// As [`run`], where more is to be done when the person has seen enough.
pub fn run_until(interrupt: &Interrupt, args: WatchArgs) -> Result<(), Error> {
    let stdout = io::stdout();
    let colour = !args.no_color && stdout.is_terminal() && show::takes_colour(|name| env::var_os(name));
    let show = Show { colour, hex: args.hex, max_payload: args.max_payload };
    let limits = Limits::default();
    let limits = Limits { body: limits.body.max(args.max_body), ..limits };
    let (address, reconnect) = (args.url.clone(), !args.no_reconnect);
    let watch = Watch {
        out: BufWriter::with_capacity(64 << 10, stdout),
        page: Page { show, no_body: args.no_body, max_body: args.max_body },
        assembler: Assembler::new(limits),
        run_id: String::new(),
        args,
        events: 0,
        not_understood: 0,
    };
    consume::run_until(interrupt, watch, &address, reconnect)
}

struct Watch<W> {
    out: W,
    page: Page,
    assembler: Assembler,
    /// The run whose connections are being put together; empty until a heartbeat names it.
    run_id: String,
    args: WatchArgs,
    events: u64,
    not_understood: u64,
}

impl<W: Write + Send + 'static> Consumer for Watch<W> {
    fn message(&mut self, _: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()> {
        match entry {
            Ok(entry) => self.entry(entry),
            Err(error) => self.not_understood(&note::chain(error)),
        }
    }

    fn text(&mut self, _: &str) -> io::Result<()> {
        self.not_understood("it is text, where binary belongs")
    }

    fn idle(&mut self) -> io::Result<()> {
        // Under load there is always more, and the buffer is written when it is full.
        self.out.flush()
    }

    fn enough(&self) -> bool {
        self.args.count.is_some_and(|count| self.events >= count.get())
    }

    fn finish(&mut self) -> io::Result<()> {
        // What was begun is shown even if there is no more.
        self.show_begun()?;
        self.out.flush()
    }

    fn place(&self) -> String {
        "stdout".to_owned()
    }

    fn is_for_stdout(&self) -> bool {
        true
    }
}

impl<W: Write> Watch<W> {
    fn entry(&mut self, entry: &LogEntry) -> io::Result<()> {
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

    fn event(&mut self, entry: &LogEntry, event: &Event) -> io::Result<()> {
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
    fn beat(&mut self, heartbeat: &Heartbeat) -> io::Result<()> {
        if !self.run_id.is_empty() && self.run_id != heartbeat.run_id {
            // Another run gives its connections the same numbers.
            self.show_begun()?;
        }
        self.run_id.clone_from(&heartbeat.run_id);
        let items =
            self.assembler.rest(heartbeat.timestamp.saturating_sub(QUIET).saturating_mul(1_000_000_000));
        self.items(&items)
    }

    fn show_begun(&mut self) -> io::Result<()> {
        let items = self.assembler.finish();
        self.items(&items)
    }

    fn items(&mut self, items: &[Item]) -> io::Result<()> {
        for item in items {
            if self.args.filter.as_ref().is_none_or(|filter| filter.matches(item)) {
                self.out.write_all(self.page.item(item).as_bytes())?;
            }
        }
        Ok(())
    }

    /// Tells of the 1st, 2nd, 4th, 8th … such message, so that a stream of nothing else does not drown the screen.
    fn not_understood(&mut self, why: &str) -> io::Result<()> {
        self.not_understood += 1;
        if self.not_understood.is_power_of_two() {
            // It belongs between what was shown so far and what comes.
            self.out.flush()?;
            note(&format!("a message was not understood ({} so far): {why}", self.not_understood));
        }
        Ok(())
    }
}
