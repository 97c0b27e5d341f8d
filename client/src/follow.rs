//! A stream over as many connections as it takes: when one ends, the next is tried, ever more slowly, and asked to go on
//! where the last one ended.

use std::{
    thread,
    time::{Duration, Instant},
};

use tungstenite::{Message, http::StatusCode};

use crate::{
    address::{Address, Way},
    nats::Place,
    note,
    source::{ConnectError, Ended, Patience, Source},
};

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// What comes next of a stream.
pub enum Incoming {
    /// A text or binary message.
    Message(Message),
    /// Nothing more has come yet: the next call waits.
    Idle,
    /// There is no connection, for this reason; the next call waits this long and tries again. Said once for each new
    /// reason, not for each attempt.
    Down(String, Duration),
    /// Another attempt has failed, for the same reason.
    StillDown(String),
    /// There is a connection.
    Connected {
        /// It is not the first one.
        again: bool,
        /// Of a stream that is kept, which knows itself what was missed: what the person should be told. `None`: the
        /// messages' numbers tell.
        kept: Option<Vec<String>>,
    },
}

/// Why a stream does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// A stream that goes on when its connection does not.
pub struct Follow {
    address: Address,
    reconnect: bool,
    /// What a server is asked for that knows how to go on.
    resume: Option<String>,
    /// Where a stream that is kept goes on.
    place: Option<Place>,
    source: Option<Source>,
    /// When the last connection began.
    connected_at: Option<Instant>,
    /// Before the next attempt.
    delay: Duration,
    told: String,
}

impl Follow {
    /// Does not connect yet. With `reconnect`, neither a connection's end nor what keeps one from coming about ends the
    /// stream, unless it won't get better by waiting.
    pub fn new(address: Address, reconnect: bool) -> Self {
        let (source, connected_at, delay, told) = (None, None, Duration::ZERO, String::new());
        Self { address, reconnect, resume: None, place: None, source, connected_at, delay, told }
    }

    /// Has the next connection go on behind this message: its number and its run.
    pub fn resume_after(&mut self, place: Option<(u64, &str)>) {
        self.resume = place.map(|(seq, run)| self.address.path_after(seq, run));
    }

    /// What comes next; an error only if there is no going on.
    pub fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            match &mut self.source {
                Some(source) => match source.receive() {
                    Ok(Some(message)) => return Ok(Incoming::Message(message)),
                    Ok(None) => return Ok(Incoming::Idle),
                    Err(ended) if !self.reconnect => return Err(ended.into()),
                    Err(ended) => {
                        if let Source::Nats(reader) = source {
                            self.place = Some(reader.place().clone());
                        }
                        self.source = None;
                        return Ok(self.lost(&ended));
                    }
                },
                None => {
                    thread::sleep(self.delay);
                    self.delay = jittered((self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY));
                    match self.connect() {
                        Ok((source, kept)) => {
                            self.source = Some(source);
                            let again = self.connected_at.replace(Instant::now()).is_some();
                            return Ok(Incoming::Connected { again, kept });
                        }
                        // It does not know how to go on.
                        Err(ConnectError::Refused { status: StatusCode::BAD_REQUEST, .. })
                            if self.resume.take().is_some() => {}
                        Err(error) if !self.reconnect || !error.may_pass() => return Err(error.into()),
                        Err(error) => {
                            let why = note::chain(&error);
                            if why == self.told {
                                return Ok(Incoming::StillDown(why));
                            }
                            self.told.clone_from(&why);
                            return Ok(Incoming::Down(why, self.delay));
                        }
                    }
                }
            }
        }
    }

    fn connect(&self) -> Result<(Source, Option<Vec<String>>), ConnectError> {
        if let Way::Nats(wanted) = &self.address.way {
            let (source, told) = Source::connect_behind(wanted, self.place.as_ref())?;
            return Ok((source, Some(told)));
        }
        let path = self.resume.as_ref().unwrap_or(&self.address.path);
        Ok((Source::connect_for(&self.address, path, Patience::default())?, None))
    }

    fn lost(&mut self, ended: &Ended) -> Incoming {
        // A server that ends each connection at once is tried ever more slowly too.
        if self.connected_at.is_some_and(|at| at.elapsed() >= LONGEST_DELAY) {
            self.delay = jittered(FIRST_DELAY);
        }
        self.told = note::chain(ended);
        Incoming::Down(self.told.clone(), self.delay)
    }
}

/// From half of it to all: many that lost one server don't come back as one.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_that_fails_is_told_from_a_stream_without_news() {
        // No port that was free a moment ago: another test may have it by now.
        let address = "ws://127.0.0.1:1/".parse().unwrap();
        let mut follow = Follow::new(address, true);
        let Ok(Incoming::Down(first, _)) = follow.receive() else { panic!() };
        for _ in 0..2 {
            assert!(matches!(follow.receive(), Ok(Incoming::StillDown(why)) if why == first));
        }
    }
}
