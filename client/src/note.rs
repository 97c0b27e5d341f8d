//! Notes for the person, on stderr: what happened to the stream, as opposed to the stream itself.

use std::{
    error::Error,
    io::{self, Write},
};

use crate::text;

/// Prints one line on stderr. What a server says may be part of it, so nothing in it reaches the terminal raw.
pub fn note(what: &str) {
    // A note that nobody can read is no reason to stop, as when stderr is a pipe that was closed.
    let _ = writeln!(io::stderr(), "plaintap: {}", text::one_line(what));
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// `1 message`, `2 messages`.
pub fn counted(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
