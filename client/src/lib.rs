//! What the program `plaintap` does on the person's computer, as a library; `main.rs` is glue.
//!
//! The way through: `address` is what the person typed, `source` one connection, `follow` the connections one after
//! another, `seen` what was missed between and within them, `http` puts messages together, and `watch` puts it on the
//! terminal with `show` and `text`. `inspect` and `record` stand behind `consume`, which hands them each message; `replay` and
//! `serve` stand behind `server`. `adb` is the way to a device, `relay` that of many devices' streams into NATS, `nats`
//! the way back.
#![forbid(unsafe_code)]

pub mod adb;
pub mod address;
pub mod args;
pub mod commands;
pub mod consume;
pub mod extcap;
pub mod follow;
pub mod http;
pub mod inspect;
#[cfg(feature = "relay")]
pub mod nats;
#[cfg(not(feature = "relay"))]
#[path = "no_nats.rs"]
pub mod nats;
pub mod note;
pub mod record;
#[cfg(feature = "relay")]
pub mod relay;
pub mod replay;
pub mod seen;
pub mod serve;
pub mod server;
pub mod shell;
pub mod show;
pub mod source;
pub mod text;
pub mod time;
pub mod values;
pub mod waits;
pub mod watch;
