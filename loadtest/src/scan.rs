//! Reads a log directory back: which events it holds, in which order, and whether its entries lead to the signed root.
//!
//! Left out: the audit of records (`exchequer verify`). Invariant: the root is computed from the entries alone.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, ensure};
use exchequer_event::{entry, seal::decode_event, v1::entry::Kind};
use exchequer_tlog::{
    Policy, RightEdge, SignedCheckpoint, VerifierKey, bundles_for_size, decode_bundle, leaf_hash,
};
use prost::bytes::Bytes;

/// What a log holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: u64,
    pub(crate) root_holds: bool,
    /// Per agent: events, and the highest seq.
    agents: BTreeMap<String, (u64, u64)>,
}

impl Found {
    /// Events that were sent and are not there, and events that are there more often than sent.
    pub(crate) fn compare(&self, sent: &[(String, u64)]) -> (u64, u64) {
        sent.iter().fold((0, 0), |(lost, twice), (id, sent)| {
            let (events, highest) = self.agents.get(id).copied().unwrap_or_default();
            (lost + sent.saturating_sub(highest), twice + events.saturating_sub(highest))
        })
    }
}

/// Reads the whole log in this directory.
pub(crate) fn log(directory: &Path, key: &VerifierKey) -> anyhow::Result<Found> {
    let signed = SignedCheckpoint::parse(&std::fs::read(directory.join("checkpoint"))?)?;
    let policy = Policy {
        origin: key.name().to_owned(),
        log_keys: vec![key.clone()],
        witnesses: Vec::new(),
        quorum: 0,
    };
    signed.verify(&policy)?;
    let checkpoint = signed.checkpoint();
    let mut agents = BTreeMap::<String, (u64, u64)>::new();
    let mut tree = RightEdge::default();
    for id in bundles_for_size(checkpoint.size()) {
        let path = directory.join(id.to_string());
        let bytes = Bytes::from(std::fs::read(&path).with_context(|| path.display().to_string())?);
        let mut leaves = Vec::with_capacity(256);
        for bytes in decode_bundle(&bytes, id.width())? {
            leaves.push(leaf_hash(bytes));
            let decoded = entry::decode(&Bytes::copy_from_slice(bytes)).map_err(anyhow::Error::msg)?;
            if let Some(Kind::Event(event)) = decoded.kind {
                let event = decode_event(&event).map_err(anyhow::Error::msg)?;
                let (events, highest) = agents.entry(event.agent_id).or_default();
                ensure!(event.seq <= *highest + 1, "event {} follows {highest}", event.seq);
                (*events, *highest) = (*events + 1, (*highest).max(event.seq));
            }
        }
        tree = tree.integrate(&leaves).edge;
    }
    Ok(Found { entries: checkpoint.size(), root_holds: tree.root() == *checkpoint.root(), agents })
}
