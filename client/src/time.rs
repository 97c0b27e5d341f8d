//! Unix time as people and other programs write it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as `2025-08-02T14:16:10Z`.
pub fn utc_s() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = utc(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
    text.truncate(19);
    text + "Z"
}

/// `2025-08-02T14:16:10.123Z`, from Unix time in nanoseconds.
pub fn utc(timestamp: i64) -> String {
    let ms = timestamp.div_euclid(1_000_000);
    let (days, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Years that begin in March, so that the leap day is their last; 400 of them have 146097 days, and the first such
    // span before 1970 began 719468 days before it.
    let days = days + 719_468;
    let (span, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + span * 400 + i64::from(month <= 2);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_days_and_the_ends_of_time_are_right() {
        // Source: `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_754_144_170, "2025-08-02T14:16:10.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), expected);
        }
        assert_eq!(utc(i64::MAX), "2262-04-11T23:47:16.854Z");
        assert_eq!(utc(i64::MIN), "1677-09-21T00:12:43.145Z");
    }
}
