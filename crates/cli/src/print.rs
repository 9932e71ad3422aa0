//! Output: text or JSON, lines and tables, on a standard output that may be closed early.
//!
//! Left out: what is said. Invariant: data goes to standard output, everything else to standard error.

use std::io::{self, Write as _};

use serde_json::Value as Json;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document; of several records one a line.
    Json,
}

/// A line of text.
pub fn text(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Somebody else's text on a line of ours: its control characters, which a terminal would obey, as escapes.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // Beside controls what turns the direction of text around, so that it reads as something else.
        if character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A JSON document on a line.
pub fn json(document: &Json) -> io::Result<()> {
    text(&document.to_string())
}

/// Bytes as they are.
pub fn bytes(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Rows under a head, in columns.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let mut widths = head.map(|name| name.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text(line.trim_end())
    };
    line(head)?;
    rows.iter().try_for_each(|row| line(row.each_ref().map(String::as_str)))
}

/// Items one after the other, on as many lines as they take.
pub fn wrapped(indent: &str, items: &[String]) -> io::Result<()> {
    const WIDTH: usize = 120;
    let mut line = String::new();
    for (place, item) in items.iter().enumerate() {
        let end = if place + 1 < items.len() { ";" } else { "" };
        if !line.is_empty() && indent.len() + line.chars().count() + item.chars().count() + 2 > WIDTH {
            text(&format!("{indent}{line}"))?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(item);
        line.push_str(end);
    }
    if line.is_empty() { Ok(()) } else { text(&format!("{indent}{line}")) }
}

/// A remark for people beside the data.
pub fn remark(line: &str) {
    // Nobody is left to tell that standard error is closed.
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_as_an_escape() {
        assert_eq!(escaped("a\u{1b}[2J\nb\u{202e}é"), "a\\u{1b}[2J\\u{a}b\\u{202e}é");
    }
}
