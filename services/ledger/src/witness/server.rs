//! A witness over HTTP: `POST /add-checkpoint` (tlog-witness), and `GET /verifier-key`.
//!
//! Left out: listening. Invariant: nothing longer than [`MAX_REQUEST_BYTES`] is read; a body of status 200 is a cosignature of a tree
//! that is on disk.

use std::{
    fs::File,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use exchequer_auth::keys;
use exchequer_telemetry::{KeyValue, Readiness, meter};
use exchequer_tlog::{AddCheckpoint, Cosigner, NoteSignature, Policy, SignatureKind, VerifierKey};
use opentelemetry::metrics::{Counter, Gauge};

use super::{
    SIZE_TYPE,
    decide::{Refusal, admit},
    register::{Advance, Register},
};
use crate::{
    service::{StartError, lock},
    sign::unix_s,
    store::{Disk, OpenError, StoreError, files::Files},
};

/// The longest request that is read, bytes: 63 hashes, and a checkpoint with more signatures than any log has.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// State files, one a log.
const LOGS: &str = "logs";
const TEXT: &str = "text/plain; charset=utf-8";

/// A log whose checkpoints are cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessedLog {
    /// The first line of its checkpoints.
    pub origin: String,
    /// A key that signs them (type 01).
    pub key: VerifierKey,
}

impl FromStr for WitnessedLog {
    type Err = String;

    /// `VKEY` or, where the key's name is not the origin, `VKEY=ORIGIN`.
    fn from_str(text: &str) -> Result<Self, String> {
        // A key of 33 bytes has no padding in its base64, which begins after the second plus.
        let base64 = text.match_indices('+').nth(1).map_or(text.len(), |(at, _)| at);
        let (key, origin) = match text[base64..].find('=') {
            Some(at) => (&text[..base64 + at], Some(&text[base64 + at + 1..])),
            None => (text, None),
        };
        let key: VerifierKey = key.parse().map_err(|error| format!("`{key}`: {error}"))?;
        if key.kind() != SignatureKind::Ed25519 {
            return Err(format!("`{key}` is a witness's key, not a log's"));
        }
        let origin = origin.unwrap_or(key.name()).to_owned();
        exchequer_tlog::Checkpoint::new(&*origin, 0, exchequer_tlog::EMPTY_ROOT)
            .map_err(|error| error.to_string())?;
        Ok(Self { origin, key })
    }
}

/// What a witness needs to know.
#[derive(Clone, Debug)]
pub struct WitnessOptions {
    /// The data directory, of this process alone.
    pub data: PathBuf,
    /// The witness's name, which is that of its key.
    pub name: String,
    /// Its Ed25519 key, of nothing else; made if there is none.
    pub key_file: PathBuf,
    /// The logs, each by one key or more.
    pub logs: Vec<WitnessedLog>,
}

/// A witness. Dropping it at any moment is safe.
#[derive(Clone, Debug)]
pub struct Witness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cosigner: Cosigner,
    logs: Vec<Policy>,
    registers: Vec<Register>,
    /// Why the last checkpoint that was to be kept was not.
    fault: Mutex<Option<String>>,
    requests: Counter<u64>,
    tree_size: Gauge<u64>,
    _lock: Arc<File>,
}

impl Witness {
    /// Opens the state of every log. Blocks.
    pub fn open(options: &WitnessOptions) -> Result<Self, StartError> {
        let data = &options.data;
        let unusable =
            |error: std::io::Error| StartError::Data { path: data.clone(), reason: error.to_string() };
        std::fs::create_dir_all(data).map_err(unusable)?;
        let lock = lock(data)?;
        let key = keys::load_or_create(&options.key_file)?;
        let cosigner = Cosigner::new(&*options.name, key).map_err(OpenError::from)?;
        Self::over(Arc::new(Disk), options, cosigner, lock)
    }

    fn over(
        files: Arc<dyn Files>,
        options: &WitnessOptions,
        cosigner: Cosigner,
        lock: Arc<File>,
    ) -> Result<Self, StartError> {
        let dir = options.data.join(LOGS);
        files.create_dirs(&dir).map_err(StoreError::io(&dir))?;
        let mut logs: Vec<Policy> = Vec::new();
        for WitnessedLog { origin, key } in &options.logs {
            match logs.iter_mut().find(|log| log.origin == *origin) {
                Some(log) => log.log_keys.push(key.clone()),
                None => logs.push(Policy {
                    origin: origin.clone(),
                    log_keys: vec![key.clone()],
                    witnesses: Vec::new(),
                    quorum: 0,
                }),
            }
        }
        let registers = logs.iter().map(|log| Register::open(files.clone(), &dir, &log.origin));
        let registers = registers.collect::<Result<Vec<_>, _>>()?;
        let meter = meter();
        let requests = meter
            .u64_counter("exchequer_witness_requests_total")
            .with_description("Requests for a cosignature, by status.")
            .build();
        let tree_size = meter
            .u64_gauge("exchequer_witness_tree_size_entries")
            .with_description("Entries in the newest tree that was cosigned, by log.")
            .build();
        for (log, register) in logs.iter().zip(&registers) {
            tree_size.record(register.held().size, &[KeyValue::new("origin", log.origin.clone())]);
        }
        let fault = Mutex::new(None);
        Ok(Self(Arc::new(Inner { cosigner, logs, registers, fault, requests, tree_size, _lock: lock })))
    }

    /// The key that verifies its cosignatures (a vkey of C2SP signed-note).
    pub fn verifier_key(&self) -> &VerifierKey {
        self.0.cosigner.verifier()
    }

    /// The logs that it knows, and the size of the newest tree of each that it cosigned.
    pub fn logs(&self) -> Vec<(String, u64)> {
        let Inner { logs, registers, .. } = &*self.0;
        logs.iter().zip(registers).map(|(log, register)| (log.origin.clone(), register.held().size)).collect()
    }

    /// Whether its state can be kept.
    pub fn readiness(&self) -> Readiness {
        let fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Readiness::new().component("witness.state", fault.map_or(Ok(()), Err))
    }

    /// The routes, which are public: who may ask is whoever has a checkpoint that the log signed.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/add-checkpoint", post(add_checkpoint).layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES)))
            .route("/verifier-key", get(verifier_key))
            .with_state(self.clone())
    }

    /// The cosignature, once the checkpoint is durable. Blocks.
    fn answer(&self, body: &[u8]) -> Result<NoteSignature, Refusal> {
        let Inner { cosigner, logs, registers, .. } = &*self.0;
        let (log, request) = admit(logs, body)?;
        let checkpoint = request.signed.checkpoint();
        let cosigned = registers[log].advance(&request, || checkpoint.cosign(cosigner, unix_s()));
        let origin = &logs[log].origin;
        match cosigned {
            Ok(signature) => {
                self.report(None);
                self.0.tree_size.record(checkpoint.size(), &[KeyValue::new("origin", origin.clone())]);
                Ok(signature)
            }
            Err(Advance::Refused(refusal)) => {
                if matches!(refusal, Refusal::Fork { .. }) {
                    // Both are signed: whoever holds the two notes can prove it.
                    tracing::error!(origin, note = %request.signed, "the log signed two trees of one size");
                } else {
                    refused(origin, &request, &refusal);
                }
                Err(refusal)
            }
            Err(Advance::NotKept(error)) => {
                self.report(Some(error.to_string()));
                Err(Refusal::NotKept)
            }
        }
    }

    fn report(&self, fault: Option<String>) {
        let mut held = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = fault.as_ref().filter(|_| *held != fault) {
            tracing::error!(fault, "a checkpoint can't be kept, so it is not cosigned");
        }
        *held = fault;
    }
}

fn refused(origin: &str, request: &AddCheckpoint, refusal: &Refusal) {
    let size = request.signed.checkpoint().size();
    tracing::info!(origin, size, old = request.old, %refusal, "no cosignature");
}

async fn add_checkpoint(State(witness): State<Witness>, body: Bytes) -> Response {
    let requests = witness.0.requests.clone();
    let answered = tokio::task::spawn_blocking(move || witness.answer(&body)).await;
    // It does not panic; a runtime that shuts down has nobody left to answer.
    let answer = answered.unwrap_or(Err(Refusal::NotKept));
    let status = answer.as_ref().map_or_else(Refusal::status, |_| 200);
    requests.add(1, &[KeyValue::new("status", i64::from(status))]);
    let content_type = if matches!(answer, Err(Refusal::Stale { .. })) { SIZE_TYPE } else { TEXT };
    let body = answer.map_or_else(|refusal| format!("{refusal}\n"), |signature| format!("{signature}\n"));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

async fn verifier_key(State(witness): State<Witness>) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], format!("{}\n", witness.verifier_key())).into_response()
}

#[cfg(test)]
mod tests;
