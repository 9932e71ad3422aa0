//! The state of all budgets of a partition: a fold over recorded decisions.
//!
//! Kept is what is live: scopes with their usage, budgets and limits; holds that are open, or expired and not closed; grants;
//! notifications that wait. What is over stays here until its block is accepted, and then goes to the [`Past`] by
//! [`State::retire`]. Scopes are numbered in the order in which they appeared; the numbers are in no event and no snapshot.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    budget::Budget,
    event::{Decision, DecisionRun, Event, Reached},
    id::{GrantId, HoldId, Label, Subject, TenantId, WebhookUrl},
    meter::{Amounts, Meter, Totals},
    past::{Ids, Past, PastId},
    policy::Window,
    rate::Rate,
    scope::{MAX_SEGMENTS, ScopePath},
};

mod check;
mod read;

pub use check::Broken;
pub use read::{BudgetView, OpenHolds, Settings};

/// Full checks after every event cost time in the square of what there is; debug builds stop at this many holds and scopes.
#[cfg(debug_assertions)]
const DEBUG_CHECK: usize = 256;

/// What was used at a scope and below, since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Settled, drawn, reported and corrected.
    pub spent: Totals,
    /// In open holds.
    pub held: Totals,
    /// Number of settled holds.
    pub settled_holds: u64,
    /// Number of open holds.
    pub open_holds: u64,
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The scope that it was asked for.
    pub scope: ScopePath,
    /// Who may extend, settle or void it.
    pub holder: Subject,
    /// What it holds or held. Of a lease, what is or was left.
    pub amounts: Amounts,
    /// What was used: drawn and settled, each meter cut at [`MAX_AMOUNT`](crate::MAX_AMOUNT).
    pub used: Amounts,
    /// When it runs out or ran out, milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Whether its holder may draw from it.
    pub lease: bool,
    /// Whether it may not be extended any more.
    pub revoked: bool,
    /// How it stands.
    pub status: HoldStatus,
    /// Stream sequence of the block that granted it; 0 until that is retired.
    pub granted_seq: u64,
}

/// How a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldStatus {
    /// Its amounts are held.
    Open,
    /// Its usage is spent. Only until it is retired.
    Settled {
        /// Whether it had run out before.
        late: bool,
    },
    /// Nothing is held or spent. Only until it is retired.
    Voided,
    /// Nothing is held; it can still be settled, or voided, which closes it.
    Expired,
}

impl HoldStatus {
    /// Whether it can still be settled.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Open | Self::Expired)
    }
}

pub(crate) type NodeId = usize;

/// What is kept per scope.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) path: ScopePath,
    pub(crate) parent: Option<NodeId>,
    pub(crate) usage: Usage,
    /// In order of window.
    pub(crate) budgets: Vec<Budget>,
    /// In order of meter.
    pub(crate) rates: Vec<(Meter, Rate)>,
    /// 0 for no limit.
    pub(crate) max_open_holds: u64,
    /// Millionths per how much, in order of meter.
    pub(crate) prices: Vec<(Meter, (u64, u64))>,
    /// Of a tenant's outermost scope: how many scopes the tenant has, this one included. Else 0.
    pub(crate) scopes: usize,
    /// Of a tenant's outermost scope: how many of the tenant's holds are open or expired. Else 0.
    pub(crate) live_holds: usize,
}

impl Node {
    pub(crate) fn is_configured(&self) -> bool {
        !self.budgets.is_empty()
            || !self.rates.is_empty()
            || self.max_open_holds > 0
            || !self.prices.is_empty()
    }

    pub(crate) fn budget(&self, window: Window) -> Option<&Budget> {
        self.budgets.iter().find(|budget| budget.window == window)
    }

    pub(crate) fn budget_mut(&mut self, window: Window) -> Option<&mut Budget> {
        self.budgets.iter_mut().find(|budget| budget.window == window)
    }
}

/// Which budget a grant is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) window: Window,
    pub(crate) meter: Meter,
}

/// What is kept per tenant, where there is anything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) meters: BTreeMap<Meter, Option<Label>>,
    pub(crate) webhook: Option<WebhookUrl>,
    /// None for one that has ended and is not yet retired.
    pub(crate) grants: BTreeMap<GrantId, Option<Place>>,
    /// Of [`Self::grants`], those that have not ended.
    pub(crate) live_grants: usize,
    pub(crate) budgets: usize,
    pub(crate) rate_limits: usize,
    pub(crate) concurrency_limits: usize,
    pub(crate) prices: usize,
    pub(crate) waiting: usize,
}

/// What happens at a time, beside the end of holds. Ordered as it happens at the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    GrantEnds(TenantId, GrantId),
    WindowEnds(ScopePath, Window),
    GrantBegins(TenantId, GrantId),
}

/// What a key was answered in a block that is not yet retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) request_hash: [u8; 32],
    pub(crate) reply: Event,
}

/// What waits to be retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Retiring {
    Answer(PastId),
    Granted(HoldId),
    Closed(HoldId),
    Grant(TenantId, GrantId),
}

/// All budgets of a partition. Starts empty.
#[derive(Clone, Default)]
pub struct State {
    pub(crate) now_ms: u64,
    pub(crate) decisions: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) numbers: HashMap<ScopePath, NodeId>,
    /// Scopes with a budget, a limit or a price.
    pub(crate) configured: BTreeMap<ScopePath, NodeId>,
    pub(crate) tenants: BTreeMap<TenantId, Tenant>,
    pub(crate) holds: HashMap<HoldId, Hold>,
    /// The open holds, by when they run out.
    pub(crate) expiry: BTreeSet<(u64, HoldId)>,
    /// The open holds of each tenant that has any.
    pub(crate) open: BTreeMap<TenantId, BTreeSet<HoldId>>,
    pub(crate) timers: BTreeSet<(u64, Timer)>,
    pub(crate) last_notification: u64,
    pub(crate) notifications: BTreeMap<u64, Arc<Reached>>,
    pub(crate) recent: HashMap<PastId, Recent>,
    /// With the number of the decision that each belongs to.
    pub(crate) retiring: VecDeque<(u64, Retiring)>,
    pub(crate) ids: Ids,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("now_ms", &self.now_ms)
            .field("decisions", &self.decisions)
            .field("scopes", &self.nodes.len())
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }
}

impl Eq for State {}

impl State {
    /// Applies a decision of `tenant` that was made at `now_ms`. Live and at replay alike; never refuses.
    pub fn record(&mut self, decision: &Decision, tenant: &TenantId, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.decisions += 1;
        for event in &decision.events {
            self.evolve(tenant, event);
        }
        if let (Some(idempotency), Some(reply)) = (&decision.idempotency, decision.events.first()) {
            let id = self.ids.key(tenant, &idempotency.key);
            let decisions = self.decisions;
            let retiring = &mut self.retiring;
            self.recent.entry(id).or_insert_with(|| {
                retiring.push_back((decisions, Retiring::Answer(id)));
                Recent { request_hash: idempotency.request_hash, reply: reply.clone() }
            });
        }
    }

    /// Applies a run of decisions that were made at `now_ms`.
    pub fn record_run(&mut self, run: &DecisionRun, now_ms: u64) {
        for decision in &run.decisions {
            self.record(decision, &run.tenant, now_ms);
        }
    }

    /// Moves what is over into the past: all that was recorded so far is in the block of `stream_seq`.
    pub fn retire(&mut self, past: &mut Past, stream_seq: u64) {
        self.retire_up_to(past, stream_seq, self.decisions);
    }

    /// As [`Self::retire`], for a state that is ahead: of the first `decisions` only. The block's own state, and any number of
    /// states ahead of it, can be retired into the same past.
    pub fn retire_up_to(&mut self, past: &mut Past, stream_seq: u64, decisions: u64) {
        while self.retiring.front().is_some_and(|(number, _)| *number <= decisions) {
            match self.retiring.pop_front() {
                Some((_, Retiring::Answer(id))) => {
                    if let Some(recent) = self.recent.remove(&id) {
                        past.add_answer(id, &recent.request_hash, stream_seq);
                    }
                }
                Some((_, Retiring::Granted(hold_id))) => {
                    if let Some(hold) = self.holds.get_mut(&hold_id) {
                        hold.granted_seq = stream_seq;
                    }
                }
                Some((_, Retiring::Closed(hold_id))) => {
                    if let Some(hold) = self.holds.remove(&hold_id) {
                        past.add_hold(&hold_id, hold.scope.tenant(), hold.granted_seq, stream_seq);
                    }
                }
                Some((_, Retiring::Grant(tenant, grant_id))) => {
                    if let Some(kept) = self.tenants.get_mut(&tenant) {
                        kept.grants.remove(&grant_id);
                    }
                    past.add_grant(&tenant, &grant_id, stream_seq);
                }
                None => {}
            }
        }
    }

    /// Notes a hold as open.
    pub(crate) fn index_open(&mut self, hold_id: &HoldId, scope: &ScopePath, expires_ms: u64) {
        self.expiry.insert((expires_ms, hold_id.clone()));
        if let Some(ids) = self.open.get_mut(scope.tenant()) {
            ids.insert(hold_id.clone());
        } else {
            self.open.insert(scope.tenant_id(), BTreeSet::from([hold_id.clone()]));
        }
    }

    /// Notes a hold as open no more.
    pub(crate) fn unindex_open(&mut self, hold_id: &HoldId, expires_ms: u64) {
        self.expiry.remove(&(expires_ms, hold_id.clone()));
        let Some(hold) = self.holds.get(hold_id) else { return };
        let tenant = hold.scope.tenant();
        if let Some(ids) = self.open.get_mut(tenant) {
            ids.remove(hold_id);
            if ids.is_empty() {
                self.open.remove(tenant);
            }
        }
    }

    pub(crate) fn number(&self, scope: &str) -> Option<NodeId> {
        self.numbers.get(scope).copied()
    }

    /// The number of a scope, which it gets now if it has none.
    pub(crate) fn numbered(&mut self, scope: &ScopePath) -> NodeId {
        if let Some(number) = self.number(scope.as_str()) {
            return number;
        }
        let mut parent = None;
        let before = self.nodes.len();
        for name in scope.enclosing() {
            parent = Some(self.number(name).unwrap_or_else(|| {
                let (path, number) = (scope.of_enclosing(name), self.nodes.len());
                self.nodes.push(Node {
                    path: path.clone(),
                    parent,
                    usage: Usage::default(),
                    budgets: Vec::new(),
                    rates: Vec::new(),
                    max_open_holds: 0,
                    prices: Vec::new(),
                    scopes: 0,
                    live_holds: 0,
                });
                self.numbers.insert(path, number);
                number
            }));
        }
        let added = self.nodes.len() - before;
        if let Some(outermost) = self.outermost_mut(scope) {
            outermost.scopes += added;
        }
        parent.unwrap_or_default()
    }

    /// The node of a tenant's outermost scope, which is there as soon as anything is.
    pub(crate) fn outermost_mut(&mut self, scope: &ScopePath) -> Option<&mut Node> {
        self.number(scope.tenant()).map(|number| &mut self.nodes[number])
    }

    /// The scopes that enclose `scope` and are known, from the outermost.
    pub(crate) fn around(&self, scope: &ScopePath) -> Around {
        let mut around = Around { numbers: [0; MAX_SEGMENTS], from: MAX_SEGMENTS };
        let text = scope.as_str();
        let mut innermost = self.number(text);
        let mut rest = text;
        while innermost.is_none()
            && let Some((outer, _)) = rest.rsplit_once('/')
        {
            rest = outer;
            innermost = self.number(outer);
        }
        while let Some(number) = innermost {
            around.from -= 1;
            around.numbers[around.from] = number;
            innermost = self.nodes[number].parent;
        }
        around
    }

    pub(crate) fn each_enclosing(&mut self, number: NodeId, mut change: impl FnMut(&mut Node)) {
        let mut next = Some(number);
        while let Some(number) = next {
            let node = &mut self.nodes[number];
            change(node);
            next = node.parent;
        }
    }

    pub(crate) fn assert_sound(&self, event: &Event) {
        #[cfg(debug_assertions)]
        if self.holds.len().max(self.nodes.len()) <= DEBUG_CHECK {
            assert_eq!(self.check(), Ok(()), "after {event:?}");
        }
        #[cfg(not(debug_assertions))]
        let _ = event;
    }
}

/// Scopes from the outermost in, few enough to need no allocation.
#[derive(Clone, Copy)]
pub(crate) struct Around {
    numbers: [NodeId; MAX_SEGMENTS],
    from: usize,
}

impl Around {
    pub(crate) fn numbers(&self) -> &[NodeId] {
        &self.numbers[self.from..]
    }
}
