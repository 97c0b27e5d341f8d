//! One client's session: kept log lines, a first heartbeat, then the journal from where the client starts.
//!
//! Owns a cursor into the journal and what this client has had; no queue.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use bytes::Bytes;
use futures_util::SinkExt;
use smol::{Timer, future, stream::StreamExt};
use tungstenite::{
    Error, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    FAREWELL, Leave, Server,
    progress::{self, Counted},
    query::{Query, Start},
    within,
};
use crate::{
    args::SlowClient,
    stream::{Cursor, Item, Session, Stream, own_line},
};

/// Source: shared/protocol.md.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Messages handled before other tasks get a turn.
const SLICE: u32 = 64;
/// A connection's end where the client was too slow for `--slow-client disconnect`. Source: docs/protocol.md.
const TOO_SLOW: CloseCode = CloseCode::Library(4008);
/// How long a slow client may take for its end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a session ended.
pub enum End {
    /// The client left.
    Left,
    /// We are ending.
    Stopping(Leave),
    /// The journal left the client behind, and it was not to go on.
    TooSlow {
        /// What it missed.
        messages: u64,
        /// Their encoded bytes.
        bytes: u64,
    },
    /// The client accepted nothing any more.
    Stuck,
    /// The client broke the protocol.
    Broken(CloseCode, String),
    /// The connection broke.
    Failed(Error),
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ending => "plaintapd is ending",
            Self::HalfGone => "the half of plaintapd that captures ended without a word",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("it left"),
            Self::Stopping(leave) => write!(f, "{leave}"),
            Self::TooSlow { messages, bytes } => {
                write!(f, "it was too slow missed_messages={messages} missed_bytes={bytes}")
            }
            Self::Stuck => {
                write!(f, "it accepted nothing for {} s and was reset", progress::PATIENCE.as_secs())
            }
            Self::Broken(_, why) => write!(f, "it broke the protocol: {why}"),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

/// Serves one admitted client what its `query` asks for, until it leaves, is `stuck` or the server stops.
pub async fn run(
    server: &Server,
    query: &Query,
    socket: WebSocketStream<Counted<'_>>,
    stuck: impl Future<Output = ()>,
) -> End {
    let (mut sender, mut receiver) = socket.split();
    let sending = async { send_all(server, query, &mut sender).await.unwrap_or_else(End::from) };
    let stuck = async {
        stuck.await;
        End::Stuck
    };
    let end = future::or(receive_all(&mut receiver), future::or(sending, stuck)).await;
    let (limit, frame) = match &end {
        End::Left | End::Failed(_) | End::Stuck => return end,
        End::Stopping(leave) => {
            // Who asked that clients be sent away knows of it; who did not is to know that something is wrong.
            let code = match leave {
                Leave::Ending => CloseCode::Away,
                Leave::HalfGone => CloseCode::Error,
            };
            (FAREWELL, CloseFrame { code, reason: leave.to_string().into() })
        }
        End::TooSlow { messages, bytes } => {
            let reason = format!("too slow: missed_messages={messages} missed_bytes={bytes}");
            (LAST_WORDS, CloseFrame { code: TOO_SLOW, reason: reason.into() })
        }
        End::Broken(code, _) => (FAREWELL, CloseFrame { code: *code, reason: "".into() }),
    };
    let goodbye = async {
        // Either side may be gone already.
        let _ = sender.close(Some(frame)).await;
        receive_all(&mut receiver).await;
        Ok(())
    };
    let _: io::Result<()> = within(limit, goodbye).await;
    end
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => Self::Left,
            Error::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Self::Left,
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => Self::Left,
            Error::Protocol(_) => Self::Broken(CloseCode::Protocol, error.to_string()),
            Error::Utf8(_) => Self::Broken(CloseCode::Invalid, error.to_string()),
            Error::Capacity(_) => Self::Broken(CloseCode::Size, error.to_string()),
            error => Self::Failed(error),
        }
    }
}

/// Reads and drops what the client sends; pings and close frames are answered on the way.
async fn receive_all(receiver: &mut WebSocketReceiver<Counted<'_>>) -> End {
    let mut messages = 0u32;
    loop {
        match receiver.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return End::from(error),
            None => return End::Left,
        }
        messages = messages.wrapping_add(1);
        if messages.is_multiple_of(SLICE) {
            future::yield_now().await;
        }
    }
}

/// How a client's session begins.
struct Opening {
    cursor: Cursor,
    /// Messages between what it knows and the cursor that it can't be given.
    missed: u64,
    lines: Vec<Bytes>,
}

impl Opening {
    fn new(stream: &Stream, query: &Query) -> Self {
        let (cursor, missed, lines) = match &query.start {
            Start::Newest(events) => {
                let cursor = match *events {
                    u64::MAX => stream.oldest(),
                    events => stream.newest(events, |subject| query.wants_event(subject)),
                };
                (cursor, 0, stream.kept_logs(cursor))
            }
            Start::After { seq, run } => Self::resumed(stream, *seq, run, query.logs),
        };
        Self { cursor, missed, lines: if query.logs { lines } else { vec![] } }
    }

    /// Of a client that knows the messages up to `seq` of `run`: cursor, missed messages and lines.
    fn resumed(stream: &Stream, seq: u64, run: &str, logs: bool) -> (Cursor, u64, Vec<Bytes>) {
        let known = if run == stream.run_id() { stream.after(seq) } else { None };
        let Some(cursor) = known else {
            // Nothing of this run is known there, so all of it is news.
            let cursor = stream.oldest();
            let why = if run == stream.run_id() { "it has not come so far" } else { "this is another run" };
            let text = format!(
                "resuming after={seq} is not possible: {why} run_id={} first={}",
                stream.run_id(),
                cursor.seq()
            );
            let mut lines = vec![own_line("WRN", &text)];
            lines.extend(stream.kept_logs(cursor));
            return (cursor, 0, lines);
        };
        let kept = if logs { stream.kept_logs_after(seq, cursor) } else { vec![] };
        let missed = cursor.seq() - 1 - seq - kept.len() as u64;
        let notice = match missed {
            0 => own_line("INF", &format!("resumed after={seq} missed_messages=0")),
            _ => {
                let (first, last) = (seq + 1, cursor.seq() - 1);
                own_line(
                    "WRN",
                    &format!("resumed after={seq} missed_messages={missed} first={first} last={last}"),
                )
            }
        };
        (cursor, missed, [notice].into_iter().chain(kept).collect())
    }
}

/// Sends all that this client is to have, until the server stops or the client is too slow.
async fn send_all(
    server: &Server,
    query: &Query,
    sender: &mut WebSocketSender<Counted<'_>>,
) -> Result<End, Error> {
    let Opening { mut cursor, missed, lines } = Opening::new(&server.stream.borrow(), query);
    for message in lines {
        sender.feed(Message::Binary(message)).await?;
    }
    let mut session = Session { last_seq: cursor.seq() - 1, missed_messages: missed, ..Session::default() };
    let mut next_heartbeat = Instant::now();
    loop {
        let changed = server.changed();
        let mut left = SLICE;
        loop {
            if Instant::now() >= next_heartbeat {
                next_heartbeat = Instant::now() + HEARTBEAT;
                sender.feed(heartbeat(server, &mut session)).await?;
            }
            let item = server.stream.borrow().read(&mut cursor, |subject| query.wants(subject));
            match item {
                None => break,
                Some(Item::Missed { messages, bytes }) if server.slow_client == SlowClient::Disconnect => {
                    return Ok(End::TooSlow { messages, bytes });
                }
                Some(Item::Missed { messages, bytes }) => {
                    session.last_seq = cursor.seq() - 1;
                    session.missed_messages += messages;
                    session.missed_bytes += bytes;
                    if query.logs {
                        sender.feed(too_slow(messages, bytes)).await?;
                    }
                    sender.feed(heartbeat(server, &mut session)).await?;
                }
                Some(Item::Message(message)) => {
                    sender.feed(Message::Binary(message)).await?;
                    session.last_seq = cursor.seq() - 1;
                }
                Some(Item::LeftOut) => session.last_seq = cursor.seq() - 1,
            }
            left -= 1;
            if left == 0 {
                left = SLICE;
                future::yield_now().await;
            }
        }
        sender.flush().await?;
        if let Some(leave) = server.leaving.get() {
            return Ok(End::Stopping(leave));
        }
        let beat = async {
            Timer::at(next_heartbeat).await;
        };
        future::or(changed, beat).await;
    }
}

fn heartbeat(server: &Server, session: &mut Session) -> Message {
    let message = server.stream.borrow().heartbeat(session, server.losses(), server.clients.get());
    session.heartbeats += 1;
    Message::Binary(message)
}

/// Tells a client that was too slow what it missed.
fn too_slow(messages: u64, bytes: u64) -> Message {
    let text = format!("this client was too slow missed_messages={messages} missed_bytes={bytes}");
    Message::Binary(own_line("WRN", &text))
}
