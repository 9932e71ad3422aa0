//! Durations and sizes as people write them: `250ms`, `2s`, `16MiB`.
//!
//! Left out: fractions and sums (`1.5s`, `1h30m`): one integer and one unit, so that no reading is a guess.
//! Invariant: `parse(format(x)) == x` for every value with millisecond precision and every size.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Parses an integer with a unit of `ms`, `s`, `m`, `h` or `d`. The error says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let millis = parse(text, &DURATION_UNITS, "a duration such as `250ms`, `2s`, `5m`, `1h` or `7d`")?;
    Ok(Duration::from_millis(millis))
}

/// Parses an integer with a unit of `B`, `KiB`, `MiB`, `GiB` or `TiB`, as bytes. The error says what was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, &SIZE_UNITS, "a size such as `512B`, `64KiB`, `16MiB` or `2GiB`")
}

/// Writes a duration in its largest exact unit; below a millisecond is cut off.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    format(millis, &DURATION_UNITS)
}

/// Writes a size in its largest exact unit.
pub fn format_bytes(bytes: u64) -> String {
    format(bytes, &SIZE_UNITS)
}

fn parse(text: &str, units: &[(&str, u64)], expected: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, factor)| *factor);
    let (Ok(number), Some(factor)) = (number.parse::<u64>(), factor) else {
        return Err(format!("expected {expected}"));
    };
    number.checked_mul(factor).ok_or_else(|| "the number is too large".to_owned())
}

fn format(value: u64, units: &[(&str, u64)]) -> String {
    let (name, factor) = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor))
        .unwrap_or(&units[0]);
    format!("{}{name}", value / factor)
}
