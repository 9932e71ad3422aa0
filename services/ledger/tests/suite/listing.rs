//! Listings that carry their own proofs and seals, in the tree of a chosen size and in ranges of indexes.

use exchequer_event::{
    entry::facets,
    v1::{self, EntryFilter, EntryKind, entry::Kind},
};
use exchequer_stream::Message;
use exchequer_tlog::{Hash, leaf_hash, verify_inclusion};
use prost::{Message as _, bytes::Bytes};
use tonic::{Code, Status};

use super::{
    rpc::{ACME, AUDITOR, Who, world},
    support::{World, naive_root},
};

/// All pages of a listing.
async fn pages(
    world: &World,
    who: Who,
    request: &v1::ListEntriesRequest,
) -> Result<Vec<v1::ListEntriesResponse>, Status> {
    let mut client = world.client();
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEntriesRequest { page_token: page_token.clone(), ..request.clone() };
        let page = client.list_entries(world.request(who, request)).await?.into_inner();
        page_token.clone_from(&page.next_page_token);
        pages.push(page);
        if page_token.is_empty() {
            return Ok(pages);
        }
    }
}

async fn entries(world: &World, who: Who, request: &v1::ListEntriesRequest) -> Vec<v1::LogEntry> {
    pages(world, who, request).await.unwrap().into_iter().flat_map(|page| page.entries).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proofs_of_a_listing_lead_to_the_root_of_the_size_that_was_asked_for_while_the_log_grows() {
    let (world, mut agent) = world().await;
    let leaves: Vec<Hash> = world.log().entries.iter().map(|entry| leaf_hash(entry)).collect();
    let size = leaves.len();
    world.take(&mut agent, "acme", 40).await;
    for tree_size in [size, 9] {
        let request = v1::ListEntriesRequest {
            tree_size: tree_size as u64,
            with_proofs: true,
            page_size: 7,
            ..Default::default()
        };
        let pages = pages(&world, AUDITOR, &request).await.unwrap();
        assert!(pages.iter().all(|page| page.tree_size == tree_size as u64));
        let listed: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
        assert_eq!(listed.len(), tree_size);
        for (index, entry) in (0..).zip(&listed) {
            let proof: Vec<_> = entry.proof.iter().map(|hash| Hash(hash[..].try_into().unwrap())).collect();
            let root = naive_root(&leaves[..tree_size]);
            verify_inclusion(&leaf_hash(&entry.entry), index, tree_size as u64, &proof, &root).unwrap();
        }
    }
    let beyond = v1::ListEntriesRequest { tree_size: size as u64 + 1000, ..Default::default() };
    let refused = pages(&world, AUDITOR, &beyond).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let plain = entries(&world, AUDITOR, &v1::ListEntriesRequest::default()).await;
    assert!(plain.iter().all(|entry| entry.proof.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_of_a_tenant_comes_after_the_seal_that_it_stands_under_and_nothing_else_comes() {
    let (world, mut agent) = world().await;
    let first = agent.seq() + 1;
    for tenant in ["globex", "acme", "globex", "acme"] {
        agent.execute(tenant, "", 1000);
    }
    let batch = agent.seal(first, agent.seq()).encode_to_vec();
    let size = world.log().entries.len() as u64;
    world.stream.append(Message::new(agent.subject(), Bytes::from(batch))).await.unwrap();
    world.covered(size + 9).await;
    let log = world.log();
    let decode = |bytes: &Bytes| exchequer_event::entry::decode(bytes).unwrap();
    let filter = EntryFilter { kinds: vec![EntryKind::Event.into()], ..EntryFilter::default() };
    for page_size in [1, 2, 1000] {
        let request = v1::ListEntriesRequest {
            filter: Some(filter.clone()),
            with_seals: true,
            with_proofs: true,
            page_size,
            ..Default::default()
        };
        let (mut seal, mut records, mut seals) = (None, 0, Vec::new());
        for page in pages(&world, ACME, &request).await.unwrap() {
            for (place, found) in page.entries.iter().enumerate() {
                assert_eq!(found.entry, log.entries[usize::try_from(found.index).unwrap()]);
                assert!(!found.proof.is_empty());
                let entry = decode(&found.entry);
                if let Some(Kind::BatchSealed(_)) = entry.kind {
                    assert!(place == 0 || seal != Some(entry.stream_seq), "a seal came twice in a page");
                    seal = Some(entry.stream_seq);
                    seals.push(found.index);
                } else {
                    assert_eq!(facets(&entry).tenant, "acme");
                    assert_eq!(seal, Some(entry.stream_seq), "entry {} has no seal before it", found.index);
                    records += 1;
                }
            }
        }
        seals.dedup();
        assert_eq!((records, seals.len()), (14, 3), "pages of {page_size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_indexes_bounds_a_listing_with_any_other_filter() {
    let (world, _) = world().await;
    let all = entries(&world, AUDITOR, &v1::ListEntriesRequest::default()).await;
    for tenant in ["", "globex"] {
        for (from_index, until_index) in [(0, 1), (3, 20), (5, 0), (100, 120), (9_000, 0), (8_000, 9_000)] {
            let filter =
                EntryFilter { tenant: tenant.into(), from_index, until_index, ..EntryFilter::default() };
            let found = |entry: &&v1::LogEntry| {
                let facets = facets(&exchequer_event::entry::decode(&entry.entry).unwrap());
                entry.index >= from_index
                    && (until_index == 0 || entry.index < until_index)
                    && (tenant.is_empty() || facets.tenant == tenant)
            };
            let expected: Vec<_> = all.iter().filter(found).cloned().collect();
            for page_size in [0, 4] {
                let request =
                    v1::ListEntriesRequest { filter: Some(filter.clone()), page_size, ..Default::default() };
                assert_eq!(entries(&world, AUDITOR, &request).await, expected, "{filter:?}");
            }
        }
    }
    // A range that begins within a batch comes with the batch's seal.
    let filter = EntryFilter { from_index: 20, until_index: 22, ..EntryFilter::default() };
    let request = v1::ListEntriesRequest { filter: Some(filter), with_seals: true, ..Default::default() };
    let indexes: Vec<_> = entries(&world, AUDITOR, &request).await.iter().map(|entry| entry.index).collect();
    assert_eq!(indexes[1..], [20, 21]);
    assert!(indexes[0] < 20);
    let filter = EntryFilter { until_index: 4, ..EntryFilter::default() };
    let request = v1::TailEntriesRequest { filter: Some(filter), from_index: 2 };
    let mut tail = world.client().tail_entries(world.request(AUDITOR, request)).await.unwrap().into_inner();
    for index in [2, 3] {
        assert_eq!(tail.message().await.unwrap().unwrap().entry.unwrap().index, index);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_entries_of_a_stream_message_are_found_by_its_sequence_and_those_of_other_tenants_are_not_shown()
{
    let (world, _) = world().await;
    let stream_seq = |entry: &v1::LogEntry| exchequer_event::entry::decode(&entry.entry).unwrap().stream_seq;
    for who in [AUDITOR, ACME] {
        let all = entries(&world, who, &v1::ListEntriesRequest::default()).await;
        let last = stream_seq(all.last().unwrap());
        let mut found = 0;
        for wanted in 1..=last + 2 {
            let filter = EntryFilter { stream_seq: wanted, ..EntryFilter::default() };
            let request = v1::ListEntriesRequest {
                filter: Some(filter),
                page_size: 3,
                tree_size: all.last().unwrap().index + 1,
                ..Default::default()
            };
            let expected: Vec<_> = all.iter().filter(|entry| stream_seq(entry) == wanted).cloned().collect();
            let listed = entries(&world, who, &request).await;
            assert_eq!(listed, expected, "{who:?} {wanted}");
            found += listed.len();
        }
        assert_eq!(found, all.len());
    }
}
