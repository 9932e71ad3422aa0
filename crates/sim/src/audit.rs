//! What must hold, checked by counting: no fold, no state and no rule of the product's own is used, only its messages and digests.
//!
//! Left out: everything but budgets over all time; the model's rules have an oracle of their own. Invariant: what is checked is what
//! clients were told and what the broker holds, never what an instance believes.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    digest::{Digest, Purpose},
    seal::verifies,
    v1::{self, budget_event::Kind},
};
use exchequer_stream::Record;
use prost::Message as _;

/// A tenant's key.
type Key = (String, String);

/// What clients were answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    first: BTreeMap<Key, (v1::BudgetEvent, u64)>,
    /// Answers, repeated ones too.
    pub(crate) count: u64,
}

impl Answers {
    /// Takes an answer: a key has one for good.
    pub(crate) fn take(
        &mut self,
        tenant: &str,
        key: String,
        reply: v1::BudgetEvent,
        stream_seq: u64,
    ) -> Result<(), String> {
        self.count += 1;
        let answer = (reply, stream_seq);
        match self.first.get(&(tenant.to_owned(), key.clone())) {
            Some(first) if *first != answer => {
                Err(format!("{tenant}/{key} was answered {first:?}, then {answer:?}"))
            }
            Some(_) => Ok(()),
            None => {
                self.first.insert((tenant.to_owned(), key), answer);
                Ok(())
            }
        }
    }

    /// Compares what was answered with what the stream holds.
    pub(crate) fn check(&self, log: &Log) -> Result<(), String> {
        for ((tenant, key), answer) in &self.first {
            match log.decided.get(&(tenant.clone(), key.clone())) {
                Some(recorded) if recorded == answer => {}
                other => {
                    return Err(format!("{tenant}/{key} was answered {answer:?}; recorded is {other:?}"));
                }
            }
        }
        Ok(())
    }
}

/// What the accepted blocks say.
#[derive(Debug, Default)]
pub(crate) struct Log {
    decided: BTreeMap<Key, (v1::BudgetEvent, u64)>,
    heads: BTreeMap<String, Head>,
    scopes: BTreeMap<String, Sums>,
    holds: BTreeMap<String, Hold>,
    /// Blocks that count.
    pub(crate) blocks: u64,
    /// Blocks in the stream that don't.
    pub(crate) void: u64,
    /// Decisions that count.
    pub(crate) decisions: u64,
    /// Holds that were refused.
    pub(crate) denied: u64,
}

#[derive(Debug)]
struct Head {
    index: u64,
    hash: Digest,
    epoch: u64,
    now_ms: u64,
}

#[derive(Debug, Default)]
struct Sums {
    granted: Option<u64>,
    held: u64,
    spent: u64,
}

#[derive(Debug)]
struct Hold {
    scope: String,
    amount: u64,
    expires_ms: u64,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    /// It ran out, and can be settled late or voided.
    Expired,
    Closed,
}

impl Log {
    /// Reads a stream from its beginning.
    pub(crate) fn read(records: &[Record], keys: &[VerifyingKey]) -> Result<Self, String> {
        let mut log = Self::default();
        for record in records {
            if let Some(partition) = record.subject.strip_prefix("budget.") {
                log.block(partition, record, keys).map_err(|why| format!("message {}: {why}", record.seq))?;
            }
        }
        Ok(log)
    }

    fn block(&mut self, partition: &str, record: &Record, keys: &[VerifyingKey]) -> Result<(), String> {
        let wrong = |error: prost::DecodeError| error.to_string();
        let block = v1::SignedBlock::decode(record.payload.clone()).map_err(wrong)?;
        let seal = v1::BlockSeal::decode(block.seal.clone()).map_err(wrong)?;
        let digest = Purpose::BlockSeal.digest(&block.seal);
        if !keys.iter().any(|key| verifies(key, digest, &block.signature)) {
            return Err("no writer signed it".to_owned());
        }
        let head = self.heads.get(partition);
        let (index, hash) = head.map_or((0, Digest::ZERO), |head| (head.index, head.hash));
        let (epoch, now_ms) = head.map_or((0, 0), |head| (head.epoch, head.now_ms));
        let follows = seal.index == index + 1 && seal.prev_hash == hash.0.as_slice();
        if !follows || seal.epoch < epoch || seal.now_unix_ms < now_ms {
            self.void += 1;
            return Ok(());
        }
        let head = Head { index: seal.index, hash: digest, epoch: seal.epoch, now_ms: seal.now_unix_ms };
        self.heads.insert(partition.to_owned(), head);
        self.blocks += 1;
        for item in block.items {
            let run = v1::DecisionRun::decode(item).map_err(wrong)?;
            for decision in run.decisions {
                self.decision(&run.tenant, decision, seal.now_unix_ms, record.seq)?;
            }
        }
        Ok(())
    }

    fn decision(
        &mut self,
        tenant: &str,
        decision: v1::Decision,
        now_ms: u64,
        seq: u64,
    ) -> Result<(), String> {
        self.decisions += 1;
        for event in &decision.events {
            self.event(event.kind.as_ref().ok_or("an event of no kind")?, now_ms)?;
        }
        if decision.idempotency_key.is_empty() {
            return Ok(());
        }
        let reply = decision.events.into_iter().next().ok_or("a decision without an event")?;
        let key = (tenant.to_owned(), decision.idempotency_key);
        match self.decided.insert(key.clone(), (reply, seq)) {
            Some(before) => Err(format!("{key:?} is decided twice, first {before:?}")),
            None => Ok(()),
        }
    }

    fn event(&mut self, kind: &Kind, now_ms: u64) -> Result<(), String> {
        match kind {
            Kind::BudgetSet(set) => {
                self.scopes.entry(set.scope.clone()).or_default().granted = Some(amount(&set.granted));
            }
            Kind::HoldGranted(hold) => {
                let asked = amount(&hold.amounts);
                self.hold(&hold.scope, asked)?;
                let held = Hold {
                    scope: hold.scope.clone(),
                    amount: asked,
                    expires_ms: hold.expires_unix_ms,
                    standing: Standing::Open,
                };
                if self.holds.insert(hold.hold_id.clone(), held).is_some() {
                    return Err(format!("hold {} is granted twice", hold.hold_id));
                }
            }
            Kind::HoldExtended(extended) => {
                let added = amount(&extended.added);
                let scope = self.open(&extended.hold_id)?.scope.clone();
                self.hold(&scope, added)?;
                let hold = self.open(&extended.hold_id)?;
                hold.amount += added;
                hold.expires_ms = extended.expires_unix_ms;
            }
            Kind::HoldSettled(settled) => {
                let used = amount(&settled.used);
                let scope = if settled.late {
                    self.close_expired(&settled.hold_id)?
                } else {
                    self.close(&settled.hold_id, Standing::Closed)?
                };
                for name in enclosing(&scope) {
                    self.scopes.entry(name).or_default().spent += used;
                }
            }
            Kind::HoldVoided(voided) => {
                if self.open(&voided.hold_id).is_ok() {
                    self.close(&voided.hold_id, Standing::Closed)?;
                } else {
                    self.close_expired(&voided.hold_id)?;
                }
            }
            Kind::HoldExpired(expired) => {
                if self.open(&expired.hold_id)?.expires_ms > now_ms {
                    return Err(format!("hold {} runs out before its time", expired.hold_id));
                }
                self.close(&expired.hold_id, Standing::Expired)?;
            }
            Kind::HoldDenied(_) => self.denied += 1,
            Kind::CommandRefused(_) => {}
            other => return Err(format!("nobody asked for {other:?}")),
        }
        Ok(())
    }

    /// Nothing is held beyond what is granted.
    fn hold(&mut self, scope: &str, asked: u64) -> Result<(), String> {
        for name in enclosing(scope) {
            let sums = self.scopes.entry(name.clone()).or_default();
            sums.held += asked;
            if asked > 0 && sums.granted.is_some_and(|granted| sums.held + sums.spent > granted) {
                return Err(format!("{name} is overspent by a hold of {asked}: {sums:?}"));
            }
        }
        Ok(())
    }

    fn open(&mut self, hold_id: &str) -> Result<&mut Hold, String> {
        let hold = self.holds.get_mut(hold_id).filter(|hold| hold.standing == Standing::Open);
        hold.ok_or_else(|| format!("hold {hold_id} is not open"))
    }

    /// Nothing of it is held any more.
    fn close_expired(&mut self, hold_id: &str) -> Result<String, String> {
        let hold = self.holds.get_mut(hold_id).filter(|hold| hold.standing == Standing::Expired);
        let hold = hold.ok_or_else(|| format!("hold {hold_id} has not run out"))?;
        hold.standing = Standing::Closed;
        Ok(hold.scope.clone())
    }

    fn close(&mut self, hold_id: &str, standing: Standing) -> Result<String, String> {
        let hold = self.open(hold_id)?;
        hold.standing = standing;
        let (scope, amount) = (hold.scope.clone(), hold.amount);
        for name in enclosing(&scope) {
            self.scopes.entry(name).or_default().held -= amount;
        }
        Ok(scope)
    }
}

fn amount(amounts: &[v1::MeterAmount]) -> u64 {
    amounts.iter().map(|amount| amount.amount).sum()
}

fn enclosing(scope: &str) -> Vec<String> {
    let ends = scope.match_indices('/').map(|(at, _)| at).chain([scope.len()]);
    ends.map(|end| scope[..end].to_owned()).collect()
}
