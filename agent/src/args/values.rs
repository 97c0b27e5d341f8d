//! The values of flags, as a person writes them.

use std::{fmt, str::FromStr};

use plaintap_abi::choice;

/// A value that filters by, or after `!` filters out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<T> {
    /// What is chosen.
    pub value: T,
    /// One of [`choice`].
    pub choice: u8,
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Chosen<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (value, choice) = match text.strip_prefix('!') {
            Some(value) => (value, choice::EXCLUDE),
            None => (text, choice::INCLUDE),
        };
        if value.is_empty() {
            return Err("a value is missing".into());
        }
        Ok(Self { value: value.parse().map_err(|error: T::Err| error.to_string())?, choice })
    }
}

/// A process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(pub u32);

impl FromStr for Pid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // 0 is the kernel's own idle task, which no process has.
        match text.parse() {
            Ok(pid) if pid > 0 => Ok(Self(pid)),
            _ => Err(format!("{text:?} is no process id, as 4242")),
        }
    }
}

/// A user id or a range of them, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uids {
    /// The lowest.
    pub first: u32,
    /// The highest.
    pub last: u32,
}

impl FromStr for Uids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is no user id or range, as 1000 or 10000-19999")),
        }
    }
}

/// A time in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u32);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is no number of seconds, as 60"))
    }
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(pub ::log::LevelFilter);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is none of error, warn, info, debug and trace"))
    }
}

/// Bytes to keep of each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snaplen(pub u64);

impl Default for Snaplen {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl FromStr for Snaplen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no number of bytes from 1")),
        }
    }
}

/// How many clients may be connected at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxClients(pub u32);

impl FromStr for MaxClients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if (1..=1024).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{text:?} is no number from 1 to 1024")),
        }
    }
}

/// A number of bytes, written as `8M`, `512K` or plainly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            _ => (text, 0),
        };
        let most = 1 << 30;
        digits
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|bytes| (64 << 10..=most).contains(bytes))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size from 64K to 1024M"))
    }
}

/// What happens to a client that the journal has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowClient {
    /// What it missed is dropped, and it is told how much.
    Drop,
    /// Its connection is closed.
    Disconnect,
}

impl FromStr for SlowClient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "drop" => Ok(Self::Drop),
            "disconnect" => Ok(Self::Disconnect),
            _ => Err(format!("{text:?} is neither drop nor disconnect")),
        }
    }
}

/// A size that the kernel takes for a ring buffer: a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize(pub u32);

impl FromStr for RingSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Size(bytes) = text.parse()?;
        match u32::try_from(bytes) {
            Ok(bytes) if bytes.is_power_of_two() => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no power of two, as 256K, 4M or 16M")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded_and_a_ring_is_a_power_of_two() {
        assert_eq!("512k".parse(), Ok(Size(512 << 10)));
        assert_eq!("4M".parse(), Ok(RingSize(4 << 20)));
        for size in ["", "K", "1K", "-1", "2048M", "99999999999999999999M"] {
            assert!(size.parse::<Size>().is_err(), "{size}");
        }
        assert!("3M".parse::<RingSize>().is_err());
    }
}
