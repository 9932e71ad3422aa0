//! Capabilities as the agent answers them: the edge between the suite's types and the protocol's.
//!
//! Left out: who may ask. Invariant: a control is said to be enforced only if a probe of this very answer held.

use exchequer_event::v1;

use super::{
    capability::{Capability, Status},
    stage::ProbeError,
    suite::{Suite, Verdict},
};
use crate::{
    record,
    sandbox::{Control, Sandbox, SandboxError, probe},
};

/// Controls and probes of this host now.
pub async fn capabilities(
    sandbox: &Sandbox,
) -> Result<(Vec<v1::Control>, Vec<v1::ProbeResult>), SandboxError> {
    let probed = match Suite::start(sandbox.clone()).await {
        Ok(suite) => suite.capabilities().await,
        Err(error) => Err(error),
    };
    match probed {
        Ok(capabilities) => Ok(capabilities.iter().map(|one| (control(one), result(one))).unzip()),
        Err(ProbeError::Sandbox(error)) => Err(error),
        Err(error) => {
            let read_back = probe(sandbox).await?;
            Ok((read_back.iter().map(|control| unverified(control, &error)).collect(), vec![]))
        }
    }
}

fn control(capability: &Capability) -> v1::Control {
    let status = match capability.status {
        Status::Enforced => v1::ControlStatus::Enforced,
        Status::Degraded => v1::ControlStatus::Degraded,
        Status::Unavailable => v1::ControlStatus::Unavailable,
        Status::Unverified => v1::ControlStatus::Unverified,
    };
    let mut control = record::control(&capability.control);
    if control.status() != status {
        let report = &capability.report;
        let seen = format!("the probe {} saw: {} ({})", report.probe.name, report.observed, report.control);
        control.evidence = format!("{}; {seen}", control.evidence);
        control.status = status.into();
    }
    control
}

fn unverified(read_back: &Control, error: &ProbeError) -> v1::Control {
    let mut control = record::control(read_back);
    if control.status() == v1::ControlStatus::Enforced {
        control.status = v1::ControlStatus::Unverified.into();
        control.evidence = format!("{}; {error}", control.evidence);
    }
    control
}

fn result(capability: &Capability) -> v1::ProbeResult {
    let report = &capability.report;
    let verdict = match report.verdict {
        Verdict::Held => v1::ProbeVerdict::Held,
        Verdict::Broken => v1::ProbeVerdict::Broken,
        Verdict::ControlFailed => v1::ProbeVerdict::ControlFailed,
        Verdict::Open => v1::ProbeVerdict::Open,
        Verdict::NotCovered => v1::ProbeVerdict::NotCovered,
    };
    v1::ProbeResult {
        name: report.probe.name.to_owned(),
        control: capability.control.layer.name().to_owned(),
        what: report.probe.what.to_owned(),
        verdict: verdict.into(),
        expected: report.expected.clone(),
        observed: report.observed.clone(),
        contrast: report.control.clone(),
    }
}
