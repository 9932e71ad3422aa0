//! Who runs next: a bounded number of slots, and a bounded queue before them that is fair between tenants.
//!
//! Tenants that wait take turns, one request each, whatever the number of requests behind it; within a tenant the oldest is first. When the
//! queue is full, a tenant that waits with fewer requests than another takes the place of that other's newest. So nobody's share depends
//! on how much others ask for.
//!
//! Left out: clocks, patience and waking anybody ([`slots`](crate::slots)). Invariant: while a slot is free nobody waits, and every
//! ticket ends in exactly one way: it leaves, is displaced, or the queue is closed before its turn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// One request, from when it came until it leaves. In order of coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A request that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its ticket.
    pub ticket: Ticket,
    /// Whether it runs at once. Otherwise it waits until [`Queue::leave`] names it.
    pub runs: bool,
    /// Who lost its place in the queue to it.
    pub displaced: Option<Ticket>,
}

/// Why a request was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many wait as may, and nobody waits with more requests than this tenant.
    Full,
    /// Nothing is taken in any more.
    Closed,
}

/// The requests of one tenant that wait.
#[derive(Debug)]
struct Line {
    turn: u64,
    tickets: BTreeSet<Ticket>,
}

/// The slots and the queue before them.
#[derive(Debug)]
pub struct Queue {
    slots: usize,
    max_waiting: usize,
    next_ticket: u64,
    next_turn: u64,
    running: BTreeSet<Ticket>,
    waiting: BTreeMap<Ticket, Arc<str>>,
    lines: BTreeMap<Arc<str>, Line>,
    /// Whose turn comes when: one entry per line.
    turns: BTreeMap<u64, Arc<str>>,
    is_closed: bool,
}

impl Queue {
    /// So many slots, and so many that may wait for one.
    pub fn new(slots: usize, max_waiting: usize) -> Self {
        Self {
            slots,
            max_waiting,
            next_ticket: 0,
            next_turn: 0,
            running: BTreeSet::new(),
            waiting: BTreeMap::new(),
            lines: BTreeMap::new(),
            turns: BTreeMap::new(),
            is_closed: false,
        }
    }

    /// How many have a slot.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait for one.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a tenant's request in.
    pub fn enter(&mut self, tenant: &str) -> Result<Entry, Refusal> {
        if self.is_closed {
            return Err(Refusal::Closed);
        }
        let ticket = Ticket(self.next_ticket);
        if self.running.len() < self.slots {
            self.next_ticket += 1;
            self.running.insert(ticket);
            return Ok(Entry { ticket, runs: true, displaced: None });
        }
        let displaced = if self.waiting.len() < self.max_waiting {
            None
        } else {
            let newest = self.displaceable(tenant).ok_or(Refusal::Full)?;
            self.forget(newest);
            Some(newest)
        };
        self.next_ticket += 1;
        let name: Arc<str> = Arc::from(tenant);
        let (next_turn, turns) = (&mut self.next_turn, &mut self.turns);
        let line = self.lines.entry(Arc::clone(&name)).or_insert_with(|| {
            let turn = *next_turn;
            *next_turn += 1;
            turns.insert(turn, Arc::clone(&name));
            Line { turn, tickets: BTreeSet::new() }
        });
        line.tickets.insert(ticket);
        self.waiting.insert(ticket, name);
        Ok(Entry { ticket, runs: false, displaced })
    }

    /// Ends a ticket, whether it runs or waits; who runs in its place. A ticket that has ended already changes nothing.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Ticket> {
        if !self.running.remove(&ticket) {
            self.forget(ticket);
            return None;
        }
        let (_, tenant) = self.turns.pop_first()?;
        let line = self.lines.get_mut(&tenant)?;
        let next = line.tickets.pop_first()?;
        if line.tickets.is_empty() {
            self.lines.remove(&tenant);
        } else {
            line.turn = self.next_turn;
            self.turns.insert(self.next_turn, tenant);
            self.next_turn += 1;
        }
        self.waiting.remove(&next);
        self.running.insert(next);
        Some(next)
    }

    /// Takes nothing in any more; those that waited. What runs goes on.
    pub fn close(&mut self) -> Vec<Ticket> {
        self.is_closed = true;
        self.lines.clear();
        self.turns.clear();
        std::mem::take(&mut self.waiting).into_keys().collect()
    }

    /// The newest request of whoever waits with the most, if that stays at least as many as this tenant then has.
    fn displaceable(&self, tenant: &str) -> Option<Ticket> {
        let own = self.lines.get(tenant).map_or(0, |line| line.tickets.len());
        let longest = self.lines.values().max_by_key(|line| line.tickets.len())?;
        if longest.tickets.len() > own + 1 { longest.tickets.last().copied() } else { None }
    }

    /// Takes a ticket that waits out of the queue.
    fn forget(&mut self, ticket: Ticket) {
        let Some(tenant) = self.waiting.remove(&ticket) else { return };
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        line.tickets.remove(&ticket);
        if line.tickets.is_empty() {
            self.turns.remove(&line.turn);
            self.lines.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests;
