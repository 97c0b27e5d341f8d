//! The numbers that flags take, as a person writes them. What is wrong with one is said in a person's words, not the
//! parser's.

use std::str::FromStr;

/// A number of bytes.
pub fn bytes(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text:?} is no number of bytes, as 65536"))
}

/// A number of things of which there is at least one; `T` is one of [`std::num`]'s that are never 0.
pub fn from_one<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number from 1, as 10"))
}

/// A TCP port; 0 stands for a free one.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port, as 28257"))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_wrong_number_is_named() {
        assert_eq!((bytes("0"), bytes("65536")), (Ok(0), Ok(65536)));
        assert_eq!(from_one("7").map(NonZeroU64::get), Ok(7));
        for wrong in ["", "x", "-1", "1K", "99999999999999999999"] {
            assert_eq!(bytes(wrong), Err(format!("{wrong:?} is no number of bytes, as 65536")));
            assert_eq!(from_one::<NonZeroU64>(wrong), Err(format!("{wrong:?} is no number from 1, as 10")));
        }
        assert!(from_one::<NonZeroU64>("0").is_err());
        assert_eq!((port("0"), port("65536")), (Ok(0), Err("\"65536\" is no port, as 28257".into())));
    }
}
