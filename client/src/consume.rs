//! A stream's messages handed to whoever keeps or shows them, until there are enough, the stream ends, or the person has
//! seen enough (Ctrl-C), which is no failure: what was begun is finished first.
//!
//! The consumer is shared with the thread that a signal wakes. It is locked for one message at a time and never while the
//! network is waited for, so that Ctrl-C works at once.

use std::{
    io,
    process::exit,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use plaintap_proto::LogEntry;
use prost::{DecodeError, Message as _, bytes::Bytes};
use tungstenite::Message;

use crate::{
    address::Address,
    follow::{self, Follow, Incoming},
    note::{self, note},
    seen::Seen,
};

/// How long Ctrl-C waits for a consumer that is stuck, as in a pipe that nobody reads.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who keeps or shows messages.
pub trait Consumer: Send + 'static {
    /// A message, as it came and as far as it decodes.
    fn message(&mut self, bytes: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()>;

    /// A text message, which no eCaptureQ server sends.
    fn text(&mut self, text: &str) -> io::Result<()>;

    /// Nothing more has come yet.
    fn idle(&mut self) -> io::Result<()>;

    /// No more is wanted.
    fn enough(&self) -> bool;

    /// There is no more. Called once.
    fn finish(&mut self) -> io::Result<()>;

    /// Where it puts what it gets, for an error's sentence.
    fn place(&self) -> String;
}

/// Why it ended before it was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not go on.
    #[error(transparent)]
    Stream(#[from] follow::Error),
    /// What came can't be put where it belongs.
    #[error("can't write to {0}")]
    Output(String, #[source] io::Error),
    /// Ctrl-C could not be prepared for.
    #[error("can't wait for Ctrl-C")]
    Signals(#[source] ctrlc::Error),
}

/// Runs until the consumer has enough, or the stream ends and is not to go on, or nobody reads what the consumer writes.
/// On SIGINT, SIGTERM and SIGHUP the consumer finishes and the process ends: 0, or 1 if it could not.
pub fn run(consumer: impl Consumer, address: &Address, reconnect: bool) -> Result<(), Error> {
    let consumer = Arc::new(Mutex::new(consumer));
    let interrupted = consumer.clone();
    ctrlc::set_handler(move || interrupt(&interrupted)).map_err(Error::Signals)?;
    let mut follow = Follow::new(address.clone(), reconnect);
    let streamed = stream(&consumer, &mut follow, address);
    let mut consumer = lock(&consumer);
    let finished = match streamed {
        Err(Error::Output(..)) => {
            let _ = consumer.finish();
            streamed
        }
        streamed => match consumer.finish() {
            Err(error) => Err(Error::Output(consumer.place(), error)),
            Ok(()) => streamed,
        },
    };
    match finished {
        Err(Error::Stream(follow::Error::Ended(ended))) if ended.in_good_order() => Ok(()),
        // As `head` does when it has enough.
        Err(Error::Output(_, error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        finished => finished,
    }
}

fn stream<C: Consumer>(consumer: &Mutex<C>, follow: &mut Follow, address: &Address) -> Result<(), Error> {
    let mut seen = Seen::default();
    while !lock(consumer).enough() {
        let incoming = follow.receive()?;
        let mut consumer = lock(consumer);
        let done = match incoming {
            Incoming::Message(Message::Binary(bytes)) => {
                let entry = LogEntry::decode(bytes.clone());
                entry.iter().flat_map(|entry| seen.entry(entry)).for_each(|what| note(&what));
                consumer.message(&bytes, entry.as_ref())
            }
            Incoming::Message(message) => consumer.text(message.to_text().unwrap_or_default()),
            Incoming::Idle => consumer.idle(),
            Incoming::Down(why, delay) => {
                follow.resume_after(seen.place());
                note(&format!("{why}; trying again in {} s", delay.as_secs_f32()));
                consumer.idle()
            }
            Incoming::Connected { again } => {
                if again {
                    seen.reconnected();
                    note("connected again");
                } else {
                    note(&format!("connected to {address}"));
                }
                Ok(())
            }
        };
        done.map_err(|error| Error::Output(consumer.place(), error))?;
    }
    Ok(())
}

fn lock<C>(consumer: &Mutex<C>) -> MutexGuard<'_, C> {
    consumer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn interrupt<C: Consumer>(consumer: &Mutex<C>) {
    let began = Instant::now();
    loop {
        if let Ok(mut consumer) = consumer.try_lock() {
            match consumer.finish() {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    note(&note::chain(&Error::Output(consumer.place(), error)));
                    exit(1);
                }
                _ => exit(0),
            }
        }
        if began.elapsed() > PATIENCE {
            note("what was begun could not be finished: nobody reads it");
            exit(1);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
