//! What the sandbox reports, as it is recorded: the edge between the engine's types and the protocol's.

use exchequer_event::{
    bundle::{self, ContentDigests, ContentHasher},
    digest::{Digest, Hasher, Purpose},
    v1,
};

use crate::egress::Target;
use crate::sandbox::{Control, ControlStatus, ExitCause, Outcome, Stream, Usage};

/// Longest problem of a file that is recorded, bytes: with 64 files the event has to stay below 32 KiB.
const MAX_PROBLEM_BYTES: usize = 64;

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

/// A file as it is recorded.
pub fn file(path: &str, digests: &ContentDigests) -> v1::File {
    v1::File {
        path: path.to_owned(),
        digest: digests.blake3.to_vec().into(),
        sha256: digests.sha256.to_vec().into(),
        size: digests.size,
        problem: String::new(),
    }
}

/// A file that was not taken out, as it is recorded.
pub fn problem(path: &str, problem: &str) -> v1::File {
    let problem = exchequer_event::name::clip(problem, MAX_PROBLEM_BYTES).to_owned();
    v1::File { path: path.to_owned(), problem, ..v1::File::default() }
}

/// One output stream while it passes: its output digest, and what anybody's tools say of it.
struct Passing {
    output: Hasher,
    content: ContentHasher,
}

/// Digests and sizes of both output streams while they pass.
pub struct Outputs {
    streams: [Passing; 2],
}

impl Default for Outputs {
    fn default() -> Self {
        let passing = |_| Passing { output: Purpose::Output.hasher(), content: ContentHasher::default() };
        Self { streams: std::array::from_fn(passing) }
    }
}

impl Outputs {
    /// More output.
    pub fn update(&mut self, stream: Stream, bytes: &[u8]) {
        let passing = &mut self.streams[usize::from(stream == Stream::Stderr)];
        passing.output.update(bytes);
        passing.content.update(bytes);
    }

    /// What anybody's tools say of a stream.
    pub fn content(&self, stream: Stream) -> ContentDigests {
        self.streams[usize::from(stream == Stream::Stderr)].content.finish()
    }

    fn output(&self, stream: Stream) -> v1::Output {
        let digest = self.streams[usize::from(stream == Stream::Stderr)].output.finish();
        v1::Output { digest: digest.into(), size: self.content(stream).size }
    }
}

/// An outcome as it is recorded.
pub fn finished(
    outcome: &Outcome,
    outputs: &Outputs,
    artifacts: Vec<v1::File>,
    hold_id: &str,
    reserved: Vec<v1::MeterAmount>,
) -> v1::ExecutionFinished {
    use v1::ExitCause as Cause;
    let mut record = v1::ExecutionFinished {
        usage: Some(usage(&outcome.usage)),
        stdout: Some(outputs.output(Stream::Stdout)),
        stderr: Some(outputs.output(Stream::Stderr)),
        artifacts,
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

/// What went through the egress proxy, as it is recorded.
pub fn egress(targets: Vec<Target>) -> Vec<v1::EgressTarget> {
    let recorded = targets.into_iter().map(|target| v1::EgressTarget {
        host: target.host,
        port: target.port.into(),
        connections: target.connections,
        sent: target.sent,
        received: target.received,
        refused: target.refused,
    });
    recorded.collect()
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

fn result_digest(record: &v1::ExecutionFinished) -> Digest {
    let ending = [record.cause, record.exit_code, record.signal];
    let output = |output: &Option<v1::Output>| output.as_ref().map(|o| o.digest.clone()).unwrap_or_default();
    let outputs = [output(&record.stdout), output(&record.stderr)];
    let artifacts: Vec<_> = record.artifacts.iter().map(|file| (&*file.path, &file.digest[..])).collect();
    bundle::result_digest(ending, [&outputs[0], &outputs[1]], &artifacts)
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

#[cfg(test)]
mod tests {
    use exchequer_event::{name::MAX_EVENT_BYTES, payload::MAX_OVERHEAD};

    use super::*;
    use crate::{
        egress::MAX_TARGETS,
        request::files::{MAX_FILES, MAX_PATHS_BYTES},
    };

    fn record(artifacts: &[(&str, u8)]) -> v1::ExecutionFinished {
        let file = |(path, byte): &(&str, u8)| v1::File {
            path: (*path).to_owned(),
            digest: vec![*byte; 32].into(),
            ..v1::File::default()
        };
        v1::ExecutionFinished {
            cause: 1,
            exit_code: 3,
            stdout: Some(v1::Output { digest: vec![1; 32].into(), size: 1 }),
            stderr: Some(v1::Output { digest: vec![2; 32].into(), size: 1 }),
            artifacts: artifacts.iter().map(file).collect(),
            ..v1::ExecutionFinished::default()
        }
    }

    #[test]
    fn the_result_digest_covers_artifacts_and_is_as_it_was_without_any() {
        let (cause, code, signal) = (1i32.to_be_bytes(), 3i32.to_be_bytes(), 0i32.to_be_bytes());
        let base: [&[u8]; 5] = [&cause, &code, &signal, &[1; 32], &[2; 32]];
        assert_eq!(result_digest(&record(&[])), Purpose::Result.digest_fields(base));
        let two = 2u64.to_be_bytes();
        let files: [&[u8]; 5] = [&two, b"a", &[7; 32], b"b", &[8; 32]];
        let expected = Purpose::Result.digest_fields(base.into_iter().chain(files));
        assert_eq!(result_digest(&record(&[("a", 7), ("b", 8)])), expected);
        assert_ne!(result_digest(&record(&[("b", 7), ("a", 8)])), expected);
    }

    #[test]
    fn the_largest_outcome_fits_a_record_when_it_is_encrypted() {
        use prost::Message as _;
        let path = "p".repeat(MAX_PATHS_BYTES / MAX_FILES);
        let digests = ContentDigests { blake3: [0; 32], sha256: [0; 32], size: u64::MAX };
        let target = |_| v1::EgressTarget {
            host: "h".repeat(253),
            port: u32::from(u16::MAX),
            connections: u64::MAX,
            sent: u64::MAX,
            received: u64::MAX,
            refused: u64::MAX,
        };
        let largest = |file: v1::File| v1::ExecutionFinished {
            artifacts: vec![file; MAX_FILES],
            egress: (0..=MAX_TARGETS).map(target).collect(),
            ..record(&[])
        };
        for file in [file(&path, &digests), problem(&path, &"x".repeat(1000))] {
            let size = largest(file).encoded_len();
            assert!(size + MAX_OVERHEAD + 1024 < MAX_EVENT_BYTES, "{size}");
        }
    }

    #[test]
    fn a_file_is_recorded_by_what_anybodys_tools_say_of_it() {
        let mut content = ContentHasher::default();
        content.update(b"ab");
        content.update(b"c");
        let file = file("x", &content.finish());
        let hex = [&file.digest, &file.sha256].map(hex::encode);
        assert_eq!(hex[0], "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        assert_eq!(hex[1], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((file.size, file.problem.as_str()), (3, ""));
    }
}
