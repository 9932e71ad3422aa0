//! YAML as a tree that knows its lines, so that every fault of a file can be named with its place.
//!
//! Left out: what the nodes mean, and what a list of budgets has no use for: anchors, aliases and tags, which are refused. Invariant: a tree
//! is bounded in size and depth by constants.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Largest file, bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting; a file of budgets has 7.
const MAX_DEPTH: usize = 16;

/// A node and the line it begins on, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: an empty plain scalar, `~` or `null`.
    Null,
    /// Any other scalar, as text.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the file's order: key, line of the key, value.
    Map(Vec<(String, usize, Node)>),
}

/// The file is not such YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadYaml {
    pub line: usize,
    pub reason: String,
}

/// Reads one document.
pub fn parse(text: &str) -> Result<Node, BadYaml> {
    let mut tree = Tree { parser: Parser::new_from_str(text), line: 1 };
    loop {
        match tree.next()? {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok(Node { line: 1, value: Value::Null }),
            event => {
                let root = tree.node(event, 0)?;
                return match (tree.next()?, tree.next()?) {
                    (Event::DocumentEnd, Event::StreamEnd) => Ok(root),
                    _ => Err(tree.bad("the file has more than one document")),
                };
            }
        }
    }
}

struct Tree<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Where the last event began.
    line: usize,
}

impl<'a> Tree<'a> {
    fn bad(&self, reason: &str) -> BadYaml {
        BadYaml { line: self.line, reason: reason.to_owned() }
    }

    fn next(&mut self) -> Result<Event<'a>, BadYaml> {
        let (event, span): (Event<'a>, Span) = match self.parser.next_event() {
            Some(Ok(next)) => next,
            Some(Err(error)) => {
                return Err(BadYaml { line: error.marker().line(), reason: error.info().to_owned() });
            }
            None => return Ok(Event::StreamEnd),
        };
        self.line = span.start.line();
        Ok(event)
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, BadYaml> {
        let line = self.line;
        if depth > MAX_DEPTH {
            return Err(self.bad("it is nested too deeply"));
        }
        let value = match event {
            Event::Scalar(text, style, 0, None) => match (&*text, style) {
                ("" | "~" | "null", ScalarStyle::Plain) => Value::Null,
                _ => Value::Scalar(text.into_owned()),
            },
            Event::SequenceStart(0, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break Value::List(items),
                        event => items.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(0, None) => {
                let mut fields: Vec<(String, usize, Node)> = Vec::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => break Value::Map(fields),
                        Event::Scalar(text, _, 0, None) => text.into_owned(),
                        _ => return Err(self.bad("a key has to be plain text")),
                    };
                    let key_line = self.line;
                    if fields.iter().any(|(known, ..)| *known == key) {
                        return Err(self.bad(&format!("`{key}` is given twice")));
                    }
                    let event = self.next()?;
                    fields.push((key, key_line, self.node(event, depth + 1)?));
                }
            }
            _ => return Err(self.bad("anchors, aliases and tags are not taken")),
        };
        Ok(Node { line, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &str) -> (usize, String) {
        let BadYaml { line, reason } = parse(text).unwrap_err();
        (line, reason)
    }

    #[test]
    fn nodes_know_their_lines() {
        let root = parse("a: 1\n# a remark\nb:\n  - x\n  - {c: 'null', d: null}\n").unwrap();
        let Value::Map(fields) = root.value else { panic!() };
        let [(a, 1, one), (b, 3, list)] = &fields[..] else { panic!("{fields:?}") };
        assert_eq!((a.as_str(), b.as_str()), ("a", "b"));
        assert_eq!((one.line, &one.value), (1, &Value::Scalar("1".into())));
        let Value::List(items) = &list.value else { panic!() };
        assert_eq!((items[0].line, items[1].line), (4, 5));
        let Value::Map(fields) = &items[1].value else { panic!() };
        assert_eq!(fields[0].2.value, Value::Scalar("null".into()));
        assert_eq!(fields[1].2.value, Value::Null);
        assert_eq!(parse("").unwrap().value, Value::Null);
    }

    #[test]
    fn what_is_no_list_of_budgets_is_refused_with_its_line() {
        assert_eq!(bad("a: 1\nb: 2\na: 3\n"), (3, "`a` is given twice".into()));
        assert_eq!(bad("a: &x 1\nb: *x\n").0, 1);
        assert_eq!(bad("a: !!str 1\n").1, "anchors, aliases and tags are not taken");
        assert_eq!(bad("a: 1\n---\nb: 2\n").1, "the file has more than one document");
        assert!(bad(&"[".repeat(40)).1.contains("nested too deeply"));
        assert_eq!(bad("? [a]\n: 1\n").1, "a key has to be plain text");
        assert_eq!(bad("a: [1\nb: 2\n").0, 2);
    }
}
