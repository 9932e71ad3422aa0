//! What may be said of each layer on this host now: its read-back, and an attack that just ran against it.
//!
//! Left out: the rest of the suite, for which there is no time in a call. Invariant: no status is `Enforced` unless an attack was stopped by
//! that layer alone and succeeded without it, both just now.

use super::{
    Seen,
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
        // Something stopped the attack, and not as this layer does: it shows nothing of it, as where there is no /proc to ask.
        (ControlStatus::Enforced, Verdict::Broken) if matches!(report.seen, Some(Seen::Errno(_))) => {
            Status::Unverified
        }
        (ControlStatus::Degraded, _) | (ControlStatus::Enforced, Verdict::Broken) => Status::Degraded,
        (ControlStatus::Enforced, Verdict::Held) if by_this => Status::Enforced,
        (ControlStatus::Enforced, _) => Status::Unverified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::{Guard, PROBES};

    #[test]
    fn an_attack_that_something_else_stopped_shows_nothing_and_one_that_succeeded_shows_a_hole() {
        let control = Control {
            layer: Layer::MountNamespace,
            status: ControlStatus::Enforced,
            evidence: String::new(),
            remedy: String::new(),
        };
        let told = |verdict, seen| {
            let report = Report {
                probe: &PROBES[0][0],
                only: None,
                verdict,
                guard: Some(Guard::Layer(Layer::MountNamespace)),
                expected: String::new(),
                observed: String::new(),
                control: String::new(),
                seen: Some(seen),
            };
            status(&control, &report)
        };
        assert!(matches!(told(Verdict::Held, Seen::words("another namespace")), Status::Enforced));
        assert!(matches!(told(Verdict::Broken, Seen::Errno(libc::ENOENT)), Status::Unverified));
        assert!(matches!(told(Verdict::Broken, Seen::Done), Status::Degraded));
        let each = Seen::Each(vec![("1".to_owned(), Seen::Errno(libc::EPERM)), ("2".to_owned(), Seen::Done)]);
        assert!(matches!(told(Verdict::Broken, each), Status::Degraded));
    }
}
