//! The ledger's side: asks every witness for a cosignature of a checkpoint (tlog-witness), at the same time and for a bounded while.
//!
//! Left out: whether the checkpoint may then be published. Invariant: only a cosignature that verifies under the configured key is
//! added; whatever a witness answers, it is read up to a bound and changes nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use exchequer_tlog::{AddCheckpoint, NoteSignature, SignedCheckpoint, VerifierKey, consistency_proof};
use futures::{StreamExt as _, stream::FuturesUnordered};
use reqwest::{StatusCode, header};
use tokio::time::{Instant, timeout_at};

use super::SIZE_TYPE;
use crate::store::{LogReader, Quorum, StoreError};

/// Witnesses of one ledger.
pub const MAX_WITNESSES: usize = 16;
/// How long a checkpoint waits for cosignatures that it can do without.
const GRACE: Duration = Duration::from_millis(500);
/// How long it waits for those that it has to have. The signing lease has to be renewed in between.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests to one witness for one checkpoint: a first, one with the size that it really holds, and once more if that has changed.
const ATTEMPTS: usize = 3;
/// The longest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// The longest part of a refusal that is repeated, characters.
const QUOTED_CHARS: usize = 120;

/// A witness and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessAddress {
    /// Its verifier key (type 04).
    pub key: VerifierKey,
    /// Its submission prefix: an `http://` URL.
    pub url: String,
}

/// The witnesses of a ledger.
#[derive(Clone, Debug)]
pub(crate) struct Witnesses {
    members: Arc<[Member]>,
    needed: usize,
    http: reqwest::Client,
}

#[derive(Debug)]
struct Member {
    key: VerifierKey,
    url: String,
    /// Size of the newest tree that it cosigned, as far as is known. A wrong one costs a request.
    confirmed: AtomicU64,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cosigning {
    /// Names of the witnesses that cosigned.
    pub(crate) by: Vec<String>,
    /// Those that did not, each with its reason.
    pub(crate) faults: Vec<(String, String)>,
    /// How many have to.
    pub(crate) needed: usize,
}

impl Cosigning {
    /// Whether enough cosigned.
    pub(crate) fn is_enough(&self) -> bool {
        self.by.len() >= self.needed
    }

    /// What is missing, in words; `None` if every witness cosigned.
    pub(crate) fn fault(&self) -> Option<String> {
        let faults: Vec<_> = self.faults.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        (!faults.is_empty()).then(|| {
            let all = self.by.len() + self.faults.len();
            format!(
                "{} of {all} witnesses cosigned, {} have to; {}",
                self.by.len(),
                self.needed,
                faults.join("; ")
            )
        })
    }
}

impl Witnesses {
    /// These witnesses, of which so many have to cosign.
    pub(crate) fn new(addresses: &[WitnessAddress], needed: usize) -> Result<Self, reqwest::Error> {
        let member = |address: &WitnessAddress| Member {
            key: address.key.clone(),
            url: format!("{}/add-checkpoint", address.url.trim_end_matches('/')),
            confirmed: AtomicU64::new(0),
        };
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { members: addresses.iter().map(member).collect(), needed, http })
    }

    /// Asks all of them and adds what they answer, until all have answered or nothing more is worth waiting for. `None` without witnesses.
    pub(crate) async fn cosign(
        &self,
        signed: &mut SignedCheckpoint,
        reader: &LogReader,
    ) -> Option<Cosigning> {
        if self.members.is_empty() {
            return None;
        }
        let (asked, http) = (signed.clone(), &self.http);
        let mut waiting: Vec<_> = self.members.iter().map(|member| member.key.name().to_owned()).collect();
        let mut asking: FuturesUnordered<_> = self
            .members
            .iter()
            .map(|member| async { (member.key.name().to_owned(), member.ask(http, &asked, reader).await) })
            .collect();
        let begun = Instant::now();
        let mut cosigning = Cosigning { by: Vec::new(), faults: Vec::new(), needed: self.needed };
        loop {
            let until = begun + if cosigning.is_enough() { GRACE } else { PATIENCE };
            let Ok(Some((name, answer))) = timeout_at(until, asking.next()).await else { break };
            waiting.retain(|waiting| *waiting != name);
            match answer.and_then(|signature| signed.add(signature).map_err(|error| error.to_string())) {
                Ok(()) => cosigning.by.push(name),
                Err(fault) => cosigning.faults.push((name, fault)),
            }
        }
        cosigning.faults.extend(waiting.into_iter().map(|name| (name, "no answer in time".to_owned())));
        // What is reported must not change with the order of the answers.
        cosigning.faults.sort();
        Some(cosigning)
    }
}

/// A witness's answer, as far as it makes a difference.
enum Answer {
    Cosigned(String),
    Holds(u64),
}

impl Member {
    async fn ask(
        &self,
        http: &reqwest::Client,
        signed: &SignedCheckpoint,
        reader: &LogReader,
    ) -> Result<NoteSignature, String> {
        let size = signed.checkpoint().size();
        let mut old = self.confirmed.load(Ordering::Relaxed).min(size);
        for _ in 0..ATTEMPTS {
            let proof = prove(reader.clone(), old, size).await.map_err(|error| error.to_string())?;
            let request = AddCheckpoint { old, proof, signed: signed.clone() };
            match self.post(http, request.to_string()).await? {
                Answer::Cosigned(lines) => {
                    let signature = cosignature(&self.key, signed, &lines)?;
                    self.confirmed.store(size, Ordering::Relaxed);
                    return Ok(signature);
                }
                Answer::Holds(held) if held > size => {
                    return Err(format!(
                        "it holds a tree of {held} entries, this one has {size}: another ledger was ahead, or entries were lost"
                    ));
                }
                Answer::Holds(held) => old = held,
            }
        }
        Err(format!("it refused {ATTEMPTS} sizes in turn"))
    }

    async fn post(&self, http: &reqwest::Client, body: String) -> Result<Answer, String> {
        let failed = |error: reqwest::Error| causes(&error);
        let mut response = http.post(&self.url).body(body).send().await.map_err(failed)?;
        let status = response.status();
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let is_size = content_type.is_some_and(|held| held.as_bytes() == SIZE_TYPE.as_bytes());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("status {}: its answer is too long", status.as_u16()));
            }
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8_lossy(&bytes);
        match status {
            StatusCode::OK => Ok(Answer::Cosigned(text.into_owned())),
            StatusCode::CONFLICT if is_size => {
                let size = text.strip_suffix('\n').and_then(|size| size.parse().ok());
                size.map(Answer::Holds).ok_or_else(|| "it names no size".to_owned())
            }
            _ => {
                let said: String = text.trim_end().chars().take(QUOTED_CHARS).collect();
                Err(format!("status {}: {}", status.as_u16(), said.escape_debug()))
            }
        }
    }
}

async fn prove(reader: LogReader, old: u64, size: u64) -> Result<Vec<exchequer_tlog::Hash>, StoreError> {
    let proving = tokio::task::spawn_blocking(move || consistency_proof(old, size, &reader));
    Ok(proving.await.expect("proving does not panic")?)
}

/// The cosignature by this key among the lines of an answer, verified. Lines of other keys, and what is no signature, are passed over.
fn cosignature(key: &VerifierKey, signed: &SignedCheckpoint, lines: &str) -> Result<NoteSignature, String> {
    let signatures = lines.lines().filter_map(|line| NoteSignature::parse(line).ok());
    let is_by = |signature: &NoteSignature| (signature.name(), signature.id()) == (key.name(), key.id());
    let signature = signatures.into_iter().find(is_by).ok_or("its answer has no signature by its key")?;
    let mut cosigned = signed.clone();
    cosigned.add(signature.clone()).map_err(|error| error.to_string())?;
    cosigned.note().verify([key]).map_err(|error| error.to_string())?;
    Ok(signature)
}

/// An error with its causes: the outermost of an HTTP client says little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The keys of these witnesses, of which so many have to have cosigned.
pub(crate) fn quorum(addresses: &[WitnessAddress], needed: usize) -> Quorum {
    Quorum { witnesses: addresses.iter().map(|address| address.key.clone()).collect(), needed }
}
