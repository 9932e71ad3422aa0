//! What the log says, read by gRPC as an auditor does, and what has to be true of it.
//!
//! Left out: hashes and signatures, which `exchequer verify` checks. Invariant: sums are added up here anew, from the log's decisions alone;
//! neither metering's state nor its arithmetic is asked.

use std::collections::{BTreeMap, BTreeSet};

use exchequer_event::{
    entry, seal,
    v1::{self, RejectionReason, budget_event::Kind as Event, entry::Kind},
};

use crate::{
    deployment::Ledger,
    load::{Answer, Change, answered},
};

/// Most entries of a page.
const PAGE: u32 = 1000;

/// Amounts by meter.
type Meters = BTreeMap<String, u64>;

/// A decision, where it stands, and what the budgets were when it was made.
struct Decided {
    stream_seq: u64,
    tenant: String,
    decision: v1::Decision,
}

/// The log, taken apart.
#[derive(Default)]
pub struct Log {
    decisions: Vec<Decided>,
    /// The partition whose blocks a tenant's decisions are in.
    partitions: BTreeMap<String, BTreeSet<String>>,
    /// The epochs of each partition's blocks.
    epochs: BTreeMap<String, BTreeSet<u64>>,
    rejections: Vec<v1::Rejection>,
    pub blocks: u64,
    entries: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    Open,
    Settled,
    Voided,
}

struct Hold {
    scope: String,
    amounts: Meters,
    standing: Standing,
}

/// A scope's sums.
#[derive(Clone, Debug, Default)]
struct Sums {
    granted: Meters,
    held: Meters,
    spent: Meters,
}

/// What the decisions add up to.
#[derive(Default)]
pub struct Budgets {
    holds: BTreeMap<String, Hold>,
    scopes: BTreeMap<String, Sums>,
    pub grants: u64,
    pub denials: u64,
}

impl Log {
    /// Reads every entry.
    pub async fn read(client: &Ledger) -> Self {
        let mut log = Self::default();
        let mut page_token = String::new();
        let mut partition = String::new();
        loop {
            let request = v1::ListEntriesRequest { page_size: PAGE, page_token, ..Default::default() };
            let page = answered(|| {
                let (mut client, request) = (client.clone(), request.clone());
                async move { Ok(client.list_entries(request).await?.into_inner()) }
            })
            .await;
            for v1::LogEntry { index, entry, .. } in page.entries {
                assert_eq!(index, log.entries, "entries are listed without holes");
                log.entries += 1;
                log.take(entry::decode(&entry).unwrap(), &mut partition);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                assert_eq!(log.entries, page.tree_size);
                return log;
            }
        }
    }

    fn take(&mut self, entry: v1::Entry, partition: &mut String) {
        match entry.kind.unwrap() {
            Kind::BlockSealed(sealed) => {
                self.blocks += 1;
                let (seal, _, _) = seal::read_block_seal(&sealed.seal).unwrap();
                self.epochs.entry(seal.partition.clone()).or_default().insert(seal.epoch);
                *partition = seal.partition;
            }
            Kind::DecisionRun(bytes) => {
                let run = seal::decode_run(&bytes).unwrap();
                self.partitions.entry(run.tenant.clone()).or_default().insert(partition.clone());
                let decided =
                    |decision| Decided { stream_seq: entry.stream_seq, tenant: run.tenant.clone(), decision };
                self.decisions.extend(run.decisions.into_iter().map(decided));
            }
            Kind::Control(_) => {}
            Kind::Rejection(rejection) => self.rejections.push(rejection),
            other => panic!("nobody did that: {other:?}"),
        }
    }

    /// Decisions in the log.
    pub fn decisions(&self) -> usize {
        self.decisions.len()
    }

    /// Blocks of writers that had been overtaken.
    pub fn fenced(&self) -> usize {
        self.rejections.len()
    }

    /// Times that a partition went to another instance, or to the same one again.
    pub fn takeovers(&self) -> usize {
        self.epochs.values().map(|epochs| epochs.len() - 1).sum()
    }

    /// Nothing but blocks of overtaken writers was refused; each tenant is in one partition, and all partitions are used.
    pub fn check_partitions(&self) {
        for rejection in &self.rejections {
            let is_fenced =
                rejection.reason() == RejectionReason::Fenced && rejection.subject.starts_with("budget.");
            assert!(is_fenced, "{rejection:?}");
        }
        let mut used = BTreeSet::new();
        for (tenant, partitions) in &self.partitions {
            assert_eq!(partitions.len(), 1, "{tenant} is in {partitions:?}");
            used.extend(partitions);
        }
        assert_eq!(used.len(), usize::from(crate::PARTITIONS), "{used:?}");
    }

    /// Every answer stands in the log once, as it was answered, in the block that the answer named; and nothing that nobody asked for.
    pub fn check_answers(&self, answers: &[Answer], changes: &[Change]) {
        let mut decided = BTreeMap::new();
        for Decided { stream_seq, tenant, decision } in &self.decisions {
            let key = decision.idempotency_key.as_str();
            let before = decided.insert((tenant.as_str(), key), (*stream_seq, &decision.events));
            assert!(before.is_none(), "{key:?} of {tenant} was decided twice");
        }
        for answer in answers {
            let (tenant, key) = (answer.tenant, answer.asked.key());
            let found = decided.remove(&(tenant, key));
            let (stream_seq, events) =
                found.unwrap_or_else(|| panic!("{key} of {tenant} was answered and is missing"));
            let recorded = events.first().and_then(|event| event.kind.as_ref());
            assert_eq!((stream_seq, recorded), (answer.stream_seq, Some(&answer.kind)), "{key} of {tenant}");
        }
        for (key, scope, granted) in changes {
            let found = decided.remove(&(tenant_of(scope), key));
            let (_, events) = found.unwrap_or_else(|| panic!("{key} of {scope} was answered and is missing"));
            let Some(Event::BudgetSet(set)) = &events[0].kind else { panic!("{key} of {scope}: {events:?}") };
            assert_eq!((&set.scope, meters(&set.granted)), (scope, meters(granted)), "{key}");
        }
        let unasked: Vec<_> = decided.keys().collect();
        assert!(unasked.is_empty(), "nobody asked for {unasked:?}");
    }

    /// Adds up all decisions. No hold is granted that a budget does not cover at that point, none is refused that all budgets cover, and none is
    /// closed twice.
    pub fn add_up(&self) -> Budgets {
        let mut budgets = Budgets::default();
        for Decided { decision, .. } in &self.decisions {
            for event in &decision.events {
                budgets.take(event.kind.as_ref().unwrap(), &decision.idempotency_key);
            }
        }
        budgets
    }
}

impl Budgets {
    fn take(&mut self, event: &Event, key: &str) {
        match event {
            Event::BudgetSet(set) => {
                let sums = self.scopes.entry(set.scope.clone()).or_default();
                sums.granted.extend(meters(&set.granted));
            }
            Event::HoldGranted(granted) => {
                self.grants += 1;
                let amounts = meters(&granted.amounts);
                self.hold(&granted.scope, &amounts, key);
                let hold = Hold { scope: granted.scope.clone(), amounts, standing: Standing::Open };
                let before = self.holds.insert(granted.hold_id.clone(), hold);
                assert!(before.is_none(), "{} twice", granted.hold_id);
            }
            Event::HoldExtended(extended) => {
                let hold = self.holds.get_mut(&extended.hold_id).expect("a hold that was granted");
                assert_eq!(hold.standing, Standing::Open, "{key}");
                let added = meters(&extended.added);
                add(&mut hold.amounts, &added);
                let scope = hold.scope.clone();
                self.hold(&scope, &added, key);
            }
            Event::HoldDenied(denied) => {
                self.denials += 1;
                self.refuse(denied, key);
            }
            Event::HoldSettled(settled) => {
                let used = meters(&settled.used);
                let scope = self.close(&settled.hold_id, Standing::Settled);
                for enclosing in enclosing(&scope) {
                    add(&mut self.scopes.entry(enclosing.to_owned()).or_default().spent, &used);
                }
            }
            Event::HoldVoided(voided) => {
                self.close(&voided.hold_id, Standing::Voided);
            }
            other => panic!("nobody asked for that: {other:?}"),
        }
    }

    /// Takes amounts from every enclosing budget, which all have to cover them.
    fn hold(&mut self, scope: &str, amounts: &Meters, key: &str) {
        for enclosing in enclosing(scope) {
            let sums = self.scopes.entry(enclosing.to_owned()).or_default();
            for (meter, amount) in amounts {
                let (granted, taken) = (sums.granted.get(meter), sums.taken(meter));
                let is_covered = granted.is_none_or(|granted| taken + amount <= *granted);
                assert!(
                    is_covered,
                    "{key}: {amount} {meter} at {enclosing}, where {taken} of {granted:?} are taken"
                );
            }
            add(&mut sums.held, amounts);
        }
    }

    /// The budget that a refusal names has to lack what it says.
    fn refuse(&self, denied: &v1::HoldDenied, key: &str) {
        assert!(enclosing(&denied.scope).any(|scope| scope == denied.binding_scope), "{key}: {denied:?}");
        let sums = &self.scopes[&denied.binding_scope];
        let (granted, taken) = (sums.granted[&denied.binding_meter], sums.taken(&denied.binding_meter));
        let expected = if taken > granted { v1::DenialReason::InDebt } else { v1::DenialReason::Exhausted };
        assert!(taken + denied.requested > granted, "{key}: {denied:?}, and {taken} of {granted} are taken");
        assert_eq!(
            (denied.reason(), denied.available),
            (expected, granted.saturating_sub(taken)),
            "{key}: {denied:?}"
        );
    }

    fn close(&mut self, hold_id: &str, standing: Standing) -> String {
        let hold = self.holds.get_mut(hold_id).expect("a hold that was granted");
        assert_eq!(hold.standing, Standing::Open, "{hold_id} is closed twice");
        hold.standing = standing;
        for enclosing in enclosing(&hold.scope) {
            let held = &mut self.scopes.get_mut(enclosing).expect("a scope with a hold").held;
            for (meter, amount) in &hold.amounts {
                *held.get_mut(meter).expect("a meter that is held") -= amount;
            }
        }
        hold.scope.clone()
    }

    /// Scopes with budgets and their balances by these sums: granted = available + held + spent - debt.
    pub fn balances(&self) -> BTreeMap<String, BTreeMap<String, v1::Balance>> {
        let of_scope = |(scope, sums): (&String, &Sums)| {
            let balance = |(meter, granted): (&String, &u64)| {
                let (held, spent) = (sums.held.get(meter), sums.spent.get(meter));
                let (held, spent) = (held.copied().unwrap_or(0), spent.copied().unwrap_or(0));
                let balance = v1::Balance {
                    meter: meter.clone(),
                    granted: *granted,
                    available: granted.saturating_sub(held + spent),
                    held,
                    spent,
                    debt: (held + spent).saturating_sub(*granted),
                    allowance: *granted,
                    ..v1::Balance::default()
                };
                (meter.clone(), balance)
            };
            (scope.clone(), sums.granted.iter().map(balance).collect())
        };
        self.scopes.iter().filter(|(_, sums)| !sums.granted.is_empty()).map(of_scope).collect()
    }

    /// Holds that are open.
    pub fn open(&self) -> usize {
        self.holds.values().filter(|hold| hold.standing == Standing::Open).count()
    }
}

impl Sums {
    fn taken(&self, meter: &str) -> u64 {
        self.held.get(meter).copied().unwrap_or(0) + self.spent.get(meter).copied().unwrap_or(0)
    }
}

/// A scope and all that enclose it.
fn enclosing(scope: &str) -> impl Iterator<Item = &str> {
    scope.match_indices('/').map(|(end, _)| &scope[..end]).chain([scope])
}

fn tenant_of(scope: &str) -> &str {
    scope.split('/').next().unwrap_or(scope)
}

fn meters(amounts: &[v1::MeterAmount]) -> Meters {
    amounts.iter().map(|amount| (amount.meter.clone(), amount.amount)).collect()
}

fn add(sums: &mut Meters, amounts: &Meters) {
    for (meter, amount) in amounts {
        *sums.entry(meter.clone()).or_default() += amount;
    }
}
