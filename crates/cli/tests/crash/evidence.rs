//! What the log says, read by gRPC as an auditor does, and what has to be true of it.
//!
//! Left out: hashes and signatures, which `exchequer verify` checks. Invariant: sums are added up here anew, from the log's events
//! and decisions alone; neither metering's state nor its arithmetic is asked.

use std::collections::{BTreeMap, BTreeSet};

use exchequer_budget::{ScopePath, State, Window, wire};
use exchequer_event::{
    entry, seal,
    v1::{self, RejectionReason, budget_event, entry::Kind, event, reserve_response::Outcome},
};
use exchequer_testkit::SimAgent;
use prost::bytes::Bytes;

use crate::{
    deployment::{Ledger, WORKER},
    load::{Direct, Executed, Reserved, answered},
};

/// Most entries of a page.
const PAGE: u32 = 1000;

/// Amounts by meter; none is zero.
pub type Meters = BTreeMap<String, u64>;

/// Where an event stands: agent, epoch, seq.
type Place = (String, u64, u64);

/// A decision and the block that it stands in.
struct Decided {
    stream_seq: u64,
    tenant: String,
    decision: v1::Decision,
}

/// The log, taken apart.
#[derive(Default)]
pub struct Log {
    events: BTreeMap<Place, (Bytes, v1::Event)>,
    decisions: Vec<Decided>,
    /// The fold of all decisions by the project's own code, to compare with.
    state: State,
    pub rejections: Vec<v1::Rejection>,
    pub entries: u64,
    pub blocks: u64,
    pub batches: u64,
}

/// How a hold stands.
#[derive(Debug, PartialEq)]
enum Standing {
    Open,
    Settled(Meters),
    Voided,
    Expired,
}

struct Hold {
    tenant: String,
    holder: String,
    key: String,
    amounts: Meters,
    standing: Standing,
}

/// A tenant's sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    pub granted: Meters,
    pub held: Meters,
    pub spent: Meters,
}

/// Everything that the decisions of the log add up to.
pub struct Budgets {
    holds: BTreeMap<String, Hold>,
    pub tenants: BTreeMap<String, Sums>,
}

impl Log {
    /// Reads every entry. No place is taken twice.
    pub async fn read(client: &Ledger) -> Self {
        let mut log = Self::default();
        let mut page_token = String::new();
        let mut now_ms = 0;
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
                log.take(entry::decode(&entry).unwrap(), &mut now_ms);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                assert_eq!(log.entries, page.tree_size);
                return log;
            }
        }
    }

    fn take(&mut self, entry: v1::Entry, now_ms: &mut u64) {
        match entry.kind.unwrap() {
            Kind::BatchSealed(_) => self.batches += 1,
            Kind::Event(bytes) => {
                let event = seal::decode_event(&bytes).unwrap();
                let place = (event.agent_id.clone(), event.epoch, event.seq);
                let before = self.events.insert(place.clone(), (bytes, event));
                assert!(before.is_none(), "{place:?} is twice in the log");
            }
            Kind::BlockSealed(sealed) => {
                self.blocks += 1;
                *now_ms = seal::read_block_seal(&sealed.seal).unwrap().0.now_unix_ms;
            }
            Kind::DecisionRun(bytes) => {
                self.state.record_run(&wire::decode_run(&bytes).unwrap(), *now_ms);
                let run = seal::decode_run(&bytes).unwrap();
                let decided =
                    |decision| Decided { stream_seq: entry.stream_seq, tenant: run.tenant.clone(), decision };
                self.decisions.extend(run.decisions.into_iter().map(decided));
            }
            Kind::Control(_) => {}
            Kind::Rejection(rejection) => self.rejections.push(rejection),
            Kind::Equivocation(equivocation) => panic!("an equivocation: {equivocation:?}"),
        }
    }

    /// The fold of the log's decisions by the project's own code: a scope's budget.
    pub fn budget(&self, scope: &str) -> v1::Budget {
        let scope = ScopePath::parse(scope).unwrap();
        wire::budget(&self.state.budget(&scope, Window::AllTime).unwrap())
    }

    /// Only what go-back-N leads to was refused, and no author's.
    pub fn check_rejections(&self) {
        for rejection in &self.rejections {
            let by_going_back = matches!(rejection.reason(), RejectionReason::Gap | RejectionReason::Stale);
            assert!(by_going_back && rejection.subject.starts_with("events."), "{rejection:?}");
        }
    }

    /// Each agent's events are numbered from 1 on without a hole, in one epoch; no execution begins or ends twice.
    pub fn check_numbering(&self) {
        let mut heads = BTreeMap::new();
        let mut ends = BTreeSet::new();
        for ((agent_id, epoch, seq), (_, event)) in &self.events {
            let head = heads.entry(agent_id).or_insert((*epoch, 0));
            assert_eq!((*epoch, *seq), (head.0, head.1 + 1), "of {agent_id}: no spool was lost");
            head.1 = *seq;
            let end = match event.kind {
                Some(event::Kind::ExecutionAdmitted(_)) => "begins",
                Some(event::Kind::ExecutionFinished(_)) => "ends",
                _ => continue,
            };
            assert!(ends.insert((&event.execution_id, end)), "{} {end} twice", event.execution_id);
        }
        for (execution_id, _) in ends.iter().filter(|(_, end)| *end == "begins") {
            assert!(ends.contains(&(*execution_id, "ends")), "{execution_id} has no end");
        }
    }

    /// What the agent answered is in the log as it was answered.
    pub fn check_executed(&self, executed: &Executed) {
        let recorded = |position: Option<&v1::AgentHead>, execution_id: &str| {
            let position = position.cloned().unwrap();
            let place = (position.agent_id, position.epoch, position.seq);
            let (bytes, event) =
                self.events.get(&place).unwrap_or_else(|| panic!("{place:?} was answered and is missing"));
            let is_same = seal::event_digest(bytes).0.as_slice() == &position.hash[..];
            assert!(is_same, "{place:?} was answered, and another event has its place");
            assert_eq!(event.execution_id, execution_id);
            event.kind.clone().unwrap()
        };
        for admitted in &executed.admitted {
            let kind = recorded(admitted.position.as_ref(), &admitted.execution_id);
            assert_eq!(kind, event::Kind::ExecutionAdmitted(admitted.record.clone().unwrap()));
        }
        for finished in &executed.finished {
            let kind = recorded(finished.position.as_ref(), &finished.execution_id);
            assert_eq!(kind, event::Kind::ExecutionFinished(finished.record.clone().unwrap()));
        }
    }

    /// Every event of a simulated agent, byte by byte, and no other of it.
    pub fn check_simulated(&self, agent: &SimAgent) {
        let of_agent = self.events.iter().filter(|((agent_id, ..), _)| agent_id == agent.id());
        let recorded: Vec<_> = of_agent.map(|(_, (bytes, _))| bytes.clone()).collect();
        assert!(recorded == agent.events(), "{} of {} events of {}", recorded.len(), agent.seq(), agent.id());
    }

    /// Executions whose end the agent could not see.
    pub fn lost(&self) -> BTreeSet<&str> {
        let is_lost = |event: &&v1::Event| matches!(&event.kind, Some(event::Kind::ExecutionFinished(finished)) if finished.cause() == v1::ExitCause::Lost);
        let events = self.events.values().map(|(_, event)| event);
        events.filter(is_lost).map(|event| event.execution_id.as_str()).collect()
    }

    /// Every answer of metering stands in the log once, as it was answered, in the block that the answer named.
    pub fn check_answers<'a>(&self, reserved: impl IntoIterator<Item = &'a Reserved>, direct: &'a [Direct]) {
        let mut decided = BTreeMap::new();
        for Decided { stream_seq, tenant, decision } in &self.decisions {
            let key = decision.idempotency_key.as_str();
            if !key.is_empty() {
                let before = decided.insert((tenant.as_str(), key), (*stream_seq, &decision.events));
                assert!(before.is_none(), "{key} of {tenant} was decided twice");
            }
        }
        let directly = direct.iter().flat_map(|direct| &direct.reserved);
        for Reserved { tenant, key, outcome, stream_seq } in reserved.into_iter().chain(directly) {
            let kind = match outcome.clone() {
                Outcome::Granted(granted) => budget_event::Kind::HoldGranted(granted),
                Outcome::Denied(denied) => budget_event::Kind::HoldDenied(denied),
            };
            let expected = vec![v1::BudgetEvent { kind: Some(kind) }];
            let found = decided
                .get(&(*tenant, key.as_str()))
                .unwrap_or_else(|| panic!("{key} was answered and is missing"));
            assert_eq!(found, &(*stream_seq, &expected), "{key}");
        }
        for (key, hold_id) in direct.iter().flat_map(|direct| &direct.voided) {
            let kind = budget_event::Kind::HoldVoided(v1::HoldVoided { hold_id: hold_id.clone() });
            let (_, events) =
                decided.get(&(crate::load::TIGHT, key.as_str())).expect("a void that was answered");
            assert_eq!(events, &&vec![v1::BudgetEvent { kind: Some(kind) }]);
        }
    }

    /// Adds up all decisions. No hold is granted that the budget does not cover at that point, and none is closed twice.
    pub fn add_up(&self) -> Budgets {
        let mut budgets = Budgets { holds: BTreeMap::new(), tenants: BTreeMap::new() };
        for Decided { tenant, decision, .. } in &self.decisions {
            for event in &decision.events {
                budgets.take(tenant, &decision.idempotency_key, event.kind.as_ref().unwrap());
            }
        }
        budgets
    }

    /// Each execution that ended is charged once, what it used, or its whole hold if its end was not seen; nothing else is charged.
    pub fn check_charges(&self, budgets: &Budgets) {
        let mut charged = BTreeSet::new();
        for (_, event) in self.events.values() {
            let Some(event::Kind::ExecutionFinished(finished)) = &event.kind else { continue };
            let hold = budgets.holds.get(&finished.hold_id).expect("an execution's hold");
            assert_eq!((&hold.tenant, &hold.holder), (&event.tenant, &event.agent_id));
            let expected = used(finished).unwrap_or_else(|| hold.amounts.clone());
            assert_eq!(hold.standing, Standing::Settled(expected), "{}", event.execution_id);
            assert!(charged.insert(&finished.hold_id), "{} pays for two executions", finished.hold_id);
        }
        for (hold_id, hold) in &budgets.holds {
            let is_settled = matches!(hold.standing, Standing::Settled(_));
            assert_eq!(
                is_settled,
                charged.contains(hold_id),
                "{hold_id} of {}: {:?}",
                hold.tenant,
                hold.standing
            );
        }
    }

    /// What is still held: by callers that did not give it back, and by executions that were never admitted, since the agent was killed
    /// or lost sight of metering in between; those expire.
    pub fn check_open(&self, budgets: &Budgets, direct: &[Direct]) {
        let mut kept: BTreeSet<&str> =
            direct.iter().flat_map(|direct| &direct.reserved).filter_map(Reserved::hold_id).collect();
        for (_, hold_id) in direct.iter().flat_map(|direct| &direct.voided) {
            assert!(kept.remove(hold_id.as_str()));
        }
        let admitted: BTreeSet<&str> = self
            .events
            .values()
            .filter(|(_, event)| matches!(event.kind, Some(event::Kind::ExecutionAdmitted(_))))
            .map(|(_, event)| event.execution_id.as_str())
            .collect();
        for (hold_id, hold) in &budgets.holds {
            let expected = match hold.holder.as_str() {
                // The agent's key for a hold is the execution's id.
                WORKER if admitted.contains(hold.key.as_str()) => continue,
                WORKER => matches!(hold.standing, Standing::Open | Standing::Voided),
                clerk if clerk.starts_with("tenant-admin:clerk-") => {
                    (hold.standing == Standing::Open) == kept.contains(hold_id.as_str())
                }
                _ => continue,
            };
            assert!(expected, "{hold_id} of {}: {:?}", hold.holder, hold.standing);
        }
    }

    /// Denials for want of budget among the decisions of a tenant.
    pub fn denials(&self, tenant: &str) -> usize {
        let of_tenant = self.decisions.iter().filter(|decided| decided.tenant == tenant);
        let events = of_tenant.flat_map(|decided| &decided.decision.events);
        events.filter(|event| matches!(event.kind, Some(budget_event::Kind::HoldDenied(_)))).count()
    }

    /// Events of all agents.
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Decisions of metering.
    pub fn decisions(&self) -> usize {
        self.decisions.len()
    }
}

impl Budgets {
    fn take(&mut self, tenant: &str, key: &str, kind: &budget_event::Kind) {
        use budget_event::Kind as Event;
        let sums = self.tenants.entry(tenant.to_owned()).or_default();
        match kind {
            Event::BudgetSet(set) => {
                assert_eq!(set.scope, tenant, "budgets of this test are the tenants'");
                sums.granted = set.granted.iter().map(|g| (g.meter.clone(), g.amount)).collect();
            }
            Event::HoldGranted(granted) => {
                let amounts = meters(&granted.amounts);
                for (meter, limit) in &sums.granted {
                    let of = |sums: &Meters| sums.get(meter).copied().unwrap_or_default();
                    let taken = of(&sums.held) + of(&sums.spent);
                    assert!(
                        taken + of(&amounts) <= *limit,
                        "{tenant}: {meter} beyond {limit} with {}",
                        granted.hold_id
                    );
                }
                add(&mut sums.held, &amounts);
                let hold = Hold {
                    tenant: tenant.to_owned(),
                    holder: granted.holder.clone(),
                    key: key.to_owned(),
                    amounts,
                    standing: Standing::Open,
                };
                assert!(
                    self.holds.insert(granted.hold_id.clone(), hold).is_none(),
                    "{} twice",
                    granted.hold_id
                );
            }
            Event::HoldSettled(settled) => {
                add(&mut sums.spent, &meters(&settled.used));
                self.close(&settled.hold_id, Standing::Settled(meters(&settled.used)));
            }
            Event::HoldVoided(voided) => self.close(&voided.hold_id, Standing::Voided),
            Event::HoldExpired(expired) => self.close(&expired.hold_id, Standing::Expired),
            Event::HoldDenied(_) => {}
            other => panic!("nobody asked for that: {other:?}"),
        }
    }

    fn close(&mut self, hold_id: &str, standing: Standing) {
        let hold = self.holds.get_mut(hold_id).expect("a hold that was granted");
        assert_eq!(hold.standing, Standing::Open, "{hold_id} is closed twice");
        hold.standing = standing;
        let held = &mut self.tenants.get_mut(&hold.tenant).expect("the hold's tenant").held;
        for (meter, amount) in &hold.amounts {
            let sum = held.get_mut(meter).expect("a meter that is held");
            *sum -= amount;
        }
        held.retain(|_, sum| *sum > 0);
    }
}

impl Sums {
    /// The balances that these sums make: granted = available + held + spent - debt.
    pub fn balances(&self) -> BTreeMap<String, v1::Balance> {
        let balance = |(meter, granted): (&String, &u64)| {
            let of = |sums: &Meters| sums.get(meter).copied().unwrap_or_default();
            let (held, spent) = (of(&self.held), of(&self.spent));
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
        self.granted.iter().map(balance).collect()
    }
}

/// What an execution used, as docs/protocol.md has it; `None` if nobody knows.
fn used(finished: &v1::ExecutionFinished) -> Option<Meters> {
    let usage = finished.usage.as_ref().filter(|_| finished.cause() != v1::ExitCause::Lost)?;
    let wall_ms = usage.wall_us.div_ceil(1000);
    let used = [
        ("cpu_ms", (usage.cpu_user_us + usage.cpu_system_us).div_ceil(1000)),
        ("wall_ms", wall_ms),
        ("memory_mib_ms", usage.peak_memory_bytes.div_ceil(1 << 20) * wall_ms),
        ("output_bytes", usage.output_bytes),
        ("invocations", 1),
    ];
    Some(
        used.into_iter()
            .filter(|(_, amount)| *amount > 0)
            .map(|(meter, amount)| (meter.to_owned(), amount))
            .collect(),
    )
}

/// Amounts of a message, by meter.
pub fn meters(amounts: &[v1::MeterAmount]) -> Meters {
    amounts.iter().map(|amount| (amount.meter.clone(), amount.amount)).collect()
}

fn add(sums: &mut Meters, amounts: &Meters) {
    for (meter, amount) in amounts {
        *sums.entry(meter.clone()).or_default() += amount;
    }
}
