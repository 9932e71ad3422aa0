//! Fuzz targets: one function for every decoder that reads what somebody else wrote.
//!
//! A target takes any bytes, says whether they were accepted, and panics if a property does not hold: what was accepted is within its
//! bounds, encodes to bytes that are accepted again and mean the same, and what the project writes itself is accepted. Signed records are
//! also signed anew after the bytes were changed, for otherwise nothing behind a signature would ever be reached.
//! `tests/corpus.rs` replays the kept inputs in `corpus/`, `cargo xtask fuzz` looks for new ones.
//! Left out: the engine, which is `src/engine.rs`. Invariant: a target depends on its input alone.
// The targets are assertions.
#![allow(clippy::unwrap_used)]

mod egress;
mod journal;
mod log;
mod records;
mod replay;
mod result_bundle;
mod state;
mod text;

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Takes any bytes; whether they were accepted. Panics if a property does not hold.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with: some that are accepted.
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "note", run: text::note, samples: text::notes },
    Target { name: "checkpoint", run: text::checkpoint, samples: text::checkpoints },
    Target { name: "verifier_key", run: text::verifier_key, samples: text::verifier_keys },
    Target { name: "path", run: text::path, samples: text::paths },
    Target { name: "tlog_proof", run: text::tlog_proof, samples: text::tlog_proofs },
    Target { name: "add_checkpoint", run: text::add_checkpoint, samples: text::add_checkpoints },
    Target { name: "tile", run: log::tile, samples: log::tiles },
    Target { name: "bundle", run: log::bundle, samples: log::bundles },
    Target { name: "batch", run: records::batch, samples: records::batches },
    Target { name: "block", run: records::block, samples: records::blocks },
    Target { name: "control", run: records::control, samples: records::controls },
    Target { name: "receipt", run: records::receipt, samples: records::receipts },
    Target { name: "result_bundle", run: result_bundle::bundle, samples: result_bundle::bundles },
    Target { name: "messages", run: replay::messages, samples: replay::message_samples },
    Target { name: "entries", run: replay::entries, samples: replay::entry_samples },
    Target { name: "acceptor_snapshot", run: state::acceptor, samples: state::acceptors },
    Target { name: "budget", run: state::budget, samples: state::budgets },
    Target { name: "journal", run: journal::segment, samples: journal::segments },
    Target { name: "egress_head", run: egress::head, samples: egress::heads },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
