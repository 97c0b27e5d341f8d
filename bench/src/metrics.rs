//! What a relay tells of itself, if it does: how long the server took to store messages.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// How long each publish took until it was acknowledged.
const PUBLISH: &str = "plaintap_relay_publish_seconds_bucket";
const PATIENCE: Duration = Duration::from_secs(10);

/// A histogram so far: of each bucket its upper bound in seconds, and how many were at most that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// Asks the relay at this port.
    pub fn of_publishes(port: u16) -> Result<Self> {
        let mut stream =
            TcpStream::connect(("127.0.0.1", port)).context("connecting to the relay's metrics")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the relay's metrics")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the relay's metrics: {:?}", answer.lines().next());
        Ok(Self::read(&answer))
    }

    /// Source: prometheus.io/docs, "Exposition formats".
    fn read(text: &str) -> Self {
        let mut all: Vec<(f64, f64)> = Vec::new();
        for line in text.lines() {
            let Some((labels, count)) = line.strip_prefix(PUBLISH).and_then(|rest| rest.split_once("} "))
            else {
                continue;
            };
            let bound = labels.split_once("le=\"").and_then(|(_, rest)| rest.split('"').next());
            let bound = bound.and_then(|bound| bound.parse::<f64>().ok());
            let (Some(bound), Ok(count)) = (bound, count.trim().parse::<f64>()) else { continue };
            // Of all devices, if they are told apart.
            match all.iter_mut().find(|(other, _)| *other == bound) {
                Some((_, sum)) => *sum += count,
                None => all.push((bound, count)),
            }
        }
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        Self(all)
    }

    /// Within how many milliseconds a part of the publishes since `before` were done: evenly spread within a bucket, but for the
    /// first and the last, which say no more than their bound.
    pub fn within_ms(&self, before: &Self, part: f64) -> Option<String> {
        let earlier =
            |bound| before.0.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
        let since = self.0.iter().map(|(bound, count)| (bound * 1000.0, count - earlier(*bound)));
        let wanted = self.0.last()?.1 * part - before.0.last().map_or(0.0, |(_, count)| count * part);
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in since {
            if count >= wanted && count > below {
                let share = (wanted - below) / (count - below);
                return Some(match (low, bound) {
                    (0.0, bound) => format!("< {bound}"),
                    (low, f64::INFINITY) => format!("> {low}"),
                    (low, bound) => format!("{:.1}", low + (bound - low) * share),
                });
            }
            (low, below) = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_within_its_bucket() {
        let text = |counts: [u32; 3]| {
            format!(
                "# TYPE plaintap_relay_publish_seconds histogram\n{PUBLISH}{{le=\"0.001\"}} {}\n{PUBLISH}{{le=\"0.01\"}} {}\n\
                 {PUBLISH}{{le=\"+Inf\"}} {}\nplaintap_relay_publish_seconds_count {}\n",
                counts[0], counts[1], counts[2], counts[2]
            )
        };
        let (before, after) =
            (Histogram::read(&text([100, 100, 100])), Histogram::read(&text([150, 199, 200])));
        let within = |part| after.within_ms(&before, part);
        assert_eq!(within(0.25).as_deref(), Some("< 1"));
        assert_eq!(within(0.745).as_deref(), Some("5.5"));
        assert_eq!(within(1.0).as_deref(), Some("> 10"));
        assert_eq!(before.within_ms(&before, 0.5), None);
        assert_eq!(Histogram::default().within_ms(&before, 0.5), None);
    }
}
