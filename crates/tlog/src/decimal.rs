//! Decimal numbers as the C2SP formats write them: ASCII digits, no sign, no leading zero.

/// The number `text` spells, if it is the canonical spelling of a `u64`.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let canonical = match text.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_the_canonical_spelling_is_a_number() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "18446744073709551616", "٣"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
