//! The gate of requests: what an `Execute` request may ask for, checked before anything is reserved, and turned into what the sandbox
//! and the record need.
//!
//! Left out: who may ask, and files of the workspace, which are looked at when the request's turn has come. Invariant: what passes can be
//! recorded whole, and every fault is told with the path of its field.

pub mod files;
mod program;

use std::{path::Path, time::Duration};

use exchequer_event::{bundle::input_digest, digest::Digest, metered::MAX_METERED, name, v1};
use tonic_types::FieldViolation;

use self::files::Files;
use crate::{
    egress::{self, Rule},
    options::Options,
    profiles::{BUILT_IN, Ceilings, Definition},
    redact,
    sandbox::{Limits, Network, Spec},
};

/// Most arguments.
pub const MAX_ARGUMENTS: usize = 256;
/// Arguments together, bytes.
pub const MAX_ARGUMENT_BYTES: usize = 16 << 10;
/// Most environment variables.
pub const MAX_VARIABLES: usize = 64;
/// Names and values of the environment together, bytes.
pub const MAX_ENVIRONMENT_BYTES: usize = 16 << 10;
/// Standard input, bytes.
pub const MAX_STDIN_BYTES: usize = 1 << 20;
/// Program path, bytes.
pub const MAX_PROGRAM_BYTES: usize = 1024;
/// Faults that are told of one request: they travel in trailers, which are small.
const MAX_FAULTS: usize = 16;
/// Longest path of a field that is told, bytes; what is longer holds something of the caller's.
const MAX_FIELD_BYTES: usize = 96;
/// Meters that may be held beside the machine's.
const EXTRA_METERS: [&str; 3] = ["input_tokens", "output_tokens", "cost_micros"];

/// A request that may be admitted.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The tenant.
    pub tenant: String,
    /// The skill that it runs; empty for none.
    pub skill: String,
    /// The budget scope, tenant included.
    pub scope: String,
    /// What the sandbox runs.
    pub spec: Spec,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// The limits that are held and enforced.
    pub limits: v1::Limits,
    /// Held beside the machine's meters.
    pub extra_holds: Vec<v1::MeterAmount>,
    /// The environment that was asked for, in order of its names; the program's own has more.
    pub environment: Vec<(String, String)>,
    /// Contents of the input files, and where outputs are kept.
    pub files: Files,
    /// How long it may wait for a slot.
    pub max_wait: Duration,
    /// What may be reached through the egress proxy; nothing without one.
    pub egress: Vec<Rule>,
    /// Digest of the profile, with what the configuration adds to it.
    pub profile_digest: Digest,
    /// Arguments as they may be recorded.
    pub arguments_redacted: Vec<String>,
}

impl Checked {
    /// Digest over everything that the program is given, these input files included.
    pub fn input_digest(&self, inputs: &[v1::File]) -> Digest {
        let files: Vec<_> = inputs.iter().map(|file| (file.path.as_str(), &file.digest[..])).collect();
        let Spec { program, args, .. } = &self.spec;
        input_digest(program, args, &self.environment, &self.stdin, &files)
    }
}

/// Every fault of a request.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub Vec<FieldViolation>);

impl Faults {
    fn check(&mut self, holds: bool, field: &str, description: impl Into<String>) {
        if !holds && self.0.len() < MAX_FAULTS {
            self.0.push(FieldViolation::new(name::clip(field, MAX_FIELD_BYTES), description.into()));
        }
    }

    /// One fault.
    pub fn one(field: &str, description: impl Into<String>) -> Self {
        let mut faults = Self::default();
        faults.check(false, field, description);
        faults
    }

    /// All of them in words.
    pub fn text(&self) -> String {
        let faults: Vec<_> = self.0.iter().map(|f| format!("{}: {}", f.field, f.description)).collect();
        faults.join("; ")
    }
}

/// Checks a request whose tenant is already known to be the caller's.
pub fn check(request: v1::ExecuteRequest, tenant: &str, options: &Options) -> Result<Checked, Faults> {
    let mut faults = Faults::default();
    faults.check(name::is_tenant(tenant), "tenant", "has to be 1 to 64 of [A-Za-z0-9._-]");
    faults.check(
        request.skill.is_empty() || name::is_skill(&request.skill),
        "skill",
        "has to be 1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit",
    );
    let program = &request.program;
    faults.check(
        Path::new(program).is_absolute() && program.len() <= MAX_PROGRAM_BYTES,
        "program",
        format!("has to be an absolute path of at most {MAX_PROGRAM_BYTES} bytes"),
    );
    let argument_bytes: usize = request.arguments.iter().map(String::len).sum();
    faults.check(
        request.arguments.len() <= MAX_ARGUMENTS && argument_bytes <= MAX_ARGUMENT_BYTES,
        "arguments",
        format!("at most {MAX_ARGUMENTS}, {MAX_ARGUMENT_BYTES} bytes together"),
    );
    let environment_bytes: usize =
        request.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    faults.check(
        request.environment.len() <= MAX_VARIABLES && environment_bytes <= MAX_ENVIRONMENT_BYTES,
        "environment",
        format!("at most {MAX_VARIABLES}, {MAX_ENVIRONMENT_BYTES} bytes together"),
    );
    faults.check(request.stdin.len() <= MAX_STDIN_BYTES, "stdin", format!("at most {MAX_STDIN_BYTES} bytes"));
    for (place, extra) in request.extra_holds.iter().enumerate() {
        let known = EXTRA_METERS.contains(&extra.meter.as_str());
        let once = request.extra_holds[..place].iter().all(|other| other.meter != extra.meter);
        faults.check(
            known && once && (1..=MAX_METERED).contains(&extra.amount),
            &format!("extra_holds[{place}]"),
            format!("one of {EXTRA_METERS:?}, each at most once, from 1 to {MAX_METERED}"),
        );
    }
    let scope =
        if request.scope.is_empty() { tenant.to_owned() } else { format!("{tenant}/{}", request.scope) };
    let segments: Vec<_> = scope.split('/').collect();
    faults.check(
        segments.len() <= 6 && segments.iter().all(|segment| name::is_tenant(segment)),
        "scope",
        "has to be up to 5 segments of [A-Za-z0-9._-], joined by /",
    );
    let max_wait_ms = u64::try_from(options.max_wait.as_millis()).unwrap_or(u64::MAX);
    faults.check(
        request.max_wait_ms <= max_wait_ms,
        "max_wait_ms",
        format!("{} is above this agent's maximum of {max_wait_ms}", request.max_wait_ms),
    );
    let max_wait = match request.max_wait_ms {
        0 => options.max_wait,
        asked => Duration::from_millis(asked),
    };
    let (profile, profile_digest) = match options.profiles.get(&request.profile) {
        Ok(offered) => (&*offered.definition, offered.digest),
        Err(problem) => {
            faults.check(false, "profile", problem);
            // For the sake of the other faults.
            (&*BUILT_IN[0], Digest::ZERO)
        }
    };
    let mut limits = limits(&request.limits.unwrap_or_default(), options, &profile.limits, &mut faults);
    if profile.sandbox.network != Network::Egress {
        // Nothing can be sent, so nothing is held.
        limits.egress_bytes = 0;
    }
    if let Some(problem) =
        program::problem(Path::new(program), &profile.sandbox).filter(|_| faults.0.is_empty())
    {
        faults.check(false, "program", problem);
    }
    let mut files = files::check(request.inputs, request.outputs, &mut faults);
    let mut environment: Vec<_> = request.environment.into_iter().collect();
    environment.sort();
    let mut spec = spec(profile, request.program, request.arguments, environment.clone(), &limits);
    spec.inputs = std::mem::take(&mut files.inputs);
    spec.outputs = std::mem::take(&mut files.outputs);
    if let Err(fault) = spec.check() {
        faults.check(false, &field_of_request(&fault.field), fault.problem);
    }
    if !faults.0.is_empty() {
        return Err(faults);
    }
    Ok(Checked {
        tenant: tenant.to_owned(),
        skill: request.skill,
        scope,
        arguments_redacted: redact::redact_arguments(&spec.args),
        spec,
        stdin: request.stdin.to_vec(),
        limits,
        extra_holds: request.extra_holds,
        environment,
        files,
        max_wait,
        egress: profile.egress.clone(),
        profile_digest,
    })
}

/// The request's name for what the engine calls otherwise.
fn field_of_request(field: &str) -> String {
    field
        .strip_prefix("args")
        .map(|rest| format!("arguments{rest}"))
        .or_else(|| field.strip_prefix("env").map(|rest| format!("environment{rest}")))
        .unwrap_or_else(|| field.to_owned())
}

fn limits(asked: &v1::Limits, options: &Options, profile: &Ceilings, faults: &mut Faults) -> v1::Limits {
    let (default, max) = (&options.default_limits, &options.max_limits);
    let mut limit = |field: &str, asked: u64, default: u64, max: u64, profile: Option<u64>| {
        let whose = if profile.is_some_and(|most| most < max) { "the profile" } else { "this agent" };
        let most = max.min(profile.unwrap_or(max));
        faults.check(
            asked <= most,
            &format!("limits.{field}"),
            format!("{asked} is above {whose}'s maximum of {most}"),
        );
        if asked == 0 { default.min(most) } else { asked }
    };
    v1::Limits {
        cpu_ms: limit("cpu_ms", asked.cpu_ms, default.cpu_ms, max.cpu_ms, profile.cpu_ms),
        wall_ms: limit("wall_ms", asked.wall_ms, default.wall_ms, max.wall_ms, profile.wall_ms),
        memory_bytes: limit(
            "memory_bytes",
            asked.memory_bytes,
            default.memory_bytes,
            max.memory_bytes,
            profile.memory_bytes,
        ),
        output_bytes: limit(
            "output_bytes",
            asked.output_bytes,
            default.output_bytes,
            max.output_bytes,
            profile.output_bytes,
        ),
        egress_bytes: limit(
            "egress_bytes",
            asked.egress_bytes,
            default.egress_bytes,
            max.egress_bytes,
            profile.egress_bytes,
        ),
    }
}

fn spec(
    profile: &Definition,
    program: String,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    limits: &v1::Limits,
) -> Spec {
    let mut env = profile.environment();
    if profile.sandbox.network == Network::Egress {
        env.extend(egress::environment());
    }
    env.extend(environment);
    let limits = Limits {
        cpu_ms: limits.cpu_ms,
        wall_ms: limits.wall_ms,
        memory_bytes: limits.memory_bytes,
        output_bytes: limits.output_bytes,
        egress_bytes: limits.egress_bytes,
        pids: profile.limits.processes,
        open_files: profile.limits.open_files,
        file_bytes: profile.limits.file_bytes,
        cpus_milli: profile.limits.cpus_milli.unwrap_or(0),
        io_bytes_per_s: profile.limits.io_bytes_per_s.unwrap_or(0),
    };
    Spec {
        program,
        args,
        env: env.into_iter().collect(),
        cwd: profile.sandbox.work.path.clone(),
        limits,
        profile: profile.sandbox.clone(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        omit: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
