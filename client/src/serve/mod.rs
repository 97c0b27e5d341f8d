//! `plaintap serve`: a stream served again, as viewers expect it that show payloads as they are: HTTP put together and
//! decoded, in fields 1 to 11 only.
//!
//! Each client has a thread and a bounded queue. One that is too slow misses messages, is told how many in its next log
//! line, and slows nobody.

mod plain;

use std::{
    io,
    net::TcpStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use plaintap_proto::{Heartbeat, LogEntry, LogType, log_entry::Payload};
use prost::{DecodeError, Message as _, bytes::Bytes};
use tungstenite::{Error as WsError, Message};

use crate::{
    commands::ServeArgs,
    consume::{self, Consumer, Interrupt},
    note::{self, counted, note},
    server::{self, Server},
    time,
};
use plain::Plain;

/// Messages that wait for a client, each of [`plain::MAX_PAYLOAD`] and a little at most; all clients share their bytes.
const QUEUE: usize = 256;
/// Clients at a time.
const MAX_CLIENTS: usize = 64;
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often a client without news is asked whether it is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing is served, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client can come.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The stream does not go on.
    #[error(transparent)]
    Consume(#[from] consume::Error),
}

/// Serves until the stream ends and is not to go on, or Ctrl-C.
pub fn run(args: ServeArgs) -> Result<(), Error> {
    // Before anybody is told that it is there.
    let interrupt = Interrupt::new()?;
    let server = Server::bind(args.listen.0)?;
    note(&format!("listening on {}", server.url()));
    let clients = Clients::default();
    let accepting = clients.clone();
    thread::spawn(move || {
        for stream in server.incoming() {
            accepting.admit(stream);
        }
    });
    Ok(consume::run_until(
        &interrupt,
        Serve { plain: Plain::default(), clients },
        &args.url,
        !args.no_reconnect,
    )?)
}

struct Serve {
    plain: Plain,
    clients: Clients,
}

impl Consumer for Serve {
    fn message(&mut self, _: &Bytes, entry: Result<&LogEntry, &DecodeError>) -> io::Result<()> {
        // What does not decode has no older form; `inspect` shows it.
        if let Ok(entry) = entry {
            for entry in self.plain.entry(entry) {
                self.clients.send(&Bytes::from(entry.encode_to_vec()));
            }
        }
        Ok(())
    }

    fn text(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn enough(&self) -> bool {
        false
    }

    fn finish(&mut self) -> io::Result<()> {
        for entry in self.plain.finish() {
            self.clients.send(&Bytes::from(entry.encode_to_vec()));
        }
        Ok(())
    }

    fn place(&self) -> String {
        "the clients".to_owned()
    }

    fn is_for_stdout(&self) -> bool {
        false
    }
}

#[derive(Clone, Default)]
struct Clients(Arc<Mutex<Vec<Client>>>);

struct Client {
    queue: SyncSender<Bytes>,
    missed: Arc<AtomicU64>,
}

impl Clients {
    fn send(&self, message: &Bytes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|client| {
            match client.queue.try_send(message.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    client.missed.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }

    /// Gives the connection a thread and a queue.
    fn admit(&self, stream: TcpStream) {
        let (queue, waiting) = sync_channel(QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let client = Client { queue, missed: missed.clone() };
        let clients = self.clone();
        let serve = move || match server::admit(stream) {
            Ok(mut socket) => {
                if !clients.add(client) {
                    note(&format!("a client was turned away: there are {MAX_CLIENTS}"));
                    return;
                }
                note("a client came");
                let served = serve(&mut socket, &waiting, &missed);
                clients.remove(&missed);
                match served {
                    Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => note("a client left"),
                    Err(error) => note(&format!("a client is gone: {}", note::chain(&error))),
                }
            }
            Err(why) => note(&format!("a client was turned away: {why}")),
        };
        if let Err(error) = thread::Builder::new().name("client".to_owned()).spawn(serve) {
            note(&format!("a client was turned away: {error}"));
        }
    }

    fn remove(&self, missed: &Arc<AtomicU64>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|client| !Arc::ptr_eq(&client.missed, missed));
    }

    fn add(&self, client: Client) -> bool {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = clients.len() < MAX_CLIENTS;
        if room {
            clients.push(client);
        }
        room
    }
}

fn serve(socket: &mut server::Client, waiting: &Receiver<Bytes>, missed: &AtomicU64) -> Result<(), WsError> {
    let (mut count, mut told) = (0, 0);
    let mut due = Instant::now();
    loop {
        if Instant::now() >= due {
            socket.write(heartbeat(count))?;
            count += 1;
            due += HEARTBEAT;
        }
        match waiting.recv_timeout(LOOK) {
            Ok(message) => socket.write(Message::Binary(message))?,
            // Its pings are answered, and its leaving noticed.
            Err(RecvTimeoutError::Timeout) => server::wait(socket, Duration::from_millis(1))?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        while let Ok(message) = waiting.try_recv() {
            socket.write(Message::Binary(message))?;
        }
        let missed = missed.load(Ordering::Relaxed);
        if missed > told {
            let line =
                format!("{} WRN too slow: missed {} so far", time::utc_s(), counted(missed, "message"));
            let (log_type, payload) = (LogType::ProcessLog.into(), Some(Payload::RunLog(line)));
            let line = LogEntry { log_type, payload, ..LogEntry::default() };
            socket.write(Message::binary(line.encode_to_vec()))?;
            told = missed;
        }
        socket.flush()?;
    }
}

fn heartbeat(count: i64) -> Message {
    let (timestamp, message) = (server::now_s(), format!("heartbeat:{count}"));
    let heartbeat = Heartbeat { timestamp, count, message, ..Heartbeat::default() };
    let payload = Some(Payload::HeartbeatPayload(heartbeat));
    Message::binary(LogEntry { payload, ..LogEntry::default() }.encode_to_vec())
}
