//! The bytes of one direction of a connection in order: what was not seen before a payload, and what was seen already.

use plaintap_proto::{Direction, Event};

use crate::show;

/// Where one direction has got to.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    /// The offset that comes next; `None` before the first event, and from servers that number nothing.
    next: Option<u64>,
}

impl Joined {
    /// How many bytes are missing before this event, and how many of its own were seen already (a message that a server
    /// sends again). Streams without offsets are joined as they come. What was said on a connection that was joined
    /// `midway` before this direction's first event is not missing: it was before our time.
    pub(crate) fn place(&mut self, event: &Event, midway: bool) -> (u64, usize) {
        if event.connection_id == 0 {
            return (event.lost_before, 0);
        }
        let end = event.stream_offset.saturating_add(event.payload.len() as u64);
        let start = if midway { event.stream_offset.saturating_sub(event.lost_before) } else { 0 };
        let next = self.next.unwrap_or(start);
        self.next = Some(next.max(end));
        let again = next.saturating_sub(event.stream_offset).min(event.payload.len() as u64);
        (event.stream_offset.saturating_sub(next), usize::try_from(again).unwrap_or(usize::MAX))
    }
}

/// What events of one connection have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The agent's number, and the process. Its start is no part: it is not known from the first event on.
    Numbered(u64, i64),
    /// The addresses and the process.
    Addresses(i64, String, u32, String, u32),
    /// The uuid without its direction.
    Uuid(String),
}

impl Key {
    pub(crate) fn of(event: &Event) -> Self {
        if event.connection_id != 0 {
            Self::Numbered(event.connection_id, event.pid)
        } else if event.src_port != 0 && event.dst_port != 0 {
            // Not the uuid: a program may read and write on different threads.
            let (src, dst) = (event.src_ip.clone(), event.dst_ip.clone());
            Self::Addresses(event.pid, src, event.src_port, dst, event.dst_port)
        } else {
            // Either side of the direction, counted from the end.
            let parts: Vec<&str> = event.uuid.rsplit('_').collect();
            let at = if event.uuid.starts_with("sock:") { 2 } else { 1 };
            let rest = parts.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, part)| *part);
            Self::Uuid(rest.collect::<Vec<_>>().join("_"))
        }
    }
}

/// 0 for what the process read, 1 for what it wrote. Who says neither is taken to be a client.
pub(crate) fn side(event: &Event) -> usize {
    match show::direction(event) {
        Direction::Read => 0,
        Direction::Written => 1,
        Direction::Unknown => usize::from(matches!(event.r#type, 1 | 2)),
    }
}
