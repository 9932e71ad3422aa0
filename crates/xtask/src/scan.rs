//! Splits Rust source into code, comments and string literals, so that a rule about code isn't met by a comment.
//!
//! A lexer of the few forms that matter: comments (nested), strings (raw, byte and C ones too), character literals
//! against lifetimes. Left out: everything else about Rust; macros and attributes are code like any other.
//!
//! Invariant: `code` has exactly the lines of the source; what isn't code is blank in it.

use std::ops::Range;

/// A piece of text and the line, counted from 1, that it begins on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// A source file in its parts.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The code, with comments and the contents of literals blanked.
    pub(crate) code: String,
    /// Every comment's text, with its slashes.
    pub(crate) comments: Vec<Piece>,
    /// Every string literal's contents, escapes left as written.
    pub(crate) strings: Vec<Piece>,
}

impl Source {
    /// Takes a file apart.
    pub(crate) fn read(text: &str) -> Self {
        let mut lexer = Lexer { rest: text, line: 1, previous: ' ', source: Self::default() };
        while !lexer.rest.is_empty() {
            lexer.step();
        }
        lexer.source
    }

    /// The lines of code, counted from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The lines inside `#[cfg(test)]` items that have a body.
    pub(crate) fn test_lines(&self) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(at) = self.code[from..].find("#[cfg(test)]").map(|at| from + at) {
            let end = end_of_item(&self.code, at);
            let line = |offset: usize| self.code[..offset].matches('\n').count() + 1;
            found.push(line(at)..line(end) + 1);
            from = end.max(at + 1);
        }
        found
    }
}

/// Where the item that begins at `at` ends: after its matching brace, or at its semicolon.
fn end_of_item(code: &str, at: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, character) in code[at..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + offset;
                }
            }
            ';' if depth == 0 => return at + offset,
            _ => {}
        }
    }
    code.len()
}

struct Lexer<'text> {
    rest: &'text str,
    line: usize,
    /// The last character of code: tells `r"` from the end of a name such as `bar"`.
    previous: char,
    source: Source,
}

impl Lexer<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.comment(end);
        } else if self.rest.starts_with("/*") {
            self.comment(block_comment(self.rest));
        } else if let Some((open, hashes)) = self.string_opens() {
            self.string(open, hashes);
        } else if self.rest.starts_with('\'') {
            let length = character_literal(self.rest);
            self.code(1);
            self.blank(length.saturating_sub(1));
        } else {
            self.code(self.rest.chars().next().map_or(1, char::len_utf8));
        }
    }

    /// The length of the opening up to the quote, and the number of hashes if the literal is raw.
    fn string_opens(&self) -> Option<(usize, Option<usize>)> {
        let in_name = self.previous.is_alphanumeric() || self.previous == '_';
        let prefix = if in_name {
            0
        } else {
            self.rest.bytes().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count()
        };
        let (prefix, after) = (&self.rest[..prefix], &self.rest[prefix..]);
        if prefix.len() > 2 {
            return None;
        }
        if prefix.ends_with('r') {
            let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
            return after[hashes..].starts_with('"').then_some((prefix.len() + hashes + 1, Some(hashes)));
        }
        after.starts_with('"').then_some((prefix.len() + 1, None))
    }

    fn string(&mut self, open: usize, raw: Option<usize>) {
        self.code(open);
        let length = match raw {
            Some(hashes) => {
                let close = format!("\"{}", "#".repeat(hashes));
                self.rest.find(&close).unwrap_or(self.rest.len())
            }
            None => plain_string(self.rest),
        };
        self.source.strings.push(Piece { line: self.line, text: self.rest[..length].to_owned() });
        self.blank(length);
        self.code((1 + raw.unwrap_or(0)).min(self.rest.len()));
    }

    fn comment(&mut self, length: usize) {
        self.source.comments.push(Piece { line: self.line, text: self.rest[..length].to_owned() });
        self.blank(length);
        self.previous = ' ';
    }

    fn code(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        self.source.code.push_str(taken);
        self.line += taken.matches('\n').count();
        self.previous = taken.chars().next_back().unwrap_or(' ');
        self.rest = rest;
    }

    fn blank(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        for character in taken.chars() {
            self.source.code.push(if character == '\n' { '\n' } else { ' ' });
        }
        self.line += taken.matches('\n').count();
        self.rest = rest;
    }
}

fn block_comment(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn plain_string(text: &str) -> usize {
    let mut escaped = false;
    for (offset, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return offset,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal, or 1 for the quote of a lifetime.
fn character_literal(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            characters.next();
            text[3.min(text.len())..].find('\'').map_or(1, |at| 3 + at + 1)
        }
        Some((_, first)) if text[1 + first.len_utf8()..].starts_with('\'') => 2 + first.len_utf8(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, code: &str, strings: &[&str], comments: &[&str]) {
        let source = Source::read(text);
        let texts = |pieces: &[Piece]| pieces.iter().map(|piece| piece.text.clone()).collect::<Vec<_>>();
        assert_eq!(source.code.split_whitespace().collect::<Vec<_>>().join(" "), code, "code of {text}");
        assert_eq!(texts(&source.strings), strings, "strings of {text}");
        assert_eq!(texts(&source.comments), comments, "comments of {text}");
        assert_eq!(source.code.matches('\n').count(), text.matches('\n').count(), "lines of {text}");
    }

    #[test]
    fn comments_and_strings_are_told_from_code() {
        check("a(); // b\nc();", "a(); c();", &[], &["// b"]);
        check("a /* b /* c */ d */ e", "a e", &[], &["/* b /* c */ d */"]);
        check(r#"f("// no", x)"#, r#"f(" ", x)"#, &["// no"], &[]);
        check(r#"f("a\"b", y)"#, r#"f(" ", y)"#, &[r#"a\"b"#], &[]);
        check("f(r#\"a \" b\"#, z)", "f(r#\" \"#, z)", &["a \" b"], &[]);
        check(r#"f(b"x", c"y", br"z")"#, r#"f(b" ", c" ", br" ")"#, &["x", "y", "z"], &[]);
        check("let r#type = 1;", "let r#type = 1;", &[], &[]);
    }

    #[test]
    fn character_literals_are_told_from_lifetimes() {
        check("f('\"', a)", "f(' , a)", &[], &[]);
        check("f('\\'', a)", "f(' , a)", &[], &[]);
        check("f('\\u{2014}', '—')", "f(' , ' )", &[], &[]);
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}", &[], &[]);
    }

    #[test]
    fn the_lines_of_test_modules_are_found() {
        let source = Source::read("fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { }\n}\nfn c() {}\n");
        assert_eq!(source.test_lines(), vec![2..6]);
        let source = Source::read("#[cfg(test)]\nmod tests;\nfn c() {}\n");
        assert_eq!(source.test_lines(), vec![1..3]);
    }
}
