//! Looks keys up over flags, environment and file, and collects the faults.
//!
//! Left out: IO and defaults that depend on other keys. Invariant: every lookup marks its key as known, so that what
//! remains unknown at [`Reader::finish`] is exactly what nobody read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::fault::{Fault, Faults, Origin};
use crate::file::{Content, Entry, flatten};
use crate::quantity::{format_bytes, format_duration, parse_bytes, parse_duration};

/// Prefix of the environment variables that belong to this configuration.
pub const ENV_PREFIX: &str = "EXCHEQUER_";

/// Variables without the prefix that [`Reader::also_env`] may name; no other is ever looked at.
const OTHER_ENV: [&str; 2] = ["AUDIT_LOG_MAX_BYTES", "AUDIT_LOG_BACKUP_COUNT"];

/// Longest part of a faulty value that a fault quotes, in characters.
const QUOTED_CHARS: usize = 64;

/// The environment variable of a dotted key: `ledger.grpc_listen` → `EXCHEQUER_LEDGER_GRPC_LISTEN`.
pub fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace(['.', '-'], "_").to_ascii_uppercase())
}

/// Reads typed values out of the three sources and remembers every fault; see the crate's documentation.
#[derive(Debug)]
pub struct Reader {
    path: String,
    file: BTreeMap<String, Entry>,
    env: BTreeMap<String, String>,
    /// Variables by other names, by key.
    also: BTreeMap<String, &'static str>,
    other_env: BTreeMap<String, String>,
    flags: BTreeMap<String, Vec<String>>,
    defaults: BTreeMap<String, String>,
    known: BTreeSet<String>,
    known_env: BTreeMap<String, String>,
    allowed_env: BTreeSet<String>,
    foreign: BTreeSet<String>,
    faults: Vec<Fault>,
    file_only: bool,
}

/// The winning source's value of one key.
struct Found {
    origin: Origin,
    content: Content,
}

impl Reader {
    /// A reader over a file's path and text, the process's environment (only `EXCHEQUER_*` and what [`Reader::also_env`] names is
    /// looked at) and flags as
    /// dotted keys with values. Syntax errors of the file are among the faults of [`Reader::finish`].
    pub fn new(
        file: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Self {
        let mut faults = Vec::new();
        let (path, file) = file.map_or_else(
            || (String::new(), BTreeMap::new()),
            |(path, text)| (path.to_owned(), flatten(path, text, &mut faults)),
        );
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in flags {
            by_key.entry(key).or_default().push(value);
        }
        let looked_at =
            env.filter(|(name, _)| name.starts_with(ENV_PREFIX) || OTHER_ENV.contains(&name.as_str()));
        let (env, other_env) = looked_at.partition(|(name, _)| name.starts_with(ENV_PREFIX));
        Self {
            path,
            file,
            env,
            also: BTreeMap::new(),
            other_env,
            flags: by_key,
            defaults: BTreeMap::new(),
            known: BTreeSet::new(),
            known_env: BTreeMap::new(),
            allowed_env: BTreeSet::new(),
            foreign: BTreeSet::new(),
            faults,
            file_only: false,
        }
    }

    /// A reader over one file that neither variables nor flags have a part in: not the process's configuration, but
    /// something that is written like it.
    pub fn of_file(path: &str, text: &str) -> Self {
        Self { file_only: true, ..Self::new(Some((path, text)), std::iter::empty(), Vec::new()) }
    }

    /// Names `EXCHEQUER_*` variables that something else reads, so that they are not reported as unknown.
    pub fn allow_env(&mut self, names: &[&str]) {
        self.allowed_env.extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// Lets a variable with a name of its own give `key`, too; the usual one wins. Only those of a fixed list can.
    pub fn also_env(&mut self, key: &str, name: &'static str) {
        assert!(OTHER_ENV.contains(&name), "{name} is not among the variables that are looked at");
        self.also.insert(key.to_owned(), name);
    }

    /// Names a top-level section of the file (and its variables) that belongs to a component which does not run in
    /// this process, so that one file can serve several processes.
    pub fn allow_section(&mut self, section: &str) {
        self.foreign.insert(section.to_owned());
    }

    /// What `key` is where no source gives it: for a process that knows what its components have to be told otherwise.
    pub fn set_default(&mut self, key: &str, value: impl Into<String>) {
        self.defaults.insert(key.to_owned(), value.into());
    }

    /// The value of `key`, or `default` where it is not given (or faulty: the fault is kept for the end).
    pub fn get<T: FromStr<Err: Display>>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// The value of `key`, if it is given and parses.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        self.parsed(key, |text| text.parse::<T>().map_err(|error| error.to_string()))
    }

    /// The value of `key`; `None` means that a fault was recorded and [`Reader::finish`] will fail.
    pub fn required<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        if self.lookup(key).is_none() {
            self.fault(key, "is required");
            return None;
        }
        self.optional(key)
    }

    /// The value of `key` if it lies in `range`, else `default` and a fault. A default out of range is a defect of
    /// the program: it panics.
    pub fn in_range<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        assert!(range.contains(&default), "the default of {key} is out of its own range");
        self.parsed(key, |text| {
            let value = text.parse::<T>().map_err(|error| error.to_string())?;
            bounded(value, &range, T::to_string)
        })
        .unwrap_or(default)
    }

    /// A duration such as `250ms` or `2s`, within `range`; otherwise as [`Reader::in_range`].
    pub fn duration(&mut self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        assert!(range.contains(&default), "the default of {key} is out of its own range");
        self.parsed(key, |text| bounded(parse_duration(text)?, &range, |value| format_duration(*value)))
            .unwrap_or(default)
    }

    /// A size such as `16MiB` in bytes, within `range`; otherwise as [`Reader::in_range`].
    pub fn bytes(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        assert!(range.contains(&default), "the default of {key} is out of its own range");
        self.parsed(key, |text| bounded(parse_bytes(text)?, &range, |value| format_bytes(*value)))
            .unwrap_or(default)
    }

    /// Every item of a list: a list in the file, a comma-separated value in the environment, a flag given once or
    /// more. Items that don't parse are left out and reported. Not given: empty.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &str) -> Vec<T> {
        let Some(found) = self.lookup(key) else {
            return Vec::new();
        };
        let texts = match found.content {
            Content::List(texts) => texts,
            Content::Scalar(text) => vec![text],
            Content::Tables(_) | Content::EmptyTable => {
                self.record(key, found.origin, "expected a list of plain values, found a table".to_owned());
                return Vec::new();
            }
        };
        // Only the file has a list type of its own; a flag or a variable spells one with commas.
        let items: Vec<String> = if matches!(found.origin, Origin::File { .. }) {
            texts
        } else {
            let split = texts.iter().flat_map(|text| text.split(','));
            split.map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        };
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match item.parse::<T>() {
                Ok(value) => values.push(value),
                Err(error) => self.record(key, found.origin.clone(), invalid(&item, &error.to_string())),
            }
        }
        values
    }

    /// Whether any source gives `key`: tells a list that is empty from one that is not there.
    pub fn is_given(&self, key: &str) -> bool {
        let from_env = !key.contains('[') && self.env.contains_key(&env_name(key));
        from_env
            || self.flags.contains_key(key)
            || self.file.contains_key(key)
            || self.defaults.contains_key(key)
    }

    /// The tables of an array such as `[[ledger.enroll]]`, each as the prefix of its keys (`ledger.enroll[0]`): read
    /// them with `format!("{prefix}.agent")`. Only the file can hold these. Not given: empty.
    pub fn tables(&mut self, key: &str) -> Vec<String> {
        self.known.insert(key.to_owned());
        match self.file.get(key).map(|entry| (entry.content.clone(), entry.line)) {
            None => Vec::new(),
            Some((Content::Tables(count), _)) => (0..count).map(|index| format!("{key}[{index}]")).collect(),
            Some((Content::List(items), _)) if items.is_empty() => Vec::new(),
            Some((_, line)) => {
                let origin = Origin::File { path: self.path.clone(), line };
                self.record(key, origin, format!("expected tables, written as `[[{key}]]`"));
                Vec::new()
            }
        }
    }

    /// The keys of a table whose keys are the user's own, such as `[environment]`, in their order. Only the file can hold
    /// these. Not given: empty.
    pub fn keys_of(&mut self, table: &str) -> Vec<String> {
        self.known.insert(table.to_owned());
        if let Some(entry) = self.file.get(table).filter(|entry| entry.content != Content::EmptyTable) {
            let origin = Origin::File { path: self.path.clone(), line: entry.line };
            self.record(table, origin, format!("expected a table, written as `[{table}]`"));
        }
        let keys = self.file.iter().filter(|(key, _)| is_below(key, table));
        let mut keys = keys.map(|(key, entry)| (entry.line, key.clone())).collect::<Vec<_>>();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Records a fault that only the component can see (two keys that contradict each other, say), with the place
    /// where `key` was given.
    pub fn fault(&mut self, key: &str, reason: impl Into<String>) {
        let origin = self.lookup(key).map_or(Origin::Absent, |found| found.origin);
        let mut reason = reason.into();
        if origin == Origin::Absent && !key.contains('[') && !self.file_only {
            reason = format!("{reason} (or set {})", env_name(key));
        }
        self.record(key, origin, reason);
    }

    /// Adds whatever nobody read to the faults and reports them all; call it once every component has taken its
    /// options and before anything starts.
    pub fn finish(mut self) -> Result<(), Faults> {
        let mut unknown = Vec::new();
        for (key, entry) in &self.file {
            let is_known = match entry.content {
                Content::EmptyTable => self.known.iter().any(|known| is_below(known, key)),
                _ => self.known.contains(key),
            };
            let is_below_unknown_tables = key.contains('[');
            let owner_is_unknown = is_below_unknown_tables
                && key.split('[').next().is_some_and(|owner| !self.known.contains(owner));
            if !is_known && !owner_is_unknown && !self.is_foreign(key) {
                let origin = Origin::File { path: self.path.clone(), line: entry.line };
                let reason = with_suggestion("unknown key", key, self.known.iter());
                unknown.push(Fault { key: key.clone(), origin, reason });
            }
        }
        unknown.sort_by_key(|fault| if let Origin::File { line, .. } = fault.origin { line } else { 0 });
        for name in self.env.keys() {
            let is_foreign = self.foreign.iter().any(|section| {
                name.strip_prefix(&env_name(section)).is_some_and(|rest| rest.starts_with('_'))
            });
            if !self.known_env.contains_key(name) && !self.allowed_env.contains(name) && !is_foreign {
                let reason = with_suggestion("unknown variable", name, self.known_env.keys());
                let origin = Origin::Environment { name: name.clone() };
                unknown.push(Fault { key: String::new(), origin, reason });
            }
        }
        for key in self.flags.keys().filter(|key| !self.known.contains(*key)) {
            let reason = with_suggestion("unknown key", key, self.known.iter());
            unknown.push(Fault { key: key.clone(), origin: Origin::Flag, reason });
        }
        self.faults.append(&mut unknown);
        if self.faults.is_empty() { Ok(()) } else { Err(Faults(self.faults)) }
    }

    fn is_foreign(&self, key: &str) -> bool {
        self.foreign.contains(key.split(['.', '[']).next().unwrap_or(key))
    }

    fn lookup(&mut self, key: &str) -> Option<Found> {
        self.known.insert(key.to_owned());
        let indexed = key.contains('[');
        let name = env_name(key);
        if !indexed {
            let owner = self.known_env.entry(name.clone()).or_insert_with(|| key.to_owned());
            assert!(owner == key, "{key} and {owner} share the variable {name}");
        }
        if let Some(values) = self.flags.get(key) {
            let content = match values.as_slice() {
                [value] => Content::Scalar(value.clone()),
                values => Content::List(values.to_vec()),
            };
            return Some(Found { origin: Origin::Flag, content });
        }
        if let Some(value) = self.env.get(&name).filter(|_| !indexed) {
            let content = Content::Scalar(value.clone());
            return Some(Found { origin: Origin::Environment { name }, content });
        }
        if let Some((name, value)) = self.also.get(key).and_then(|name| self.other_env.get_key_value(*name)) {
            let content = Content::Scalar(value.clone());
            return Some(Found { origin: Origin::Environment { name: name.clone() }, content });
        }
        let Some(entry) = self.file.get(key) else {
            let value = self.defaults.get(key)?.clone();
            return Some(Found { origin: Origin::Absent, content: Content::Scalar(value) });
        };
        let origin = Origin::File { path: self.path.clone(), line: entry.line };
        Some(Found { origin, content: entry.content.clone() })
    }

    fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let found = self.lookup(key)?;
        let outcome = match &found.content {
            Content::Scalar(text) => parse(text).map_err(|reason| invalid(text, &reason)),
            Content::List(_) if found.origin == Origin::Flag => Err("is given more than once".to_owned()),
            Content::List(_) => Err("expected a single value, found a list".to_owned()),
            Content::Tables(_) | Content::EmptyTable => {
                Err("expected a single value, found a table".to_owned())
            }
        };
        match outcome {
            Ok(value) => Some(value),
            Err(reason) => {
                self.record(key, found.origin, reason);
                None
            }
        }
    }

    fn record(&mut self, key: &str, origin: Origin, reason: String) {
        let fault = Fault { key: key.to_owned(), origin, reason };
        // A key may be read twice (by two components); its fault is one fault.
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

fn bounded<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(format!("must lie between {} and {}", show(range.start()), show(range.end())))
}

fn invalid(text: &str, reason: &str) -> String {
    let quoted: String = text.chars().take(QUOTED_CHARS).collect();
    let cut = if quoted.len() < text.len() { "…" } else { "" };
    format!("`{}{cut}`: {reason}", quoted.escape_debug())
}

/// Whether `key` lies under the table `table`.
fn is_below(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
}

fn with_suggestion<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a String>) -> String {
    // A third of the letters wrong is still a slip; more is another word.
    let limit = given.chars().count() / 3;
    let nearest = known.map(|name| (edit_distance(given, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= limit => format!("{what}; did you mean `{name}`?"),
        _ => what.to_owned(),
    }
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
