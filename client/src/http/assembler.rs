//! The connections that are followed, and what they may cost.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use plaintap_proto::Event;

use super::{
    Gap, Item, Limits, Origin,
    http1::Http1,
    http2::Http2,
    joined::{Joined, Key, side},
    programs::Programs,
    websocket::{Agreed, WebSocket},
};

/// Puts the events of many connections together.
#[derive(Debug, Default)]
pub struct Assembler {
    limits: Limits,
    connections: HashMap<Key, Connection>,
    programs: Programs,
    /// Who spoke when, so that the one that was quiet for longest is found.
    recent: BTreeMap<u64, Key>,
    /// How many events there were.
    clock: u64,
    /// Bytes held by all connections.
    held: usize,
    let_go: u64,
}

/// What a parser works with besides its own state.
pub(super) struct Context<'a> {
    pub(super) origin: &'a Arc<Origin>,
    /// The event at hand, for what is shown as it came.
    pub(super) event: &'a Event,
    pub(super) limits: Limits,
    pub(super) out: &'a mut Vec<Item>,
}

impl Context<'_> {
    /// Hands out bytes that are no HTTP.
    pub(super) fn raw(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let app = self.origin.app.clone();
        let event = Event { payload: bytes.into(), length, lost_before: 0, app, ..self.event.clone() };
        self.out.push(Item::Raw(Box::new(event)));
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.out.push(Item::Note(self.origin.clone(), note.into()));
    }
}

/// A connection turns to another protocol; the bytes of either side that belong to it come along.
pub(super) enum Turn {
    Http2([Vec<u8>; 2]),
    WebSocket(Agreed, [Vec<u8>; 2]),
}

#[derive(Debug)]
struct Connection {
    origin: Arc<Origin>,
    /// When the process started; 0 if unknown.
    started: u64,
    joined: [Joined; 2],
    /// `None` before the first event.
    midway: Option<bool>,
    parser: Parser,
    used: u64,
    held: usize,
}

#[derive(Debug)]
enum Parser {
    Http1(Box<Http1>),
    Http2(Box<Http2>),
    WebSocket(Box<WebSocket>),
}

impl Assembler {
    /// Knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// What is complete with this event.
    pub fn push(&mut self, event: &Event) -> Vec<Item> {
        let mut out = vec![];
        let key = Key::of(event);
        self.clock += 1;
        let connection = self.connections.entry(key.clone()).or_default();
        self.recent.remove(&connection.used);
        self.recent.insert(self.clock, key);
        connection.used = self.clock;
        self.programs.learn(event);
        connection.know(event);
        connection.name(&self.programs);
        connection.push(event, self.limits, &mut out);
        let held = connection.parser.held() + 2048;
        self.held = self.held - connection.held + held;
        connection.held = held;
        while self.held > self.limits.total.max(1) || self.connections.len() > self.limits.connections.max(1)
        {
            let Some((_, key)) = self.recent.pop_first() else { break };
            let Some(mut connection) = self.connections.remove(&key) else { break };
            connection.name(&self.programs);
            self.held -= connection.held;
            self.let_go += 1;
            connection.finish(&mut out, "let go: too much was open at once");
        }
        out
    }

    /// Bodies that end with their connections, of which nothing came since `before` (ns since 1970): that a connection
    /// ended is not told.
    pub fn rest(&mut self, before: i64) -> Vec<Item> {
        let mut out = vec![];
        for key in self.recent.values() {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            connection.name(&self.programs);
            if let Parser::Http1(http1) = &mut connection.parser {
                http1.rest(before, &connection.origin, &mut out);
            }
        }
        out
    }

    /// What was begun and not completed, at the stream's end or when a new run of the agent begins. Starts anew.
    pub fn finish(&mut self) -> Vec<Item> {
        let mut out = vec![];
        let mut connections: Vec<Connection> = self.connections.drain().map(|(_, c)| c).collect();
        connections.sort_by_key(|connection| connection.used);
        for mut connection in connections {
            connection.name(&self.programs);
            connection.finish(&mut out, "");
        }
        self.programs = Programs::default();
        self.recent.clear();
        self.held = 0;
        out
    }

    /// How many connections were let go for want of memory.
    pub fn let_go(&self) -> u64 {
        self.let_go
    }

    /// Bytes of memory held, about.
    pub fn held(&self) -> usize {
        self.held
    }
}

impl Default for Connection {
    fn default() -> Self {
        let parser = Parser::Http1(Box::default());
        Self {
            origin: Arc::default(),
            started: 0,
            joined: Default::default(),
            midway: None,
            parser,
            used: 0,
            held: 0,
        }
    }
}

impl Connection {
    fn push(&mut self, event: &Event, limits: Limits, out: &mut Vec<Item>) {
        let side = side(event);
        // Its first event says whether there was one before, that went by before our time or was let go.
        let midway = *self.midway.get_or_insert(event.stream_offset > event.lost_before);
        let (missing, again) = self.joined[side].place(event, midway);
        let origin = self.origin.clone();
        let mut context = Context { origin: &origin, event, limits, out };
        if missing > 0 {
            let gap = Gap { origin: origin.clone(), written: side == 1, bytes: missing, at: event.timestamp };
            context.out.push(Item::Gap(gap));
            match &mut self.parser {
                Parser::Http1(http1) => http1.gap(side, missing, &mut context),
                Parser::Http2(http2) => http2.gap(side, missing, &mut context),
                Parser::WebSocket(websocket) => websocket.gap(side, missing, &mut context),
            }
        }
        let bytes = event.payload.get(again..).unwrap_or_default();
        let turn = match &mut self.parser {
            Parser::Http1(http1) => http1.data(side, bytes, &mut context),
            Parser::Http2(http2) => {
                http2.data(side, bytes, &mut context);
                None
            }
            Parser::WebSocket(websocket) => {
                websocket.data(side, bytes, &mut context);
                None
            }
        };
        match turn {
            None => {}
            Some(Turn::Http2(rest)) => {
                let mut http2 = Box::<Http2>::default();
                for (side, bytes) in rest.iter().enumerate() {
                    http2.data(side, bytes, &mut context);
                }
                self.parser = Parser::Http2(http2);
            }
            Some(Turn::WebSocket(agreed, rest)) => {
                let mut websocket = Box::new(WebSocket::new(agreed));
                for (side, bytes) in rest.iter().enumerate() {
                    websocket.data(side, bytes, &mut context);
                }
                self.parser = Parser::WebSocket(websocket);
            }
        }
    }

    /// Addresses and names may become known while a connection goes on.
    fn know(&mut self, event: &Event) {
        let port = |port| u16::try_from(port).unwrap_or(0);
        let old = &self.origin;
        let keep = |new: &str, old: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
        let uid = match event.connection_id {
            0 => None,
            _ => Some(event.uid),
        };
        let origin = Origin {
            connection_id: event.connection_id,
            pid: event.pid,
            process: keep(&event.pname, &old.process),
            app: keep(&event.app, &old.app),
            uid,
            server_name: keep(&event.server_name, &old.server_name),
            client: (event.src_ip.clone(), port(event.src_port)),
            server: (event.dst_ip.clone(), port(event.dst_port)),
        };
        if event.process_start != 0 {
            self.started = event.process_start;
        }
        if origin != *self.origin {
            self.origin = Arc::new(origin);
        }
    }

    /// Another connection of the process may have said which program it is.
    fn name(&mut self, programs: &Programs) {
        if self.origin.app.is_empty()
            && let Some(app) = programs.of(self.origin.pid, &self.origin.process, self.started)
        {
            let app = app.to_owned();
            Arc::make_mut(&mut self.origin).app = app;
        }
    }

    fn finish(&mut self, out: &mut Vec<Item>, why: &str) {
        let event = Event {
            pid: self.origin.pid,
            pname: self.origin.process.clone(),
            app: self.origin.app.clone(),
            ..Event::default()
        };
        let limits = Limits::default();
        let mut context = Context { origin: &self.origin, event: &event, limits, out };
        match &mut self.parser {
            Parser::Http1(http1) => {
                http1.finish(why, &mut context);
                http1.finish_raw(&mut context);
            }
            Parser::Http2(http2) => http2.finish(why, &mut context),
            Parser::WebSocket(websocket) => websocket.finish(&mut context),
        }
    }
}

impl Parser {
    fn held(&self) -> usize {
        match self {
            Self::Http1(http1) => http1.held(),
            Self::Http2(http2) => http2.held(),
            Self::WebSocket(websocket) => websocket.held(),
        }
    }
}
