//! The gRPC service: proofs, filters, roles and tenant isolation of every RPC.

use exchequer_auth::Role;
use exchequer_event::{
    entry::facets,
    v1::{self, EntryFilter, EntryKind, EventKind, KeyRole},
};
use exchequer_stream::Message;
use exchequer_testkit::{FIRST_TIME_UNIX_MS, SimAgent, eventually};
use exchequer_tlog::{Hash, SignedCheckpoint, leaf_hash, verify_consistency, verify_inclusion};
use prost::{Message as _, bytes::Bytes};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::support::{Client, PATIENCE, World, naive_root, start};

pub type Who = (&'static str, Option<&'static str>, &'static [Role]);
pub const ACME: Who = ("ann", Some("acme"), &[Role::User]);
pub const AUDITOR: Who = ("aud", None, &[Role::Auditor]);
const ADMIN: Who = ("root", None, &[Role::Admin]);
const AGENT: Who = ("a1", None, &[Role::Agent]);

/// Two agents, two tenants, a rejection and an equivocation.
pub async fn world() -> (World, SimAgent) {
    let (mut agent, mut second) = (SimAgent::new("a1"), SimAgent::new("a2").with_skill("sum-up"));
    let world = World::new(&[&agent, &second]).await;
    let mut twin = agent.clone();
    world.take(&mut agent, "acme", 3).await;
    world.take(&mut second, "globex", 150).await;
    let size = world.take(&mut agent, "acme", 2).await;
    world.stream.append(Message::new("events.a2", Bytes::from_static(b"?"))).await.unwrap();
    world.stream.append(Message::new("events.a1", twin.batch("globex", 1))).await.unwrap();
    world.covered(size + 2).await;
    (world, agent)
}

async fn list(
    world: &World,
    who: Who,
    filter: EntryFilter,
    page_size: u32,
) -> Result<Vec<v1::LogEntry>, Status> {
    let mut client = world.client();
    let (mut entries, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEntriesRequest {
            filter: Some(filter.clone()),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(world.request(who, request)).await?.into_inner();
        assert!(page_size == 0 || page.entries.len() <= page_size as usize);
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

fn decoded(entry: &v1::LogEntry) -> v1::Entry {
    exchequer_event::entry::decode(&entry.entry).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_finds_exactly_what_a_scan_finds_in_pages_of_any_size() {
    let (world, _) = world().await;
    let log = world.log();
    let execution_id = match &log.kinds()[4] {
        v1::entry::Kind::Event(bytes) => exchequer_event::seal::decode_event(bytes).unwrap().execution_id,
        kind => panic!("{kind:?}"),
    };
    let kinds = |kinds: &[EntryKind]| kinds.iter().map(|kind| i32::from(*kind)).collect();
    let filters = [
        EntryFilter::default(),
        EntryFilter { tenant: "globex".into(), ..EntryFilter::default() },
        EntryFilter { execution_id, ..EntryFilter::default() },
        EntryFilter { agent_id: "a1".into(), ..EntryFilter::default() },
        EntryFilter { agent_id: "a2".into(), agent_seq: 7, ..EntryFilter::default() },
        EntryFilter {
            kinds: kinds(&[EntryKind::Rejection, EntryKind::Equivocation]),
            ..EntryFilter::default()
        },
        EntryFilter { kinds: kinds(&[EntryKind::Event]), agent_id: "a1".into(), ..EntryFilter::default() },
        EntryFilter {
            from_unix_ms: FIRST_TIME_UNIX_MS + 3,
            until_unix_ms: FIRST_TIME_UNIX_MS + 6,
            ..EntryFilter::default()
        },
        EntryFilter { from_unix_ms: FIRST_TIME_UNIX_MS + 300, ..EntryFilter::default() },
        EntryFilter { skill: "sum-up".into(), ..EntryFilter::default() },
        EntryFilter { skill: "sum-up".into(), agent_id: "a1".into(), ..EntryFilter::default() },
        EntryFilter {
            event_kinds: vec![EventKind::ExecutionDenied.into(), EventKind::ExecutionFinished.into()],
            tenant: "acme".into(),
            ..EntryFilter::default()
        },
        EntryFilter {
            until_unix_ms: FIRST_TIME_UNIX_MS + 2,
            tenant: "acme".into(),
            ..EntryFilter::default()
        },
        EntryFilter { tenant: "nobody".into(), ..EntryFilter::default() },
    ];
    for filter in filters {
        let expected: Vec<u64> = (0..)
            .zip(&log.entries)
            .filter(|(_, bytes)| {
                let found = facets(&exchequer_event::entry::decode(bytes).unwrap());
                (filter.tenant.is_empty() || filter.tenant == found.tenant)
                    && (filter.execution_id.is_empty() || filter.execution_id == found.execution_id)
                    && (filter.agent_id.is_empty() || filter.agent_id == found.agent_id)
                    && (filter.skill.is_empty() || filter.skill == found.skill)
                    && (filter.event_kinds.is_empty()
                        || filter.event_kinds().any(|kind| kind == found.event_kind))
                    && (filter.agent_seq == 0 || filter.agent_seq == found.agent_seq)
                    && (filter.kinds.is_empty() || filter.kinds().any(|kind| kind == found.kind))
                    && (filter.from_unix_ms == 0 || found.time_unix_ms >= filter.from_unix_ms)
                    && (filter.until_unix_ms == 0
                        || (found.time_unix_ms > 0 && found.time_unix_ms < filter.until_unix_ms))
            })
            .map(|(index, _)| index)
            .collect();
        for page_size in [0, 1, 7, 1000] {
            let found = list(&world, AUDITOR, filter.clone(), page_size).await.unwrap();
            let indexes: Vec<_> = found.iter().map(|entry| entry.index).collect();
            assert_eq!(indexes, expected, "{filter:?} in pages of {page_size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_of_one_tree_however_the_log_grows_between_its_pages() {
    let (world, mut agent) = world().await;
    let mut client = world.client();
    let filter = EntryFilter { tenant: "acme".into(), ..EntryFilter::default() };
    let expected: Vec<_> = list(&world, AUDITOR, filter.clone(), 0).await.unwrap();
    let tree_size = world.log().entries.len() as u64;
    let (mut found, mut tokens, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = v1::ListEntriesRequest {
            filter: Some(filter.clone()),
            page_size: 3,
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(world.request(AUDITOR, request)).await.unwrap().into_inner();
        assert_eq!(page.tree_size, tree_size);
        found.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        tokens.push(page_token.clone());
        world.take(&mut agent, "acme", 2).await;
    }
    assert_eq!(found, expected);
    let all = list(&world, AUDITOR, filter.clone(), 7).await.unwrap();
    assert!(
        tokens.len() > 2
            && all.len() == expected.len() + 4 * tokens.len()
            && all[..expected.len()] == expected
    );

    // A token of another filter, one that is damaged, one that goes on beyond its tree, and one of a tree that is not signed yet.
    let sum = &tokens[0][32..];
    let forged = |next: u64, size: u64| format!("{next:016x}{size:016x}{sum}");
    let ask = async |filter: &EntryFilter, page_token: String| {
        let request = v1::ListEntriesRequest {
            filter: Some(filter.clone()),
            page_size: 3,
            page_token,
            ..Default::default()
        };
        client.clone().list_entries(world.request(AUDITOR, request)).await
    };
    ask(&filter, forged(0, tree_size)).await.unwrap();
    for (filter, token, code) in [
        (&EntryFilter::default(), tokens[0].clone(), Code::InvalidArgument),
        (&filter, tokens[0][..40].to_owned(), Code::InvalidArgument),
        (&filter, "x".repeat(48), Code::InvalidArgument),
        (&filter, forged(9, 8), Code::InvalidArgument),
        (&filter, forged(9, 1_000_000), Code::OutOfRange),
    ] {
        let refused = ask(filter, token).await.unwrap_err();
        assert_eq!(refused.code(), code);
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "page_token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_was_cut_goes_on_without_loss_or_repetition_across_a_restart() {
    let (mut world, mut agent) = world().await;
    let mut seen: Vec<v1::LogEntry> = Vec::new();
    for round in 0..4 {
        // What came while nobody listened, and what comes live.
        world.take(&mut agent, "acme", 3).await;
        let from_index = seen.last().map_or(0, |last| last.index + 1);
        let request = v1::TailEntriesRequest { filter: None, from_index };
        let mut tail =
            world.client().tail_entries(world.request(AUDITOR, request)).await.unwrap().into_inner();
        let there = list(&world, AUDITOR, EntryFilter::default(), 0).await.unwrap().len();
        world.stream.append(Message::new(agent.subject(), agent.batch("acme", 2))).await.unwrap();
        // Cut in the middle of what is there, or among what comes live.
        let cut = if round % 2 == 0 { there - 2 } else { there + 1 };
        while seen.len() < cut {
            let next = tokio::time::timeout(PATIENCE, tail.message()).await.expect("an entry in time");
            seen.push(next.unwrap().unwrap().entry.unwrap());
        }
        drop(tail);
        if round == 1 {
            world.service.stop().await;
            world.service = start(&world.options, &world.stream).await;
        }
        let settled =
            async || list(&world, AUDITOR, EntryFilter::default(), 0).await.unwrap().len() == there + 5;
        eventually(PATIENCE, settled).await;
    }
    let all = list(&world, AUDITOR, EntryFilter::default(), 0).await.unwrap();
    assert_eq!(seen, all[..seen.len()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_verify_against_the_checkpoint_and_against_earlier_sizes() {
    let (world, _) = world().await;
    let log = world.log();
    let leaves: Vec<Hash> = log.entries.iter().map(|entry| leaf_hash(entry)).collect();
    let size = leaves.len() as u64;
    let mut client = world.client();
    let hashes =
        |hashes: Vec<Bytes>| hashes.iter().map(|h| Hash(h[..].try_into().unwrap())).collect::<Vec<_>>();
    for (index, tree_size) in [(0, 0), (5, 6), (200, 257), (size - 1, size)] {
        let request = v1::GetInclusionProofRequest { index, tree_size };
        let proof = client.get_inclusion_proof(world.request(ACME, request)).await.unwrap().into_inner();
        let of = usize::try_from(if tree_size == 0 { size } else { tree_size }).unwrap();
        let leaf = leaves[usize::try_from(index).unwrap()];
        assert_eq!(proof.tree_size, of as u64);
        verify_inclusion(&leaf, index, of as u64, &hashes(proof.hashes), &naive_root(&leaves[..of])).unwrap();
        assert_eq!(proof.checkpoint.is_empty(), of as u64 != size);
    }
    for (old_size, new_size) in [(0, 0), (1, 256), (256, 300), (size, 0)] {
        let request = v1::GetConsistencyProofRequest { old_size, new_size };
        let proof = client.get_consistency_proof(world.request(ACME, request)).await.unwrap().into_inner();
        let (old, new) = (usize::try_from(old_size).unwrap(), usize::try_from(proof.new_size).unwrap());
        let (old_root, new_root) = (naive_root(&leaves[..old]), naive_root(&leaves[..new]));
        verify_consistency(old_size, &old_root, proof.new_size, &new_root, &hashes(proof.hashes)).unwrap();
    }
    let checkpoint =
        client.get_checkpoint(world.request(ACME, v1::GetCheckpointRequest {})).await.unwrap().into_inner();
    assert_eq!(SignedCheckpoint::parse(&checkpoint.checkpoint).unwrap(), log.signed);
    assert_eq!(checkpoint.verifier_key, world.service.verifier_key());
    for (index, tree_size) in [(size, 0), (0, size + 1), (7, 7)] {
        let request = v1::GetInclusionProofRequest { index, tree_size };
        let refused = client.get_inclusion_proof(world.request(ACME, request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
    }
    let request = v1::GetConsistencyProofRequest { old_size: 9, new_size: 8 };
    assert_eq!(
        client.get_consistency_proof(world.request(ACME, request)).await.unwrap_err().code(),
        Code::OutOfRange
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_its_own_entries_and_what_verifies_them_and_nothing_else() {
    let (world, _) = world().await;
    let log = world.log();
    let mut client = world.client();
    let own = list(&world, ACME, EntryFilter::default(), 0).await.unwrap();
    assert_eq!(own.len(), 10);
    assert!(own.iter().all(|entry| facets(&decoded(entry)).tenant == "acme"));
    for filter in [
        EntryFilter { agent_id: "a2".into(), ..EntryFilter::default() },
        EntryFilter { kinds: vec![EntryKind::Rejection.into()], ..EntryFilter::default() },
        EntryFilter {
            kinds: vec![EntryKind::Equivocation.into(), EntryKind::Control.into()],
            ..EntryFilter::default()
        },
    ] {
        assert_eq!(list(&world, ACME, filter, 0).await.unwrap(), []);
    }
    let globex = EntryFilter { tenant: "globex".into(), ..EntryFilter::default() };
    assert_eq!(list(&world, ACME, globex, 0).await.unwrap_err().code(), Code::PermissionDenied);
    let seals = EntryFilter { kinds: vec![EntryKind::BatchSealed.into()], ..EntryFilter::default() };
    assert_eq!(list(&world, ACME, seals, 0).await.unwrap().len(), 3);
    for (index, bytes) in (0..).zip(&log.entries) {
        let found = facets(&exchequer_event::entry::decode(bytes).unwrap());
        let is_public =
            matches!(found.kind, EntryKind::BatchSealed | EntryKind::BlockSealed | EntryKind::Control);
        let answer = client.get_entry(world.request(ACME, v1::GetEntryRequest { index })).await;
        if is_public || found.tenant == "acme" {
            assert_eq!(answer.unwrap().into_inner().entry.unwrap().entry, bytes);
        } else {
            assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied, "{found:?}");
        }
        client.get_entry(world.request(AUDITOR, v1::GetEntryRequest { index })).await.unwrap();
    }
    let beyond = v1::GetEntryRequest { index: log.entries.len() as u64 };
    assert_eq!(client.get_entry(world.request(AUDITOR, beyond)).await.unwrap_err().code(), Code::NotFound);
    // Callers without a tenant, or with one but without a role that reads it.
    let nobodies: [Who; 3] =
        [("x", None, &[Role::User]), ("x", Some("acme"), &[]), ("x", Some("acme"), &[Role::Agent])];
    for who in nobodies {
        let refused = list(&world, who, EntryFilter::default(), 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who:?}");
    }
    let refused =
        client.list_agent_heads(world.request(ACME, v1::ListAgentHeadsRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = client.list_keys(world.request(ACME, v1::ListKeysRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_every_rpc_is_refused() {
    let (world, _) = world().await;
    let mut client: Client = world.client();
    let mut refused = Vec::new();
    refused.push(client.submit_batch(v1::SubmitBatchRequest::default()).await.unwrap_err());
    refused.push(client.get_entry(v1::GetEntryRequest::default()).await.unwrap_err());
    refused.push(client.list_entries(v1::ListEntriesRequest::default()).await.unwrap_err());
    refused.push(client.tail_entries(v1::TailEntriesRequest::default()).await.unwrap_err());
    refused.push(client.get_checkpoint(v1::GetCheckpointRequest {}).await.unwrap_err());
    refused.push(client.get_inclusion_proof(v1::GetInclusionProofRequest::default()).await.unwrap_err());
    refused.push(client.get_consistency_proof(v1::GetConsistencyProofRequest::default()).await.unwrap_err());
    refused.push(client.list_agent_heads(v1::ListAgentHeadsRequest::default()).await.unwrap_err());
    refused.push(client.enroll_key(v1::EnrollKeyRequest::default()).await.unwrap_err());
    refused.push(client.revoke_key(v1::RevokeKeyRequest::default()).await.unwrap_err());
    refused.push(client.list_keys(v1::ListKeysRequest::default()).await.unwrap_err());
    // And without the layer in front, where nobody verified anybody.
    let mut bare = v1::ledger_service_client::LedgerServiceClient::new(world.service.grpc());
    let bearer = world.request(ADMIN, v1::GetCheckpointRequest {});
    refused.push(bare.get_checkpoint(bearer).await.unwrap_err());
    assert!(refused.iter().all(|status| status.code() == Code::Unauthenticated), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_live_from_where_it_is_told_and_ends_with_the_ledger() {
    let (world, mut agent) = world().await;
    let size = world.log().entries.len() as u64;
    let mut client = world.client();
    let filter = Some(EntryFilter::default());
    let request = v1::TailEntriesRequest { filter, from_index: 6 };
    let mut tail = client.tail_entries(world.request(ACME, request)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 8 {
        seen.push(tail.message().await.unwrap().unwrap());
    }
    world.take(&mut agent, "acme", 1).await;
    let live = tail.message().await.unwrap().unwrap();
    let entry = live.entry.unwrap();
    assert!(entry.index > size && live.tree_size > entry.index);
    assert!(seen.iter().all(|response| response.entry.as_ref().unwrap().index >= 6));
    assert_eq!(facets(&decoded(&entry)).tenant, "acme");
    tail.message().await.unwrap().unwrap();
    world.service.stop().await;
    assert_eq!(tail.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_has_so_many_tails_and_leaves_the_others_to_others() {
    let (world, _) = world().await;
    let client = world.client();
    let tail = async |who: Who| {
        let request = world.request(who, v1::TailEntriesRequest::default());
        client.clone().tail_entries(request).await.map(tonic::Response::into_inner)
    };
    let mut tails = Vec::new();
    while tails.len() < 16 {
        tails.push(tail(ACME).await.unwrap());
    }
    assert_eq!(tail(ACME).await.err().unwrap().code(), Code::ResourceExhausted);
    tail(AUDITOR).await.unwrap();
    // One that ended makes room for another.
    drop(tails.pop());
    eventually(PATIENCE, async || tail(ACME).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_submitted_by_their_own_agent_and_only_if_they_hold() {
    let (world, mut agent) = world().await;
    let mut client = world.client();
    let batch = agent.batch("acme", 1);
    let submit = |batch: &Bytes| v1::SubmitBatchRequest { batch: batch.clone() };
    let others: [Who; 3] = [("a2", None, &[Role::Agent]), ("a1", None, &[Role::Admin]), ACME];
    for who in others {
        let refused = client.submit_batch(world.request(who, submit(&batch))).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who:?}");
    }
    let mut signed = v1::SignedBatch::decode(batch.clone()).unwrap();
    signed.signature = vec![0; 64].into();
    for bad in [Bytes::from_static(b"\xff"), signed.encode_to_vec().into(), vec![0; 257 * 1024].into()] {
        let refused = client.submit_batch(world.request(AGENT, submit(&bad))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "batch");
    }
    let seq =
        client.submit_batch(world.request(AGENT, submit(&batch))).await.unwrap().into_inner().stream_seq;
    assert_eq!(seq, world.stream.tip().await.unwrap());
    world.receipt("a1", |receipt| receipt.head.as_ref().unwrap().seq == agent.seq()).await;
    let heads =
        client.list_agent_heads(world.request(AGENT, v1::ListAgentHeadsRequest::default())).await.unwrap();
    let heads = heads.into_inner().heads;
    assert_eq!(
        heads.iter().map(|head| (&*head.agent_id, head.seq)).collect::<Vec<_>>(),
        [("a1", agent.seq())]
    );
    let all =
        client.list_agent_heads(world.request(AUDITOR, v1::ListAgentHeadsRequest::default())).await.unwrap();
    assert_eq!(all.into_inner().heads.len(), 2);
    let other = v1::ListAgentHeadsRequest { agent_id: "a2".into() };
    let refused = client.list_agent_heads(world.request(AGENT, other)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_enrolled_and_revoked_by_admins_and_count_from_there_on() {
    let (world, _) = world().await;
    let mut client = world.client();
    let mut agent = SimAgent::new("a9");
    let public_key = Bytes::copy_from_slice(agent.public_key().as_bytes());
    let role = KeyRole::Agent.into();
    let enroll = v1::EnrollKeyRequest { role, holder: "a9".into(), public_key: public_key.clone() };
    let who: Who = ("aud", None, &[Role::Auditor, Role::TenantAdmin]);
    let refused = client.enroll_key(world.request(who, enroll.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    for (field, bad) in [
        ("role", v1::EnrollKeyRequest { role: KeyRole::Ledger.into(), ..enroll.clone() }),
        ("holder", v1::EnrollKeyRequest { holder: "A 9".into(), ..enroll.clone() }),
        ("public_key", v1::EnrollKeyRequest { public_key: Bytes::from_static(&[0; 32]), ..enroll.clone() }),
    ] {
        let refused = client.enroll_key(world.request(ADMIN, bad)).await.unwrap_err();
        assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let size = world.log().entries.len() as u64;
    assert!(
        client.enroll_key(world.request(ADMIN, enroll.clone())).await.unwrap().into_inner().stream_seq > 0
    );
    world.covered(size + 1).await;
    assert_eq!(
        client.enroll_key(world.request(ADMIN, enroll.clone())).await.unwrap().into_inner().stream_seq,
        0
    );
    world.take(&mut agent, "acme", 1).await;
    let size = world.log().entries.len() as u64;
    let revoke = v1::RevokeKeyRequest { role, holder: "a9".into(), public_key, reason: "lost".into() };
    client.revoke_key(world.request(ADMIN, revoke.clone())).await.unwrap();
    world.covered(size + 1).await;
    world.stream.append(Message::new(agent.subject(), agent.batch("acme", 1))).await.unwrap();
    world.covered(size + 2).await;
    assert_eq!(world.log().rejections().last(), Some(&v1::RejectionReason::UnknownKey));
    let keys = client
        .list_keys(world.request(ADMIN, v1::ListKeysRequest::default()))
        .await
        .unwrap()
        .into_inner()
        .keys;
    let a9 = keys.iter().find(|key| key.holder == "a9").unwrap();
    assert!(a9.revoked && keys.len() == 4);
    let twice = client.revoke_key(world.request(ADMIN, revoke)).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    let again = client.enroll_key(world.request(ADMIN, enroll)).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_filters_are_refused_with_the_field() {
    let (world, _) = world().await;
    let mut client = world.client();
    for (field, filter) in [
        ("filter.tenant", EntryFilter { tenant: "a/b".into(), ..EntryFilter::default() }),
        ("filter.execution_id", EntryFilter { execution_id: "1".into(), ..EntryFilter::default() }),
        ("filter.agent_id", EntryFilter { agent_id: "A".into(), ..EntryFilter::default() }),
        ("filter.agent_seq", EntryFilter { agent_seq: 1, ..EntryFilter::default() }),
        ("filter.kinds", EntryFilter { kinds: vec![99], ..EntryFilter::default() }),
        ("filter.skill", EntryFilter { skill: "Sum up".into(), ..EntryFilter::default() }),
        ("filter.event_kinds", EntryFilter { event_kinds: vec![1], ..EntryFilter::default() }),
        ("filter.event_kinds", EntryFilter { event_kinds: vec![0], ..EntryFilter::default() }),
        ("filter.until_index", EntryFilter { from_index: 5, until_index: 5, ..EntryFilter::default() }),
        ("filter.until_unix_ms", EntryFilter { from_unix_ms: 5, until_unix_ms: 5, ..EntryFilter::default() }),
    ] {
        let request =
            v1::ListEntriesRequest { filter: Some(filter.clone()), ..v1::ListEntriesRequest::default() };
        let listed = client.list_entries(world.request(AUDITOR, request)).await.unwrap_err();
        let request = v1::TailEntriesRequest { filter: Some(filter), from_index: 0 };
        let tailed = client.tail_entries(world.request(AUDITOR, request)).await.unwrap_err();
        for refused in [listed, tailed] {
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, field);
        }
    }
    let request: Request<_> =
        world.request(AUDITOR, v1::ListEntriesRequest { page_size: 1001, ..Default::default() });
    assert_eq!(client.list_entries(request).await.unwrap_err().code(), Code::InvalidArgument);
}
