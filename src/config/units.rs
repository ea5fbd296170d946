//! Sizes and times as people write them: `64MiB`, `30s`, `7d`.

use std::time::Duration;

/// From the largest to the smallest, so that the first that divides a value is the one to print.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// The same for times, in milliseconds.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Longest time that is taken. A longer one is a typing error, and adding it to a clock could overflow.
const LONGEST_MS: u64 = 36_500 * 86_400_000;

/// Reads a size such as `64MiB`; the error says what is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (digits, unit) = split_number(text);
    if digits.is_empty() {
        return Err("is not a size: write a whole number and a unit, for example \"64MiB\"".into());
    }
    if unit.starts_with('.') {
        return Err("must be a whole number: write \"1536MiB\" for one and a half GiB".into());
    }
    if unit.is_empty() {
        return Err("has no unit: write B, KB, KiB, MB, MiB, GB, GiB, TB or TiB behind the number".into());
    }
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        return Err("has an unknown unit: B, KB, KiB, MB, MiB, GB, GiB, TB and TiB are known".into());
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| "is larger than any disk".to_owned())
}

/// Reads a time such as `30s` or `1h30m`; the error says what is wrong with it.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("is empty: write a whole number and a unit, for example \"30s\"".into());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (digits, behind) = split_number(rest);
        if digits.is_empty() {
            return Err("is not a time: write a whole number and a unit, for example \"30s\"".into());
        }
        if behind.starts_with('.') {
            return Err("must be a whole number: write \"1500ms\" for one and a half seconds".into());
        }
        let end = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(end);
        if unit.is_empty() {
            return Err("has no unit: write ms, s, m, h or d behind the number".into());
        }
        let Some((_, factor)) = TIMES.iter().find(|(name, _)| *name == unit) else {
            return Err("has an unknown unit: ms, s, m, h and d are known".into());
        };
        let part = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= LONGEST_MS)
            .ok_or_else(|| "is longer than a hundred years".to_owned())?;
        rest = next.trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// Writes a size so that [`parse_bytes`] reads the same number again.
pub fn bytes(value: u64) -> String {
    exact(value, &SIZES, "B")
}

/// Writes a time so that [`parse_time`] reads the same time again, to the millisecond.
pub fn time(value: Duration) -> String {
    exact(u64::try_from(value.as_millis()).unwrap_or(u64::MAX), &TIMES, "s")
}

/// The largest unit that divides the value; zero is nicer with a unit of its own.
fn exact(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return format!("0{zero}");
    }
    // Every table ends in a unit of one.
    let (unit, factor) = units.iter().find(|(_, factor)| value.is_multiple_of(*factor)).unwrap_or(&("", 1));
    format!("{}{unit}", value / factor)
}

/// Splits the leading digits off, and the blanks behind them.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, value) in [
            ("0B", 0),
            ("17B", 17),
            ("2KB", 2_000),
            ("2KiB", 2_048),
            ("3MB", 3_000_000),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("1GB", 1_000_000_000),
            ("10GiB", 10 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_say_why() {
        for (text, word) in [
            ("", "whole number"),
            ("MiB", "whole number"),
            ("-1MiB", "whole number"),
            ("64", "no unit"),
            ("64M", "unknown unit"),
            ("1.5GiB", "1536MiB"),
            ("18446744073709551615TiB", "larger"),
            ("99999999999999999999999B", "larger"),
        ] {
            let error = parse_bytes(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_read_in_every_unit_and_put_together() {
        for (text, millis) in
            [("0s", 0), ("5ms", 5), ("30s", 30_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("1m 5s", 65_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn times_that_are_none_say_why() {
        for (text, word) in [
            ("", "empty"),
            ("s", "whole number"),
            ("30", "no unit"),
            ("30 sec", "unknown unit"),
            ("1.5s", "1500ms"),
            ("99999999d", "hundred years"),
            ("99999999999999999999d", "hundred years"),
        ] {
            let error = parse_time(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for value in [0, 1, 999, 1_000, 1_024, 1_500, 64 << 20, 3_000_000, u64::MAX] {
            assert_eq!(parse_bytes(&bytes(value)), Ok(value));
        }
        for millis in [0, 1, 999, 1_000, 90_000, 86_400_000, 604_800_000] {
            let value = Duration::from_millis(millis);
            assert_eq!(parse_time(&time(value)), Ok(value));
        }
        assert_eq!(bytes(64 << 20), "64MiB");
        assert_eq!(time(Duration::from_secs(604_800)), "7d");
    }
}
