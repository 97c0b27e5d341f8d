//! Names: of subjects in NATS, of headers on messages.

use crate::wanted::decoded;

/// All that relays send lies below this.
pub const ROOT: &str = "plaintap";

/// The run of the agent that the message is of.
pub const RUN: &str = "Plaintap-Run";
/// The message's number in its run; 0: it has none.
pub const SEQ: &str = "Plaintap-Seq";
/// The highest number of the run that was sent up to this message: where a relay goes on.
pub const PLACE: &str = "Plaintap-Place";
/// How many messages are missing before this one, which says so.
pub const GAP: &str = "Plaintap-Gap";
/// Of an event: its process.
pub const PID: &str = "Plaintap-Pid";
/// Of an event: the name of the thread.
pub const COMM: &str = "Plaintap-Comm";
/// Of an event: the host name that its connection asked for.
pub const HOST: &str = "Plaintap-Host";
/// What the body is.
pub const CONTENT_TYPE: &str = "Content-Type";
/// A `LogEntry`, as the agent sent it.
pub const LOG_ENTRY: &str = "application/x-protobuf; messageType=\"event.LogEntry\"";

/// What a message is, as the last part of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What a program read or wrote.
    Event,
    /// A line of the agent's log, or a relay's word about a gap.
    Log,
    /// A sign of life.
    Heartbeat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Event, Self::Log, Self::Heartbeat];

    /// The last part of its subject.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Log => "log",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// The subject of a device's messages of one kind.
pub fn subject(device: &str, kind: Kind) -> String {
    format!("{ROOT}.{}.{}", token(device), kind.name())
}

/// A device's name as one token of a subject: what NATS gives a meaning, and what is not printable, is `%XX`.
/// Source: docs.nats.io, "Subject-Based Messaging".
pub fn token(device: &str) -> String {
    let mut token = String::with_capacity(device.len());
    for byte in device.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(byte.into()),
            _ => token.push_str(&format!("%{byte:02X}")),
        }
    }
    token
}

/// The device's name that `token` made this of.
pub fn name(token: &str) -> String {
    decoded(token, false).unwrap_or_else(|| token.to_owned())
}

/// Text as a header may carry it: in one line of bounded length.
pub fn header_text(text: &str) -> String {
    const MOST: usize = 256;
    text.chars().filter(|char| !char.is_control()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_name_is_one_token_and_no_other_devices() {
        assert_eq!(subject("R5CT-1_a", Kind::Event), "plaintap.R5CT-1_a.event");
        assert_eq!(subject("127.0.0.1:28257", Kind::Log), "plaintap.127%2E0%2E0%2E1%3A28257.log");
        assert_eq!(token("a*b>c d%é"), "a%2Ab%3Ec%20d%25%C3%A9");
        assert_ne!(token("a.b"), token("a%2Eb"));
        for device in ["R5CT-1_a", "127.0.0.1:28257", "a*b>c d%é+"] {
            assert_eq!(name(&token(device)), device);
        }
    }

    #[test]
    fn a_header_is_one_line() {
        assert_eq!(header_text("a\r\nNats-Msg-Id: 1"), "aNats-Msg-Id: 1");
        assert_eq!(header_text(&"é".repeat(1000)).chars().count(), 256);
    }
}
