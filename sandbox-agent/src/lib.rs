//! The sandbox agent: admit, execute, seal, spool, publish, serve.
//!
//! One path for every way in: authenticate → check the request → wait for its turn → hold → prepare the sandbox → record the admission
//! durably → run → record the outcome durably → answer. Nothing runs and nothing is answered unaudited.
//!
//! - [`agent`]: start, readiness and stop of the whole.
//! - [`options`]: section `[agent]` of the configuration.
//! - [`profiles`]: what executions may see and do, as files; the configuration's ceiling over them.
//! - [`request`], [`redact`]: the gate of requests, and what may be written down. [`throttle`]: how often refusals are.
//! - [`queue`], [`slots`]: who runs next. [`workspace`]: files of the host that go in and come out.
//! - [`execute`]: one execution, gate by gate. [`record`]: what is recorded of it. [`bundle`]: what is
//!   signed of it for the caller.
//! - [`holds`]: the calls to metering. [`leases`], [`mod@slice`]: slices of budgets, against which most executions are admitted without one.
//! - [`egress`]: the allow-listed way out of a sandbox.
//! - `keyrings`: whether the kernel has room for as many executions as are configured.
//! - [`sandbox`]: the engine; knows nothing of tenants, budgets or records. [`probes`]: attacks on it, and what they show of each layer.
//! - [`spool`], [`publish`]: the durable record, and its way into the stream. [`audit_log`]: the same record as a file on the host.
//! - [`spool`], [`publish`]: the durable record, and its way into the stream.

pub mod agent;
pub mod audit_log;
pub mod bundle;
pub mod egress;
pub mod execute;
pub mod grpc;
pub mod holds;
pub mod leases;
pub mod options;
pub mod probes;
pub mod profiles;
pub mod publish;
pub mod queue;
pub mod record;
pub mod redact;
pub mod request;
pub mod sandbox;
pub mod slice;
pub mod slots;
pub mod spool;
pub mod throttle;
pub mod workspace;

mod keyrings;
mod metrics;

pub use agent::{Agent, StartError};
pub use options::{Options, Peers};
