//! The stream read back: an account of its own over what it records, and metering's fold from nothing.
//!
//! The account is naive: it adds and subtracts what the events say and knows no rule of metering but that a scope's amounts count at all that
//! enclose it. Left out: windows, grants and whatever else the load does not use; an event of another kind is an error. Invariant: every
//! message was accepted, and overspend is looked for after every event.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    v1::{self, budget_event::Kind},
};
use exchequer_metering::{Fold, Folded, Read};
use exchequer_stream::{EventStream, Record};
use futures::StreamExt as _;

use super::{
    load::{self, Pair},
    tally::{Ended, Tally},
};

/// A scope's account of both meters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) granted: Pair,
    pub(super) held: Pair,
    pub(super) spent: Pair,
}

/// What the log says.
#[derive(Debug, Default)]
pub(super) struct Audited {
    pub(super) tally: Tally,
    pub(super) blocks: u64,
    pub(super) accounts: BTreeMap<String, Account>,
    /// The most that any scope had held and spent beyond what it was granted, at any time.
    pub(super) overspend: u64,
    holds: BTreeMap<String, (String, Pair)>,
}

/// All messages.
pub(super) async fn read(stream: &dyn EventStream) -> anyhow::Result<Vec<Record>> {
    let tip = stream.tip().await?;
    let mut reader = stream.read(1, &[]).await?;
    let mut records = Vec::new();
    loop {
        let record = reader.next().await.context("the stream ended")??;
        let seq = record.seq;
        records.push(record);
        if seq >= tip {
            return Ok(records);
        }
    }
}

/// Goes through the log.
pub(super) fn audit(records: &[Record]) -> anyhow::Result<Audited> {
    let mut acceptor = Acceptor::new();
    let mut audited = Audited::default();
    for record in records {
        let payload = record.payload.clone();
        let decided =
            acceptor.decide(&Incoming { stream_seq: record.seq, subject: &record.subject, payload });
        decided.entries.iter().for_each(|entry| acceptor.evolve(entry));
        if let Outcome::Rejected { reason, .. } = decided.outcome {
            bail!("message {} was rejected: {reason:?}", record.seq);
        }
        audited.blocks += u64::from(!decided.runs.is_empty());
        for decision in decided.runs.iter().flat_map(|run| &run.decisions) {
            audited.decision(record.seq, decision)?;
        }
    }
    Ok(audited)
}

impl Audited {
    fn decision(&mut self, seq: u64, decision: &v1::Decision) -> anyhow::Result<()> {
        let key = &decision.idempotency_key;
        for event in &decision.events {
            match event.kind.as_ref().context("an event of no kind")? {
                Kind::BudgetSet(set) => {
                    let granted = load::pair(&set.granted).context("a budget of another meter")?;
                    self.accounts.entry(set.scope.clone()).or_default().granted = granted;
                }
                Kind::HoldGranted(granted) => {
                    let amounts = load::pair(&granted.amounts).context("a hold of another meter")?;
                    self.tally.take(key, seq, Ended::Granted(&granted.hold_id, amounts));
                    let hold = (granted.scope.clone(), amounts);
                    ensure!(
                        self.holds.insert(granted.hold_id.clone(), hold).is_none(),
                        "a hold was granted twice"
                    );
                    self.each(&granted.scope, |account| load::add(&mut account.held, amounts));
                }
                Kind::HoldDenied(denied) => self.tally.take(key, seq, Ended::Denied(&denied.binding_scope)),
                Kind::HoldSettled(settled) => {
                    let used = load::pair(&settled.used).context("usage of another meter")?;
                    self.tally.take(key, seq, Ended::Settled(&settled.hold_id, used));
                    let hold = self.holds.remove(&settled.hold_id);
                    let (scope, amounts) = hold.context("what is not open was settled")?;
                    self.each(&scope, |account| {
                        for meter in 0..account.held.len() {
                            account.held[meter] -= amounts[meter];
                            account.spent[meter] += used[meter];
                        }
                    });
                }
                other => bail!("the load leads to no such event: {other:?}"),
            }
        }
        Ok(())
    }

    fn each(&mut self, scope: &str, change: impl Fn(&mut Account)) {
        for (end, _) in scope.match_indices('/').chain([(scope.len(), "")]) {
            if let Some(account) = self.accounts.get_mut(&scope[..end]) {
                change(account);
                for meter in 0..account.granted.len() {
                    let taken = account.held[meter] + account.spent[meter];
                    self.overspend = self.overspend.max(taken.saturating_sub(account.granted[meter]));
                }
            }
        }
    }
}

/// What the fold came to.
#[derive(Debug)]
pub(super) struct Replayed {
    /// BLAKE3 of the budget state, hexadecimal.
    pub(super) digest: String,
    pub(super) decisions: u64,
    pub(super) time: Duration,
}

/// Folds all messages from nothing.
pub(super) fn replay(records: &[Record]) -> anyhow::Result<Replayed> {
    let started = Instant::now();
    let mut fold = Fold::new(1);
    let mut decisions = 0;
    for record in records {
        let read = Read { seq: record.seq, subject: &record.subject, payload: &record.payload };
        match fold.fold(read) {
            Folded::Other => {}
            Folded::Block { runs, undecodable, .. } => {
                ensure!(undecodable == 0, "block {} has undecodable runs", record.seq);
                decisions += runs.iter().map(|run| run.decisions.len() as u64).sum::<u64>();
            }
            Folded::VoidBlock { reason, .. } => bail!("block {} is void: {reason}", record.seq),
        }
    }
    Ok(Replayed {
        time: started.elapsed(),
        digest: hex::encode(fold.budget(0).digest(fold.past(0))),
        decisions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(audited: &mut Audited, kind: Kind) -> anyhow::Result<()> {
        let events = vec![v1::BudgetEvent { kind: Some(kind) }];
        audited.decision(7, &v1::Decision { events, ..v1::Decision::default() })
    }

    fn set(scope: &str, granted: Pair) -> Kind {
        let granted = load::amounts(granted);
        Kind::BudgetSet(v1::BudgetSet { scope: scope.to_owned(), granted, ..v1::BudgetSet::default() })
    }

    fn hold(hold_id: &str, amounts: Pair) -> Kind {
        let amounts = load::amounts(amounts);
        let (hold_id, scope) = (hold_id.to_owned(), "acme/research".to_owned());
        Kind::HoldGranted(v1::HoldGranted { hold_id, scope, amounts, ..v1::HoldGranted::default() })
    }

    fn settle(hold_id: &str, used: Pair) -> Kind {
        let (hold_id, used) = (hold_id.to_owned(), load::amounts(used));
        Kind::HoldSettled(v1::HoldSettled { hold_id, used, ..v1::HoldSettled::default() })
    }

    #[test]
    fn what_an_enclosing_scope_was_overspent_by_at_any_time_is_found() {
        let mut audited = Audited::default();
        for kind in [set("acme", [10, 10]), set("acme/research", [100, 100]), hold("a", [9, 1])] {
            decided(&mut audited, kind).unwrap();
        }
        assert_eq!(audited.overspend, 0);
        decided(&mut audited, hold("b", [4, 1])).unwrap();
        assert_eq!(audited.overspend, 3);
        // Given back, it was overspent nevertheless.
        decided(&mut audited, settle("a", [1, 1])).unwrap();
        let account = Account { granted: [10, 10], held: [4, 1], spent: [1, 1] };
        assert_eq!((audited.overspend, audited.accounts["acme"]), (3, account));
    }

    #[test]
    fn what_can_not_follow_from_the_load_is_an_error() {
        let mut audited = Audited::default();
        decided(&mut audited, hold("a", [1, 1])).unwrap();
        assert!(decided(&mut audited, hold("a", [1, 1])).is_err(), "granted twice");
        assert!(decided(&mut audited, settle("b", [1, 1])).is_err(), "settled without a hold");
        decided(&mut audited, settle("a", [1, 1])).unwrap();
        assert!(decided(&mut audited, settle("a", [1, 1])).is_err(), "settled twice");
        assert!(decided(&mut audited, Kind::HoldVoided(v1::HoldVoided::default())).is_err());
    }

    #[test]
    fn tallies_differ_where_any_decision_does() {
        let tally = |key: &str, seq, ended| {
            let mut tally = Tally::default();
            tally.take(key, seq, ended);
            tally
        };
        let granted = tally("k", 7, Ended::Granted("a", [1, 1]));
        assert_eq!(granted, tally("k", 7, Ended::Granted("a", [1, 1])));
        for other in [
            tally("l", 7, Ended::Granted("a", [1, 1])),
            tally("k", 8, Ended::Granted("a", [1, 1])),
            tally("k", 7, Ended::Granted("b", [1, 1])),
            tally("k", 7, Ended::Granted("a", [1, 2])),
            tally("k", 7, Ended::Settled("a", [1, 1])),
        ] {
            assert_ne!(granted, other);
        }
    }
}
