//! The probe suite: real attacks on this host's sandbox, each with a positive control, and what may be said of each layer because of them.
//!
//! | part | what |
//! |---|---|
//! | [`table`] | the probes: the attack, what stops it in which order and how, and the control |
//! | [`stage`] | what stands on the host for attacks to aim at, and the program that attacks (`probes/*.c`) |
//! | [`seen`] | what came of an attack, in and outside the sandbox |
//! | [`suite`] | runs a probe and judges it |
//! | [`mutation`] | the same with a layer left off: which probes notice |
//! | [`capability`] | the status of each layer, from probes that just ran |
//! | [`wire`] | that, as the agent answers it |
//!
//! Used by `exchequer audit --sandbox`, `exchequer capabilities`, the agent's GetCapabilities and the tests: there is no second list.
//!
//! Left out: the layers themselves (`sandbox`). Invariant: a probe holds only if the attack was stopped exactly as its table says *and* the
//! same attack succeeded in its control; whatever is missing for either makes it fail.

pub mod capability;
pub mod mutation;
pub mod seen;
pub mod stage;
pub mod suite;
pub mod table;
pub mod wire;

pub use capability::{Capability, Status};
pub use mutation::Mutation;
pub use seen::Seen;
pub use stage::{ProbeError, Stage};
pub use suite::{Report, Suite, Verdict};
pub use table::{Contrast, Guard, PROBES, Probe, Stop, Watch};
