//! What the agent saw of one direction of one TLS connection, joined from its events.

use anyhow::{Context, Result, bail, ensure};
use plaintap_proto::{Direction, Event};

use crate::driver::{Connection, Driver, Side};
use crate::stream::Client;

/// The largest payload that one event may have.
pub const PIECE: usize = 16 * 1024;

/// Which events belong together: one process, thread, direction and, where a thread has several, connection.
#[derive(Clone, Debug)]
pub struct Half {
    /// The traced process.
    pub pid: u32,
    /// The traced thread.
    pub tid: u32,
    /// Which way the bytes went there.
    pub direction: Direction,
    /// A port of the connection that no other of the thread's has, where it has several.
    pub port: Option<u16>,
}

impl Half {
    /// What a process with one thread wrote, or read.
    pub fn of(pid: u32, direction: Direction) -> Self {
        Self { pid, tid: pid, direction, port: None }
    }

    /// What the driver's `side` wrote, or read.
    pub fn of_driver(driver: &Driver, side: Side, direction: Direction) -> Self {
        Self { pid: driver.pid(), tid: driver.tid(side), direction, port: None }
    }

    /// Only on this connection.
    pub fn on(self, connection: &Connection) -> Self {
        Self { port: Some(connection.client_port), ..self }
    }

    /// Whether `event` is of it.
    pub fn has(&self, event: &Event) -> bool {
        event.pid == i64::from(self.pid)
            && event.tid == self.tid
            && event.direction() == self.direction
            && self.port.is_none_or(|port| [event.src_port, event.dst_port].contains(&u32::from(port)))
    }
}

/// A joined direction.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its events, in order.
    pub events: Vec<Event>,
    /// Their payloads, one after the other.
    pub bytes: Vec<u8>,
}

impl Joined {
    /// The agent's name for the connection.
    pub fn connection_id(&self) -> u64 {
        self.events.first().map_or(0, |event| event.connection_id)
    }

    /// The values of one field over all events, each once, in order of appearance.
    pub fn distinct<T: PartialEq>(&self, field: impl Fn(&Event) -> T) -> Vec<T> {
        let mut values = Vec::new();
        for value in self.events.iter().map(field) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }
}

/// Joins the events of `half`, from offset 0; an error where they don't join or break a rule of the protocol.
pub fn join<'a>(events: impl Iterator<Item = &'a Event>, half: &Half) -> Result<Joined> {
    let mut joined = Joined { events: Vec::new(), bytes: Vec::new() };
    for event in events.filter(|event| half.has(event)) {
        let size = event.payload.len();
        ensure!(size > 0, "an event without bytes: {event:?}");
        ensure!(size <= PIECE, "an event of {size} bytes: {}", event.uuid);
        ensure!(size == event.length as usize, "length {} of {size} bytes: {}", event.length, event.uuid);
        ensure!(event.connection_id != 0, "no connection id: {event:?}");
        ensure!(
            event.lost_before == 0 && !event.truncated,
            "{} bytes lost: {}",
            event.lost_before,
            event.uuid
        );
        let (offset, expected) = (event.stream_offset, joined.bytes.len() as u64);
        ensure!(offset == expected, "offset {offset}, should be {expected}: {}", event.uuid);
        let first = joined.events.first().map_or(event.connection_id, |first| first.connection_id);
        ensure!(event.connection_id == first, "connections {first} and {} in {half:?}", event.connection_id);
        joined.bytes.extend_from_slice(&event.payload);
        joined.events.push(event.clone());
    }
    Ok(joined)
}

/// The events of each connection and direction, joined, in the order in which they first appeared.
pub fn streams<'a>(events: impl Iterator<Item = &'a Event>) -> Result<Vec<(Direction, Joined)>> {
    let mut streams: Vec<(Half, u64, Vec<Event>)> = Vec::new();
    for event in events {
        let (direction, id) = (event.direction(), event.connection_id);
        let found = streams.iter_mut().find(|(half, of, _)| half.direction == direction && *of == id);
        match found {
            Some((_, _, events)) => events.push(event.clone()),
            None => {
                let half = Half { pid: u32::try_from(event.pid)?, tid: event.tid, direction, port: None };
                streams.push((half, id, vec![event.clone()]));
            }
        }
    }
    let joined = streams.into_iter().map(|(half, _, mut events)| {
        let tids: Vec<u32> = events.iter().map(|event| event.tid).collect();
        events.iter_mut().for_each(|event| event.tid = half.tid);
        let mut joined = join(events.iter(), &half)?;
        ensure!(joined.events.len() == events.len(), "a connection of several processes: {half:?}");
        joined.events.iter_mut().zip(tids).for_each(|(event, tid)| event.tid = tid);
        Ok((half.direction, joined))
    });
    joined.collect()
}

/// Reads until `half` has at least `size` bytes, and joins what there is of it.
pub fn wait_for(client: &mut Client, half: &Half, size: usize) -> Result<Joined> {
    let what = format!("{size} bytes of {half:?}");
    client.wait_for(&what, |messages| {
        let events = messages.iter().filter_map(|message| message.event());
        let there: usize = events.filter(|event| half.has(event)).map(|event| event.payload.len()).sum();
        (there >= size).then_some(())
    })?;
    join(client.events(), half)
}

/// Compares long payloads without printing them.
pub fn same_bytes(what: &str, got: &[u8], expected: &[u8]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let sizes = format!("{} bytes, should be {}", got.len(), expected.len());
    match got.iter().zip(expected).position(|(got, expected)| got != expected) {
        Some(place) => {
            bail!("{what}: byte {place} is {:#04x}, should be {:#04x}; {sizes}", got[place], expected[place])
        }
        None => bail!("{what}: {sizes}"),
    }
}

/// The address that the protocol shows for an event's ends, as `SRC:PORT-DST:PORT` with IPv6 in brackets.
pub fn ends(event: &Event) -> String {
    let bracketed = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("{}:{}-{}:{}", bracketed(&event.src_ip), event.src_port, bracketed(&event.dst_ip), event.dst_port)
}

/// The uuid that the protocol demands of an event whose addresses are known and whose descriptor isn't.
pub fn uuid(event: &Event) -> Result<String> {
    let direction = match event.direction() {
        Direction::Read => 0,
        Direction::Written => 1,
        Direction::Unknown => return None.context(format!("no direction: {event:?}")),
    };
    Ok(format!("{}_{}_{}_0_{direction}_{}", event.pid, event.tid, event.pname, ends(event)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, payload: &'static [u8]) -> Event {
        Event {
            pid: 7,
            tid: 7,
            direction: Direction::Written as i32,
            connection_id: 1,
            stream_offset: offset,
            length: payload.len() as u32,
            payload: payload.into(),
            ..Event::default()
        }
    }

    #[test]
    fn pieces_join_by_offset() {
        let other = Event { tid: 8, ..piece(0, b"not ours") };
        let events = [piece(0, b"GET "), other, piece(4, b"/")];
        let joined = join(events.iter(), &Half::of(7, Direction::Written)).unwrap();
        assert_eq!(joined.bytes, b"GET /");
        assert_eq!(joined.events.len(), 2);
    }

    #[test]
    fn a_hole_an_overlap_and_a_wrong_length_are_errors() {
        let half = Half::of(7, Direction::Written);
        for second in [piece(5, b"/"), piece(3, b"/"), Event { length: 2, ..piece(4, b"/") }] {
            let events = [piece(0, b"GET "), second];
            assert!(join(events.iter(), &half).is_err(), "{events:?}");
        }
    }

    #[test]
    fn a_difference_is_named_by_its_place() {
        let error = same_bytes("it", b"abx", b"abc").unwrap_err().to_string();
        assert_eq!(error, "it: byte 2 is 0x78, should be 0x63; 3 bytes, should be 3");
        assert!(same_bytes("it", b"ab", b"abc").is_err());
    }
}
