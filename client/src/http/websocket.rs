//! WebSocket messages after an upgrade: unmasked, put together from fragments, and inflated. Source: RFC 6455, RFC 7692.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Body, Exchange, Item, WebSocketMessage, assembler::Context};

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    deflate: bool,
    /// The client, and the server, begin each message with an empty window.
    no_takeover: [bool; 2],
}

impl Agreed {
    /// What an exchange agreed on, if it is an upgrade to WebSocket.
    pub(super) fn in_exchange(exchange: &Exchange) -> Option<Self> {
        let response = &exchange.response.as_ref().filter(|response| response.status == 101)?.message;
        if !response.header("upgrade")?.eq_ignore_ascii_case("websocket") {
            return None;
        }
        let extensions = response.header("sec-websocket-extensions").unwrap_or_default().to_ascii_lowercase();
        let no_takeover = ["client_no_context_takeover", "server_no_context_takeover"];
        Some(Self {
            deflate: extensions.contains("permessage-deflate"),
            no_takeover: no_takeover.map(|name| extensions.contains(name)),
        })
    }
}

#[derive(Debug)]
pub(super) struct WebSocket {
    agreed: Agreed,
    halves: [Half; 2],
}

#[derive(Default)]
struct Half {
    buffer: Vec<u8>,
    frame: Option<Frame>,
    /// The message at hand: opcode, whether it is deflated, and its bytes.
    message: Option<(u8, bool, Body)>,
    control: Option<Body>,
    inflate: Option<Decompress>,
    /// The window is not what the sender's is: a gap.
    astray: bool,
    lost: bool,
}

impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Half").field("frame", &self.frame).field("lost", &self.lost).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: u8,
    fin: bool,
    deflated: bool,
    left: u64,
    mask: Option<[u8; 4]>,
    /// How many bytes of its payload there were.
    at: usize,
}

impl Frame {
    /// The header that `bytes` begin with, and its length. `None`: more bytes are needed; an error: it is none.
    fn read(bytes: &[u8], deflate: bool) -> Result<Option<(Self, usize)>, ()> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let opcode = first & 15;
        let control = opcode >= 8;
        let reserved = first & 0x70;
        let short = second & 127;
        if !matches!(opcode, 0..=2 | 8..=10)
            || reserved & 0x30 != 0
            || reserved != 0 && (!deflate || control)
            || control && (first & 0x80 == 0 || short > 125)
        {
            return Err(());
        }
        let (length, rest) = match short {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        let (mask, rest) = match (second & 0x80 != 0, rest.split_first_chunk::<4>()) {
            (false, _) => (None, rest),
            (true, Some((mask, rest))) => (Some(*mask), rest),
            (true, None) => return Ok(None),
        };
        let frame =
            Self { opcode, fin: first & 0x80 != 0, deflated: reserved != 0, left: length, mask, at: 0 };
        Ok(Some((frame, bytes.len() - rest.len())))
    }
}

impl WebSocket {
    pub(super) fn new(agreed: Agreed) -> Self {
        Self { agreed, halves: Default::default() }
    }

    pub(super) fn held(&self) -> usize {
        let half = |half: &Half| {
            let message = half.message.as_ref().map_or(0, |message| message.2.bytes.capacity());
            half.buffer.capacity() + message + half.inflate.as_ref().map_or(0, |_| 48 << 10)
        };
        self.halves.iter().map(half).sum()
    }

    /// The next bytes of one side.
    pub(super) fn data(&mut self, side: usize, bytes: &[u8], context: &mut Context) {
        let half = &mut self.halves[side];
        if half.lost && !bytes.is_empty() {
            // Only at a payload's beginning can a frame be told, and only if all of it is there.
            let whole = |(frame, header): (Frame, usize)| {
                frame.opcode != 0
                    && usize::try_from(frame.left).is_ok_and(|left| left + header <= bytes.len())
            };
            if !Frame::read(bytes, self.agreed.deflate).ok().flatten().is_some_and(whole) {
                return context.raw(bytes.to_vec());
            }
            half.lost = false;
        }
        half.buffer.extend_from_slice(bytes);
        loop {
            let half = &mut self.halves[side];
            let Some(mut frame) = half.frame else {
                match Frame::read(&half.buffer, self.agreed.deflate) {
                    Ok(Some((frame, header))) => {
                        half.buffer.drain(..header);
                        half.frame = Some(frame);
                        self.begin(side, frame);
                        continue;
                    }
                    Ok(None) => return,
                    Err(()) => {
                        half.lost = true;
                        half.message = None;
                        let bytes = std::mem::take(&mut half.buffer);
                        context.note("what was sent is no WebSocket frame; shown as it came");
                        return context.raw(bytes);
                    }
                }
            };
            let taken = half.buffer.len().min(usize::try_from(frame.left).unwrap_or(usize::MAX));
            let mut bytes: Vec<u8> = half.buffer.drain(..taken).collect();
            if let Some(mask) = frame.mask {
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte ^= mask[(frame.at + index) % 4];
                }
            }
            frame.left -= taken as u64;
            frame.at = (frame.at + taken) % 4;
            half.frame = Some(frame);
            half.take(&bytes, frame, context.limits.body);
            if frame.left > 0 {
                return;
            }
            half.frame = None;
            self.end(side, frame, context);
        }
    }

    fn begin(&mut self, side: usize, frame: Frame) {
        let half = &mut self.halves[side];
        match frame.opcode {
            8.. => half.control = Some(Body::default()),
            0 if half.message.is_some() => {}
            opcode => {
                half.message = Some((opcode, frame.deflated, Body::default()));
                let client = usize::from(frame.mask.is_none());
                if frame.deflated && (half.inflate.is_none() || self.agreed.no_takeover[client]) {
                    half.inflate = Some(Decompress::new(false));
                    half.astray &= !self.agreed.no_takeover[client];
                }
            }
        }
    }

    fn end(&mut self, side: usize, frame: Frame, context: &mut Context) {
        let half = &mut self.halves[side];
        let message = match frame.opcode {
            8.. => half.control.take().map(|body| (frame.opcode, false, body)),
            _ if !frame.fin => None,
            _ => {
                let deflated = half.message.as_ref().is_some_and(|message| message.1);
                if deflated && !half.astray {
                    // What the sender left out at the end of each message.
                    half.inflate(&[0, 0, 0xff, 0xff], context.limits.body);
                }
                half.message.take()
            }
        };
        if let Some((opcode, deflated, body)) = message {
            context.out.push(Item::WebSocket(Box::new(WebSocketMessage {
                origin: context.origin.clone(),
                from_client: frame.mask.is_some(),
                opcode,
                body,
                still_deflated: deflated && half.astray,
                at: context.event.timestamp,
            })));
        }
    }

    /// Bytes of this side were not seen.
    pub(super) fn gap(&mut self, side: usize, missing: u64, _: &mut Context) {
        let half = &mut self.halves[side];
        let deflated = half.message.as_ref().is_some_and(|message| message.1);
        // After a message that was lost the window is another one.
        half.astray |= deflated || self.agreed.deflate;
        if let Some(frame) = &mut half.frame
            && missing < frame.left
        {
            frame.left -= missing;
            frame.at = (frame.at + usize::try_from(missing % 4).unwrap_or(0)) % 4;
            let (control, message) = (&mut half.control, &mut half.message);
            let body = if frame.opcode >= 8 { control.as_mut() } else { message.as_mut().map(|m| &mut m.2) };
            if let Some(body) = body {
                body.miss(missing);
            }
            return;
        }
        (half.lost, half.frame, half.message) = (true, None, None);
        half.buffer.clear();
    }

    /// Hands out the beginnings of messages.
    pub(super) fn finish(&mut self, context: &mut Context) {
        for half in &mut self.halves {
            if let Some((opcode, deflated, body)) = half.message.take() {
                context.note("the rest of this WebSocket message was not seen:");
                let from_client = half.frame.is_some_and(|frame| frame.mask.is_some());
                let (origin, still_deflated) = (context.origin.clone(), deflated && half.astray);
                let at = context.event.timestamp;
                let message = WebSocketMessage { origin, from_client, opcode, body, still_deflated, at };
                context.out.push(Item::WebSocket(Box::new(message)));
            }
        }
    }
}

impl Half {
    fn take(&mut self, bytes: &[u8], frame: Frame, limit: usize) {
        if frame.opcode >= 8 {
            if let Some(body) = &mut self.control {
                body.add(bytes, limit);
            }
        } else if self.message.as_ref().is_some_and(|message| message.1) && !self.astray {
            self.inflate(bytes, limit);
        } else if let Some((_, _, body)) = &mut self.message {
            body.add(bytes, limit);
        }
    }

    /// Everything is inflated, for the window's sake, and a beginning is kept.
    fn inflate(&mut self, mut bytes: &[u8], limit: usize) {
        let (Some(inflate), Some((_, _, body))) = (&mut self.inflate, &mut self.message) else { return };
        let mut out = vec![0; 16 << 10];
        loop {
            let (read, written) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(bytes, &mut out, FlushDecompress::Sync);
            let read = usize::try_from(inflate.total_in() - read).unwrap_or(0);
            let written = usize::try_from(inflate.total_out() - written).unwrap_or(0);
            bytes = &bytes[read.min(bytes.len())..];
            body.add(&out[..written.min(out.len())], limit);
            match status {
                Err(_) => {
                    self.astray = true;
                    return;
                }
                // A sender may end its stream with each message.
                Ok(Status::StreamEnd) => inflate.reset(false),
                Ok(_) if read == 0 && written == 0 => return,
                Ok(_) => {}
            }
            if bytes.is_empty() && written < out.len() {
                return;
            }
        }
    }
}
