//! Typed configuration: flags over environment over file, every fault reported at once.
//!
//! The caller does the IO (reads the file, the environment, the command line) and hands all three to a [`Reader`].
//! Components take their typed options from the reader, key by key; [`Reader::finish`] then reports every fault
//! together: values that don't parse or lie out of range, required keys that are missing, keys and `EXCHEQUER_*`
//! variables that nobody asked for.
//!
//! A key such as `ledger.grpc_listen` is `grpc_listen` in the file's `[ledger]`, `EXCHEQUER_LEDGER_GRPC_LISTEN` in the
//! environment, and the same dotted key as a flag. What is parsed is the value's text, so `port = 80` and
//! `port = "80"` mean the same.
//!
//! Left out: reading files, reloading, and any knowledge of a component's keys.
//!
//! Invariant: a value that was given is either used, or reported in [`Faults`]; never silently dropped.

mod fault;
mod file;
mod quantity;
mod reader;

pub use fault::{Fault, Faults, Origin};
pub use file::MAX_FILE_BYTES;
pub use quantity::{format_bytes, format_duration, parse_bytes, parse_duration};
pub use reader::{ENV_PREFIX, Reader, env_name};
