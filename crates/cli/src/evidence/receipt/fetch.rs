//! Making a receipt from a ledger's answers.
//!
//! Left out: connecting and tokens; writing the file. Invariant: a receipt that is returned was verified.

use std::time::Duration;

use base64::Engine as _;
use exchequer_event::{
    entry, seal,
    v1::{self, EntryFilter, EntryKind, entry::Kind, ledger_service_client::LedgerServiceClient},
};
use exchequer_tlog::{HASH_BYTES, SignedCheckpoint, VerifierKey};
use tokio::time::{Instant, sleep};

use super::{About, BASE64, ProvenEntry, Receipt, check_bytes, concerns};
use crate::evidence::{
    export::{ExportError, Listing, Transport, answers},
    report::{Report, Subject, Verdict},
    verify::Trust,
};

/// How often the ledger is asked again for a block that no checkpoint covers yet.
const PERIOD: Duration = Duration::from_millis(200);

/// What a receipt is wanted of.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The tenant; empty for the caller's own, or for any where the token reads all.
    pub tenant: String,
    /// Stream sequence of the block.
    pub stream_seq: u64,
    /// Which decisions.
    pub about: About,
    /// The log's verifier key as the caller knows it; without it the ledger's word is taken.
    pub key: Option<VerifierKey>,
    /// How long a checkpoint that covers the block is waited for.
    pub patience: Duration,
}

/// Asks for a receipt. The report is that of its verification.
pub async fn fetch<T: Transport>(
    mut client: LedgerServiceClient<T>,
    wanted: &Wanted,
) -> Result<(Receipt, Report), ExportError> {
    let deadline = Instant::now() + wanted.patience;
    loop {
        if let Some(receipt) = attempt(&mut client, wanted).await? {
            let mut report = Report::new(Subject::Receipt, "");
            report.key_given = wanted.key.is_some();
            check_bytes(
                &receipt.encode(),
                &Trust { key: wanted.key.clone(), ..Trust::default() },
                &mut report,
            );
            let report = report.finish();
            return match report.verdict {
                Verdict::Holds => Ok((receipt, report)),
                _ => Err(ExportError::Unverified(Box::new(report))),
            };
        }
        if Instant::now() >= deadline {
            return Err(ExportError::Request(format!(
                "the signed log shows this token no decision about {} at stream sequence {}",
                wanted.about.describe(),
                wanted.stream_seq
            )));
        }
        sleep(PERIOD).await;
    }
}

/// A seal and a run that stands under it.
type Found = (v1::LogEntry, v1::LogEntry, v1::DecisionRun);

async fn attempt<T: Transport>(
    client: &mut LedgerServiceClient<T>,
    wanted: &Wanted,
) -> Result<Option<Receipt>, ExportError> {
    let newest = client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner();
    let Ok(checkpoint) = SignedCheckpoint::parse(&newest.checkpoint) else {
        return answers("the checkpoint can't be read");
    };
    let tree_size = checkpoint.checkpoint().size();
    let Some((seal, run, decoded)) = find_run(client, wanted, tree_size).await? else { return Ok(None) };
    let Ok(v1::Entry { kind: Some(Kind::BlockSealed(sealed)), .. }) = entry::decode(&seal.entry) else {
        return answers("it does not show the seal that the decision stands under");
    };
    let mut entries = Vec::new();
    let mut controls = listing(client, tree_size, EntryFilter::default(), EntryKind::Control);
    while let Some(control) = controls.next().await? {
        if let Ok(v1::Entry { kind: Some(Kind::Control(signed)), .. }) = entry::decode(&control.entry)
            && concerns(&signed, &sealed.public_key)
        {
            entries.push(control);
        }
    }
    entries.extend([seal, run]);
    entries.sort_by_key(|entry| entry.index);
    let entries = entries.iter().map(proven).collect::<Result<_, _>>()?;
    let (key, of) = (newest.verifier_key.trim(), (wanted.stream_seq, &decoded));
    Ok(Some(Receipt::new(&checkpoint, key, wanted.about.clone(), of, entries)))
}

/// The run of the block that holds the decision.
async fn find_run<T: Transport>(
    client: &LedgerServiceClient<T>,
    wanted: &Wanted,
    tree_size: u64,
) -> Result<Option<Found>, ExportError> {
    let filter = EntryFilter {
        tenant: wanted.tenant.clone(),
        stream_seq: wanted.stream_seq,
        ..EntryFilter::default()
    };
    let mut runs = listing(client, tree_size, filter, EntryKind::DecisionRun);
    let mut seal: Option<v1::LogEntry> = None;
    let mut found: Option<Found> = None;
    while let Some(logged) = runs.next().await? {
        match entry::decode(&logged.entry) {
            Ok(v1::Entry { kind: Some(Kind::BlockSealed(_)), .. }) => seal = Some(logged),
            Ok(v1::Entry { kind: Some(Kind::DecisionRun(bytes)), .. }) => {
                let Ok(run) = seal::decode_run(&bytes) else { continue };
                if wanted.about.places(&run).is_empty() {
                    continue;
                }
                if found.as_ref().is_some_and(|(_, _, other)| other.tenant != run.tenant) {
                    let detail = "several tenants have such a decision in this block; --tenant says which";
                    return Err(ExportError::Request(detail.into()));
                }
                let Some(seal) = &seal else {
                    return answers("it does not show the seal that the decision stands under");
                };
                // A key is answered once; what happens to a hold later in the block is in receipts of its keys.
                found = found.or(Some((seal.clone(), logged, run)));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn listing<T: Transport>(
    client: &LedgerServiceClient<T>,
    tree_size: u64,
    filter: EntryFilter,
    kind: EntryKind,
) -> Listing<T> {
    let filter = EntryFilter { kinds: vec![kind.into()], ..filter };
    let request = v1::ListEntriesRequest {
        filter: Some(filter),
        with_proofs: true,
        with_seals: true,
        tree_size,
        ..Default::default()
    };
    Listing::new(client, request)
}

fn proven(logged: &v1::LogEntry) -> Result<ProvenEntry, ExportError> {
    if logged.proof.iter().any(|hash| hash.len() != HASH_BYTES) {
        return answers(format!("the proof of entry {} has a hash of another length", logged.index));
    }
    Ok(ProvenEntry {
        index: logged.index,
        entry: BASE64.encode(&logged.entry),
        proof: logged.proof.iter().map(|hash| BASE64.encode(hash)).collect(),
    })
}
