//! Events by their places in an agent's chain, out of a log that was verified before.
//!
//! Left out: verifying the log. Invariant: what is handed out are leaves of the tree that was verified, for its root is computed again
//! from the entries that were read here.

use exchequer_event::{entry, v1};
use exchequer_tlog::Frontier;
use prost::Message as _;

use super::{
    load::{WIDTH, load},
    source::{Remote, Source},
    state::Verified,
    verify::Target,
};

/// An event of the log.
#[derive(Clone, Debug)]
pub struct LoggedEvent {
    /// The entry that it is, as the ledger would answer it.
    pub entry: v1::LogEntry,
    /// The event's bytes: what its digest is over.
    pub bytes: prost::bytes::Bytes,
    /// The event, decoded.
    pub event: v1::Event,
}

/// The events at these places of an agent's epoch, in the order of the places; `None` for one that the log does not hold. Blocks, and must
/// not be called on a thread of an async runtime.
pub fn events(
    target: &Target,
    token: Option<String>,
    verified: &Verified,
    (agent_id, epoch): (&str, u64),
    seqs: &[u64],
) -> Result<Vec<Option<LoggedEvent>>, String> {
    let source = match target {
        Target::Directory(path) => {
            let inner = path.join("log");
            let nested = !path.join("checkpoint").is_file() && inner.join("checkpoint").is_file();
            Source::Directory(if nested { inner } else { path.clone() })
        }
        Target::Url(url) => Source::Remote(Remote::new(url, token)?),
        Target::Pack(_) | Target::Receipt(_) | Target::Lines { .. } => {
            return Err("a log is wanted: a directory or a URL".to_owned());
        }
    };
    let head = verified.checkpoint().checkpoint();
    let size = head.size();
    let mut found = vec![None; seqs.len()];
    let mut tree = Frontier::new();
    for bundle in 0..size.div_ceil(WIDTH) {
        let loaded = load(&source, bundle, size);
        let frames = loaded.bundle.map_err(|error| format!("bundle {bundle} of the log {error}"))?;
        for (index, (bytes, hash)) in (bundle * WIDTH..).zip(frames.entries.iter().zip(&frames.hashes)) {
            tree.append(*hash);
            let facets = entry::read_facets(bytes);
            let is_of_agent = |facets: &entry::Facets<&str>| facets.agent_id == agent_id;
            let Some(facets) = facets.filter(is_of_agent) else { continue };
            let Some(place) = seqs.iter().position(|seq| *seq == facets.agent_seq) else { continue };
            let Ok(v1::Entry { kind: Some(v1::entry::Kind::Event(event_bytes)), .. }) = entry::decode(bytes)
            else {
                continue;
            };
            let event =
                v1::Event::decode(event_bytes.clone()).map_err(|error| format!("entry {index}: {error}"))?;
            if event.epoch == epoch {
                let entry = v1::LogEntry { index, entry: bytes.clone(), ..v1::LogEntry::default() };
                found[place] = Some(LoggedEvent { entry, bytes: event_bytes, event });
            }
        }
    }
    if tree.size() != size || tree.root() != *head.root() {
        return Err("the log is not the one that was verified a moment ago".to_owned());
    }
    Ok(found)
}
