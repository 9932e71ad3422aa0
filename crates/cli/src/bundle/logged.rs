//! A bundle and the log: whether the log holds the two events that the bundle names, and they say the same.
//!
//! Left out: verifying the log (`evidence`). Invariant: an event is the bundle's only if its digest is the one that was signed; what its
//! fields say is compared beside that, so that a bundle that says something else than it points at is found out.

use anyhow::bail;
use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    accept::KeyState,
    bundle::{BundleParts, ContentDigests, EgressTarget, Execution, File, Hex, SIGNED, Statement, Stream},
    seal,
    v1::{self, KeyRole, event::Kind},
};
use serde_json::Value as Json;

use super::Report;
use crate::{
    client::Connection,
    evidence::{
        event_at::{self, LoggedEvent},
        report::Verdict,
        verify::{self, Target, Trust},
    },
    payload::Opener,
    progress::Shown,
};

/// The log to look into.
pub struct Log<'a> {
    /// Its URL or directory.
    pub target: &'a str,
    /// Its verifier key.
    pub key: Option<&'a str>,
    /// Whose token and verifier key are used, where they are the log's.
    pub connection: &'a Connection,
    /// Opens confidential payloads.
    pub opener: Opener,
}

/// Compares the bundle with the log.
pub async fn check(log: Log<'_>, statement: &Statement, report: &mut Report) -> anyhow::Result<()> {
    let said = &statement.predicate;
    let target = Target::parse(log.target);
    let is_own = match &target {
        Target::Url(url) => log.connection.http_url().is_ok_and(|own| own == url.trim_end_matches('/')),
        _ => false,
    };
    let key = match log.key {
        Some(key) => Some(verify::read_key(key).map_err(anyhow::Error::msg)?),
        None if is_own => log.connection.verifier_key()?,
        None => None,
    };
    let token = if is_own || log.connection.token.is_some() { log.connection.token()? } else { None };
    let trust = Trust { key, ..Trust::default() };
    let has_key = trust.key.is_some();
    let request = verify::Request { target: target.clone(), trust, token: token.clone(), threads: None };
    let mut shown = Shown::new("verified");
    let finished = verify::run(request, move |progress| shown.update(progress.done, progress.total)).await;
    match finished.report.verdict {
        Verdict::Holds => {}
        Verdict::Tampered => {
            report.differences.push(format!("the log {} does not hold: see `exchequer verify`", log.target));
            return Ok(());
        }
        Verdict::CouldNotCheck => bail!("--log: {} could not be checked:\n{}", log.target, finished.report),
    }
    let Some(verified) = finished.verified else { bail!("--log: {} is no log", log.target) };
    let size = verified.checkpoint().checkpoint().size();
    if !has_key {
        report.notes.push(
            "no --log-key was given: the log is consistent in itself, and its key its own word".to_owned(),
        );
    }

    let (agent, epoch) = (said.agent.id.clone(), said.admission.epoch);
    if said.outcome.epoch != epoch {
        report.differences.push("admission and outcome are of different epochs".to_owned());
        return Ok(());
    }
    let seqs = [said.admission.seq, said.outcome.seq];
    let keys = verified.keys().to_vec();
    let place = agent.clone();
    let found = tokio::task::spawn_blocking(move || {
        event_at::events(&target, token, &verified, (&place, epoch), &seqs)
    });
    let found = found.await?.map_err(|error| anyhow::anyhow!("--log: {error}"))?;
    let positions = [("admission", &said.admission), ("outcome", &said.outcome)];
    let mut events = Vec::new();
    for ((name, position), logged) in positions.into_iter().zip(found) {
        let at = format!("{agent}, epoch {epoch}, seq {}", position.seq);
        let Some(logged) = logged else {
            report.differences.push(format!("{name}: the log's {size} entries hold no event of agent {at}"));
            continue;
        };
        let digest = seal::event_digest(&logged.bytes);
        report.compare(digest.0 == position.hash.0, || {
            format!(
                "{name}: entry {} ({at}) has digest {digest}, signed is {}",
                logged.entry.index, position.hash
            )
        });
        events.push(logged);
    }
    let Ok([admission, outcome]) = <[LoggedEvent; 2]>::try_from(events) else { return Ok(()) };
    check_key(&keys, said, &agent, [admission.entry.index, outcome.entry.index], report);
    compare_records(&log.opener, said, [&admission, &outcome], report)?;
    report.checked.push(format!(
        "entries {} and {} of the log {} ({size} entries): the events, what they say, and the agent's key",
        admission.entry.index, outcome.entry.index, log.target
    ));
    Ok(())
}

/// Whether the key was the agent's when the outcome was logged.
fn check_key(keys: &[KeyState], said: &Execution, agent: &str, entries: [u64; 2], report: &mut Report) {
    let is_its = |key: &&KeyState| {
        key.role == KeyRole::Agent && key.holder == agent && *key.key.as_bytes() == said.agent.public_key.0
    };
    let Some(key) = keys.iter().find(is_its) else {
        report
            .differences
            .push(format!("key {} was never enrolled for agent {agent}", said.agent.public_key));
        return;
    };
    report.compare(key.enrolled_at < entries[0], || {
        format!("the agent's key was enrolled by entry {}, after the admission", key.enrolled_at)
    });
    if let Some(revoked) = key.revoked_at {
        if revoked < entries[1] {
            report
                .differences
                .push(format!("the agent's key was revoked by entry {revoked}, before the outcome"));
        } else {
            let note = format!(
                "the agent's key was revoked by entry {revoked}, after the outcome: who had the key then can have signed this since"
            );
            report.notes.push(note);
        }
    }
}

/// Makes the predicate again, of the log's events, and names the members that differ.
fn compare_records(
    opener: &Opener,
    said: &Execution,
    logged: [&LoggedEvent; 2],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut events = Vec::new();
    for logged in logged {
        let opened = opener.open(&logged.entry)?;
        let is_closed = opened.is_none() && logged.event.confidential.is_some();
        let event = opened.map_or_else(|| logged.event.clone(), |opened| opened.event);
        events.push((event, is_closed));
    }
    let ((admission, admission_closed), (outcome, outcome_closed)) = (events.remove(0), events.remove(0));
    let (Some(Kind::ExecutionAdmitted(mut admitted)), Some(Kind::ExecutionFinished(mut finished))) =
        (admission.kind.clone(), outcome.kind.clone())
    else {
        report.differences.push("the log's events are no admission and outcome of an execution".to_owned());
        return Ok(());
    };
    for (name, event) in [("admission", &admission), ("outcome", &outcome)] {
        report.compare(event.execution_id == said.execution_id, || {
            format!("{name}: the event is of execution {}", event.execution_id)
        });
    }
    if admission_closed || outcome_closed {
        conceal(said, &mut admitted, &mut finished);
        let note = "the log's payload is confidential: what only its holder can read was compared by the events' digests alone \
                    (--payload-key opens it)";
        report.notes.push(note.to_owned());
    }
    // No event has the streams' SHA-256: those are the bundle's word. What binds it to the log are the files, which `directory` hashes both
    // ways; without them a key that signed other plain digests is not found out here.
    let plain = |recorded: &Option<v1::Output>, said: Option<&Stream>| {
        let size = recorded.as_ref()?.size;
        Some(ContentDigests { sha256: said.map_or([0; 32], |stream| stream.sha256.0), blake3: [0; 32], size })
    };
    let head = |event: &v1::Event, logged: &LoggedEvent| v1::AgentHead {
        agent_id: event.agent_id.clone(),
        epoch: event.epoch,
        seq: event.seq,
        hash: seal::event_digest(&logged.bytes).into(),
    };
    let parts = BundleParts {
        tenant: &admission.tenant,
        execution_id: &admission.execution_id,
        skill: &admission.skill,
        admitted: &admitted,
        admitted_at: &head(&admission, logged[0]),
        admitted_unix_ms: admission.time_unix_ms,
        finished: &finished,
        finished_at: &head(&outcome, logged[1]),
        finished_unix_ms: outcome.time_unix_ms,
        stdout: plain(&finished.stdout, said.result.stdout.as_ref()),
        stderr: plain(&finished.stderr, said.result.stderr.as_ref()),
    };
    let key = VerifyingKey::from_bytes(&said.agent.public_key.0)?;
    match Execution::of(&parts, &key, SIGNED) {
        Ok(recorded) => {
            let (said, recorded) = (serde_json::to_value(said)?, serde_json::to_value(&recorded)?);
            name_differences("predicate", &said, &recorded, &mut report.differences);
        }
        Err(error) => report.differences.push(format!("the log's events make no bundle: {error}")),
    }
    Ok(())
}

/// What can't be read of the log's records is taken from the bundle, so that it does not count as different.
fn conceal(said: &Execution, admitted: &mut v1::ExecutionAdmitted, finished: &mut v1::ExecutionFinished) {
    let file = |file: &File| v1::File {
        path: file.path.clone(),
        digest: file.blake3.map(|digest| digest.0.to_vec()).unwrap_or_default().into(),
        sha256: file.sha256.map(|digest| digest.0.to_vec()).unwrap_or_default().into(),
        size: file.size,
        problem: file.problem.clone(),
    };
    let output = |digest: Option<Hex<32>>, stream: Option<&Stream>| {
        let (digest, stream) = (digest?, stream?);
        Some(v1::Output { digest: digest.0.to_vec().into(), size: stream.size })
    };
    let target = |target: &EgressTarget| v1::EgressTarget {
        host: target.host.clone(),
        port: target.port,
        connections: target.connections,
        sent: target.sent,
        received: target.received,
        refused: target.refused,
    };
    admitted.caller.clone_from(&said.caller);
    admitted.program.clone_from(&said.inputs.program);
    admitted.arguments_redacted.clone_from(&said.inputs.arguments_redacted);
    admitted.input_digest = said.inputs.digest.0.to_vec().into();
    admitted.inputs = said.inputs.files.iter().map(file).collect();
    finished.detail.clone_from(&said.detail);
    finished.result_digest = said.recorded.result_digest.0.to_vec().into();
    finished.artifacts = said.result.artifacts.iter().map(file).collect();
    finished.egress = said.egress.iter().map(target).collect();
    finished.stdout = output(said.recorded.stdout_digest, said.result.stdout.as_ref());
    finished.stderr = output(said.recorded.stderr_digest, said.result.stderr.as_ref());
}

/// Paths of the members in which two documents differ, with both values.
fn name_differences(path: &str, said: &Json, recorded: &Json, differences: &mut Vec<String>) {
    match (said, recorded) {
        (Json::Object(said), Json::Object(recorded)) => {
            for name in said.keys().chain(recorded.keys().filter(|name| !said.contains_key(*name))) {
                let of =
                    |members: &serde_json::Map<String, Json>| members.get(name).cloned().unwrap_or_default();
                name_differences(&format!("{path}.{name}"), &of(said), &of(recorded), differences);
            }
        }
        (Json::Array(said), Json::Array(recorded)) if said.len() == recorded.len() => {
            for (place, (said, recorded)) in said.iter().zip(recorded).enumerate() {
                name_differences(&format!("{path}[{place}]"), said, recorded, differences);
            }
        }
        _ if said == recorded => {}
        _ => differences.push(format!("{path} is {said}, the log says {recorded}")),
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use exchequer_event::payload::{self, Once};
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    type Change = fn(&mut Execution);

    const ID: &str = "0190b2a4-0000-7000-8000-000000000001";

    fn logged(seq: u64, kind: Kind, key: Option<&payload::PayloadKey>) -> LoggedEvent {
        let event = v1::Event {
            agent_id: "a1".into(),
            epoch: 1,
            seq,
            time_unix_ms: 10 + seq,
            tenant: "acme".into(),
            execution_id: ID.into(),
            kind: Some(kind),
            ..v1::Event::default()
        };
        let once = Once { nonce: [2; payload::NONCE_LEN], salt: [3; payload::SALT_LEN] };
        let event = key.map_or(event.clone(), |key| key.conceal(event, &once));
        let bytes = event.encode_to_vec().into();
        LoggedEvent { entry: v1::LogEntry { index: seq, ..Default::default() }, bytes, event }
    }

    /// The log's events, and the bundle of what was executed.
    fn recorded(key: Option<&payload::PayloadKey>) -> ([LoggedEvent; 2], Execution) {
        let admitted = v1::ExecutionAdmitted {
            program: "/bin/true".into(),
            input_digest: vec![1; 32].into(),
            hold_id: "h".into(),
            scope: "acme".into(),
            limits: Some(v1::Limits { cpu_ms: 5, ..v1::Limits::default() }),
            ..v1::ExecutionAdmitted::default()
        };
        let output = |size| Some(v1::Output { digest: vec![2; 32].into(), size });
        let finished = v1::ExecutionFinished {
            cause: 1,
            exit_code: 3,
            stdout: output(1),
            stderr: output(0),
            hold_id: "h".into(),
            result_digest: vec![4; 32].into(),
            egress: vec![v1::EgressTarget { host: "h".into(), ..v1::EgressTarget::default() }],
            ..v1::ExecutionFinished::default()
        };
        let events = [
            logged(1, Kind::ExecutionAdmitted(admitted.clone()), key),
            logged(2, Kind::ExecutionFinished(finished.clone()), key),
        ];
        let head = |event: &LoggedEvent| v1::AgentHead {
            agent_id: "a1".into(),
            epoch: 1,
            seq: event.event.seq,
            hash: seal::event_digest(&event.bytes).into(),
        };
        let parts = BundleParts {
            tenant: "acme",
            execution_id: ID,
            skill: "",
            admitted: &admitted,
            admitted_at: &head(&events[0]),
            admitted_unix_ms: 11,
            finished: &finished,
            finished_at: &head(&events[1]),
            finished_unix_ms: 12,
            stdout: Some(ContentDigests::of(b"x")),
            stderr: Some(ContentDigests::of(b"")),
        };
        let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
        let said = Execution::of(&parts, &key, SIGNED).unwrap();
        (events, said)
    }

    fn compared(said: &Execution, events: &[LoggedEvent; 2]) -> Report {
        let mut report = Report::default();
        compare_records(&Opener::default(), said, [&events[0], &events[1]], &mut report).unwrap();
        report
    }

    #[test]
    fn what_the_bundle_says_and_the_log_does_not_is_named() {
        let (events, said) = recorded(None);
        assert_eq!(compared(&said, &events).differences, Vec::<String>::new());
        let changes: [(Change, &str); 6] = [
            (|said| said.result.exit_code = 0, "predicate.result.exit_code is 0, the log says 3"),
            (|said| said.hold.id = "x".into(), "predicate.hold.id is \"x\", the log says \"h\""),
            (|said| said.limits.cpu_ms = 6, "predicate.limits.cpu_ms is 6, the log says 5"),
            (
                |said| said.admission.time_unix_ms = 1,
                "predicate.admission.time_unix_ms is 1, the log says 11",
            ),
            (|said| said.egress[0].host.clear(), "predicate.egress[0].host is \"\", the log says \"h\""),
            (
                |said| said.result.stdout.as_mut().unwrap().size = 2,
                "predicate.result.stdout.size is 2, the log says 1",
            ),
        ];
        for (change, expected) in changes {
            let mut said = said.clone();
            change(&mut said);
            assert_eq!(compared(&said, &events).differences, [expected]);
        }
        let other = Execution { execution_id: ID.replace('1', "2"), ..said.clone() };
        assert!(compared(&other, &events).differences[0].contains("the event is of execution"));
        let [admission, _] = events;
        let report = compared(&said, &[admission.clone(), admission]);
        assert_eq!(report.differences, ["the log's events are no admission and outcome of an execution"]);
    }

    #[test]
    fn of_a_confidential_record_the_public_fields_are_compared_and_the_note_says_so() {
        let key = payload::PayloadKey::new(&[9; payload::KEY_LEN]);
        let (events, said) = recorded(Some(&key));
        let report = compared(&said, &events);
        assert_eq!(report.differences, Vec::<String>::new());
        assert!(report.notes[0].contains("confidential"), "{:?}", report.notes);
        let mut other = said.clone();
        other.result.exit_code = 0;
        assert_eq!(compared(&other, &events).differences.len(), 1);
    }

    #[test]
    fn the_key_has_to_have_been_the_agents_from_the_admission_to_the_outcome() {
        let (_, said) = recorded(None);
        let key = VerifyingKey::from_bytes(&said.agent.public_key.0).unwrap();
        let state = |enrolled_at, revoked_at: Option<u64>| KeyState {
            role: KeyRole::Agent,
            holder: "a1".into(),
            key,
            revoked: revoked_at.is_some(),
            enrolled_at,
            revoked_at,
        };
        let check = |keys: &[KeyState]| {
            let mut report = Report::default();
            check_key(keys, &said, "a1", [5, 9], &mut report);
            (report.differences.concat(), report.notes.len())
        };
        assert_eq!(check(&[state(4, None)]), (String::new(), 0));
        assert!(check(&[]).0.contains("was never enrolled for agent a1"));
        let other = KeyState { holder: "a2".into(), ..state(4, None) };
        let metering = KeyState { role: KeyRole::Metering, ..state(4, None) };
        assert!(check(&[other, metering]).0.contains("was never enrolled for agent a1"));
        assert!(check(&[state(6, None)]).0.contains("enrolled by entry 6, after the admission"));
        assert!(check(&[state(4, Some(8))]).0.contains("revoked by entry 8, before the outcome"));
        assert_eq!(check(&[state(4, Some(10))]), (String::new(), 1));
    }

    #[test]
    fn members_that_differ_are_named_by_their_paths() {
        let mut differences = Vec::new();
        let said = json!({ "a": { "b": [1, 2] }, "c": 1, "same": "x" });
        let recorded = json!({ "a": { "b": [1, 3] }, "d": 1, "same": "x" });
        name_differences("p", &said, &recorded, &mut differences);
        let expected =
            ["p.a.b[1] is 2, the log says 3", "p.c is 1, the log says null", "p.d is null, the log says 1"];
        assert_eq!(differences, expected);
    }
}
