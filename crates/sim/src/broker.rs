//! The stream and the leases, as a broker keeps them: one order, and nothing acknowledged is lost.
//!
//! Left out: the way there and back, which the world makes unreliable, and a broker that loses what it acknowledged, which the ledger's
//! tests are about. A lease service that gives one lease to two, and a broker that does not fence, are here: then the chain of the
//! blocks has to keep the writers apart alone.

use std::collections::BTreeMap;

use exchequer_stream::{Message, Record};

#[derive(Debug)]
struct Lease {
    holder: usize,
    epoch: u64,
    /// By the world's clock, microseconds.
    until: u64,
}

/// The broker.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    pub(crate) records: Vec<Record>,
    lasts: BTreeMap<String, u64>,
    leases: BTreeMap<u16, Lease>,
    epochs: u64,
    /// Whether a lease is given although another holds it.
    pub(crate) lies: bool,
    /// Whether what a message expects is not compared: brokers with that defect were shipped.
    pub(crate) is_unfenced: bool,
}

impl Broker {
    pub(crate) fn new(lies: bool, is_unfenced: bool) -> Self {
        Self { lies, is_unfenced, ..Self::default() }
    }

    /// Appends, unless the fence forbids it; the subject's last sequence then.
    pub(crate) fn append(&mut self, message: &Message, time_unix_ms: u64) -> Result<u64, u64> {
        let last = self.last(&message.subject);
        if !self.is_unfenced && message.expect_last.is_some_and(|expected| expected != last) {
            return Err(last);
        }
        let seq = self.tip() + 1;
        self.lasts.insert(message.subject.clone(), seq);
        self.records.push(Record {
            seq,
            subject: message.subject.clone(),
            time_unix_ms,
            headers: message.headers.clone(),
            payload: message.payload.clone(),
        });
        Ok(seq)
    }

    pub(crate) fn tip(&self) -> u64 {
        self.records.len() as u64
    }

    pub(crate) fn last(&self, subject: &str) -> u64 {
        self.lasts.get(subject).copied().unwrap_or(0)
    }

    pub(crate) fn record(&self, seq: u64) -> Option<&Record> {
        usize::try_from(seq.checked_sub(1)?).ok().and_then(|at| self.records.get(at))
    }

    /// Takes or renews a lease until `until`; its epoch, or nothing if another holds it. `held` is the epoch to renew.
    pub(crate) fn lease(
        &mut self,
        partition: u16,
        holder: usize,
        held: Option<u64>,
        now: u64,
        until: u64,
    ) -> Option<u64> {
        let lease = self.leases.get_mut(&partition);
        if let (Some(lease), Some(epoch)) = (lease, held) {
            // Who was overtaken goes on undisturbed, if the service lies.
            if lease.holder == holder && lease.epoch == epoch {
                lease.until = until;
                return Some(epoch);
            }
            return self.lies.then_some(epoch);
        }
        let is_free = self.leases.get(&partition).is_none_or(|lease| lease.until <= now);
        if !is_free && !self.lies {
            return None;
        }
        self.epochs += 1;
        self.leases.insert(partition, Lease { holder, epoch: self.epochs, until });
        Some(self.epochs)
    }
}
