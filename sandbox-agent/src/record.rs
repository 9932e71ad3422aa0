//! What the sandbox reports, as it is recorded: the edge between the engine's types and the protocol's.

use exchequer_event::{
    bundle::{ContentDigests, ContentHasher},
    digest::{Digest, Hasher, Purpose},
    v1,
};

use crate::sandbox::{Control, ControlStatus, ExitCause, Outcome, Stream, Usage};

/// A control as it is recorded.
pub fn control(control: &Control) -> v1::Control {
    let status = match control.status {
        ControlStatus::Enforced => v1::ControlStatus::Enforced,
        ControlStatus::Degraded => v1::ControlStatus::Degraded,
        ControlStatus::Unavailable => v1::ControlStatus::Unavailable,
    };
    v1::Control {
        name: control.layer.name().to_owned(),
        status: status.into(),
        evidence: control.evidence.clone(),
        remedy: control.remedy.clone(),
    }
}

/// Controls as they are recorded.
pub fn controls(controls: &[Control]) -> Vec<v1::Control> {
    controls.iter().map(control).collect()
}

/// Those that do not hold.
pub fn missing(controls: &[v1::Control]) -> Vec<v1::Control> {
    controls.iter().filter(|control| control.status() != v1::ControlStatus::Enforced).cloned().collect()
}

/// Digests and sizes of both output streams while they pass.
pub struct Outputs {
    /// What is recorded of each, and what the bundle says of it beside that.
    streams: [(Hasher, ContentHasher); 2],
}

impl Default for Outputs {
    fn default() -> Self {
        Self { streams: std::array::from_fn(|_| (Purpose::Output.hasher(), ContentHasher::default())) }
    }
}

impl Outputs {
    /// More output.
    pub fn update(&mut self, stream: Stream, bytes: &[u8]) {
        let (hasher, content) = &mut self.streams[usize::from(stream == Stream::Stderr)];
        hasher.update(bytes);
        content.update(bytes);
    }

    /// What anybody's tools say of a stream.
    pub fn content(&self, stream: Stream) -> ContentDigests {
        self.streams[usize::from(stream == Stream::Stderr)].1.finish()
    }

    fn output(&self, place: usize) -> v1::Output {
        let (hasher, content) = &self.streams[place];
        v1::Output { digest: hasher.finish().into(), size: content.finish().size }
    }
}

/// An outcome as it is recorded.
pub fn finished(
    outcome: &Outcome,
    outputs: &Outputs,
    hold_id: &str,
    reserved: Vec<v1::MeterAmount>,
) -> v1::ExecutionFinished {
    use v1::ExitCause as Cause;
    let mut record = v1::ExecutionFinished {
        usage: Some(usage(&outcome.usage)),
        stdout: Some(outputs.output(0)),
        stderr: Some(outputs.output(1)),
        hold_id: hold_id.to_owned(),
        reserved,
        ..v1::ExecutionFinished::default()
    };
    let cause = match &outcome.cause {
        ExitCause::Exited { code } => {
            record.exit_code = *code;
            Cause::Exited
        }
        ExitCause::Signaled { signal } => {
            record.signal = *signal;
            Cause::Signaled
        }
        ExitCause::Seccomp => {
            record.signal = libc::SIGSYS;
            Cause::Seccomp
        }
        ExitCause::Timeout => Cause::WallLimit,
        ExitCause::CpuLimit => Cause::CpuLimit,
        ExitCause::OutputLimit => Cause::OutputLimit,
        ExitCause::OutOfMemory => Cause::OutOfMemory,
        ExitCause::EgressLimit => Cause::EgressLimit,
        ExitCause::Cancelled => Cause::Cancelled,
        ExitCause::LaunchFailed { stage, errno } => {
            record.detail = format!("{stage}: {}", std::io::Error::from_raw_os_error(*errno));
            Cause::LaunchFailed
        }
    };
    record.set_cause(cause);
    record.result_digest = result_digest(&record).into();
    record
}

/// The outcome of an execution whose end nobody saw: its usage is unknown.
pub fn lost(hold_id: &str, reserved: Vec<v1::MeterAmount>, detail: &str) -> v1::ExecutionFinished {
    let mut record = v1::ExecutionFinished {
        hold_id: hold_id.to_owned(),
        reserved,
        detail: detail.to_owned(),
        ..v1::ExecutionFinished::default()
    };
    record.set_cause(v1::ExitCause::Lost);
    record.result_digest = result_digest(&record).into();
    record
}

/// Equal for executions that ended the same way with the same output.
fn result_digest(record: &v1::ExecutionFinished) -> Digest {
    let numbers = [record.cause, record.exit_code, record.signal].map(i32::to_be_bytes);
    let output = |output: &Option<v1::Output>| output.as_ref().map(|o| o.digest.clone()).unwrap_or_default();
    let outputs = [output(&record.stdout), output(&record.stderr)];
    Purpose::Result
        .digest_fields(numbers.iter().map(<[u8; 4]>::as_slice).chain(outputs.iter().map(|o| &o[..])))
}

fn usage(usage: &Usage) -> v1::Usage {
    v1::Usage {
        cpu_user_us: usage.cpu_user_us,
        cpu_system_us: usage.cpu_system_us,
        wall_us: usage.wall_ns.div_ceil(1000),
        peak_memory_bytes: usage.peak_memory_bytes,
        output_bytes: usage.output_bytes,
        page_faults: usage.minor_faults + usage.major_faults,
        memory_source: usage.memory_source.name().to_owned(),
        major_faults: usage.major_faults,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
        peak_pids: usage.peak_pids,
        egress_bytes: usage.egress_bytes,
        ingress_bytes: usage.ingress_bytes,
    }
}
