//! `exchequer replay`: what a bundle was made of, run again, and whether the same comes out.
//!
//! Left out: budgets made again (`verify-replay`). Invariant: nothing runs before the inputs were found to be those of the bundle, and a run
//! under another profile, limits or with other inputs is cancelled and never compared; what an agent answers counts only if it is what it
//! signed of an execution that it has not answered before.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, Read as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::bail;
use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    bundle::{self, ARTIFACTS, ContentHasher, Execution, ExecutionResult, STDERR, STDOUT, Statement},
    v1::{self, execute_response::Part},
};
use serde::Serialize;

use super::{OWN_WORD, directory, inputs::Given, read_bundle, read_key, refused, verified};
use crate::{
    client::{Connection, Refused},
    print::{self, Format},
};

/// Run a bundle's inputs again and compare the results
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer run --tenant acme --bundle out -- python3 -c 'print(6*7)'
  exchequer replay out
  exchequer replay out --runs 10 --format json          a determinism report

DIR is what `run --bundle` wrote. Its inputs.json has to be what the bundle commits to; it runs with the bundle's profile, which has to
have the same digest, and limits, and is metered and recorded like any execution. Results are equal if cause, code, signal, both
streams and all artifacts are.
Exit status: 0 every run came to the bundle's result, 1 one did not, or was refused, 2 it could not be run.")]
pub struct Replay {
    /// Directory of the bundle
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// How many times
    #[arg(long, value_name = "N", default_value = "1")]
    runs: NonZeroU32,
    /// The agent's Ed25519 public key in hex, or a file that holds it in hex or PEM
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// A result that one or more runs came to.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Distinct {
    /// SHA-256 of the result, as in the subject `result`.
    result_sha256: String,
    /// Whether it is the bundle's.
    equal: bool,
    runs: u32,
    /// The first execution that came to it.
    execution_id: String,
    /// What differs from the bundle's.
    differences: Vec<String>,
}

/// What all runs came to.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Determinism {
    execution_id: String,
    result_sha256: String,
    runs: u32,
    equal_runs: u32,
    /// Whether each run came to the bundle's result.
    deterministic: bool,
    results: Vec<Distinct>,
}

/// One run.
struct Run {
    execution_id: String,
    result: ExecutionResult,
    /// Where each thing that came out first differs from the bundle's.
    first: Vec<(String, u64)>,
}

impl Replay {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let key = self.key.as_deref().map(read_key).transpose()?;
        let bytes = read_bundle(&self.directory)?;
        // Without a key given, the bundle's own: each run is to be signed by whoever signed what it is compared with.
        let (statement, signer) = verified(&bytes, key.as_ref()).map_err(refused)?;
        let said = &statement.predicate;
        let given = Given::read(&self.directory)?;
        let differences = given.differences(said);
        if !differences.is_empty() {
            bail!(Refused(format!("nothing was run: {}", differences.join("; "))));
        }
        if said.result.stdout.is_none() {
            bail!(Refused("nothing was run: nobody saw the end of the bundle's execution".to_owned()));
        }
        if key.is_none() {
            print::remark(OWN_WORD);
        }
        let request = given.request(said);
        let mut agent = self.connection.agent().await?;
        let mut report = Determinism::new(said);
        let mut counted = BTreeSet::new();
        for _ in 0..self.runs.get() {
            let answer = agent.execute(request.clone()).await?.into_inner();
            let run = once(answer, &statement, &signer, &self.directory).await?;
            // One execution that is answered again and again would always be equal to itself.
            if !counted.insert(run.execution_id.clone()) {
                bail!(Refused(format!("the agent answered execution {} twice", run.execution_id)));
            }
            report.take(&said.result, run);
        }
        match self.format {
            Format::Json => print::json(&serde_json::to_value(&report)?)?,
            Format::Text => report.lines().iter().try_for_each(|line| print::text(line))?,
        }
        Ok(ExitCode::from(u8::from(!report.deterministic)))
    }
}

/// Follows one execution to its end.
async fn once(
    mut answer: tonic::Streaming<v1::ExecuteResponse>,
    statement: &Statement,
    key: &VerifyingKey,
    directory: &Path,
) -> anyhow::Result<Run> {
    let said = &statement.predicate;
    let against = |name: String| Comparison::new(directory::open_signed(directory, statement, &name), name);
    let mut streams = [STDOUT, STDERR].map(|name| against(name.to_owned()));
    let asked = said.result.artifacts.iter();
    let mut artifacts: Vec<_> = asked.map(|file| against(format!("{ARTIFACTS}{}", file.path))).collect();
    let mut admitted = None;
    while let Some(response) = answer.message().await? {
        match response.part {
            Some(Part::Admitted(part)) => {
                same_conditions(said, &part.record.unwrap_or_default())?;
                admitted = Some(part.execution_id);
            }
            Some(Part::Stdout(bytes)) => streams[0].push(&bytes)?,
            Some(Part::Stderr(bytes)) => streams[1].push(&bytes)?,
            Some(Part::Artifact(chunk)) => {
                let place = usize::try_from(chunk.output).ok();
                let Some(artifact) = place.and_then(|place| artifacts.get_mut(place)) else {
                    bail!(Refused(format!(
                        "the agent answered output {}, which was not asked for",
                        chunk.output
                    )));
                };
                artifact.push(&chunk.data)?;
            }
            Some(Part::Finished(part)) => {
                if part.bundle.is_empty() {
                    bail!(Refused("the agent answered no bundle".to_owned()));
                }
                let (now, _) = verified(&part.bundle, Some(key))
                    .map_err(|error| Refused(format!("the run's bundle does not hold: {error}")))?;
                is_of_run(said, &now.predicate, admitted.as_deref(), &part.execution_id)?;
                let mut first = Vec::new();
                for comparison in streams.into_iter().chain(artifacts) {
                    comparison.is_signed(&now)?;
                    let name = comparison.name.clone();
                    first.extend(comparison.finish()?.map(|at| (name, at)));
                }
                return Ok(Run { execution_id: part.execution_id, result: now.predicate.result, first });
            }
            None => {}
        }
    }
    bail!(Refused("the agent ended the answer before the execution's outcome".to_owned()))
}

/// Whether an execution was admitted under the conditions of the bundle's. Whoever goes away then cancels it.
fn same_conditions(said: &Execution, admitted: &v1::ExecutionAdmitted) -> anyhow::Result<()> {
    let profile = said.profile.digest.map(|digest| digest.0.to_vec()).unwrap_or_default();
    if admitted.profile != said.profile.name || admitted.profile_digest[..] != profile[..] {
        bail!(Refused(format!(
            "the run was cancelled: profile {} has digest {}, the bundle's {} has {}",
            admitted.profile,
            hex::encode(&admitted.profile_digest),
            said.profile.name,
            hex::encode(profile)
        )));
    }
    if limits(&admitted.limits.unwrap_or_default()) != said.limits {
        bail!(Refused("the run was cancelled: it has other limits than the bundle's".to_owned()));
    }
    if admitted.input_digest[..] != said.inputs.digest.0 {
        bail!(Refused("the run was cancelled: the agent was given something else".to_owned()));
    }
    let is_same = |(now, then): (&v1::File, &bundle::File)| {
        now.path == then.path && then.sha256.is_some_and(|digest| digest.0 == now.sha256[..])
    };
    let files = &said.inputs.files;
    if admitted.inputs.len() != files.len() {
        bail!(Refused(format!(
            "the run was cancelled: it has {} input files, the bundle's had {}",
            admitted.inputs.len(),
            files.len()
        )));
    }
    if let Some((now, _)) = admitted.inputs.iter().zip(files).find(|pair| !is_same(*pair)) {
        bail!(Refused(format!("the run was cancelled: input {} is not the bundle's", now.path)));
    }
    Ok(())
}

fn limits(limits: &v1::Limits) -> bundle::Limits {
    bundle::Limits {
        cpu_ms: limits.cpu_ms,
        egress_bytes: limits.egress_bytes,
        memory_bytes: limits.memory_bytes,
        output_bytes: limits.output_bytes,
        wall_ms: limits.wall_ms,
    }
}

/// Whether what was signed is of this run, and for the same tenant and scope, of the same inputs, profile and limits as the bundle.
fn is_of_run(said: &Execution, now: &Execution, admitted: Option<&str>, id: &str) -> anyhow::Result<()> {
    let paths =
        |result: &ExecutionResult| result.artifacts.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
    let is_admitted = admitted == Some(id) && now.execution_id == id && id != said.execution_id;
    let is_given = now.inputs.digest == said.inputs.digest && now.inputs.files == said.inputs.files;
    let rules = [
        (admitted.is_some(), "no admission came before it"),
        (is_admitted, "it is of another execution"),
        (now.tenant == said.tenant, "it is of another tenant"),
        (now.scope == said.scope, "it is of another scope"),
        (is_given, "it is of other inputs"),
        (now.profile == said.profile, "it is of another profile"),
        (now.limits == said.limits, "it is of other limits"),
        // Of an execution whose end nobody saw nothing is taken out.
        (now.result.stdout.is_none() || paths(&now.result) == paths(&said.result), "it is of other outputs"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, problem)) => bail!(Refused(format!("the run's bundle is not the run's: {problem}"))),
        None => Ok(()),
    }
}

/// Something that comes out, compared with the file that came out the first time, if that is at hand.
struct Comparison {
    name: String,
    before: Option<BufReader<File>>,
    /// What came.
    content: ContentHasher,
    at: u64,
    first: Option<u64>,
}

impl Comparison {
    fn new(before: Option<File>, name: String) -> Self {
        Self {
            name,
            before: before.map(BufReader::new),
            content: ContentHasher::default(),
            at: 0,
            first: None,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.content.update(bytes);
        let Some(before) = self.before.as_mut().filter(|_| self.first.is_none()) else { return Ok(()) };
        let mut expected = Vec::with_capacity(bytes.len());
        before.take(bytes.len() as u64).read_to_end(&mut expected)?;
        let same = bytes.iter().zip(&expected).take_while(|(now, then)| now == then).count();
        self.at += same as u64;
        if same < bytes.len() {
            self.first = Some(self.at);
        }
        Ok(())
    }

    /// Whether what came is what was signed. A file that was not taken out has no subject, and nothing of it comes; of an execution whose
    /// end nobody saw nothing is signed.
    fn is_signed(&self, statement: &Statement) -> anyhow::Result<()> {
        let came = self.content.finish();
        let holds = match statement.subject(&self.name) {
            Some(subject) => subject.digest == bundle::DigestSet::from(came),
            None => came.size == 0 || statement.predicate.result.stdout.is_none(),
        };
        anyhow::ensure!(holds, Refused(format!("{}: what came is not what the agent signed", self.name)));
        Ok(())
    }

    /// The first byte that differs; the end of the shorter one if it is the beginning of the longer.
    fn finish(mut self) -> std::io::Result<Option<u64>> {
        if let Some(before) = self.before.as_mut().filter(|_| self.first.is_none())
            && before.read(&mut [0])? > 0
        {
            self.first = Some(self.at);
        }
        Ok(self.first)
    }
}

fn sha256(result: &ExecutionResult) -> String {
    hex::encode(bundle::ContentDigests::of(&result.encode()).sha256)
}

impl Determinism {
    fn new(said: &Execution) -> Self {
        Self {
            execution_id: said.execution_id.clone(),
            result_sha256: sha256(&said.result),
            runs: 0,
            equal_runs: 0,
            deterministic: true,
            results: Vec::new(),
        }
    }

    fn take(&mut self, before: &ExecutionResult, run: Run) {
        let result_sha256 = sha256(&run.result);
        let equal = result_sha256 == self.result_sha256;
        self.runs += 1;
        self.equal_runs += u32::from(equal);
        self.deterministic &= equal;
        if let Some(known) = self.results.iter_mut().find(|known| known.result_sha256 == result_sha256) {
            known.runs += 1;
            return;
        }
        let differences = if equal { Vec::new() } else { differences(before, &run) };
        let execution_id = run.execution_id;
        self.results.push(Distinct { result_sha256, equal, runs: 1, execution_id, differences });
    }

    fn lines(&self) -> Vec<String> {
        let verdict = if self.deterministic { "EQUAL" } else { "DIFFERS" };
        let mut lines = vec![format!(
            "{verdict}: {} of {} runs came to the result of execution {}; distinct results: {}",
            self.equal_runs,
            self.runs,
            self.execution_id,
            self.results.len()
        )];
        for result in &self.results {
            let equal = if result.equal { " (the bundle's)" } else { "" };
            let (runs, id) = (result.runs, &result.execution_id);
            lines.push(format!("  {runs} × {}{equal}, first execution {id}", result.result_sha256));
            lines.extend(result.differences.iter().map(|line| format!("    {line}")));
        }
        lines
    }
}

/// In what a run's result differs from the one before.
fn differences(before: &ExecutionResult, run: &Run) -> Vec<String> {
    let now = &run.result;
    let mut differences = Vec::new();
    let ending =
        |result: &ExecutionResult| format!("{} {} {}", result.cause, result.exit_code, result.signal);
    if ending(before) != ending(now) {
        differences.push(format!(
            "ended by {} (code {}, signal {}), before {} (code {}, signal {})",
            now.cause, now.exit_code, now.signal, before.cause, before.exit_code, before.signal
        ));
    }
    let place = |name: &str| {
        let first = run.first.iter().find(|(of, _)| of == name);
        first.map_or_else(|| "differs".to_owned(), |(_, at)| format!("first differs at byte {at}"))
    };
    for (name, before, now) in [(STDOUT, &before.stdout, &now.stdout), (STDERR, &before.stderr, &now.stderr)]
    {
        if before != now {
            let size = |stream: &Option<bundle::Stream>| {
                stream.as_ref().map_or_else(|| "none".to_owned(), |stream| format!("{} bytes", stream.size))
            };
            differences.push(format!("{name} {}: {}, before {}", place(name), size(now), size(before)));
        }
    }
    for (before, now) in before.artifacts.iter().zip(&now.artifacts) {
        if before != now {
            let name = format!("{ARTIFACTS}{}", before.path);
            let what = |file: &bundle::File| match &*file.problem {
                "" => format!("{} bytes", file.size),
                problem => problem.to_owned(),
            };
            differences.push(format!("{name} {}: {}, before {}", place(&name), what(now), what(before)));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn first(before: &[u8], pieces: &[&[u8]]) -> Option<u64> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(before).unwrap();
        let mut comparison = Comparison::new(Some(File::open(file.path()).unwrap()), "x".into());
        for piece in pieces {
            comparison.push(piece).unwrap();
        }
        comparison.finish().unwrap()
    }

    #[test]
    fn the_first_byte_that_differs_is_found_across_pieces() {
        assert_eq!(first(b"abcdef", &[b"abc", b"def"]), None);
        assert_eq!(first(b"abcdef", &[b"ab", b"cdXf", b"more"]), Some(4));
        assert_eq!(first(b"abcdef", &[b"abc"]), Some(3));
        assert_eq!(first(b"abc", &[b"abc", b"def"]), Some(3));
        assert_eq!(first(b"", &[]), None);
    }

    #[test]
    fn runs_are_counted_by_their_results() {
        let result = |exit_code: i32| ExecutionResult {
            artifacts: Vec::new(),
            cause: "exited".into(),
            exit_code,
            signal: 0,
            stderr: None,
            stdout: None,
        };
        let mut report = Determinism {
            execution_id: "e".into(),
            result_sha256: sha256(&result(0)),
            runs: 0,
            equal_runs: 0,
            deterministic: true,
            results: Vec::new(),
        };
        for (place, exit_code) in [0, 3, 0, 3, 4].into_iter().enumerate() {
            let execution_id = place.to_string();
            report.take(&result(0), Run { execution_id, result: result(exit_code), first: Vec::new() });
        }
        assert_eq!((report.runs, report.equal_runs, report.deterministic), (5, 2, false));
        let counts: Vec<_> = report.results.iter().map(|of| (of.runs, of.equal, &*of.execution_id)).collect();
        assert_eq!(counts, [(2, true, "0"), (2, false, "1"), (1, false, "4")]);
        let said = "ended by exited (code 3, signal 0), before exited (code 0, signal 0)";
        assert_eq!(report.results[1].differences, [said]);
    }
}
