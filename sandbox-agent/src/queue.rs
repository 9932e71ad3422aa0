//! Who runs next: a bounded number of slots, and a bounded queue before them that is fair between tenants.
//!
//! One tenant runs so many at a time and no more: the other slots stay free for others, however long its executions take. Of the tenants
//! that wait, the one with the fewest running is next; where these are equal they take turns, one request each, whatever the number of
//! requests behind it. Within a tenant the oldest is first. When the queue is full, a tenant that waits with fewer requests than another
//! takes the place of that other's newest. So nobody's share depends on how much others ask for.
//!
//! Not promised: that a tenant gets a further slot while others that have fewer keep coming; nor that one gets its first slot before an
//! execution ends, where several tenants hold all slots.
//!
//! Left out: clocks, patience and waking anybody ([`slots`](crate::slots)). Invariant: while a slot is free, only tenants wait that run as
//! many as one may; and every ticket ends in exactly one way: it leaves, is displaced, or the queue is closed before its turn.

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
    /// It can't run now, as many wait as may, and nobody waits with more requests than this tenant.
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
    max_per_tenant: usize,
    max_waiting: usize,
    next_ticket: u64,
    next_turn: u64,
    running: BTreeMap<Ticket, Arc<str>>,
    /// How many of them are of each tenant that has any.
    running_of: BTreeMap<Arc<str>, usize>,
    waiting: BTreeMap<Ticket, Arc<str>>,
    lines: BTreeMap<Arc<str>, Line>,
    is_closed: bool,
}

impl Queue {
    /// So many slots, of which one tenant has at most so many, and so many that may wait for one.
    pub fn new(slots: usize, max_per_tenant: usize, max_waiting: usize) -> Self {
        Self {
            slots,
            max_per_tenant,
            max_waiting,
            next_ticket: 0,
            next_turn: 0,
            running: BTreeMap::new(),
            running_of: BTreeMap::new(),
            waiting: BTreeMap::new(),
            lines: BTreeMap::new(),
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
        let name: Arc<str> = Arc::from(tenant);
        // Whoever waits while a slot is free may not have it, so nobody is passed over.
        if self.running.len() < self.slots && self.running_of(tenant) < self.max_per_tenant {
            self.next_ticket += 1;
            self.run(ticket, name);
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
        let next_turn = &mut self.next_turn;
        let line = self.lines.entry(Arc::clone(&name)).or_insert_with(|| {
            let turn = *next_turn;
            *next_turn += 1;
            Line { turn, tickets: BTreeSet::new() }
        });
        line.tickets.insert(ticket);
        self.waiting.insert(ticket, name);
        Ok(Entry { ticket, runs: false, displaced })
    }

    /// Ends a ticket, whether it runs or waits; who runs from now on. That is one at most: if a slot was free before, all that waited were
    /// of tenants that run as many as one may, and now one of these may run one more. A ticket that has ended already changes nothing.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Ticket> {
        let Some(left) = self.running.remove(&ticket) else {
            self.forget(ticket);
            return None;
        };
        if let Some(count) = self.running_of.get_mut(&left) {
            *count -= 1;
            if *count == 0 {
                self.running_of.remove(&left);
            }
        }
        let tenant = self.next_tenant()?;
        let line = self.lines.get_mut(&tenant)?;
        let next = line.tickets.pop_first()?;
        if line.tickets.is_empty() {
            self.lines.remove(&tenant);
        } else {
            line.turn = self.next_turn;
            self.next_turn += 1;
        }
        self.waiting.remove(&next);
        self.run(next, tenant);
        Some(next)
    }

    /// Takes nothing in any more; those that waited. What runs goes on.
    pub fn close(&mut self) -> Vec<Ticket> {
        self.is_closed = true;
        self.lines.clear();
        std::mem::take(&mut self.waiting).into_keys().collect()
    }

    fn running_of(&self, tenant: &str) -> usize {
        self.running_of.get(tenant).copied().unwrap_or(0)
    }

    fn run(&mut self, ticket: Ticket, tenant: Arc<str>) {
        *self.running_of.entry(Arc::clone(&tenant)).or_default() += 1;
        self.running.insert(ticket, tenant);
    }

    /// Who is next: of those that wait and may run one more, whoever runs the fewest, and of these whose turn it is.
    fn next_tenant(&self) -> Option<Arc<str>> {
        let waiting = self.lines.iter().map(|(tenant, line)| (self.running_of(tenant), line.turn, tenant));
        let next = waiting.filter(|(running, ..)| *running < self.max_per_tenant).min()?;
        Some(Arc::clone(next.2))
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
            self.lines.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests;
