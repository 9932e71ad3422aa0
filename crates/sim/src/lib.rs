//! A deterministic world for metering's protocol ([`exchequer_metering::core`]): several instances, a broker, clients, and between
//! them a network that loses, delays, doubles and cuts; instances that crash, stall and have wrong clocks; a lease service that may
//! lie. A seed says all that happens, so a failure is a number.
//!
//! Left out: the async shell around the protocol, the files, and a broker that loses what it acknowledged; tests with real processes
//! have these. Invariant: a run depends on its [`Settings`] alone.

mod audit;
mod broker;
mod client;
mod instance;
mod rng;
mod world;

pub use world::{Outcome, Settings, run};
