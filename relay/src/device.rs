//! One device's stream on its way into JetStream: each message is stored before the next one is sent.
//!
//! The publish of each numbered message names the sequence number that the last message on its subject must have. So a
//! message that was stored though its acknowledgement was lost is not stored again, messages keep their order, and of two
//! relays for one device only one gets through: both send the same messages, and of each only one is taken.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap,
    connection::State,
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID},
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
        publish::PublishAck,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use tokio::time::sleep;

use crate::{
    metrics::{Gauges, Waiting},
    note,
    permission::{Failed, Refusals},
    subject::{self, Kind},
    track::{About, Outgoing, Place},
    value,
};

/// Between attempts to store a message.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// What a message's headers take at the most: names of some 200 bytes, and of the values four texts of 256 characters.
const LARGEST_HEADERS: usize = 5 << 10;

/// Another relay sends this device's stream.
#[derive(Debug)]
pub struct Fenced;

/// How much of a device's stream is stored.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Where it goes on.
    pub place: Place,
    /// The number of the last line of that run, which may have come ahead of what was before it; 0: none.
    pub line: u64,
    /// The sequence number of the last message of each kind; 0: there is none.
    last: HashMap<Kind, u64>,
}

impl End {
    fn is_known(&self) -> bool {
        self.last.values().any(|sequence| *sequence > 0)
    }
}

/// Where a device's stream goes.
pub struct Device {
    context: jetstream::Context,
    refusals: Refusals,
    stream: Stream,
    name: String,
    /// What it was called before.
    before: Option<String>,
    /// The sequence number of the last message of each kind; 0: there is none.
    last: HashMap<Kind, u64>,
    gauges: Gauges,
}

/// A device's last message of a kind, as it is stored.
struct Stored {
    sequence: u64,
    id: Option<String>,
    seq: u64,
    gap: u64,
    place: Place,
    body: bytes::Bytes,
}

impl Device {
    /// A device by its name; `read_end` comes first.
    pub fn new(
        context: jetstream::Context,
        refusals: Refusals,
        stream: Stream,
        name: String,
        before: Option<String>,
        gauges: Gauges,
    ) -> Self {
        Self { context, refusals, stream, name, before, last: HashMap::new(), gauges }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads back from the stream where this device's ends. Tries until it can.
    pub async fn read_end(&mut self) -> End {
        let end = self.end_of(&self.name).await;
        self.last.clone_from(&end.last);
        match &self.before {
            Some(before) if !end.is_known() => self.end_of(before).await,
            _ => end,
        }
    }

    /// Reads back whether the stream has any message of this device. Tries until it can.
    pub async fn is_known(&self) -> bool {
        self.end_of(&self.name).await.is_known()
    }

    async fn end_of(&self, name: &str) -> End {
        let mut newest: Option<Stored> = None;
        let (mut last, mut places, mut line) = (HashMap::new(), Vec::new(), None);
        let mut trouble = None;
        for kind in Kind::ALL {
            let stored = self.stored(name, kind, &mut trouble).await;
            last.insert(kind, stored.as_ref().map_or(0, |stored| stored.sequence));
            let Some(stored) = stored else { continue };
            places.push(stored.place.clone());
            if kind == Kind::Log {
                line = Some((stored.place.run.clone(), stored.seq));
            }
            if newest.as_ref().is_none_or(|newest| newest.sequence < stored.sequence) {
                newest = Some(stored);
            }
        }
        // Heartbeats of a relay that stays back may be of an earlier place in the same run.
        let run = newest.map(|newest| newest.place.run).unwrap_or_default();
        let seq = places.iter().filter(|place| place.run == run).map(|place| place.seq).max();
        let line = line.filter(|(of, _)| *of == run).map_or(0, |(_, seq)| seq);
        End { place: Place { seq: seq.unwrap_or(0), run }, line, last }
    }

    /// The sequence number of the last message of each kind, as last read back or stored.
    pub fn last(&self) -> HashMap<Kind, u64> {
        self.last.clone()
    }

    /// The last message of a kind. Tries until it can be asked; `trouble` is there once an attempt has failed.
    async fn stored(&self, name: &str, kind: Kind, trouble: &mut Option<Waiting>) -> Option<Stored> {
        let mut delay = FIRST_DELAY;
        loop {
            let subject = subject::subject(name, kind);
            let asked = self.stream.get_last_raw_message_by_subject(&subject);
            match self.refusals.or(|subject| subject.contains(".STREAM.MSG.GET."), asked).await {
                Ok(message) => {
                    let text = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
                    let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
                    return Some(Stored {
                        sequence: message.sequence,
                        id: message.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str().to_owned()),
                        seq: number(subject::SEQ),
                        gap: number(subject::GAP),
                        place: Place {
                            run: text(subject::RUN).unwrap_or_default(),
                            seq: number(subject::PLACE),
                        },
                        body: message.payload.clone(),
                    });
                }
                Err(Failed::Other(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return None;
                }
                Err(error) => {
                    trouble.get_or_insert_with(|| {
                        note(&format!("can't read back device={} error={:?}", value(name), chain(&error)));
                        self.gauges.waiting()
                    });
                    wait(&mut delay).await;
                }
            }
        }
    }

    /// Stores a message, however long that takes; or that it is missing, if the server takes none so large.
    pub async fn store(&mut self, message: Outgoing) -> Result<(), Fenced> {
        let mut trouble = None;
        let stored = self.store_in_spite_of(message, &mut trouble).await;
        if trouble.is_some() && stored.is_ok() {
            note(&format!("stores again device={}", value(&self.name)));
        }
        stored
    }

    /// What says that this message is missing, because it is too large by a limit of the server's.
    fn left_out(&self, message: &Outgoing, limit: &str) -> Outgoing {
        let bytes = message.body.len();
        note(&format!(
            "leaves out what the server does not take device={} bytes={bytes} because={limit}",
            value(&self.name)
        ));
        Outgoing::gap(message.seq, message.place.clone(), 1, &format!(" bytes={bytes} because={limit}"))
    }

    /// `trouble` is there once an attempt has failed.
    async fn store_in_spite_of(
        &mut self,
        mut message: Outgoing,
        trouble: &mut Option<Waiting>,
    ) -> Result<(), Fenced> {
        let (mut delay, mut tried) = (FIRST_DELAY, false);
        let client = self.context.client();
        loop {
            // NATS's client would keep what is sent meanwhile, and send each attempt of it afterwards.
            if client.connection_state() != State::Connected {
                trouble.get_or_insert_with(|| self.waits("no connection to the server"));
                wait(&mut delay).await;
                continue;
            }
            if message.body.len().saturating_add(LARGEST_HEADERS) > client.server_info().max_payload
                && message.gap == 0
            {
                message = self.left_out(&message, "max_payload");
            }
            let expected = self.last.get(&message.kind).copied().unwrap_or(0);
            let begun = Instant::now();
            match self.publish(&message, expected).await {
                // At the first attempt nobody but another relay can have stored it.
                Ok(ack) if ack.duplicate && message.moves() && !tried => return Err(Fenced),
                Ok(ack) => {
                    // Of what was stored before, it is not the last one's.
                    self.last.insert(message.kind, ack.sequence.max(expected));
                    self.gauges.stored(&message, begun.elapsed());
                    return Ok(());
                }
                Err(Failed::Other(error)) if is_too_large(&error) && message.gap == 0 => {
                    message = self.left_out(&message, "max_msg_size");
                }
                Err(Failed::Other(error)) if error.kind() == PublishErrorKind::WrongLastSequence => {
                    let stored = self.stored(&self.name, message.kind, trouble).await;
                    self.last.insert(message.kind, stored.as_ref().map_or(0, |stored| stored.sequence));
                    match stored {
                        // It is there already, and its acknowledgement was lost.
                        Some(stored) if tried && stored.id == id(&message) && stored.body == message.body => {
                            self.gauges.stored(&message, begun.elapsed());
                            return Ok(());
                        }
                        // A line without a number, which anyone may put in between.
                        Some(Stored { seq: 0, gap: 0, sequence, .. }) if sequence != expected => {}
                        // The kind's messages were deleted.
                        None if expected > 0 => {}
                        _ => return Err(Fenced),
                    }
                }
                Err(error) => {
                    tried = true;
                    trouble.get_or_insert_with(|| self.waits(&chain(&error)));
                    wait(&mut delay).await;
                }
            }
        }
    }

    fn waits(&self, why: &str) -> Waiting {
        note(&format!("waits device={} error={why:?}", value(&self.name)));
        self.gauges.waiting()
    }

    async fn publish(&self, message: &Outgoing, expected: u64) -> Result<PublishAck, Failed<PublishError>> {
        let subject = subject::subject(&self.name, message.kind);
        let mut headers = HeaderMap::new();
        if let Some(id) = id(message) {
            headers.insert(NATS_MESSAGE_ID, id.as_str());
        }
        if message.seq > 0 {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string().as_str());
        }
        headers.insert(subject::CONTENT_TYPE, subject::LOG_ENTRY);
        headers.insert(subject::RUN, subject::header_text(&message.place.run).as_str());
        let seq = if message.gap > 0 { 0 } else { message.seq };
        headers.insert(subject::SEQ, seq.to_string().as_str());
        headers.insert(subject::PLACE, message.place.seq.to_string().as_str());
        if message.gap > 0 {
            headers.insert(subject::GAP, message.gap.to_string().as_str());
        }
        if let Some(About { pid, comm, host, .. }) = &message.about {
            headers.insert(subject::PID, pid.to_string().as_str());
            headers.insert(subject::COMM, subject::header_text(comm).as_str());
            if !host.is_empty() {
                headers.insert(subject::HOST, subject::header_text(host).as_str());
            }
        }
        let sent = self.context.publish_with_headers(subject.clone(), headers, message.body.clone());
        self.refusals.or(|refused| refused == subject, async { sent.await?.await }).await
    }
}

/// What a message that is sent twice is known by; none for those without a number or a run, of which each is another one.
fn id(message: &Outgoing) -> Option<String> {
    let run = &message.place.run;
    match (message.seq, message.gap) {
        (0, _) => None,
        _ if run.is_empty() => None,
        (seq, 0) => Some(format!("{run}:{seq}")),
        (seq, gap) => Some(format!("{run}:{seq}-{gap}")),
    }
}

/// Whether the stream takes no message of this size. Whoever made it may have said so.
fn is_too_large(error: &PublishError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<jetstream::Error>() {
            return error.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM;
        }
        cause = error.source();
    }
    error.kind() == PublishErrorKind::MaxPayloadExceeded
}

async fn wait(delay: &mut Duration) {
    // Where many wait for one server, they don't come back as one: from half of it to all.
    sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    *delay = (*delay * 2).min(LONGEST_DELAY);
}

/// An error and its causes, in one line. NATS's client repeats itself, and says up to three times that time was over.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        let again = text.ends_with(&said) || is_timeout(&text) && is_timeout(&said);
        if !again {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

fn is_timeout(text: &str) -> bool {
    text.ends_with("timed out") || text.ends_with("deadline has elapsed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error with a cause, if there are more words.
    #[derive(Debug)]
    struct Says(&'static [&'static str], Option<Box<Says>>);

    impl Says {
        fn new(all: &'static [&'static str]) -> Self {
            Self(all, (all.len() > 1).then(|| Box::new(Self::new(&all[1..]))))
        }
    }

    impl std::fmt::Display for Says {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str(self.0[0])
        }
    }

    impl std::error::Error for Says {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_ref().map(|cause| cause.as_ref() as _)
        }
    }

    #[test]
    fn that_time_was_over_is_said_once() {
        let error = Says::new(&["can't get: timed out", "request timed out", "deadline has elapsed"]);
        assert_eq!(chain(&error), "can't get: timed out");
        assert_eq!(chain(&Says::new(&["a", "b", "b", "c timed out"])), "a: b: c timed out");
    }
}
