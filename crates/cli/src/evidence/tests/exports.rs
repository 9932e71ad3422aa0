//! Exports from a ledger's service.

use std::{path::Path, sync::Arc};

use exchequer_event::{
    entry,
    v1::{
        self, EntryKind,
        entry::Kind,
        ledger_service_client::LedgerServiceClient,
        ledger_service_server::{LedgerService, LedgerServiceServer},
    },
};
use exchequer_tlog::SignedCheckpoint;
use prost::bytes::Bytes;
use tonic::{Request, Response, Status};

use super::world::{Log, MARKER, World, check, trust, vkey};
use crate::evidence::{
    export::{self, ExportError, Exported, Format, export},
    pack::Scope,
    report::Verdict,
    verify::Target,
};

/// A ledger's answers over a log, as a caller of one tenant (or, for none, an auditor) gets them.
pub(super) struct Ledger {
    pub(super) log: Log,
    pub(super) tenant: Option<&'static str>,
    /// Entries that a page holds at most.
    pub(super) page: usize,
    pub(super) lie: Lie,
    /// A newer checkpoint than the log's.
    pub(super) newest: Option<SignedCheckpoint>,
    /// Seed of the key that signs.
    pub(super) signer: u8,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Lie {
    None,
    /// Entries are changed.
    Entries,
    /// No control record is shown.
    NoControl,
    /// Entries of every tenant are listed.
    EveryTenant,
    /// The second half can't be had.
    Away,
}

impl Ledger {
    fn sees(&self, index: u64) -> bool {
        let tenant = self.facets(index).tenant;
        tenant.is_empty() || self.tenant.is_none_or(|own| own == tenant)
    }

    fn facets(&self, index: u64) -> entry::Facets {
        entry::facets(&entry::decode(&self.log.entries[usize::try_from(index).unwrap()]).unwrap())
    }

    fn entry(&self, index: u64) -> v1::LogEntry {
        let mut entry = self.log.entries[usize::try_from(index).unwrap()].clone();
        if self.lie == Lie::Entries && index == 8 {
            entry = Bytes::copy_from_slice(&self.log.entries[5]);
        }
        v1::LogEntry { index, entry, proof: Vec::new() }
    }

    fn matches(&self, filter: &v1::EntryFilter, index: u64) -> bool {
        let facets = self.facets(index);
        let kind = filter.kinds.is_empty() || filter.kinds.contains(&facets.kind.into());
        let tenant =
            filter.tenant.is_empty() || filter.tenant == facets.tenant || self.lie == Lie::EveryTenant;
        let hidden = self.lie == Lie::NoControl && facets.kind == EntryKind::Control;
        let time = filter.from_unix_ms == 0 || facets.time_unix_ms >= filter.from_unix_ms;
        let until = filter.until_unix_ms == 0 || (1..filter.until_unix_ms).contains(&facets.time_unix_ms);
        let end = if filter.until_index == 0 { u64::MAX } else { filter.until_index };
        let range = (filter.from_index..end).contains(&index);
        kind && tenant && time && until && range && !hidden && self.sees(index)
    }

    fn seal_of(&self, index: u64) -> Option<u64> {
        let at = |index: u64| entry::decode(&self.log.entries[usize::try_from(index).unwrap()]).unwrap();
        let of = at(index);
        matches!(of.kind, Some(Kind::Event(_) | Kind::DecisionRun(_))).then(|| {
            let before = (0..index).rev().take_while(|before| at(*before).stream_seq == of.stream_seq);
            before.last().unwrap()
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("an export does not ask for this"))
}

#[tonic::async_trait]
impl LedgerService for Ledger {
    type TailEntriesStream = tokio_stream::Empty<Result<v1::TailEntriesResponse, Status>>;

    async fn get_entry(&self, request: Request<v1::GetEntryRequest>) -> Answer<v1::GetEntryResponse> {
        let index = request.into_inner().index;
        if !self.sees(index) {
            return Err(Status::permission_denied("another tenant's"));
        }
        Ok(Response::new(v1::GetEntryResponse { entry: Some(self.entry(index)) }))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Answer<v1::ListEntriesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        assert_eq!(request.tree_size, self.log.size(), "all is listed in the tree of the one checkpoint");
        let from = request.page_token.parse().unwrap_or(0);
        let mut found: Vec<_> =
            (from..self.log.size()).filter(|index| self.matches(&filter, *index)).collect();
        if self.lie == Lie::Away && filter.kinds.len() != 1 && from > self.log.size() / 2 {
            return Err(Status::unavailable("gone"));
        }
        let next_page_token = found.get(self.page).map(ToString::to_string).unwrap_or_default();
        found.truncate(self.page);
        let mut indexes = Vec::new();
        for index in found {
            let seal = self.seal_of(index).filter(|seal| request.with_seals && !indexes.contains(seal));
            indexes.extend(seal.into_iter().chain([index]));
        }
        let proof =
            |index| self.log.proof(index).iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        let entries = indexes.into_iter().map(|index| {
            let proof = if request.with_proofs { proof(index) } else { Vec::new() };
            v1::LogEntry { proof, ..self.entry(index) }
        });
        Ok(Response::new(v1::ListEntriesResponse {
            entries: entries.collect(),
            next_page_token,
            tree_size: self.log.size(),
        }))
    }

    async fn get_checkpoint(
        &self,
        _: Request<v1::GetCheckpointRequest>,
    ) -> Answer<v1::GetCheckpointResponse> {
        Ok(Response::new(v1::GetCheckpointResponse {
            checkpoint: self
                .newest
                .clone()
                .unwrap_or_else(|| self.log.signed_by(self.signer))
                .to_string()
                .into(),
            verifier_key: vkey(self.signer).to_string(),
        }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<v1::GetInclusionProofRequest>,
    ) -> Answer<v1::GetInclusionProofResponse> {
        let v1::GetInclusionProofRequest { index, tree_size } = request.into_inner();
        assert_eq!(tree_size, self.log.size(), "every proof is in the tree of the one checkpoint");
        let hashes = self.log.proof(index).iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        Ok(Response::new(v1::GetInclusionProofResponse {
            index,
            tree_size,
            hashes,
            checkpoint: Bytes::new(),
        }))
    }

    async fn submit_batch(&self, _: Request<v1::SubmitBatchRequest>) -> Answer<v1::SubmitBatchResponse> {
        none()
    }
    async fn tail_entries(&self, _: Request<v1::TailEntriesRequest>) -> Answer<Self::TailEntriesStream> {
        none()
    }
    async fn get_consistency_proof(
        &self,
        _: Request<v1::GetConsistencyProofRequest>,
    ) -> Answer<v1::GetConsistencyProofResponse> {
        none()
    }
    async fn list_agent_heads(
        &self,
        _: Request<v1::ListAgentHeadsRequest>,
    ) -> Answer<v1::ListAgentHeadsResponse> {
        none()
    }
    async fn enroll_key(&self, _: Request<v1::EnrollKeyRequest>) -> Answer<v1::EnrollKeyResponse> {
        none()
    }
    async fn revoke_key(&self, _: Request<v1::RevokeKeyRequest>) -> Answer<v1::RevokeKeyResponse> {
        none()
    }
    async fn rotate_ledger_key(
        &self,
        _: Request<v1::RotateLedgerKeyRequest>,
    ) -> Answer<v1::RotateLedgerKeyResponse> {
        none()
    }
    async fn list_keys(&self, _: Request<v1::ListKeysRequest>) -> Answer<v1::ListKeysResponse> {
        none()
    }
}

pub(super) fn request(scope: Scope, out: &Path) -> export::Request {
    export::Request {
        scope: Some(scope),
        time: None,
        format: Format::Native,
        key: Some(vkey(100)),
        continues: None,
        out: out.into(),
    }
}

pub(super) fn client(ledger: Ledger) -> LedgerServiceClient<LedgerServiceServer<Ledger>> {
    LedgerServiceClient::new(LedgerServiceServer::from_arc(Arc::new(ledger)))
}

async fn run(ledger: Ledger, scope: Scope, out: &Path) -> Result<Exported, ExportError> {
    run_request(ledger, request(scope, out)).await
}

pub(super) async fn run_request(ledger: Ledger, request: export::Request) -> Result<Exported, ExportError> {
    let mut last = None;
    let exported = export(client(ledger), request, |progress| last = Some(progress)).await;
    if let Ok(exported) = &exported {
        let last = last.unwrap();
        assert_eq!((last.done, last.total), (exported.entries, exported.entries));
    }
    exported
}

pub(super) fn acme() -> Scope {
    Scope::Tenant("acme".into())
}

pub(super) fn ledger(world: &World, tenant: Option<&'static str>, lie: Lie) -> Ledger {
    Ledger { log: world.log(), tenant, page: 3, lie, newest: None, signer: 100 }
}

#[tokio::test]
async fn a_tenant_exports_its_own_entries_their_seals_and_the_control_records() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("acme.pack");
    let world = World::small();
    let exported = run(ledger(&world, Some("acme"), Lie::None), acme(), &out).await.unwrap();
    assert_eq!(exported.report.verdict, Verdict::Holds);
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(bytes, world.log().pack(acme(), [0, 1, 2, 3, 4, 5, 8, 9, 11, 15]));
    assert_eq!(exported.bytes, bytes.len() as u64);
    assert!(!bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[tokio::test]
async fn a_large_export_of_a_tenant_and_of_a_range_hold() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pack");
    let world = World::large(900);
    let exported =
        run(Ledger { page: 70, ..ledger(&world, Some("acme"), Lie::None) }, acme(), &out).await.unwrap();
    assert_eq!(exported.report.checked.events, 34 * 9);
    assert_eq!(exported.report.checked.signatures, 4 + 9);
    assert_eq!(check(&Target::Pack(out.clone()), &trust()).verdict, Verdict::Holds);
    // It begins in the middle of a batch, so the seal before it comes along.
    let range = Scope::Range { first: 150, end: 600 };
    let exported = run(ledger(&world, None, Lie::None), range, &out).await.unwrap();
    assert_eq!(exported.entries, 4 + 1 + 450);
}

#[tokio::test]
async fn a_ledger_that_lies_leaves_no_pack_and_what_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("acme.pack");
    std::fs::write(&out, "before").unwrap();
    let world = World::small();
    for lie in [Lie::Entries, Lie::NoControl, Lie::EveryTenant] {
        let error = run(ledger(&world, None, lie), acme(), &out).await.unwrap_err();
        let right = match lie {
            Lie::Entries => matches!(error, ExportError::Write(_)),
            Lie::NoControl => matches!(error, ExportError::Answers(_)),
            _ => matches!(error, ExportError::Unverified(_)),
        };
        assert!(right, "{error}");
        assert_eq!(std::fs::read(&out).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    let beyond = Scope::Range { first: 3, end: 1000 };
    let error = run(ledger(&world, None, Lie::None), beyond, &out).await.unwrap_err();
    assert!(matches!(error, ExportError::Request(_)), "{error}");
    // A token of one tenant can't export a range that holds another's.
    let range = Scope::Range { first: 5, end: 8 };
    let error = run(ledger(&world, Some("acme"), Lie::None), range, &out).await.unwrap_err();
    assert!(error.to_string().contains("entry 6"), "{error}");
}
