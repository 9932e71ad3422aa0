//! The Linux sandbox: runs one program per execution behind every layer the kernel offers, and says which of them
//! held, as read back from the kernel for that very process before it executed anything.
//!
//! Who does what, from the outside in:
//!
//! | process | code | life |
//! |---|---|---|
//! | agent (tokio) | [`client`] | asks for executions, streams their output; never forks one |
//! | helper | [`helper`] | re-exec of the agent's binary, one thread; forks a supervisor per execution, some of them ahead |
//! | supervisor | `supervisor`, `execution` | one execution: namespaces, read-back, clock, cpu budget, kill, outcome |
//! | init | `init` | pid 1 inside: builds the root, places inputs, reaps, kills what is left, opens outputs |
//! | payload | `payload` | takes the remaining layers on itself, waits for its program, stops, then becomes it |
//!
//! All that depends on the profile alone (namespaces, root, loopback, cgroup, Landlock, capabilities, filter) can be built, and
//! what can't be undone of it read back, before anybody asks: the helper keeps a few such surroundings, each for one execution.
//! What depends on the request (inputs, streams, limits) and the rest of the read-back follow when it comes.
//!
//! Data: [`spec`] (what to run), [`profile`] (what is visible), [`control`] (which layers hold), [`outcome`] (how it
//! ended), `wire` (messages between the processes). Layers: `root`, `landlock_rules`, `seccomp` over
//! `syscalls`, `rlimits`, `cgroup`. Files in and out: `files`. Evidence: `readback`. Tree: `tree`. All `unsafe`: `sys`.
//!
//! Left out: who may run what, budgets, records (the rest of the agent).
//!
//! Invariants: the program is not executed before the caller saw the controls and released it; when agent, helper,
//! supervisor or init die, at whatever moment, the execution's processes die too (without a pid namespace this needs
//! init or supervisor to outlive the first death; `control` then says so); no status of a control is a constant.

pub mod client;
pub mod control;
pub mod helper;
pub mod outcome;
pub mod probe;
pub mod profile;
pub mod spec;
pub mod syscalls;

mod cgroup;
mod channel;
mod execution;
mod files;
mod init;
mod landlock_rules;
mod payload;
mod readback;
mod rlimits;
mod root;
mod seccomp;
mod supervisor;
mod sys;
mod tree;
mod wire;

pub use client::{
    Chunk, Given, KillReason, Killer, Prepared, Running, Sandbox, SandboxError, StartOptions, Stream,
};
pub use control::{Control, ControlStatus, Layer};
pub use outcome::{ExitCause, FileProblem, MemorySource, Outcome, Usage};
pub use probe::probe;
pub use profile::{EGRESS_PORT, Network, Profile, WorkArea};
pub use seccomp::{RefusedCalls, refused_calls};
pub use spec::{Limits, Spec, SpecFault};
