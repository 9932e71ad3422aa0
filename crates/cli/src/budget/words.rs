//! The words for a budget's settings, as flags, files and tables have them.
//!
//! Left out: what they mean (the protocol). Invariant: what is printed of a setting is read back as the same setting.

use exchequer_event::v1::{Enforcement, MeterAmount, Overage, Threshold, Window, threshold::At};

/// A setting with a word for each of its values.
pub trait Word: Copy + Sized + 'static {
    /// The values with their words.
    const WORDS: &'static [(Self, &'static str)];
}

impl Word for Window {
    const WORDS: &'static [(Self, &'static str)] = &[
        (Self::Unspecified, "lifetime"),
        (Self::Hour, "hour"),
        (Self::Day, "day"),
        (Self::Week, "week"),
        (Self::Month, "month"),
    ];
}

impl Word for Enforcement {
    const WORDS: &'static [(Self, &'static str)] =
        &[(Self::Unspecified, "hard"), (Self::Soft, "soft"), (Self::Shadow, "shadow")];
}

impl Word for Overage {
    const WORDS: &'static [(Self, &'static str)] =
        &[(Self::Unspecified, "debt"), (Self::Cap, "cap"), (Self::Overdraft, "overdraft")];
}

/// Reads a word.
pub fn read<T: Word>(text: &str) -> Result<T, String> {
    let found = T::WORDS.iter().find(|(_, word)| *word == text);
    found.map(|(value, _)| *value).ok_or_else(|| {
        let words: Vec<_> = T::WORDS.iter().map(|(_, word)| *word).collect();
        format!("expected one of {}", words.join(", "))
    })
}

/// The word for a value, by its number in the protocol.
pub fn word<T: Word + Into<i32>>(number: i32) -> String {
    let found = T::WORDS.iter().find(|(value, _)| (*value).into() == number);
    found.map_or_else(|| format!("unknown ({number})"), |(_, word)| (*word).to_owned())
}

/// A number, in which `_` may stand between digits.
pub fn number(text: &str) -> Result<u64, String> {
    let is_grouped = text.starts_with(|c: char| c.is_ascii_digit())
        && !text.ends_with('_')
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if !is_grouped {
        return Err("expected a whole number, such as 5000 or 5_000".to_owned());
    }
    text.replace('_', "").parse().map_err(|_| "is too large".to_owned())
}

/// `METER=AMOUNT`.
pub fn amount(text: &str) -> Result<MeterAmount, String> {
    let (meter, amount) = text.split_once('=').ok_or("expected METER=AMOUNT")?;
    let amount = number(amount).map_err(|error| format!("{amount}: {error}"))?;
    Ok(MeterAmount { meter: meter.to_owned(), amount })
}

/// A threshold: `80%` or `4000` of what is spent, or `forecast 100%`.
pub fn threshold(text: &str) -> Result<Threshold, String> {
    let expected = || "expected a threshold such as 80%, 4000 or \"forecast 100%\"".to_owned();
    let percent = |text: &str| {
        let percent = text.strip_suffix('%').and_then(|text| text.parse().ok()).ok_or_else(expected)?;
        if (1..=1000).contains(&percent) { Ok(percent) } else { Err("must be 1% to 1000%".to_owned()) }
    };
    let at = match text.strip_prefix("forecast").map(|rest| rest.trim_start_matches(['=', ' '])) {
        Some(rest) => At::ForecastPercent(percent(rest)?),
        None if text.ends_with('%') => At::SpentPercent(percent(text)?),
        None => At::SpentAmount(number(text).map_err(|_| expected())?),
    };
    Ok(Threshold { at: Some(at) })
}

/// A threshold in words.
pub fn threshold_text(threshold: &Threshold) -> String {
    match threshold.at {
        Some(At::SpentPercent(percent)) => format!("{percent}%"),
        Some(At::SpentAmount(amount)) => amount.to_string(),
        Some(At::ForecastPercent(percent)) => format!("forecast {percent}%"),
        None => "none".to_owned(),
    }
}

/// A period of so many milliseconds, as [`period`] reads it.
pub fn period_text(ms: u64) -> String {
    exchequer_config::format_duration(std::time::Duration::from_millis(ms))
}

/// A period in milliseconds.
pub fn period(text: &str) -> Result<u64, String> {
    let period = exchequer_config::parse_duration(text)?;
    u64::try_from(period.as_millis()).map_err(|_| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_is_printed() {
        fn check<T: Word + Into<i32> + PartialEq + std::fmt::Debug>() {
            for (value, text) in T::WORDS {
                assert_eq!(read::<T>(text), Ok(*value));
                assert_eq!(word::<T>((*value).into()), *text);
            }
        }
        check::<Window>();
        check::<Enforcement>();
        check::<Overage>();
        assert_eq!(read::<Enforcement>("Hard"), Err("expected one of hard, soft, shadow".to_owned()));
        assert_eq!(word::<Window>(77), "unknown (77)");
    }

    #[test]
    fn thresholds_and_periods_are_read_as_they_are_printed() {
        for text in ["1%", "1000%", "4000", "forecast 100%"] {
            assert_eq!(threshold_text(&threshold(text).unwrap()), text);
        }
        for text in ["500ms", "1s", "90s", "1m", "36h", "1001ms"] {
            assert_eq!(period_text(period(text).unwrap()), text);
        }
        for bad in ["0%", "1001%", "-1%", "x", "", "forecast", "forecast 5", "%"] {
            assert!(threshold(bad).is_err(), "{bad}");
        }
        assert_eq!(threshold("forecast=90%"), threshold("forecast 90%"));
    }

    #[test]
    fn amounts_are_whole_numbers_that_may_be_grouped() {
        assert_eq!(number("5_000"), Ok(5000));
        assert_eq!(number("18446744073709551615"), Ok(u64::MAX));
        for bad in ["", "-1", "1.5", "1e3", "_1", "1_", "0x10", "18446744073709551616", "+1"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(amount("cpu_ms=1_0").unwrap().amount, 10);
        assert!(amount("cpu_ms").is_err() && amount("cpu_ms=x").is_err());
    }
}
