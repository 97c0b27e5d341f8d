//! One client's session: kept log lines, a first heartbeat, then the journal from its end on.
//!
//! Owns a cursor into the journal and what this client has had; no queue.

use std::{
    fmt, io,
    net::TcpStream,
    time::{Duration, Instant, SystemTime},
};

use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use bytes::Bytes;
use futures_util::SinkExt;
use smol::{Async, Timer, future, stream::StreamExt};
use tungstenite::{
    Error, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{FAREWELL, Server, within};
use crate::stream::{Cursor, Item, Session, run_log};

/// Source: shared/protocol.md.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Messages handled before other tasks get a turn.
const SLICE: u32 = 64;

type Socket = Async<TcpStream>;

/// How a session ended.
pub enum End {
    /// The client left.
    Left,
    /// We are ending.
    Stopping,
    /// The client broke the protocol.
    Broken(CloseCode, String),
    /// The connection broke.
    Failed(Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("it left"),
            Self::Stopping => f.write_str("plaintapd is ending"),
            Self::Broken(_, why) => write!(f, "it broke the protocol: {why}"),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

/// Serves one admitted client until it leaves or the server stops.
pub async fn run(server: &Server, socket: WebSocketStream<Socket>) -> End {
    let (mut sender, mut receiver) = socket.split();
    let sending = async {
        match send_all(server, &mut sender).await {
            Ok(()) => End::Stopping,
            Err(error) => End::from(error),
        }
    };
    let end = future::or(receive_all(&mut receiver), sending).await;
    let frame = match &end {
        End::Left | End::Failed(_) => return end,
        End::Stopping => CloseFrame { code: CloseCode::Away, reason: "plaintapd is ending".into() },
        End::Broken(code, _) => CloseFrame { code: *code, reason: "".into() },
    };
    let goodbye = async {
        // Either side may be gone already.
        let _ = sender.close(Some(frame)).await;
        receive_all(&mut receiver).await;
        Ok(())
    };
    let _: io::Result<()> = within(FAREWELL, goodbye).await;
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
async fn receive_all(receiver: &mut WebSocketReceiver<Socket>) -> End {
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

/// Sends all that this client is to have, until the server stops.
async fn send_all(server: &Server, sender: &mut WebSocketSender<Socket>) -> Result<(), Error> {
    let mut session = Session::default();
    let (mut cursor, kept): (Cursor, Vec<Bytes>) = {
        let stream = server.stream.borrow();
        (stream.end(), stream.kept_logs(stream.end()))
    };
    for message in kept {
        sender.feed(Message::Binary(message)).await?;
    }
    session.last_seq = cursor.seq() - 1;
    let mut next_heartbeat = Instant::now();
    loop {
        let changed = server.changed();
        let mut left = SLICE;
        loop {
            if Instant::now() >= next_heartbeat {
                next_heartbeat = Instant::now() + HEARTBEAT;
                sender.feed(heartbeat(server, &mut session)).await?;
            }
            let item = server.stream.borrow().read(&mut cursor);
            match item {
                None => break,
                Some(Item::Message(message)) => sender.feed(Message::Binary(message)).await?,
                Some(Item::Missed { messages, bytes }) => {
                    session.missed_messages += messages;
                    session.missed_bytes += bytes;
                    sender.feed(missed(messages, bytes)).await?;
                    sender.feed(heartbeat(server, &mut session)).await?;
                }
            }
            session.last_seq = cursor.seq() - 1;
            left -= 1;
            if left == 0 {
                left = SLICE;
                future::yield_now().await;
            }
        }
        sender.flush().await?;
        if server.stopping.get() {
            return Ok(());
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
fn missed(messages: u64, bytes: u64) -> Message {
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    let line = format!("{time} WRN this client was too slow missed_messages={messages} missed_bytes={bytes}");
    Message::Binary(run_log(&line, 0))
}
