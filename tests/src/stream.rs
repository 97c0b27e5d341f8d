//! A client of the agent: blocking, with a bound to every wait. It keeps all that it received.

use std::mem;
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::log_entry::Payload;
use plaintap_proto::{Event, Heartbeat, LogEntry};
use prost::Message as _;
use tungstenite::handshake::client::Response;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Bytes, ClientRequestBuilder, Error, Message, WebSocket};

use crate::PATIENCE;
use crate::waits::{Restarting, is_timeout};

/// More answers to pings than any test's messages take that wait in the agent's socket.
const MAX_PINGS: u32 = 1000;

/// So many answers in a row with nothing in between say that the agent has nothing more. One that was held up answers the
/// first before it looks at the ring, the second before its nap begins, the third before it knows that the nap is over, the
/// fourth before it sends what it then took; and four at the most before it turns to others. Source:
/// agent/src/server/progress.rs, READS.
const QUIET: u32 = 6;

/// Twice the longest nap that the agent takes between a record and those behind it.
const NAP: Duration = Duration::from_millis(2);

/// One message of the stream.
#[derive(Clone, Debug)]
pub struct Received {
    /// As it came.
    pub raw: Bytes,
    /// What it says.
    pub entry: LogEntry,
}

impl Received {
    /// The event, if it is one.
    pub fn event(&self) -> Option<&Event> {
        match &self.entry.payload {
            Some(Payload::EventPayload(event)) => Some(event),
            _ => None,
        }
    }

    /// The heartbeat, if it is one.
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        match &self.entry.payload {
            Some(Payload::HeartbeatPayload(heartbeat)) => Some(heartbeat),
            _ => None,
        }
    }

    /// The line of the agent's own log, if it is one.
    pub fn log(&self) -> Option<&str> {
        match &self.entry.payload {
            Some(Payload::RunLog(line)) => Some(line),
            _ => None,
        }
    }
}

/// A connected client.
pub struct Client {
    socket: WebSocket<Restarting>,
    /// The handshake's answer.
    pub answer: Response,
    /// All messages so far.
    pub messages: Vec<Received>,
    /// The payloads of the pongs so far.
    pub pongs: Vec<Bytes>,
    /// Set once the agent has closed: with what it gave as its reason.
    pub closed: Option<Option<CloseFrame>>,
    last_seq: u64,
    /// A ping of `read_some` is not answered yet.
    is_asking: bool,
}

impl Client {
    /// Connects to the agent at `url` and waits for its first heartbeat, after which everything is live.
    pub fn connect(url: &str) -> Result<Self> {
        let mut client = Self::connect_with(url, &[])?;
        client.wait_for("the first heartbeat", |messages| {
            messages.iter().find_map(Received::heartbeat).cloned()
        })?;
        Ok(client)
    }

    /// Connects with these headers besides those of every WebSocket client.
    pub fn connect_with(url: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let uri: tungstenite::http::Uri = url.parse().with_context(|| url.to_owned())?;
        let authority = uri.authority().with_context(|| format!("no address in {url}"))?.as_str();
        let address =
            authority.to_socket_addrs()?.next().with_context(|| format!("no address for {authority}"))?;
        let stream =
            TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connecting to {url}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = ClientRequestBuilder::new(uri);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.with_header(*name, *value));
        let (socket, answer) = match tungstenite::client(request, Restarting(stream)) {
            Ok(connected) => connected,
            Err(error) => bail!("the handshake with {url}: {error}"),
        };
        Ok(Self {
            socket,
            answer,
            messages: Vec::new(),
            pongs: Vec::new(),
            closed: None,
            last_seq: 0,
            is_asking: false,
        })
    }

    /// The `plaintap-run-id` of the handshake's answer.
    pub fn run_id(&self) -> Option<&str> {
        self.answer.headers().get("plaintap-run-id")?.to_str().ok()
    }

    /// The events so far.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.messages.iter().filter_map(Received::event)
    }

    /// The lines of the agent's log so far.
    pub fn logs(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().filter_map(Received::log)
    }

    /// Reads until `answer`, asked after each message, has one.
    pub fn wait_for<T>(&mut self, what: &str, mut answer: impl FnMut(&[Received]) -> Option<T>) -> Result<T> {
        self.wait(what, |client| answer(&client.messages))
    }

    /// Reads until the agent has answered a ping of `payload`. All that it captured before is then here, if nothing is being
    /// captured any more.
    pub fn ping(&mut self, payload: &'static [u8]) -> Result<()> {
        // The agent naps before it takes what came behind a record, and has one thread: what is due when it answers a ping
        // is done when it answers the next. Its answer overtakes what the socket's buffer had no room for, so there must
        // come nothing in between; under load, something always does.
        let (mut rounds, mut quiet) = (0, 0);
        while quiet < QUIET && rounds < MAX_PINGS {
            thread::sleep(NAP);
            let before = self.messages.len();
            self.pongs.retain(|pong| pong != payload);
            self.send(Message::Ping(Bytes::from_static(payload)))?;
            self.wait("a pong", |client| client.pongs.iter().any(|pong| pong == payload).then_some(()))?;
            quiet = if self.messages.len() == before { quiet + 1 } else { 0 };
            rounds += 1;
        }
        Ok(())
    }

    /// Reads what there is now, at most `limit` messages.
    pub fn read_some(&mut self, limit: usize) -> Result<()> {
        const PAYLOAD: &[u8] = b"more";
        // A pong's coming ends it, as nothing else may come for seconds. Where `limit` did, the next call waits for it.
        if !mem::replace(&mut self.is_asking, true) {
            self.send(Message::Ping(Bytes::from_static(PAYLOAD)))?;
        }
        let enough = self.messages.len() + limit;
        self.wait("a pong", |client| {
            let answered = client.pongs.iter().any(|pong| pong == PAYLOAD);
            (answered || client.messages.len() >= enough).then_some(())
        })?;
        self.is_asking = !self.pongs.iter().any(|pong| pong == PAYLOAD);
        self.pongs.retain(|pong| pong != PAYLOAD);
        Ok(())
    }

    /// Reads until the agent closes, and gives its reason.
    pub fn wait_for_close(&mut self) -> Result<Option<CloseFrame>> {
        self.wait("the agent to close", |client| client.closed.clone())
    }

    /// Sends anything.
    pub fn send(&mut self, message: Message) -> Result<()> {
        self.socket.send(message).context("sending to the agent")
    }

    /// The TCP connection, for those who want to break the rules.
    pub fn tcp(&self) -> &TcpStream {
        self.socket.get_ref()
    }

    fn wait<T>(&mut self, what: &str, mut answer: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = answer(self) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {PATIENCE:?} for {what}; {}", self.summary());
            }
            if self.closed.is_some() {
                bail!("waited for {what}, but the agent closed: {:?}; {}", self.closed, self.summary());
            }
            self.read(left).with_context(|| format!("waiting for {what}; {}", self.summary()))?;
        }
    }

    /// Reads one message, or nothing when none comes within `limit`.
    fn read(&mut self, limit: Duration) -> Result<()> {
        self.socket.get_ref().set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        match self.socket.read() {
            Ok(Message::Binary(raw)) => self.take(raw)?,
            Ok(Message::Pong(payload)) => self.pongs.push(payload),
            Ok(Message::Close(frame)) => {
                self.closed = Some(frame);
                // The answer to a close is flushed by the next call; its error is the end itself.
                let _ = self.socket.flush();
            }
            Ok(Message::Ping(_)) => {}
            Ok(other) => bail!("the agent sent what the protocol has not: {other:?}"),
            Err(Error::Io(error)) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Keeps a message that obeys the rules which hold for all of them.
    fn take(&mut self, raw: Bytes) -> Result<()> {
        let entry = LogEntry::decode(raw.clone()).with_context(|| format!("decoding {raw:02x?}"))?;
        let received = Received { raw, entry };
        let seq = received.entry.seq;
        ensure!(seq == 0 || seq > self.last_seq, "seq {seq} after {}: {received:?}", self.last_seq);
        ensure!(received.entry.payload.is_some(), "a message without a payload: {received:?}");
        ensure!(received.heartbeat().is_none() || seq == 0, "a heartbeat in the journal: {received:?}");
        ensure!(received.event().is_none() || seq > 0, "an event outside the journal: {received:?}");
        self.last_seq = self.last_seq.max(seq);
        self.messages.push(received);
        Ok(())
    }

    fn summary(&self) -> String {
        let events: Vec<_> = self.events().collect();
        let last = events.iter().rev().take(8).map(|event| {
            format!(
                "\n  {} type={} offset={} length={}",
                event.uuid, event.r#type, event.stream_offset, event.length
            )
        });
        format!(
            "it had sent {} messages, {} of them events, the last first:{}",
            self.messages.len(),
            events.len(),
            last.collect::<String>()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use plaintap_proto::LogType;
    use tungstenite::protocol::frame::coding::CloseCode;

    use super::*;

    fn message(seq: u64, payload: Payload) -> Message {
        let log_type = match payload {
            Payload::EventPayload(_) => LogType::Event,
            Payload::HeartbeatPayload(_) => LogType::Heartbeat,
            Payload::RunLog(_) => LogType::ProcessLog,
        };
        let entry = LogEntry { log_type: log_type as i32, seq, payload: Some(payload) };
        Message::Binary(entry.encode_to_vec().into())
    }

    /// A server that sends `messages`, then closes with 1001; it answers pings for as long as the client is there.
    fn server(messages: Vec<Message>) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        thread::spawn(move || {
            let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
            for message in messages {
                socket.send(message).unwrap();
            }
            let reason = CloseFrame { code: CloseCode::Away, reason: "".into() };
            while let Ok(message) = socket.read() {
                if message.is_text() {
                    socket.close(Some(reason.clone())).unwrap();
                }
            }
        });
        url
    }

    #[test]
    fn messages_pongs_and_the_close_are_told_apart() {
        let log = message(1, Payload::RunLog("a line".into()));
        let event = message(2, Payload::EventPayload(Event::default()));
        let url = server(vec![log, message(0, Payload::HeartbeatPayload(Heartbeat::default())), event]);
        let mut client = Client::connect(&url).unwrap();
        assert_eq!(client.logs().collect::<Vec<_>>(), ["a line"]);
        client.ping(b"are you there").unwrap();
        assert_eq!(client.events().count(), 1);
        client.send(Message::text("close")).unwrap();
        assert_eq!(client.wait_for_close().unwrap().unwrap().code, CloseCode::Away);
    }

    #[test]
    fn a_message_that_comes_twice_is_an_error() {
        let log = message(1, Payload::RunLog("a line".into()));
        let mut client = Client::connect_with(&server(vec![log.clone(), log]), &[]).unwrap();
        let error = client.ping(b"").unwrap_err();
        assert!(format!("{error:#}").contains("seq 1 after 1"), "{error:#}");
    }
}
