//! Reads one device's messages back from JetStream: one connection, as long as it lasts. Its calls block.
//!
//! The reader owns the connection and the cursor, which is the stream's own sequence number of the last message that it
//! gave out: whoever connects again hands it in, and gets what comes behind it. NATS's client would connect again by
//! itself, but a server that is away should be told of, and tried again, as every other source is. A thread reads
//! ahead, by a bounded number of messages.

use std::{collections::BTreeSet, future::Future, io, pin::Pin, thread, time::Duration};

use async_nats::{
    Event,
    datetime::DateTime,
    jetstream::{
        self, ErrorCode,
        consumer::{
            AckPolicy, DeliverPolicy,
            pull::{self, MessagesErrorKind},
        },
        context::GetStreamErrorKind,
        stream::Stream,
    },
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use plaintap_proto::LogEntry;
use prost::Message as _;
use tokio::{
    runtime::{self, Runtime},
    sync::{
        mpsc::{self, error::TryRecvError},
        watch,
    },
};

use crate::{
    connect::{self, Connected},
    device::chain,
    permission::{Failed, Refused},
    subject::{self, Kind},
    wanted::{Sieve, Wanted},
};

/// Messages that are asked for at a time, and that wait for whoever shows them. An event is at most 16 KiB.
const BATCH: usize = 128;
const QUEUE: usize = 64;
/// The server says that it is there when it has nothing else to say; twice that long it may be silent.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How long the server remembers a consumer that nobody asks for anything, as behind a pipe that nobody reads.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Devices that a sentence names.
const MOST_NAMED: usize = 20;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread or a runtime can't be had.
    #[error("can't start")]
    Start(#[source] io::Error),
    /// The server.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The server has no JetStream, or this user may not use it, or not yet.
    #[error("{0} does not answer as JetStream, or not for this user")]
    NoJetStream(String),
    /// There is no such stream.
    #[error(
        "{server} has no stream {stream}; plaintap relay makes it, or name another in the query as stream=NAME"
    )]
    NoStream {
        /// The server.
        server: String,
        /// The stream.
        stream: String,
    },
    /// It must be said which.
    #[error("the stream {stream} has {}; name one in the query as device=NAME", listed(.devices))]
    WhichDevice {
        /// The stream.
        stream: String,
        /// All that it has messages of.
        devices: BTreeSet<String>,
    },
    /// This user may not read it.
    #[error("can't read the stream {stream}")]
    Refused {
        /// The stream.
        stream: String,
        /// What is not permitted.
        source: Refused,
    },
    /// It can't be read.
    #[error("can't read the stream {stream}: {why}")]
    Consumer {
        /// The stream.
        stream: String,
        /// What the server said.
        why: String,
    },
}

impl Error {
    /// Whether it may be better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_pass(),
            Self::NoJetStream(_) | Self::NoStream { .. } | Self::Consumer { .. } => true,
            // As where the server refuses the credentials: waiting changes nothing.
            Self::Start(_) | Self::WhichDevice { .. } | Self::Refused { .. } => false,
        }
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It was cut.
    #[error("the connection was cut")]
    Cut,
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// This user may not have what comes.
    #[error(transparent)]
    Refused(Refused),
    /// The server forgot what we read, or what came is not what was to come next.
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// A place in a stream: behind the message `sequence` of the stream that was made at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The only one there was, if none was named: there may be more by now.
    device: String,
    sequence: u64,
    made: DateTime,
}

/// A connection that stands.
pub struct Reader {
    incoming: mpsc::Receiver<Result<Delivered, Ended>>,
    place: Place,
    /// There was nothing left to read.
    idle: bool,
}

/// A message and its sequence number; no body: it was left out.
struct Delivered {
    sequence: u64,
    body: Option<Bytes>,
}

/// What the thread that reads ahead has.
struct Ahead {
    messages: pull::Stream,
    sieve: Sieve,
    cut: watch::Receiver<bool>,
    /// Comes if what it asks for is refused.
    refusal: Pin<Box<dyn Future<Output = Refused> + Send>>,
    outgoing: mpsc::Sender<Result<Delivered, Ended>>,
}

impl Reader {
    /// Connects, and goes on `behind` a place if there is one. Returns what the person should be told, too.
    pub fn connect(wanted: &Wanted, behind: Option<&Place>) -> Result<(Self, Vec<String>), Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
        let (reader, ahead, told) = runtime.block_on(open(wanted, behind))?;
        let run = move || read_ahead(&runtime, ahead);
        thread::Builder::new().name("nats".to_owned()).spawn(run).map_err(Error::Start)?;
        Ok((reader, told))
    }

    /// The next message; `None`: nothing more has come yet, and the next call waits until something does.
    pub fn receive(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            let next = if self.idle {
                self.incoming.blocking_recv()
            } else {
                match self.incoming.try_recv() {
                    Ok(next) => Some(next),
                    Err(TryRecvError::Disconnected) => None,
                    Err(TryRecvError::Empty) => {
                        self.idle = true;
                        return Ok(None);
                    }
                }
            };
            self.idle = false;
            let delivered = next.unwrap_or(Err(Ended::Cut))?;
            self.place.sequence = delivered.sequence;
            if delivered.body.is_some() {
                return Ok(delivered.body);
            }
        }
    }

    /// Behind the last message that was received.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

async fn open(wanted: &Wanted, behind: Option<&Place>) -> Result<(Reader, Ahead, Vec<String>), Error> {
    let (tell, cut) = watch::channel(false);
    let told = move |event| {
        if matches!(event, Event::Disconnected | Event::Closed) {
            // Nobody listens any more once the reader is gone.
            let _ = tell.send(true);
        }
    };
    let connected = wanted.server.connect("plaintap", told).await?;
    let refusals = connected.refusals.clone();
    // What is to be deleted goes by itself, and need not be permitted.
    let its = |subject: &str| !subject.contains(".CONSUMER.DELETE.");
    refusals.or(its, begin(connected, cut, wanted, behind)).await.map_err(|error| match error {
        Failed::Refused(source) => Error::Refused { stream: wanted.stream.clone(), source },
        Failed::Other(error) => error,
    })
}

/// Finds out where to begin, and asks for what is there.
async fn begin(
    connected: Connected,
    cut: watch::Receiver<bool>,
    wanted: &Wanted,
    behind: Option<&Place>,
) -> Result<(Reader, Ahead, Vec<String>), Error> {
    let Connected { context, refusals, shown } = connected;
    let stream = context.get_stream(&wanted.stream).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            Error::NoStream { server: shown.clone(), stream: wanted.stream.clone() }
        }
        _ => Error::NoJetStream(shown.clone()),
    })?;
    let failed = |why| Error::Consumer { stream: wanted.stream.clone(), why };

    let device = match behind.map(|place| &place.device).or(wanted.device.as_ref()) {
        Some(device) => device.clone(),
        None => {
            let mut devices = devices(&stream, "*").await.map_err(failed)?;
            match (devices.pop_first(), devices.len()) {
                (Some(device), 0) => device,
                (first, _) => {
                    devices.extend(first);
                    return Err(Error::WhichDevice { stream: wanted.stream.clone(), devices });
                }
            }
        }
    };
    let token = subject::token(&device);
    let info = stream.cached_info();
    let chosen = wanted.device.is_none() && behind.is_none();
    let (first, mut told) = match behind {
        Some(place) => {
            let (oldest, newest) = (info.state.first_sequence, info.state.last_sequence);
            let (first, told) = go_on(place.sequence, place.made == info.created, oldest, newest);
            (first, vec![told])
        }
        None if wanted.backlog == u64::MAX => (1, vec![]),
        None if wanted.backlog == 0 => (info.state.last_sequence + 1, vec![]),
        None => {
            let events = subject::subject(&device, Kind::Event);
            (newest(&stream, &events, wanted.backlog).await.map_err(failed)?, vec![])
        }
    };
    if behind.is_none()
        && wanted.device.is_some()
        && devices(&stream, &token).await.map_err(failed)?.is_empty()
    {
        let devices = devices(&stream, "*").await.map_err(failed)?;
        told.push(format!(
            "waiting for the first message of {device}: the stream {} has {}",
            wanted.stream,
            listed(&devices)
        ));
    }
    if chosen {
        told.push(format!("reading {device}, the stream's only device"));
    }
    let filter = format!("{}.{token}.*", subject::ROOT);
    let refusal = Box::pin(refusals.refusal(|subject| subject.contains(".CONSUMER.MSG.NEXT.")));
    let consumer = stream.create_consumer(consumer(filter, first)).await;
    let messages = match consumer {
        Ok(consumer) => {
            let messages = consumer.stream().max_messages_per_batch(BATCH).heartbeat(SIGN_OF_LIFE);
            messages.messages().await.map_err(|error| failed(chain(&error)))?
        }
        Err(error) => return Err(failed(chain(&error))),
    };
    let (outgoing, incoming) = mpsc::channel(QUEUE);
    let place = Place { device, sequence: first - 1, made: info.created };
    let reader = Reader { incoming, place, idle: false };
    Ok((reader, Ahead { messages, sieve: wanted.sieve(), cut, refusal, outgoing }, told))
}

/// A consumer of `filter` from the sequence number `first` on, of which the server keeps nothing: the cursor is ours.
fn consumer(filter: String, first: u64) -> pull::Config {
    pull::Config {
        filter_subject: filter,
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: FORGOTTEN,
        ..pull::Config::default()
    }
}

/// Where to go on behind a message in a stream that has those from `first` to `last`, and what is missing between.
fn go_on(sequence: u64, same_stream: bool, first: u64, last: u64) -> (u64, String) {
    if !same_stream {
        return (1, "the stream was made anew: what was missed of the old one is unknown".to_owned());
    }
    if sequence > last {
        let lost = sequence - last;
        return (last + 1, format!("the server lost the stream's last messages: {lost}, of all devices"));
    }
    match first.saturating_sub(sequence + 1) {
        0 => (sequence + 1, "missed nothing while away".to_owned()),
        gone => (first, format!("missed what the stream no longer has: {gone} messages, of all devices")),
    }
}

/// The names of the devices whose messages the stream has, of those that are `token` as a part of a subject.
async fn devices(stream: &Stream, token: &str) -> Result<BTreeSet<String>, String> {
    let filter = format!("{}.{token}.*", subject::ROOT);
    let mut subjects = stream.info_with_subjects(filter).await.map_err(|error| chain(&error))?;
    let mut devices = BTreeSet::new();
    while let Some((subject, _)) = subjects.try_next().await.map_err(|error| chain(&error))? {
        devices.extend(subject.split('.').nth(1).map(subject::name));
    }
    Ok(devices)
}

fn listed(devices: &BTreeSet<String>) -> String {
    let named: Vec<&str> = devices.iter().take(MOST_NAMED).map(String::as_str).collect();
    match (devices.len(), devices.len().saturating_sub(MOST_NAMED)) {
        (0, _) => "no device yet".to_owned(),
        (1, _) => format!("one device, {}", named.join("")),
        (number, 0) => format!("{number} devices: {}", named.join(", ")),
        (number, more) => format!("{number} devices: {} and {more} more", named.join(", ")),
    }
}

/// The sequence number from which on there are `number` messages of `subject`, or all if there are fewer.
///
/// The server tells of each consumer how many messages it has before it: a search by halves takes some twenty
/// questions, where to read back would take all messages of all devices.
async fn newest(stream: &Stream, subject: &str, number: u64) -> Result<u64, String> {
    let state = &stream.cached_info().state;
    // From `low` on there are enough, from `high` on there are not.
    let (mut low, mut high) = (state.first_sequence.max(1), state.last_sequence + 1);
    while high > low + 1 {
        let middle = low + (high - low) / 2;
        let mut asked = stream.create_consumer(consumer(subject.to_owned(), middle)).await;
        let asked = asked.as_mut().map_err(|error| chain(error))?;
        let info = asked.cached_info();
        if info.num_pending >= number {
            low = middle;
        } else {
            high = middle;
        }
        // It would go by itself, later.
        let _ = stream.delete_consumer(&info.name).await;
    }
    Ok(low)
}

fn read_ahead(runtime: &Runtime, ahead: Ahead) {
    runtime.block_on(async {
        let outgoing = ahead.outgoing.clone();
        let ended = tokio::select! {
            ended = deliver(ahead) => ended,
            () = outgoing.closed() => None,
        };
        if let Some(ended) = ended {
            // If the reader is gone nobody wants to know.
            let _ = outgoing.send(Err(ended)).await;
        }
    });
}

/// Delivers until the connection ends, or nobody wants more.
async fn deliver(mut ahead: Ahead) -> Option<Ended> {
    // The consumer numbers what it sends: a hole is a message that was lost on the way.
    for expected in 1.. {
        let message = tokio::select! {
            message = ahead.messages.next() => message,
            _ = ahead.cut.wait_for(|cut| *cut) => return Some(Ended::Cut),
            refused = &mut ahead.refusal => return Some(Ended::Refused(refused)),
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) if error.kind() == MessagesErrorKind::MissingHeartbeat => {
                return Some(Ended::Silent(SIGN_OF_LIFE * 2));
            }
            Some(Err(error)) => return Some(Ended::Broken(chain(&error))),
            None => return Some(Ended::Cut),
        };
        let (number, sequence) = match message.info() {
            Ok(info) => (info.consumer_sequence, info.stream_sequence),
            Err(error) => return Some(Ended::Broken(error.to_string())),
        };
        if number != expected {
            return Some(Ended::Broken("a message was lost on the way".to_owned()));
        }
        let delivered = Delivered { sequence, body: ahead.passed(message) };
        ahead.outgoing.send(Ok(delivered)).await.ok()?;
    }
    None
}

impl Ahead {
    /// A message's body, if it is wanted. What is no `LogEntry` is for the person to see.
    fn passed(&mut self, message: jetstream::Message) -> Option<Bytes> {
        let body = message.message.payload;
        if self.sieve.lets_all_through() {
            return Some(body);
        }
        let through = LogEntry::decode(body.clone()).map_or(true, |entry| self.sieve.lets_through(&entry));
        through.then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_is_told_what_is_missing() {
        for (sequence, same, first, last, expected) in [
            (10, true, 1, 20, (11, "missed nothing while away")),
            (10, true, 11, 20, (11, "missed nothing while away")),
            (10, true, 15, 20, (15, "missed what the stream no longer has: 4 messages, of all devices")),
            (0, true, 0, 0, (1, "missed nothing while away")),
            (10, true, 1, 8, (9, "the server lost the stream's last messages: 2, of all devices")),
            (10, false, 1, 20, (1, "the stream was made anew: what was missed of the old one is unknown")),
        ] {
            let (next, told) = go_on(sequence, same, first, last);
            assert_eq!((next, told.as_str()), expected);
        }
    }

    #[test]
    fn devices_are_listed_up_to_a_number() {
        let devices = |number: usize| (0..number).map(|one| format!("d{one:02}")).collect();
        assert_eq!(listed(&devices(0)), "no device yet");
        assert_eq!(listed(&devices(1)), "one device, d00");
        assert_eq!(listed(&devices(2)), "2 devices: d00, d01");
        assert!(listed(&devices(22)).ends_with("d19 and 2 more"));
    }
}
