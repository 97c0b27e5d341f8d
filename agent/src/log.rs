//! The program's own log: one line goes to stderr (on Android also to logcat) and to whoever tells the clients.
//!
//! Owns the process's logger. The serving half hands lines to its stream; the attaching half sends them over the link.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::{
    logcat::{self, LOGD, Logcat},
    stderr::Stderr,
};

/// The longest line that clients are sent, in bytes.
pub const MAX_LINE: usize = 960;

/// Takes a finished line, without a line feed.
pub type Sink = Box<dyn Fn(&str) + Send + Sync>;

struct Logger {
    sink: Sink,
    stderr: Option<Stderr>,
    logcat: Option<Logcat>,
    /// Android's own library, where the program is linked with it.
    #[cfg(target_os = "android")]
    liblog: android_logger::AndroidLogger,
}

/// Sends this process's log to stderr and to `sink`.
///
/// A second call changes nothing, as there is one logger in a process.
pub fn start(level: LevelFilter, sink: Sink) {
    // Where programs are linked with Android's own library, that one does it.
    let logcat = if cfg!(target_os = "android") { None } else { Logcat::find(Path::new(LOGD)).ok() };
    let logger = Logger {
        sink,
        stderr: Stderr::open().ok(),
        logcat,
        #[cfg(target_os = "android")]
        liblog: liblog(),
    };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

/// All lines under one tag, as the static program's; by itself it would take the module's name.
#[cfg(target_os = "android")]
fn liblog() -> android_logger::AndroidLogger {
    let config = android_logger::Config::default().with_tag(logcat::TAG);
    android_logger::AndroidLogger::new(config.format(|to, record| write!(to, "{}", record.args())))
}

/// Changes how much is logged, to a level as `log::LevelFilter` numbers it.
pub fn set_level(level: u32) {
    if let Some(level) = LevelFilter::iter().find(|known| *known as u32 == level) {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // The libraries' own lines are for those who look for a fault in them.
        metadata.level() <= Level::Warn
            || metadata.target().starts_with("plaintapd")
            || log::max_level() >= Level::Trace
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = line(SystemTime::now(), record.level(), &record.args().to_string());
        if let Some(stderr) = &self.stderr {
            stderr.put(&line);
        }
        #[cfg(target_os = "android")]
        self.liblog.log(record);
        if let Some(logcat) = &self.logcat {
            // It has a time and a level of its own, and the line is bounded.
            logcat.put(logcat::now(), record.level(), line.splitn(3, ' ').nth(2).unwrap_or_default());
        }
        (self.sink)(&line);
    }

    fn flush(&self) {}
}

/// A log line as eCaptureQ documents it: `2025-08-02T14:16:10Z INF text key=value`, in one line of bounded length.
fn line(time: SystemTime, level: Level, text: &str) -> String {
    let level = match level {
        Level::Error => "ERR",
        Level::Warn => "WRN",
        Level::Info => "INF",
        Level::Debug => "DBG",
        Level::Trace => "TRC",
    };
    let mut line = format!("{} {level} ", humantime::format_rfc3339_seconds(time));
    for char in text.chars() {
        if line.len() + char.len_utf8() + '…'.len_utf8() > MAX_LINE {
            line.push('…');
            break;
        }
        line.push(if char.is_control() { ' ' } else { char });
    }
    line
}

/// Keeps what others cause from flooding the log: a burst, then so many lines a second.
#[derive(Debug)]
pub struct Limiter {
    burst: u32,
    per_second: u32,
    left: u32,
    suppressed: u64,
    last: Instant,
}

impl Limiter {
    /// A limiter with its whole burst to give.
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { burst, per_second, left: burst, suppressed: 0, last: now }
    }

    /// Whether a line may pass at `now`: `Some(n)` if so, after n that might not.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        let seconds = now.duration_since(self.last).as_secs();
        if seconds > 0 {
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.left = self.left.saturating_add(earned).min(self.burst);
            self.last += Duration::from_secs(seconds);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_documented_form() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_754_144_170);
        assert_eq!(line(time, Level::Info, "attached key=1"), "2025-08-02T14:16:10Z INF attached key=1");
    }

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        let line = line(SystemTime::UNIX_EPOCH, Level::Error, &format!("a\nb\u{1b}c{}", "é".repeat(2000)));
        assert!(line.starts_with("1970-01-01T00:00:00Z ERR a b c"));
        assert!(line.len() <= MAX_LINE && line.ends_with('…'));
    }

    #[test]
    fn a_flood_is_cut_and_what_was_cut_is_counted() {
        let start = Instant::now();
        let mut limiter = Limiter::new(64, 8, start);
        assert_eq!((0..100).filter(|_| limiter.pass(start).is_some()).count(), 64);
        assert_eq!(limiter.pass(start + Duration::from_secs(1)), Some(36));
        assert_eq!(limiter.pass(start + Duration::from_secs(1)), Some(0));
    }
}
