//! HTTP/2's frames: where one begins, and its header. Source: RFC 9113, section 4.

/// What a client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const HEADER: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    /// The header that `bytes` begin with.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<HEADER>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(Self { length, kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff })
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a sender that keeps to the rules would send it; that is how a frame is told from other bytes.
    pub(super) fn is_plausible(self) -> bool {
        let on_stream = self.stream != 0;
        match self.kind {
            DATA => on_stream && self.flags & !(END_STREAM | PADDED) == 0,
            HEADERS => {
                on_stream
                    && self.flags & !(END_STREAM | END_HEADERS | PADDED | PRIORITY) == 0
                    && self.length > 0
            }
            2 => on_stream && self.length == 5 && self.flags == 0,
            RST_STREAM => on_stream && self.length == 4 && self.flags == 0,
            SETTINGS => {
                !on_stream
                    && self.length.is_multiple_of(6)
                    && self.length <= 600
                    && self.flags & !1 == 0
                    && (self.flags == 0 || self.length == 0)
            }
            PUSH_PROMISE => on_stream && self.length > 4 && self.flags & !(END_HEADERS | PADDED) == 0,
            6 => !on_stream && self.length == 8 && self.flags & !1 == 0,
            GOAWAY => !on_stream && self.length >= 8 && self.flags == 0,
            8 => self.length == 4 && self.flags == 0,
            CONTINUATION => on_stream && self.flags & !END_HEADERS == 0,
            _ => false,
        }
    }
}

/// Whether `bytes` begin HTTP/2, at a connection's beginning or in its middle; `None` if it takes more to know. `kind`
/// is what the server says of them.
pub(super) fn begins(bytes: &[u8], kind: u32) -> Option<bool> {
    if bytes.starts_with(PREFACE) {
        return Some(true);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let said = matches!(kind, 2 | 4);
    let Some(frame) = Frame::read(bytes) else {
        // Some programs write a frame's header by itself, but never less.
        return if said { None } else { Some(false) };
    };
    if !frame.is_plausible() {
        return Some(false);
    }
    if said || frame.kind == SETTINGS {
        return Some(true);
    }
    // One frame may be chance, unless it is as long as what was written.
    Some(frames(bytes) >= 2 || HEADER + frame.length == bytes.len())
}

/// How many plausible frames `bytes` are, one after another up to the end; 0 if they are not.
pub(super) fn frames(bytes: &[u8]) -> usize {
    let (mut at, mut frames) = (0, 0);
    while at < bytes.len() {
        match Frame::read(&bytes[at..]) {
            Some(frame) if frame.is_plausible() && frame.length <= 1 << 20 => {
                at += HEADER + frame.length;
                frames += 1;
            }
            Some(_) => return 0,
            None => break,
        }
    }
    frames
}
