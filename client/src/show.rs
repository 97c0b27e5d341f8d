//! Messages as text for people: a line for an event and below it, indented, its payload. The indent keeps a payload from
//! passing for a line of ours.

use std::{ffi::OsString, fmt::Write};

use plaintap_proto::{Direction, Event, Heartbeat, Protocol};

use crate::{note::counted, text};

const READ_COLOUR: &str = "\x1b[36m";
const WRITTEN_COLOUR: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// How messages are to be shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// Colour an event's first line, and nothing else: colour never outlives the line that it begins.
    pub colour: bool,
    /// Show every payload as a hex dump.
    pub hex: bool,
    /// Show at most this many bytes of a payload.
    pub max_payload: Option<usize>,
}

impl Show {
    /// An event's block, with an empty line after it.
    pub fn event(&self, event: &Event) -> String {
        let mut block = String::new();
        match direction(event) {
            Direction::Read if self.colour => block += &format!("{READ_COLOUR}{}{PLAIN}\n", headline(event)),
            Direction::Written if self.colour => {
                block += &format!("{WRITTEN_COLOUR}{}{PLAIN}\n", headline(event))
            }
            _ => block += &format!("{}\n", headline(event)),
        }
        if event.lost_before > 0 {
            let _ = writeln!(block, "... {} missing here", counted(event.lost_before, "byte"));
        }
        let shown = &event.payload[..event.payload.len().min(self.max_payload.unwrap_or(usize::MAX))];
        let payload =
            if self.hex || !text::is_text(shown) { text::hex_dump(shown) } else { text::lines(shown) };
        for line in payload.lines() {
            let _ = writeln!(block, "  {line}");
        }
        if shown.len() < event.payload.len() {
            let left_out = (event.payload.len() - shown.len()) as u64;
            let _ = writeln!(block, "... {} more not shown", counted(left_out, "byte"));
        }
        if event.truncated {
            block += "... cut short by the agent's own limit\n";
        }
        block += "\n";
        block
    }
}

/// Whether what the environment says allows for colour. Source: no-color.org; terminfo's entry `dumb` has no colours.
pub fn takes_colour(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let unwanted = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && variable("TERM").is_none_or(|value| value != "dumb")
}

/// A line of the agent's log.
pub fn run_log(line: &str) -> String {
    format!("agent: {}\n", text::one_line(line.trim_end()))
}

/// A heartbeat on a line.
pub fn heartbeat(heartbeat: &Heartbeat) -> String {
    let mut line = text::one_line(&heartbeat.message);
    // Who names no run says no more than that.
    if !heartbeat.run_id.is_empty() {
        let _ = write!(
            line,
            " run {}, up {} s, {} ({}) captured, {} lost, {} missed, {}",
            text::one_line(&heartbeat.run_id),
            heartbeat.uptime_ms / 1000,
            counted(heartbeat.captured_events, "event"),
            counted(heartbeat.captured_bytes, "byte"),
            counted(heartbeat.lost_events, "event"),
            counted(heartbeat.missed_messages, "message"),
            counted(heartbeat.clients.into(), "client"),
        );
    }
    line + "\n"
}

pub(crate) fn headline(event: &Event) -> String {
    let word = match direction(event) {
        Direction::Read => "read",
        Direction::Written => "wrote",
        Direction::Unknown => "read or wrote",
    };
    let (protocol, arrow) = match Protocol::from_wire(event.r#type) {
        Protocol::Http1Request => ("HTTP/1 request", "->"),
        Protocol::Http2Request => ("HTTP/2 request", "->"),
        Protocol::Http1Response => ("HTTP/1 response", "<-"),
        Protocol::Http2Response => ("HTTP/2 response", "<-"),
        // Whether the process opened the connection or accepted it is not said, so nor is the way.
        Protocol::WebSocket => ("WebSocket", "--"),
        Protocol::Unknown => ("unknown protocol", "--"),
    };
    let mut line = format!(
        "{} {}[{}] {word} {} {protocol}, {}",
        time_of_day(event.timestamp),
        text::one_line(&event.pname),
        event.pid,
        connection(event, arrow),
        counted(event.payload.len() as u64, "byte"),
    );
    for more in [&event.server_name, &event.app] {
        if !more.is_empty() {
            let _ = write!(line, ", {}", text::one_line(more));
        }
    }
    line
}

/// UTC, from Unix time in nanoseconds.
pub(crate) fn time_of_day(timestamp: i64) -> String {
    let ms = timestamp.div_euclid(1_000_000).rem_euclid(86_400_000);
    format!("{:02}:{:02}:{:02}.{:03}Z", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// Whether the process read or wrote; the original says it in the uuid only.
pub(crate) fn direction(event: &Event) -> Direction {
    match Direction::try_from(event.direction) {
        Ok(Direction::Unknown) => direction_in(&event.uuid).unwrap_or(Direction::Unknown),
        known => known.unwrap_or(Direction::Unknown),
    }
}

/// Counted from the end, since the process's name may hold underscores.
fn direction_in(uuid: &str) -> Option<Direction> {
    let uuid = match uuid.strip_prefix("sock:") {
        Some(unknown_addresses) => unknown_addresses.rsplit_once('_')?.0,
        None => uuid,
    };
    let mut parts = uuid.rsplit('_').skip(1);
    match (parts.next()?, parts.count()) {
        // What is left is at least fd, comm, tid and pid.
        ("0", 4..) => Some(Direction::Read),
        ("1", 4..) => Some(Direction::Written),
        _ => None,
    }
}

fn connection(event: &Event, arrow: &str) -> String {
    let side = |ip: &str, port: u32| match (ip, port) {
        ("" | "0.0.0.0" | "::", 0) => None,
        (ip, port) if ip.contains(':') => Some(format!("[{}]:{port}", text::one_line(ip))),
        (ip, port) => Some(format!("{}:{port}", text::one_line(ip))),
    };
    match (side(&event.src_ip, event.src_port), side(&event.dst_ip, event.dst_port)) {
        (None, None) => "(address unknown)".to_owned(),
        (src, dst) => {
            let unknown = || "(address unknown)".to_owned();
            format!("{} {arrow} {}", src.unwrap_or_else(unknown), dst.unwrap_or_else(unknown))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Event {
        Event {
            timestamp: 1_754_144_170_123_456_789,
            src_ip: "10.0.0.2".to_owned(),
            src_port: 43210,
            dst_ip: "2001:db8::1".to_owned(),
            dst_port: 443,
            pid: 7,
            pname: "curl".to_owned(),
            r#type: Protocol::Http1Request as u32,
            payload: "GET / HTTP/1.1\r\n\r\n".into(),
            direction: Direction::Written.into(),
            ..Event::default()
        }
    }

    #[test]
    fn an_event_is_a_line_and_its_payload() {
        let show = Show::default().event(&request());
        let headline =
            "14:16:10.123Z curl[7] wrote 10.0.0.2:43210 -> [2001:db8::1]:443 HTTP/1 request, 18 bytes";
        assert_eq!(show, format!("{headline}\n  GET / HTTP/1.1\n  \n\n"));
    }

    #[test]
    fn the_arrow_goes_the_way_of_the_bytes_or_says_that_it_does_not_know() {
        for (r#type, arrow) in
            [(0, " -- "), (1, " -> "), (2, " -> "), (3, " <- "), (4, " <- "), (5, " -- "), (9, " -- ")]
        {
            let headline = headline(&Event { r#type, ..request() });
            assert!(headline.contains(arrow), "{type}: {headline}");
        }
    }

    #[test]
    fn an_old_servers_direction_is_in_the_uuid() {
        for (uuid, expected) in [
            ("1_2_a_b_c_5_0_10.0.0.2:1-10.0.0.3:2", Direction::Read),
            ("1_2_curl_5_1_[::1]:1-[::1]:2", Direction::Written),
            ("sock:1_2_my_app_0_0_0.0.0.0:0-0.0.0.0:0_0", Direction::Read),
            ("sock:1_2_my_app_0_1_0.0.0.0:0-0.0.0.0:0_0", Direction::Written),
            ("sock:", Direction::Unknown),
            ("1_1", Direction::Unknown),
            ("x_y", Direction::Unknown),
            ("", Direction::Unknown),
        ] {
            let event = Event { uuid: uuid.to_owned(), ..Event::default() };
            assert_eq!(direction(&event), expected, "{uuid}");
        }
        let said = Event { direction: 1, uuid: "1_2_c_5_1_a:1-b:2".to_owned(), ..Event::default() };
        assert_eq!(direction(&said), Direction::Read);
    }

    #[test]
    fn unknown_addresses_are_said_to_be_unknown() {
        let none = Event {
            src_ip: "0.0.0.0".to_owned(),
            src_port: 0,
            dst_ip: String::new(),
            dst_port: 0,
            ..request()
        };
        assert_eq!(connection(&none, "->"), "(address unknown)");
        let half = Event { src_ip: "::".to_owned(), src_port: 0, ..request() };
        assert_eq!(connection(&half, "->"), "(address unknown) -> [2001:db8::1]:443");
    }

    #[test]
    fn what_is_missing_or_not_shown_is_declared() {
        let event = Event { lost_before: 123, truncated: true, ..request() };
        let show = Show { max_payload: Some(3), ..Show::default() }.event(&event);
        let block: Vec<_> = show.lines().skip(1).collect();
        assert_eq!(
            block,
            [
                "... 123 bytes missing here",
                "  GET",
                "... 15 bytes more not shown",
                "... cut short by the agent's own limit",
                ""
            ]
        );
    }

    #[test]
    fn binary_payloads_and_all_with_hex_are_dumped() {
        let dump = "  00000000  47 45 54";
        assert!(Show { hex: true, ..Show::default() }.event(&request()).contains(dump));
        let binary = Event { payload: vec![0, 1, 2, 3].into(), ..request() };
        assert!(Show::default().event(&binary).contains("  00000000  00 01 02 03  "));
    }

    #[test]
    fn no_string_of_the_stream_reaches_the_terminal_raw() {
        let evil = "\u{1b}]0;\u{7}\u{9b}2J\u{202e}\n".to_owned();
        let event = Event {
            uuid: evil.clone(),
            src_ip: evil.clone(),
            dst_ip: evil.clone(),
            pname: evil.clone(),
            app: evil.clone(),
            server_name: evil.clone(),
            payload: evil.repeat(2).into(),
            ..Event::default()
        };
        let beat = Heartbeat { message: evil.clone(), run_id: evil.clone(), ..Heartbeat::default() };
        for shown in [Show::default().event(&event), heartbeat(&beat), run_log(&evil)] {
            assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{shown:?}");
        }
        assert_eq!(heartbeat(&beat).lines().count(), 1);
    }

    #[test]
    fn colour_ends_with_the_line() {
        let show = Show { colour: true, ..Show::default() }.event(&request());
        assert_eq!(show.matches('\u{1b}').count(), 2);
        let first = show.lines().next().unwrap();
        assert!(first.starts_with(WRITTEN_COLOUR) && first.ends_with(PLAIN));
    }

    #[test]
    fn a_terminal_that_is_dumb_gets_no_colour_nor_does_who_wants_none() {
        for (no_color, term, expected) in [
            (None, Some("xterm"), true),
            (None, None, true),
            (Some(""), Some("xterm"), true),
            (Some("1"), Some("xterm"), false),
            (None, Some("dumb"), false),
        ] {
            let variable = |name: &str| if name == "TERM" { term } else { no_color }.map(OsString::from);
            assert_eq!(takes_colour(variable), expected, "{no_color:?} {term:?}");
        }
    }

    #[test]
    fn every_timestamp_has_a_time_of_day() {
        assert_eq!(time_of_day(0), "00:00:00.000Z");
        assert_eq!(time_of_day(-1), "23:59:59.999Z");
        for timestamp in [i64::MIN, i64::MAX] {
            assert_eq!(time_of_day(timestamp).len(), 13);
        }
    }
}
