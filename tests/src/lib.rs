//! Drives the built programs as black boxes, against real TLS libraries.
//!
//! Each module starts or watches one thing: [`agent`] the agent, [`driver`], [`program`] and [`bssl`] programs that speak TLS,
//! [`stream`] a client of the agent, [`adb`] a device that one is put on, [`conversation`] what the client got of one connection. Every wait has a bound
//! and says what it waited for; whatever was started is ended, by its pid, when its value is dropped. A machine that
//! lacks something ([`need`]) fails the tests: they are never skipped.

pub mod adb;
pub mod agent;
pub mod bssl;
pub mod conversation;
pub mod driver;
pub mod lines;
pub mod need;
pub mod net;
pub mod pattern;
pub mod process;
pub mod program;
pub mod raw;
pub mod storm;
pub mod stream;
// The client's own, without all that the client depends on.
#[path = "../../client/src/waits.rs"]
pub mod waits;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long the tests wait for anything at all.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// AOSP's BoringSSL, as Debian packages it.
pub const BORINGSSL: &str = concat!("/usr/lib/", env!("PLAINTAP_MULTIARCH"), "/android/libssl.so.0");

/// OpenSSL 3.
pub const OPENSSL: &str = concat!("/usr/lib/", env!("PLAINTAP_MULTIARCH"), "/libssl.so.3");

/// Asks `probe` until it has an answer; fails with `what` when it still has none after [`PATIENCE`].
///
/// For what can't be waited for: the kernel's tables and other people's processes.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {PATIENCE:?} for {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
