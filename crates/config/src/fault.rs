//! Faults of a configuration and where each one comes from.
//!
//! Left out: finding them ([`crate::Reader`] does). Invariant: `Display` of [`Faults`] shows every one, one a line.

use std::fmt;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file, counted from 1.
    File {
        /// The file's path as the caller named it.
        path: String,
        /// The line of the key or of the syntax error.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// The variable's full name.
        name: String,
    },
    /// A flag of the command line.
    Flag,
    /// Nowhere: the value was not given.
    Absent,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Environment { name } => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
            Self::Absent => f.write_str("not set"),
        }
    }
}

/// One fault: the key it concerns, where its value came from, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The dotted key; empty for a fault of the file as a whole or of an unknown variable.
    pub key: String,
    /// Where the faulty value stands.
    pub origin: Origin,
    /// What is wrong, and where possible what would be right.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.reason)
        } else {
            write!(f, "{}: `{}`: {}", self.origin, self.key, self.reason)
        }
    }
}

/// Every fault of a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    /// The faults, in the order in which they were found.
    pub fn list(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} {}:", if count == 1 { "fault" } else { "faults" })?;
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
