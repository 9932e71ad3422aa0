//! The sandbox, by real executions and real attacks: as this user, as a plain user, and where namespaces are forbidden.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "sandbox/attacks.rs"]
mod attacks;
#[path = "sandbox/cgroups.rs"]
mod cgroups;
#[path = "sandbox/controls.rs"]
mod controls;
#[path = "sandbox/documented.rs"]
mod documented;
#[path = "sandbox/egress.rs"]
mod egress;
#[path = "sandbox/faults.rs"]
mod faults;
#[path = "sandbox/files.rs"]
mod files;
#[path = "sandbox/limits.rs"]
mod limits;
#[path = "sandbox/network.rs"]
mod network;
#[path = "sandbox/omitted.rs"]
mod omitted;
#[path = "sandbox/profiles.rs"]
mod profiles;
#[path = "sandbox/programs.rs"]
mod programs;
#[path = "sandbox/ready.rs"]
mod ready;
#[path = "sandbox/rig.rs"]
mod rig;
