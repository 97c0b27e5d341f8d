//! plaintapd streams the plaintext of TLS connections on an Android or Linux device.
//!
//! `run` is the program: it reads the command line, opens the listener, and splits into two processes. The attaching
//! half (`attach`) is privileged, finds TLS libraries and puts probes on them, and never reads from the network; the
//! serving half (`serve`) drains the ring that the probes fill and talks to clients. They speak over `link`. `list` and
//! `doctor` only look, and print what they see.

mod allocator;
pub mod args;
pub mod attach;
pub mod capture;
pub mod classify;
pub mod discover;
pub mod doctor;
pub mod flow;
pub mod link;
pub mod list;
pub mod listen;
pub mod log;
pub mod logcat;
pub mod memory;
pub mod notify;
#[cfg(target_env = "musl")]
mod pieces;
pub mod privileges;
pub mod process;
pub mod recent;
pub mod report;
pub mod run;
pub mod serve;
pub mod server;
pub mod sockets;
pub mod stderr;
pub mod stream;
pub mod targets;
pub mod wipe;

pub use run::main;
