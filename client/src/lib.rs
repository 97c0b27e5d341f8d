//! What the program `plaintap` does on the person's computer, as a library; `main.rs` is glue.
//!
//! The way through: `address` is what the person typed, `source` one connection, `follow` the connections one after
//! another, `seen` what was missed between and within them, `http` puts messages together, and `watch` puts it on the
//! terminal with `show` and `text`.
#![forbid(unsafe_code)]

pub mod address;
pub mod args;
pub mod follow;
pub mod http;
pub mod note;
pub mod seen;
pub mod show;
pub mod source;
pub mod text;
pub mod watch;
