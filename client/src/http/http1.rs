//! HTTP/1 on one connection: messages one after another in either direction, and which answers which.
//!
//! Also the state that every connection begins in: what does not look like HTTP is handed out as it came.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Exchange, Item, Origin,
    assembler::{Context, Turn},
    http1_head::{self as head, Framing, Looks},
    http2_frame,
    websocket::Agreed,
};

/// Requests without an answer at a time; more than any client pipelines.
const MOST_PENDING: usize = 256;
/// A line with a chunk's size, or a trailer, that is longer is none.
const LONGEST_LINE: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Http1 {
    halves: [Half; 2],
    pending: VecDeque<Pending>,
    /// How many exchanges left `pending` at its front; so an exchange keeps its number.
    gone: u64,
}

#[derive(Debug, Default)]
struct Pending {
    exchange: Exchange,
    /// Nothing more will be added to the request, and to the response.
    done: [bool; 2],
}

#[derive(Debug, Default)]
struct Half {
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold no end of a head.
    searched: usize,
    state: State,
    /// Number of the exchange whose message is at hand, and whether it is the response.
    current: Option<(u64, bool)>,
    /// In the middle of what was no HTTP.
    raw: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// This many bytes are left of the body.
    Body(u64),
    UntilClose,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

impl Http1 {
    pub(super) fn held(&self) -> usize {
        let pending: usize = self.pending.iter().map(|pending| pending.exchange.held()).sum();
        pending + self.halves.iter().map(|half| half.buffer.capacity()).sum::<usize>()
    }

    /// The next bytes of one side.
    pub(super) fn data(&mut self, side: usize, bytes: &[u8], context: &mut Context) -> Option<Turn> {
        self.halves[side].buffer.extend_from_slice(bytes);
        loop {
            let before = (self.halves[side].state, self.halves[side].buffer.len());
            let turn = self.step(side, context);
            if turn.is_some() {
                return turn;
            }
            if before == (self.halves[side].state, self.halves[side].buffer.len()) {
                return None;
            }
        }
    }

    /// One step: at most one message, one chunk, one line.
    fn step(&mut self, side: usize, context: &mut Context) -> Option<Turn> {
        let half = &mut self.halves[side];
        if half.buffer.is_empty() {
            return None;
        }
        match half.state {
            State::Head => return self.head(side, context),
            State::Body(left) => {
                let left = left - self.body(side, left, context);
                self.halves[side].state = State::Body(left);
                if left == 0 {
                    self.end(side, true, context);
                }
            }
            State::UntilClose => _ = self.body(side, u64::MAX, context),
            State::ChunkSize => {
                let line = self.line(side, context)?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                match u64::from_str_radix(digits, 16) {
                    Ok(0) => self.halves[side].state = State::Trailers,
                    Ok(size) => self.halves[side].state = State::Chunk(size),
                    Err(_) => self.broken(side, "a chunk's size is no number", context),
                }
            }
            State::Chunk(left) => {
                let left = left - self.body(side, left, context);
                self.halves[side].state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
            }
            State::ChunkEnd => {
                self.line(side, context)?;
                self.halves[side].state = State::ChunkSize;
            }
            State::Trailers => {
                let line = self.line(side, context)?;
                if line.is_empty() {
                    self.end(side, true, context);
                } else if let Some(exchange) = self.current(side)
                    && let Some(message) = exchange.0.message(exchange.1)
                    && message.trailers.len() < 256
                {
                    message.trailers.push(head::header_line(&line));
                }
            }
        }
        None
    }

    /// Begins a message, if one is there.
    fn head(&mut self, side: usize, context: &mut Context) -> Option<Turn> {
        let half = &mut self.halves[side];
        let looks = head::looks(&half.buffer);
        if looks != Looks::Request && looks != Looks::Response {
            match http2_frame::begins(&half.buffer, context.event.r#type) {
                Some(true) => return Some(self.turn_to_http2(context)),
                None if !half.raw => return None,
                _ => {}
            }
            if looks == Looks::Unsure && !half.raw {
                return None;
            }
            half.raw = true;
            context.raw(std::mem::take(&mut half.buffer));
            half.searched = 0;
            return None;
        }
        half.raw = false;
        let Some(end) = head::end(&half.buffer, half.searched) else {
            half.searched = half.buffer.len();
            if half.buffer.len() > head::LONGEST {
                self.broken(side, "a head without an end", context);
            }
            return None;
        };
        let bytes: Vec<u8> = half.buffer.drain(..end).collect();
        half.searched = 0;
        match looks {
            Looks::Response => self.response(side, &bytes, context),
            _ => {
                self.request(side, &bytes, context);
                None
            }
        }
    }

    fn request(&mut self, side: usize, bytes: &[u8], context: &mut Context) {
        if self.pending.len() >= MOST_PENDING {
            self.give_up(0, "no response was seen", context);
        }
        let request = head::request(bytes, context.event.timestamp);
        let exchange =
            Exchange { origin: context.origin.clone(), request: Some(request), ..Exchange::default() };
        let framing = head::framing(&exchange, false);
        self.pending.push_back(Pending { exchange, done: [false; 2] });
        let number = self.gone + self.pending.len() as u64 - 1;
        self.begin(side, (number, false), framing, context);
    }

    fn response(&mut self, side: usize, bytes: &[u8], context: &mut Context) -> Option<Turn> {
        let response = head::response(bytes, context.event.timestamp);
        let waiting = self.pending.iter().position(|pending| pending.exchange.response.is_none());
        if matches!(response.status, 100..=199) && response.status != 101 {
            match waiting {
                Some(index) if self.pending[index].exchange.interim.len() < 64 => {
                    self.pending[index].exchange.interim.push(response.status);
                }
                Some(_) => {}
                None => context.note(format!("{} {} to no request", response.status, response.reason)),
            }
            return None;
        }
        let index = waiting.unwrap_or_else(|| {
            let exchange = Exchange { origin: context.origin.clone(), ..Exchange::default() };
            self.pending.push_back(Pending { exchange, done: [true, false] });
            self.pending.len() - 1
        });
        let status = response.status;
        let exchange = &mut self.pending[index].exchange;
        exchange.response = Some(response);
        let framing = head::framing(exchange, true);
        let connect = exchange.request.as_ref().is_some_and(|request| request.method == "CONNECT");
        let agreed = Agreed::in_exchange(exchange);
        let tunnel = status == 101 || connect && (200..300).contains(&status);
        let framing = if tunnel { Framing::Length(0) } else { framing };
        self.begin(side, (self.gone + index as u64, true), framing, context);
        match agreed {
            Some(agreed) if status == 101 => {
                self.finish("", context);
                let rest = self.halves.each_mut().map(|half| std::mem::take(&mut half.buffer));
                Some(Turn::WebSocket(agreed, rest))
            }
            _ => None,
        }
    }

    fn begin(&mut self, side: usize, current: (u64, bool), framing: Framing, context: &mut Context) {
        let half = &mut self.halves[side];
        half.current = Some(current);
        half.state = match framing {
            Framing::Length(length) => State::Body(length),
            Framing::Chunked => State::ChunkSize,
            Framing::Close => State::UntilClose,
        };
        if framing == Framing::Length(0) {
            self.end(side, true, context);
        }
    }

    fn current(&mut self, side: usize) -> Option<(&mut Exchange, bool)> {
        let (number, response) = self.halves[side].current?;
        let index = usize::try_from(number.checked_sub(self.gone)?).ok()?;
        Some((&mut self.pending.get_mut(index)?.exchange, response))
    }

    /// Takes up to `most` bytes into the body; how many there were.
    fn body(&mut self, side: usize, most: u64, context: &mut Context) -> u64 {
        let mut buffer = std::mem::take(&mut self.halves[side].buffer);
        let taken = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        if let Some((exchange, response)) = self.current(side)
            && let Some(message) = exchange.message(response)
        {
            message.body.add(&buffer[..taken], context.limits.body);
            message.ended = context.event.timestamp;
        }
        buffer.drain(..taken);
        self.halves[side].buffer = buffer;
        taken as u64
    }

    /// The next line, if all of it is there.
    fn line(&mut self, side: usize, context: &mut Context) -> Option<String> {
        let buffer = &mut self.halves[side].buffer;
        match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) if end <= LONGEST_LINE => {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
            }
            None if buffer.len() <= LONGEST_LINE => None,
            _ => {
                self.broken(side, "a line without an end", context);
                None
            }
        }
    }

    /// The message at hand is over.
    fn end(&mut self, side: usize, complete: bool, context: &mut Context) {
        let at = context.event.timestamp;
        if let Some((number, response)) = self.halves[side].current
            && let Some((exchange, _)) = self.current(side)
        {
            if let Some(message) = exchange.message(response) {
                message.complete = complete && message.body.missing == 0;
                message.ended = at.max(message.ended);
            }
            if let Some(pending) = self.pending.get_mut((number - self.gone) as usize) {
                pending.done[usize::from(response)] = true;
            }
        }
        self.halves[side].current = None;
        self.halves[side].state = State::Head;
        while self.pending.front().is_some_and(|pending| pending.done == [true; 2]) {
            self.hand_out(0, context);
        }
    }

    fn hand_out(&mut self, index: usize, context: &mut Context) {
        if let Some(mut pending) = self.pending.remove(index) {
            // More may be known of the connection by now.
            pending.exchange.origin = context.origin.clone();
            // Only ever from the front, so that numbers stay right.
            self.gone += 1;
            context.out.push(Item::Exchange(Box::new(pending.exchange)));
        }
    }

    fn give_up(&mut self, index: usize, why: &str, context: &mut Context) {
        if let Some(pending) = self.pending.get_mut(index)
            && !why.is_empty()
        {
            pending.exchange.notes.push(why.to_owned());
        }
        self.hand_out(index, context);
    }

    /// What comes of this side can't be told apart any more, until a message begins.
    fn broken(&mut self, side: usize, why: &str, context: &mut Context) {
        if let Some((exchange, _)) = self.current(side) {
            exchange.notes.push(why.to_owned());
        } else {
            context.note(why);
        }
        self.end(side, false, context);
        self.halves[side].raw = true;
        self.halves[side].searched = 0;
        context.raw(std::mem::take(&mut self.halves[side].buffer));
    }

    /// Bytes of this side were not seen.
    pub(super) fn gap(&mut self, side: usize, missing: u64, context: &mut Context) {
        let left = match self.halves[side].state {
            State::Body(left) | State::Chunk(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        };
        if missing <= left {
            // Within a body: what follows is still known.
            if let Some((exchange, response)) = self.current(side)
                && let Some(message) = exchange.message(response)
            {
                message.body.miss(missing);
            }
            match &mut self.halves[side].state {
                State::Body(left) => *left -= missing,
                State::Chunk(left) => *left -= missing,
                _ => {}
            }
            match self.halves[side].state {
                State::Body(0) => self.end(side, true, context),
                State::Chunk(0) => self.halves[side].state = State::ChunkEnd,
                _ => {}
            }
            return;
        }
        let asked = self.halves[side].current.map(|(_, response)| response);
        if self.halves[side].state != State::Head || !self.halves[side].buffer.is_empty() {
            self.broken(side, "cut short: bytes are missing", context);
        }
        self.halves[side].raw = true;
        // Responses may be among what is missing: the next one must not pass for the answer to an old request.
        let responds = asked == Some(true)
            || self.halves[1 - side].current.is_some_and(|(_, response)| !response)
            || self.pending.iter().any(|pending| pending.done[0] && !pending.done[1]);
        if responds && asked != Some(false) {
            while let Some(front) = self.pending.front()
                && front.done[0]
            {
                self.give_up(0, "its response was missed", context);
            }
        }
    }

    fn turn_to_http2(&mut self, context: &mut Context) -> Turn {
        self.finish("", context);
        Turn::Http2(self.halves.each_mut().map(|half| std::mem::take(&mut half.buffer)))
    }

    /// Hands out responses that end with the connection, if nothing came since `before`.
    pub(super) fn rest(&mut self, before: i64, origin: &Arc<Origin>, out: &mut Vec<Item>) {
        for side in 0..2 {
            let Some((exchange, true)) = self.current(side) else { continue };
            let quiet = exchange.response.as_ref().is_some_and(|response| response.message.ended < before);
            if !quiet || self.halves[side].state != State::UntilClose {
                continue;
            }
            if let Some((exchange, _)) = self.current(side) {
                exchange
                    .notes
                    .push("its end is the connection's, which is not told: no more came so far".to_owned());
                if let Some(response) = &mut exchange.response {
                    response.message.complete = true;
                }
            }
            (self.halves[side].state, self.halves[side].current, self.halves[side].raw) =
                (State::Head, None, true);
            while let Some(mut pending) = self.pending.pop_front() {
                pending.exchange.origin = origin.clone();
                self.gone += 1;
                out.push(Item::Exchange(Box::new(pending.exchange)));
            }
        }
    }

    /// Hands out all that is pending.
    pub(super) fn finish(&mut self, why: &str, context: &mut Context) {
        while !self.pending.is_empty() {
            self.give_up(0, why, context);
        }
        for half in &mut self.halves {
            half.current = None;
            half.state = State::Head;
        }
    }

    /// Hands out what was kept to see whether it is HTTP.
    pub(super) fn finish_raw(&mut self, context: &mut Context) {
        for half in &mut self.halves {
            context.raw(std::mem::take(&mut half.buffer));
        }
    }
}
