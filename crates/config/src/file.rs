//! Flattens a TOML document into dotted keys with the line each one stands on.
//!
//! Arrays of tables become indexed keys: the second `[[ledger.enroll]]`'s `agent` is `ledger.enroll[1].agent`.
//! Left out: meaning. Invariant: every leaf of the document appears once, or a fault says why not.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use crate::fault::{Fault, Origin};

/// Largest configuration file that is parsed, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// What stands under one dotted key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Scalar(String),
    List(Vec<String>),
    /// An array of tables, by its length; the tables' own keys are entries too.
    Tables(usize),
    EmptyTable,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) content: Content,
    pub(crate) line: usize,
}

/// The flattened document. Syntax errors are added to `faults`, all of them, and the rest is kept.
pub(crate) fn flatten(path: &str, text: &str, faults: &mut Vec<Fault>) -> BTreeMap<String, Entry> {
    let mut flat = Flattening { path, text, faults, entries: BTreeMap::new() };
    if text.len() > MAX_FILE_BYTES {
        flat.fault(String::new(), 0, format!("the file is larger than {MAX_FILE_BYTES} bytes"));
        return flat.entries;
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        flat.fault(String::new(), at, error.message().to_owned());
    }
    flat.table("", document.get_ref());
    flat.entries
}

struct Flattening<'a> {
    path: &'a str,
    text: &'a str,
    faults: &'a mut Vec<Fault>,
    entries: BTreeMap<String, Entry>,
}

impl Flattening<'_> {
    fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        self.text.as_bytes()[..end].split(|byte| *byte == b'\n').count()
    }

    fn fault(&mut self, key: String, offset: usize, reason: String) {
        let origin = Origin::File { path: self.path.to_owned(), line: self.line(offset) };
        self.faults.push(Fault { key, origin, reason });
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let offset = name.span().start;
            let name = name.get_ref();
            let key = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            self.value(key, offset, value.get_ref());
        }
    }

    fn value(&mut self, key: String, offset: usize, value: &DeValue<'_>) {
        let content = match value {
            DeValue::Table(table) if table.is_empty() => Content::EmptyTable,
            DeValue::Table(table) => return self.table(&key, table),
            DeValue::Array(items)
                if !items.is_empty() && items.iter().all(|item| item.get_ref().is_table()) =>
            {
                for (index, item) in items.iter().enumerate() {
                    if let DeValue::Table(table) = item.get_ref() {
                        self.table(&format!("{key}[{index}]"), table);
                    }
                }
                Content::Tables(items.len())
            }
            DeValue::Array(items) => {
                match items.iter().map(|item| scalar(item.get_ref())).collect::<Option<Vec<_>>>() {
                    Some(items) => Content::List(items),
                    None => {
                        return self.fault(
                            key,
                            offset,
                            "a list holds plain values only, or tables only".to_owned(),
                        );
                    }
                }
            }
            other => match scalar(other) {
                Some(text) => Content::Scalar(text),
                None => return,
            },
        };
        let line = self.line(offset);
        self.entries.insert(key, Entry { content, line });
    }
}

/// The text of a plain value. Integers in another base become decimal, so that `0x10` is 16 to every reader.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(
            i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |n| n.to_string()),
        ),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
