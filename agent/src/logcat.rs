//! Log lines for Android's logcat, from the static binary, which has no liblog: logd's socket takes them as they are.
//!
//! Source: AOSP, system/logging/liblog/logd_writer.cpp and include/private/android_logger.h.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use log::Level;

/// Where logd listens.
pub const LOGD: &str = "/dev/socket/logdw";
/// The buffer that apps and daemons log to.
const MAIN: u8 = 0;
/// What `logcat -s` tells our lines by.
pub const TAG: &str = "plaintapd";

/// logd, if this is an Android that runs.
#[derive(Debug)]
pub struct Logcat {
    socket: UnixDatagram,
    /// Looked up for each line, as logd may be started again.
    path: &'static Path,
}

impl Logcat {
    /// Finds logd at `path`.
    pub fn find(path: &'static Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // Lines that find no room are left out, as logd's own library does it.
        socket.set_nonblocking(true)?;
        std::fs::metadata(path)?;
        Ok(Self { socket, path })
    }

    /// Hands over a line said at `time` since 1970; never waits.
    pub fn put(&self, time: Duration, level: Level, text: &str) {
        // Nobody is left to tell when it is gone.
        let _ = self
            .socket
            .send_to(&message(time, level, nix::unistd::gettid().as_raw() as u16, text), self.path);
    }
}

/// A line as logd takes it: buffer, thread, time, priority, tag and text, all little-endian and packed.
fn message(time: Duration, level: Level, thread: u16, text: &str) -> Vec<u8> {
    let priority = match level {
        Level::Error => 6,
        Level::Warn => 5,
        Level::Info => 4,
        Level::Debug => 3,
        Level::Trace => 2,
    };
    let mut bytes = vec![MAIN];
    bytes.extend(thread.to_le_bytes());
    // Its field has 32 bits.
    bytes.extend((time.as_secs() as u32).to_le_bytes());
    bytes.extend(time.subsec_nanos().to_le_bytes());
    bytes.push(priority);
    bytes.extend(TAG.bytes());
    bytes.push(0);
    bytes.extend(text.bytes().filter(|byte| *byte != 0));
    bytes.push(0);
    bytes
}

/// The time since 1970, as logd wants it.
pub fn now() -> Duration {
    UNIX_EPOCH.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_as_logd_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path: &'static Path = Box::leak(folder.path().join("logdw").into_boxed_path());
        assert!(Logcat::find(path).is_err());
        let logd = UnixDatagram::bind(path).unwrap();
        let logcat = Logcat::find(path).unwrap();
        // As when it is started again.
        drop(logd);
        std::fs::remove_file(path).unwrap();
        logcat.put(Duration::ZERO, Level::Info, "nobody hears this");
        let logd = UnixDatagram::bind(path).unwrap();
        logcat.put(Duration::new(0x0102_0304, 5), Level::Warn, "a\0b");
        let mut got = [0; 64];
        let length = logd.recv(&mut got).unwrap();
        assert_eq!((got[0], &got[3..11]), (0, &[4, 3, 2, 1, 5, 0, 0, 0][..]));
        assert_eq!(&got[11..length], b"\x05plaintapd\0ab\0");
    }

    #[test]
    fn a_logd_that_does_not_read_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path: &'static Path = Box::leak(folder.path().join("logdw").into_boxed_path());
        let _logd = UnixDatagram::bind(path).unwrap();
        let logcat = Logcat::find(path).unwrap();
        for _ in 0..10_000 {
            logcat.put(Duration::ZERO, Level::Info, "a line");
        }
    }
}
