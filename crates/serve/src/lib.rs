//! What every daemon puts around its services: configuration, logs and traces, the stream, authentication, listening and stopping.
//!
//! - [`config`]: the command line of a daemon and the sections that all of them share.
//! - [`daemon`]: the `main` that the daemons have in common.
//! - [`server`]: one gRPC and one HTTP listener with health, reflection, metrics, tracing and authentication in front.
//!
//! Left out: what is served. Invariant: every RPC and every route of a daemon passes the authentication layer; only the paths named
//! in [`server`] and by the service itself are public.

pub mod config;
mod connections;
pub mod daemon;
pub mod server;

pub use config::{Arguments, Shared, StreamOptions};
pub use daemon::{Daemon, Living, run};
pub use server::{Bound, Parts, Running, bind, serve, serve_open, stop_signal};
