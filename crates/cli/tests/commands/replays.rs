//! `exchequer replay` against an agent that lies: whatever it answers, the lie is named, and no run of it counts.
//!
//! Left out: replays by a real agent (`bundles`). Invariant: without the lie, the same agent's answers are believed.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use ed25519_dalek::SigningKey;
use exchequer_event::{
    bundle::{
        BundleParts, ContentDigests, Envelope, input_digest, read_unverified, result_digest, sign_bundle,
        unsigned_bundle,
    },
    digest::Purpose,
    v1::{
        self,
        agent_service_server::{AgentService, AgentServiceServer},
        execute_response::Part,
    },
};
use futures::stream;
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::up::{Said, exchequer};

const PROGRAM: &str = "/bin/cat";
const GIVEN: &[u8] = b"given";
const STDOUT: &[u8] = b"out\n";
const STDERR: &[u8] = b"err\n";
const ARTIFACT: &[u8] = b"artifact";
/// The number of the execution that is run again.
const KNOWN: u32 = 1;

fn agents_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn id(number: u32) -> String {
    format!("0190b2a4-0000-7000-8000-{number:012}")
}

fn file(path: &str, bytes: &[u8]) -> v1::File {
    let digests = ContentDigests::of(bytes);
    v1::File {
        path: path.into(),
        digest: digests.blake3.to_vec().into(),
        sha256: digests.sha256.to_vec().into(),
        size: digests.size,
        ..v1::File::default()
    }
}

fn input(bytes: &[u8]) -> prost::bytes::Bytes {
    let blake3 = ContentDigests::of(bytes).blake3;
    input_digest(PROGRAM, &["a".to_owned()], &[], b"", &[("a", &blake3[..])]).into()
}

/// What is recorded of the admission.
fn admitted() -> v1::ExecutionAdmitted {
    v1::ExecutionAdmitted {
        caller: "alice".into(),
        profile: "strict".into(),
        profile_digest: vec![2; 32].into(),
        program: PROGRAM.into(),
        arguments_redacted: vec!["a".into()],
        input_digest: input(GIVEN),
        inputs: vec![file("a", GIVEN)],
        limits: Some(v1::Limits { cpu_ms: 1, wall_ms: 2, memory_bytes: 3, output_bytes: 4, egress_bytes: 0 }),
        hold_id: "hold".into(),
        scope: "acme".into(),
        ..v1::ExecutionAdmitted::default()
    }
}

/// What is signed of an execution.
struct Signed {
    number: u32,
    tenant: &'static str,
    admitted: v1::ExecutionAdmitted,
    /// The file that was taken out, by name.
    output: &'static str,
}

impl Signed {
    fn new(number: u32) -> Self {
        Self { number, tenant: "acme", admitted: admitted(), output: "b" }
    }

    fn parts<T>(&self, then: impl FnOnce(&BundleParts<'_>) -> T) -> T {
        let head = |seq| v1::AgentHead { agent_id: "a1".into(), epoch: 1, seq, hash: vec![9; 32].into() };
        let recorded = |bytes: &[u8]| Purpose::Output.hasher().update(bytes).finish();
        let [stdout, stderr] = [STDOUT, STDERR].map(recorded);
        let artifact = ContentDigests::of(ARTIFACT);
        let cause = v1::ExitCause::Exited.into();
        let artifacts = [(self.output, &artifact.blake3[..])];
        let finished = v1::ExecutionFinished {
            cause,
            usage: Some(v1::Usage::default()),
            stdout: Some(v1::Output { digest: stdout.into(), size: STDOUT.len() as u64 }),
            stderr: Some(v1::Output { digest: stderr.into(), size: STDERR.len() as u64 }),
            result_digest: result_digest([cause, 0, 0], [&stdout.0, &stderr.0], &artifacts).into(),
            hold_id: self.admitted.hold_id.clone(),
            artifacts: vec![file(self.output, ARTIFACT)],
            ..v1::ExecutionFinished::default()
        };
        let seq = u64::from(2 * self.number);
        then(&BundleParts {
            tenant: self.tenant,
            execution_id: &id(self.number),
            skill: "",
            admitted: &self.admitted,
            admitted_at: &head(seq),
            admitted_unix_ms: 1_750_000_000_000,
            finished: &finished,
            finished_at: &head(seq + 1),
            finished_unix_ms: 1_750_000_000_001,
            stdout: Some(ContentDigests::of(STDOUT)),
            stderr: Some(ContentDigests::of(STDERR)),
        })
    }

    fn by(&self, key: &SigningKey) -> Vec<u8> {
        self.parts(|parts| sign_bundle(parts, key)).unwrap()
    }

    fn honest(&self) -> Vec<u8> {
        self.by(&agents_key())
    }
}

/// What an agent answers.
struct Answer {
    number: u32,
    admitted: Option<v1::Admitted>,
    stdout: &'static [u8],
    stderr: &'static [u8],
    artifact: v1::ArtifactChunk,
    finished: Option<v1::Finished>,
}

impl Answer {
    fn honest(number: u32) -> Self {
        Self {
            number,
            admitted: Some(v1::Admitted {
                execution_id: id(number),
                record: Some(admitted()),
                ..v1::Admitted::default()
            }),
            stdout: STDOUT,
            stderr: STDERR,
            artifact: v1::ArtifactChunk { output: 0, data: ARTIFACT.into() },
            finished: Some(v1::Finished {
                execution_id: id(number),
                bundle: Signed::new(number).honest().into(),
                ..v1::Finished::default()
            }),
        }
    }

    /// Admits something else than it was asked for.
    fn admits(&mut self, change: impl FnOnce(&mut v1::ExecutionAdmitted)) {
        change(self.admitted.as_mut().unwrap().record.as_mut().unwrap());
    }

    fn hands_out(&mut self, bundle: Vec<u8>) {
        self.finished.as_mut().unwrap().bundle = bundle.into();
    }

    /// Signs something else than was admitted.
    fn signs(&mut self, change: impl FnOnce(&mut Signed)) {
        let mut signed = Signed::new(self.number);
        change(&mut signed);
        self.hands_out(signed.honest());
    }

    /// Changes what is around its signature.
    fn changes(&mut self, change: impl FnOnce(&mut Envelope)) {
        let (_, mut envelope) = read_unverified(&Signed::new(self.number).honest()).unwrap();
        change(&mut envelope);
        self.hands_out(envelope.encode());
    }

    fn parts(self) -> Vec<Result<v1::ExecuteResponse, Status>> {
        let first = self.admitted.map(Part::Admitted);
        let streams = [Part::Stdout(self.stdout.into()), Part::Stderr(self.stderr.into())];
        let last = self.finished.map(Part::Finished);
        let parts = first.into_iter().chain(streams).chain([Part::Artifact(self.artifact)]).chain(last);
        parts.map(|part| Ok(v1::ExecuteResponse { part: Some(part) })).collect()
    }
}

/// An agent that makes one change to each answer.
struct Agent {
    lie: fn(&mut Answer),
    runs: AtomicU32,
}

fn unasked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a replay does not ask for this"))
}

#[tonic::async_trait]
impl AgentService for Agent {
    type ExecuteStream = stream::Iter<std::vec::IntoIter<Result<v1::ExecuteResponse, Status>>>;

    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let asked = request.into_inner();
        assert_eq!((asked.tenant.as_str(), asked.program.as_str()), ("acme", PROGRAM));
        assert_eq!(asked.limits, admitted().limits);
        let mut answer = Answer::honest(KNOWN + 1 + self.runs.fetch_add(1, Ordering::Relaxed));
        (self.lie)(&mut answer);
        Ok(Response::new(stream::iter(answer.parts())))
    }

    async fn get_capabilities(
        &self,
        _: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>, Status> {
        unasked()
    }

    async fn get_spool_status(
        &self,
        _: Request<v1::GetSpoolStatusRequest>,
    ) -> Result<Response<v1::GetSpoolStatusResponse>, Status> {
        unasked()
    }

    async fn list_slices(
        &self,
        _: Request<v1::ListSlicesRequest>,
    ) -> Result<Response<v1::ListSlicesResponse>, Status> {
        unasked()
    }
}

fn serve(runtime: &Runtime, lie: fn(&mut Answer)) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let agent = AgentServiceServer::new(Agent { lie, runs: AtomicU32::new(0) });
    runtime.spawn(Server::builder().add_service(agent).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// The directory of an honest bundle.
fn directory() -> tempfile::TempDir {
    let directory = exchequer_testkit::temp_dir();
    let inputs = json!({
        "version": 1, "program": PROGRAM, "arguments": ["a"], "environment": {}, "stdin": "",
        "inputs": [{"path": "a", "content": "Z2l2ZW4="}], "outputs": [{"path": "b"}],
    });
    fs::write(directory.path().join("inputs.json"), inputs.to_string()).unwrap();
    fs::write(directory.path().join("bundle.dsse.json"), Signed::new(KNOWN).honest()).unwrap();
    directory
}

/// Runs the bundle again, twice, at an agent whose key is known.
fn replay(directory: &Path, agent: SocketAddr) -> Said {
    let key = hex::encode(agents_key().verifying_key().as_bytes());
    replay_with(directory, agent, &["--key", key.as_str()])
}

fn replay_with(directory: &Path, agent: SocketAddr, key: &[&str]) -> Said {
    let agent = agent.to_string();
    let first = ["replay", directory.to_str().unwrap(), "--runs", "2", "--grpc", agent.as_str()];
    exchequer([&first[..], key].concat())
}

/// What is changed of an honest answer, and what is said of it.
type Lie = (fn(&mut Answer), &'static str);

/// Asserts that the replay ends with the lie's name, and says nothing of equality.
#[track_caller]
fn check(lies: &[Lie]) {
    let (runtime, directory) = (Runtime::new().unwrap(), directory());
    for &(lie, named) in lies {
        let said = replay(directory.path(), serve(&runtime, lie));
        said.fails(1, &[named]);
        assert_eq!(said.stdout, "", "{named}");
    }
}

#[test]
fn an_honest_agent_is_believed() {
    let (runtime, directory) = (Runtime::new().unwrap(), directory());
    let said = replay(directory.path(), serve(&runtime, |_| {})).ok();
    assert!(said.starts_with("EQUAL: 2 of 2 runs"), "{said}");
    let said = replay_with(directory.path(), serve(&runtime, |_| {}), &[]).ok();
    assert!(said.starts_with("EQUAL: 2 of 2 runs"), "{said}");
}

/// Signs the answer as another agent would.
fn signed_by_a_stranger(answer: &mut Answer) {
    let bundle = Signed::new(answer.number).by(&SigningKey::from_bytes(&[8; 32]));
    answer.hands_out(bundle);
}

#[test]
fn without_a_known_key_a_run_is_signed_by_the_key_of_the_bundle() {
    let (runtime, directory) = (Runtime::new().unwrap(), directory());
    let said = replay_with(directory.path(), serve(&runtime, signed_by_a_stranger), &[]);
    let named = "error: the run's bundle does not hold: it is signed with key";
    assert_eq!((said.status, said.stdout.as_str()), (1, ""), "{}", said.stderr);
    assert!(said.stderr.lines().last().is_some_and(|line| line.starts_with(named)), "{}", said.stderr);
}

#[test]
fn a_bundle_that_the_known_key_did_not_sign_is_no_answer() {
    check(&[
        (signed_by_a_stranger, "the run's bundle does not hold: it is signed with key"),
        (
            |answer| {
                let key = agents_key().verifying_key();
                let bundle = Signed::new(answer.number).parts(|parts| unsigned_bundle(parts, &key));
                answer.hands_out(bundle.unwrap());
            },
            "the run's bundle does not hold: unsigned",
        ),
        (
            |answer| answer.changes(|envelope| envelope.signatures[0].sig[0] ^= 1),
            "the run's bundle does not hold: the signature does not verify",
        ),
        (
            |answer| {
                answer.changes(|envelope| {
                    let payload = String::from_utf8(envelope.payload.clone()).unwrap();
                    let changed = payload.replace("\"exit_code\":0", "\"exit_code\":1");
                    assert_ne!(changed, payload);
                    envelope.payload = changed.into_bytes();
                });
            },
            "the run's bundle does not hold: the signature does not verify",
        ),
        (|answer| answer.hands_out(b"{}".to_vec()), "the run's bundle does not hold: it is no DSSE envelope"),
        (|answer| answer.hands_out(Vec::new()), "the agent answered no bundle"),
        (|answer| answer.finished = None, "the agent ended the answer before the execution's outcome"),
    ]);
}

#[test]
fn bytes_that_are_not_those_that_were_signed_are_named() {
    check(&[
        (|answer| answer.stdout = b"Out\n", "stdout: what came is not what the agent signed"),
        (|answer| answer.stdout = b"", "stdout: what came is not what the agent signed"),
        (|answer| answer.stderr = b"err\n.", "stderr: what came is not what the agent signed"),
        (
            |answer| answer.artifact.data = b"artifice".as_slice().into(),
            "artifacts/b: what came is not what the agent signed",
        ),
        (|answer| answer.artifact.output = 1, "the agent answered output 1, which was not asked for"),
    ]);
}

#[test]
fn a_bundle_of_anything_but_the_run_is_no_answer() {
    let another = "the run's bundle is not the run's: it is of another execution";
    check(&[
        // What is to be run again, instead of a run.
        (|answer| *answer = Answer::honest(KNOWN), another),
        (|answer| answer.hands_out(Signed::new(KNOWN).honest()), another),
        (|answer| answer.hands_out(Signed::new(answer.number + 100).honest()), another),
        (|answer| answer.admitted.as_mut().unwrap().execution_id = id(100), another),
        (|answer| *answer = Answer::honest(100), "the agent answered execution"),
        (|answer| answer.admitted = None, "the run's bundle is not the run's: no admission came before it"),
        (
            |answer| {
                answer.signs(|signed| {
                    signed.admitted.input_digest = input(b"taken");
                    signed.admitted.inputs = vec![file("a", b"taken")];
                });
            },
            "the run's bundle is not the run's: it is of other inputs",
        ),
        (
            |answer| answer.signs(|signed| signed.tenant = "globex"),
            "the run's bundle is not the run's: it is of another tenant",
        ),
        (
            |answer| answer.signs(|signed| signed.admitted.scope = "acme/other".into()),
            "the run's bundle is not the run's: it is of another scope",
        ),
        // The digest is of all inputs; the list has to agree with it.
        (
            |answer| answer.signs(|signed| signed.admitted.inputs = vec![file("a", b"taken")]),
            "the run's bundle is not the run's: it is of other inputs",
        ),
        (
            |answer| answer.signs(|signed| signed.admitted.profile_digest = vec![3; 32].into()),
            "the run's bundle is not the run's: it is of another profile",
        ),
        (
            |answer| answer.signs(|signed| signed.admitted.limits.as_mut().unwrap().cpu_ms = 9),
            "the run's bundle is not the run's: it is of other limits",
        ),
        (
            |answer| answer.signs(|signed| signed.output = "c"),
            "the run's bundle is not the run's: it is of other outputs",
        ),
    ]);
}

#[test]
fn a_run_that_is_admitted_as_something_else_is_cancelled() {
    check(&[
        (
            |answer| answer.admits(|record| record.profile_digest = vec![3; 32].into()),
            "the run was cancelled: profile strict has digest 0303",
        ),
        (
            |answer| answer.admits(|record| record.limits.as_mut().unwrap().wall_ms = 9),
            "the run was cancelled: it has other limits than the bundle's",
        ),
        (
            |answer| answer.admits(|record| record.input_digest = input(b"taken")),
            "the run was cancelled: the agent was given something else",
        ),
        (
            |answer| answer.admits(|record| record.inputs.clear()),
            "the run was cancelled: it has 0 input files, the bundle's had 1",
        ),
        (
            |answer| answer.admits(|record| record.inputs = vec![file("a", b"taken")]),
            "the run was cancelled: input a is not the bundle's",
        ),
    ]);
}
