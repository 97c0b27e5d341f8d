//! Sends the streams of many devices into NATS JetStream, and keeps nothing itself: where each goes on is read back from
//! the stream.
//!
//! A source is read by a thread of its own (`Source` blocks), which knows by `track` what was sent and what is missing; a
//! task takes what it reads and has it stored (`device`). Between them is a short queue: where storing is slow, reading
//! waits, and with it the device's journal.
//!
//! `read` is the way back: a device's messages out of the stream, for whoever shows or records them.

pub mod connect;
pub mod device;
pub mod read;
pub mod subject;
pub mod track;
pub mod wanted;

use std::{io, thread, time::Duration};

use async_nats::jetstream::{
    self,
    context::CreateStreamErrorKind,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream},
};
use bytes::Bytes;
use tokio::sync::mpsc;

use connect::{Connected, Server};
use device::{Device, Fenced, chain};
use track::{Outgoing, Place, Track};

/// Messages between a source's thread and its task.
const QUEUE: usize = 64;
/// How long a relay that was fenced off stays back before it looks whether the other still sends.
const STAY_BACK: Duration = Duration::from_secs(30);
/// A message sent twice within this time is stored once. NATS's own default.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// What comes next of a source.
#[derive(Debug)]
pub enum Incoming {
    /// A message, as its bytes.
    Message(Bytes),
    /// There is a connection.
    Connected,
    /// There is none, for this reason; it is tried again.
    Down(String),
    /// Nothing for now.
    Nothing,
}

/// Where a device's stream comes from. Its calls block.
pub trait Source: Send + 'static {
    /// Has the next connection go on behind this message: its number and its run.
    fn resume_after(&mut self, seq: u64, run: &str);
    /// What comes next; an error's text if there is no going on.
    fn receive(&mut self) -> Result<Incoming, String>;
}

/// A source, and what it is called.
pub struct Named {
    /// The device.
    pub name: String,
    /// Nothing is left out on purpose: each hole in its numbers is a loss.
    pub whole: bool,
    /// Begins it from all that the device still has.
    pub open: Box<dyn Fn() -> Box<dyn Source> + Send>,
}

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub server: Server,
    /// The stream's name.
    pub stream: String,
    /// What a stream that is created keeps at most, in bytes.
    pub max_bytes: i64,
    /// And for how long.
    pub max_age: Duration,
}

/// Why nothing can be relayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime can't be had.
    #[error("can't start")]
    Start(#[source] io::Error),
    /// The server.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The server has no JetStream, or this user may not use it.
    #[error("{0} has no JetStream, or not for this user; start it with jetstream enabled (nats-server -js)")]
    NoJetStream(String),
    /// The stream can't be made.
    #[error("can't create the stream {name}: {why}")]
    Create {
        /// Its name.
        name: String,
        /// What the server said.
        why: String,
    },
    /// The stream is another one than is needed.
    #[error(
        "the stream {name} {why}; it is left alone: change it with `nats stream edit`, or name another with --stream"
    )]
    Unfit {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two sources have one name.
    #[error("two sources are called {0}; give one another name: --from NAME=URL")]
    SameName(String),
}

/// A line for the person: what happens, in `key=value`.
pub(crate) fn note(text: &str) {
    eprintln!("plaintap relay: {text}");
}

/// Relays all of `sources` until the process ends; returns only if it can't begin.
pub fn run(target: &Target, sources: Vec<Named>) -> Result<(), Error> {
    let mut names: Vec<_> = sources.iter().map(|source| &source.name).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::SameName(twice[0].clone()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    runtime.block_on(async {
        let told = |event| note(&format!("server {event}"));
        let Connected { context, shown } = target.server.connect("plaintap relay", told).await?;
        let stream = stream(&context, target, &shown).await?;
        note(&format!("connected to={shown} stream={} sources={}", target.stream, sources.len()));
        let tasks = sources.into_iter().map(|source| {
            tokio::spawn(relay(Device::new(context.clone(), stream.clone(), source.name.clone()), source))
        });
        futures_util::future::join_all(tasks).await;
        Ok(())
    })
}

/// The stream, made if it is not there, and checked if it is: never changed.
async fn stream(context: &jetstream::Context, target: &Target, server: &str) -> Result<Stream, Error> {
    let unfit = |why| Error::Unfit { name: target.stream.clone(), why };
    let name = &target.stream;
    let stream = match context.get_stream(name).await {
        Ok(stream) => stream,
        Err(_) => {
            let config = Config {
                name: name.clone(),
                description: Some("Plaintext of TLS connections, by plaintap relay: secret".to_owned()),
                subjects: vec![format!("{}.>", subject::ROOT)],
                retention: RetentionPolicy::Limits,
                storage: StorageType::File,
                discard: DiscardPolicy::Old,
                max_bytes: target.max_bytes,
                max_age: target.max_age,
                duplicate_window: DUPLICATE_WINDOW.min(target.max_age),
                ..Config::default()
            };
            context.create_stream(config).await.map_err(|error| match error.kind() {
                CreateStreamErrorKind::JetStreamUnavailable | CreateStreamErrorKind::TimedOut => {
                    Error::NoJetStream(server.to_owned())
                }
                _ => Error::Create { name: name.clone(), why: chain(&error) },
            })?
        }
    };
    let config = &stream.cached_info().config;
    let all = format!("{}.>", subject::ROOT);
    if !config.subjects.iter().any(|subject| *subject == all || subject == ">") {
        return Err(unfit("does not take the subjects plaintap.>"));
    }
    if config.retention != RetentionPolicy::Limits {
        return Err(unfit(
            "does not keep messages by limits, so that readers would take them from each other",
        ));
    }
    if config.no_ack {
        return Err(unfit("acknowledges nothing"));
    }
    Ok(stream)
}

/// Relays one source for ever.
async fn relay(mut device: Device, source: Named) {
    let name = source.name.clone();
    loop {
        let place = device.read_place().await;
        note(&format!("goes on device={name} run={:?} after_seq={}", place.run, place.seq));
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let reading = (source.open)();
        let (label, track) = (name.clone(), Track::new(place, source.whole));
        let thread = thread::Builder::new()
            .name("relay-source".to_owned())
            .stack_size(256 << 10)
            .spawn(move || read(&label, reading, track, &sender));
        if let Err(error) = thread {
            note(&format!("can't start device={name} error={:?}", error.to_string()));
        }
        let mut fenced = false;
        while let Some(message) = receiver.recv().await {
            if let Err(Fenced) = device.store(&message).await {
                fenced = true;
                break;
            }
        }
        if !fenced {
            // It said why.
            return;
        }
        drop(receiver);
        note(&format!("stays back device={name}: another relay sends it"));
        let mut before = device.read_place().await;
        loop {
            tokio::time::sleep(STAY_BACK).await;
            let now = device.read_place().await;
            if now == before {
                break;
            }
            before = now;
        }
    }
}

/// Reads a source until nobody wants what it reads, or it has no more.
fn read(name: &str, mut source: Box<dyn Source>, mut track: Track, sender: &mpsc::Sender<Outgoing>) {
    let resume = |source: &mut Box<dyn Source>, place: &Place| {
        if !place.run.is_empty() {
            source.resume_after(place.seq, &place.run);
        }
    };
    resume(&mut source, track.place());
    loop {
        match source.receive() {
            Ok(Incoming::Message(bytes)) => match track.take(bytes) {
                Ok(messages) => {
                    for message in messages {
                        if sender.blocking_send(message).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    note(&format!("skips what is no LogEntry device={name} error={:?}", error.to_string()))
                }
            },
            Ok(Incoming::Connected) => {
                note(&format!("source is there device={name}"));
                track.connected();
            }
            Ok(Incoming::Down(why)) => {
                note(&format!("source is away device={name} error={why:?}"));
                resume(&mut source, track.place());
            }
            Ok(Incoming::Nothing) => {
                if sender.is_closed() {
                    return;
                }
            }
            Err(why) => {
                note(&format!("source ends device={name} error={why:?}"));
                return;
            }
        }
    }
}
