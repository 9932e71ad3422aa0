//! What may be said of each layer on this host now: its read-back, and an attack that just ran against it.
//!
//! Left out: the rest of the suite, for which there is no time in a call. Invariant: no status is `Enforced` unless an attack was stopped by
//! that layer alone and succeeded without it, both just now.

use super::{
    stage::ProbeError,
    suite::{Report, Suite, Verdict},
    table::{self, Probe},
};
use crate::sandbox::{Control, ControlStatus, Layer};

/// What may be said of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Read back, and an attack was stopped by it.
    Enforced,
    /// Holds in part, or is said to hold and an attack was not stopped by it.
    Degraded,
    /// Can't be had.
    Unavailable,
    /// Read back, and no attack could show it.
    Unverified,
}

impl Status {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::Unverified => "unverified",
        }
    }
}

/// A layer, what may be said of it, and why.
#[derive(Clone, Debug)]
pub struct Capability {
    /// As read back from the kernel.
    pub control: Control,
    /// What may be said of it.
    pub status: Status,
    /// The probe that ran with this layer as the only one of those that stop it.
    pub report: Report,
}

impl Suite {
    /// One for each layer, from the quick probes.
    pub async fn capabilities(&self) -> Result<Vec<Capability>, ProbeError> {
        let controls = self.read_back().await?;
        let proofs = table::PROOFS
            .iter()
            .filter_map(|(layer, name)| Some((*layer, table::named(name)?)))
            .collect::<Vec<_>>();
        let reports = self.proofs(&proofs).await;
        let of = |((layer, _), report): (&(Layer, &'static Probe), Report)| {
            let control = controls.iter().find(|control| control.layer == *layer)?.clone();
            Some(Capability { status: status(&control, &report), control, report })
        };
        Ok(proofs.iter().zip(reports).filter_map(of).collect())
    }
}

fn status(control: &Control, report: &Report) -> Status {
    let by_this = report.guard.and_then(super::Guard::layer) == Some(control.layer);
    match (control.status, report.verdict) {
        (ControlStatus::Unavailable, _) => Status::Unavailable,
        (ControlStatus::Degraded, _) | (ControlStatus::Enforced, Verdict::Broken) => Status::Degraded,
        (ControlStatus::Enforced, Verdict::Held) if by_this => Status::Enforced,
        (ControlStatus::Enforced, _) => Status::Unverified,
    }
}
