//! Makes one block out of what waits: expiries that are due, usage to settle, and commands, in this order.
//!
//! Pure: `now` is passed in. Left out: sealing, appending and answering ([`crate::writer`]). Invariant: the block keeps to every
//! bound of the protocol, each decision is made against the state after all those before it in the same block, and
//! `usage_cursor` covers a charge only if it is settled in this block or needs no settlement any more.
//!
//! Decisions are grouped by tenant. Tenants share no account, hold or key, so the order between two of them has no meaning, and a
//! tenant can be shown its decisions in few items.

use std::collections::BTreeMap;

use bytes::Bytes;
use exchequer_budget::{
    Action, Command, DecideError, Decided, Decision, DecisionRun, Hold, HoldStatus, Label, Source, State,
    TenantId, decide, sweep,
};
use exchequer_event::{
    name::{MAX_BLOCK_BYTES, MAX_BLOCK_ITEMS, MAX_ITEM_BYTES},
    v1,
};
use prost::{Message, encoding::encoded_len_varint};

use crate::{
    core::Reply,
    fold::{Budgets, Fold},
    usage::Charge,
};

/// Bytes of a block kept free for its seal, signature and framing.
const SEAL_BYTES: usize = 1024;
/// Bytes of a run kept free for its tenant.
const TENANT_BYTES: usize = 128;

/// What a command is answered, once the block is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The answer.
    pub reply: Reply,
    /// Stream sequence of an earlier block that recorded it; `None` for the block at hand.
    pub recorded: Option<u64>,
    /// Whether it was decided before, for the same request under the same key.
    pub repeated: bool,
}

/// What was decided.
#[derive(Debug, Default)]
pub struct Proposal {
    /// Encoded decision runs: the block's items. None, if nothing is to be recorded.
    pub items: Vec<Bytes>,
    /// The same decisions as they will be folded.
    pub runs: Vec<DecisionRun>,
    /// One answer per command that was considered, in order; the commands beyond wait for the next block.
    pub answers: Vec<Result<Answer, DecideError>>,
    /// Decisions in the items.
    pub decisions: usize,
    /// Stream sequence up to which usage is settled once the block is recorded.
    pub usage_cursor: u64,
    /// The time of the decisions.
    pub now_ms: u64,
}

/// Decides for a partition at `now_ms`, or at the chain's time if that is later. `speculative` has to equal the fold's budgets;
/// afterwards it is those with the proposal recorded.
pub fn propose<'c>(
    fold: &Fold,
    partition: u16,
    speculative: &mut State,
    commands: impl IntoIterator<Item = &'c Command>,
    now_ms: u64,
) -> Proposal {
    let (head, budgets) = (fold.head(partition), fold.part(partition));
    let now_ms = now_ms.max(head.now_unix_ms).max(speculative.now_ms());
    let mut block = Block {
        state: speculative,
        now_ms,
        runs: BTreeMap::new(),
        items: 0,
        bytes: SEAL_BYTES,
        decisions: 0,
    };
    let mut usage_cursor = head.usage_cursor;
    let mut answers = Vec::new();
    if block.expire() {
        let unsettled = block.settle(budgets);
        usage_cursor = unsettled.map_or(fold.cursor, |seq| seq.saturating_sub(1)).max(usage_cursor);
        if unsettled.is_none() {
            for command in commands {
                match block.command(budgets, command) {
                    Some(answer) => answers.push(answer),
                    None => break,
                }
            }
        }
    }
    let decisions = block.decisions;
    let (items, runs) = block.encode();
    Proposal { items, runs, answers, decisions, usage_cursor, now_ms }
}

struct Block<'s> {
    state: &'s mut State,
    now_ms: u64,
    /// A tenant's runs; the last one grows.
    runs: BTreeMap<TenantId, Vec<Run>>,
    items: usize,
    bytes: usize,
    decisions: usize,
}

#[derive(Default)]
struct Run {
    decisions: Vec<Decision>,
    encoded: Vec<v1::Decision>,
    bytes: usize,
}

impl Block<'_> {
    /// Ends what is due; false if the block is full before all of it is.
    fn expire(&mut self) -> bool {
        loop {
            let due = sweep(self.state, self.now_ms);
            if due.is_empty() {
                return true;
            }
            for (tenant, decision) in due {
                if !self.record(&tenant, decision) {
                    return false;
                }
            }
        }
    }

    /// Settles what waits; the stream sequence of the first charge that found no room.
    fn settle(&mut self, budgets: &Budgets) -> Option<u64> {
        for charge in &budgets.charges {
            let Some(hold) = self.state.hold(&charge.hold_id) else { continue };
            if !matches!(hold.status, HoldStatus::Open | HoldStatus::Expired) {
                continue;
            }
            let tenant = hold.scope.tenant_id();
            // A lease of which nothing is left has nothing to be drawn for a lost execution.
            let Ok(command) = Command::new(
                tenant.clone(),
                charge.agent.clone(),
                None,
                settlement(charge, hold, self.now_ms),
            ) else {
                continue;
            };
            if let Ok(Decided::New(decision)) = decide(self.state, &budgets.past, &command, self.now_ms)
                && !self.record(&tenant, decision)
            {
                return Some(charge.stream_seq);
            }
        }
        None
    }

    /// Decides a command; `None` if it has to wait for the next block.
    fn command(&mut self, budgets: &Budgets, command: &Command) -> Option<Result<Answer, DecideError>> {
        match decide(self.state, &budgets.past, command, self.now_ms) {
            Err(error) => Some(Err(error)),
            // Of this very block: what other blocks answered is in the past.
            Ok(Decided::Repeated(reply)) => {
                Some(Ok(Answer { reply: Reply::Event(reply), recorded: None, repeated: true }))
            }
            Ok(Decided::RepeatedAt(stream_seq)) => {
                let key = command.idempotency()?.key.clone();
                let reply = Reply::Recorded(command.tenant().clone(), key);
                Some(Ok(Answer { reply, recorded: Some(stream_seq), repeated: true }))
            }
            Ok(Decided::New(decision)) => {
                let reply = Reply::Event(decision.events[0].clone());
                self.record(command.tenant(), decision).then_some(Ok(Answer {
                    reply,
                    recorded: None,
                    repeated: false,
                }))
            }
        }
    }

    /// Takes a decision into the block and the state; false, and nothing changed, if there is no room.
    fn record(&mut self, tenant: &TenantId, decision: Decision) -> bool {
        let encoded = v1::Decision::from(&decision);
        let len = encoded.encoded_len();
        let bytes = 1 + encoded_len_varint(len as u64) + len;
        if !self.runs.contains_key(tenant.as_str()) {
            self.runs.insert(tenant.clone(), Vec::new());
        }
        let runs = self.runs.get_mut(tenant.as_str()).expect("inserted above");
        let needs_run = runs.last().is_none_or(|run| run.bytes + bytes > MAX_ITEM_BYTES);
        let added = if needs_run { bytes + TENANT_BYTES } else { bytes };
        if self.bytes + added > MAX_BLOCK_BYTES || (needs_run && self.items == MAX_BLOCK_ITEMS) {
            return false;
        }
        if needs_run {
            runs.push(Run { bytes: TENANT_BYTES, ..Run::default() });
            self.items += 1;
        }
        self.bytes += added;
        self.decisions += 1;
        self.state.record(&decision, tenant, self.now_ms);
        if let Some(run) = runs.last_mut() {
            run.encoded.push(encoded);
            run.decisions.push(decision);
            run.bytes += bytes;
        }
        true
    }

    fn encode(self) -> (Vec<Bytes>, Vec<DecisionRun>) {
        let mut items = Vec::with_capacity(self.items);
        let mut recorded = Vec::with_capacity(self.items);
        for (tenant, runs) in self.runs {
            for run in runs {
                let encoded = v1::DecisionRun { tenant: tenant.to_string(), decisions: run.encoded };
                items.push(encoded.encode_to_vec().into());
                recorded.push(DecisionRun { tenant: tenant.clone(), decisions: run.decisions });
            }
        }
        (items, recorded)
    }
}

/// What an execution's end does to the hold that pays. Its time is the agent's, unless that is ahead of ours: what was used is charged
/// whatever a clock says.
fn settlement(charge: &Charge, hold: &Hold, now_ms: u64) -> Action {
    let hold_id = charge.hold_id.clone();
    let used = charge.used.clone().unwrap_or_else(|| hold.amounts.clone());
    let label = |text: &str| Label::parse(text).ok();
    let source = Source {
        agent_id: label(charge.agent.as_str()),
        skill: label(&charge.skill),
        execution_id: label(&charge.execution_id),
        used_ms: charge.used_unix_ms.min(now_ms),
    }
    .told();
    if hold.lease { Action::Draw { hold_id, used, source } } else { Action::Settle { hold_id, used, source } }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use exchequer_budget::{
        Allowance, Amounts, BudgetTerms, Event, HoldId, Idempotency, IdempotencyKey, Meter, ScopePath,
        Subject, Ttl,
    };
    use exchequer_event::{
        control::sign_control,
        digest::Digest,
        name::{budget_subject, control_subject, events_subject},
        seal::{BlockPlace, event_digest, seal_batch, seal_block},
        v1::{ControlRecord, KeyRole, control_record::Kind as ControlKind, event::Kind},
    };

    use super::*;
    use crate::{
        fold::{Folded, Read},
        snapshots::tests::{is_whole, stored_and_back},
    };

    /// A partition without IO: the fold, its writer's copy, and an agent.
    struct World {
        fold: Fold,
        speculative: State,
        metering: SigningKey,
        agent: SigningKey,
        agent_seq: u64,
        agent_prev: Digest,
    }

    impl World {
        fn new() -> Self {
            let ledger = SigningKey::from_bytes(&[1; 32]);
            let mut world = Self {
                fold: Fold::new(1),
                speculative: State::default(),
                metering: SigningKey::from_bytes(&[2; 32]),
                agent: SigningKey::from_bytes(&[3; 32]),
                agent_seq: 0,
                agent_prev: Digest::ZERO,
            };
            let key = |key: &SigningKey| Bytes::copy_from_slice(key.verifying_key().as_bytes());
            let enrolled = |role: KeyRole, holder: &str, public_key| {
                ControlKind::KeyEnrolled(v1::KeyEnrolled {
                    role: role.into(),
                    holder: holder.to_owned(),
                    public_key,
                })
            };
            let kinds = [
                ControlKind::Genesis(v1::Genesis { origin: "log".to_owned(), ledger_key: key(&ledger) }),
                enrolled(KeyRole::Metering, "metering", key(&world.metering)),
                enrolled(KeyRole::Agent, "agent-1", key(&world.agent)),
            ];
            for kind in kinds {
                let record = ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
                world.read(&control_subject("keys"), sign_control(&ledger, &record).encode_to_vec());
            }
            world
        }

        fn read(&mut self, subject: &str, payload: Vec<u8>) -> Folded {
            let payload = payload.into();
            self.fold.fold(Read { seq: self.fold.cursor() + 1, subject, payload: &payload })
        }

        fn sealed(&self, proposal: &Proposal) -> Vec<u8> {
            let head = self.fold.head(0);
            let place = BlockPlace {
                partition: "0".to_owned(),
                epoch: 1,
                index: head.index + 1,
                prev_hash: head.hash,
                now_unix_ms: proposal.now_ms,
                usage_cursor: proposal.usage_cursor,
            };
            seal_block(&self.metering, place, proposal.items.clone()).encode_to_vec()
        }

        /// Proposes, and folds the block as it comes back.
        fn block(&mut self, commands: &[Command], now_ms: u64) -> Proposal {
            let proposal = propose(&self.fold, 0, &mut self.speculative, commands, now_ms);
            if !proposal.items.is_empty() {
                let block = self.sealed(&proposal);
                let folded = self.read(&budget_subject("0"), block);
                let seq = self.fold.cursor();
                self.speculative.retire(&mut self.fold.part_mut(0).past, seq);
                assert!(matches!(folded, Folded::Block { undecodable: 0, .. }), "{folded:?}");
            }
            assert!(self.speculative == *self.fold.budget(0), "what was decided is what was recorded");
            proposal
        }

        fn finish(&mut self, holds: &[String]) {
            let (first, prev) = (self.agent_seq + 1, self.agent_prev);
            let mut events = Vec::new();
            for hold_id in holds {
                self.agent_seq += 1;
                let finished = v1::ExecutionFinished {
                    usage: Some(v1::Usage { cpu_user_us: 3_000, ..v1::Usage::default() }),
                    hold_id: hold_id.clone(),
                    ..v1::ExecutionFinished::default()
                };
                let event = v1::Event {
                    agent_id: "agent-1".to_owned(),
                    epoch: 1,
                    seq: self.agent_seq,
                    prev_hash: self.agent_prev.into(),
                    execution_id: id(1_000_000 + usize::try_from(self.agent_seq).unwrap()),
                    // Far ahead of the writer's clock.
                    time_unix_ms: 10_000_000,
                    kind: Some(Kind::ExecutionFinished(finished)),
                    ..v1::Event::default()
                };
                let bytes: Bytes = event.encode_to_vec().into();
                self.agent_prev = event_digest(&bytes);
                events.push(bytes);
            }
            let batch = seal_batch(&self.agent, "agent-1", 1, first, prev, events);
            self.read(&events_subject("agent-1"), batch.encode_to_vec());
        }
    }

    fn id(n: usize) -> String {
        format!("0190b2a4-0000-7000-8000-{n:012}")
    }

    fn set(tenant: &str, cpu_ms: u64) -> Command {
        let granted = Allowance::new([(Meter::CpuMs, cpu_ms)]).unwrap();
        let terms = BudgetTerms::all_time(granted).into();
        let action = Action::SetBudget { scope: ScopePath::parse(tenant).unwrap(), terms };
        Command::new(TenantId::parse(tenant).unwrap(), Subject::parse("root").unwrap(), None, action).unwrap()
    }

    fn reserve(tenant: &str, n: usize, cpu_ms: u64) -> Command {
        hold(tenant, n, cpu_ms, false)
    }

    fn hold(tenant: &str, n: usize, cpu_ms: u64, lease: bool) -> Command {
        let subject = Subject::parse("agent-1").unwrap();
        let action = Action::Reserve {
            hold_id: HoldId::parse(&id(n)).unwrap(),
            scope: ScopePath::parse(tenant).unwrap(),
            holder: subject.clone(),
            amounts: Amounts::new([(Meter::CpuMs, cpu_ms)]).unwrap(),
            ttl: Ttl::from_ms(1_000).unwrap(),
            at_least: Amounts::NONE,
            lease,
        };
        let key = IdempotencyKey::parse(&format!("key-{n}")).unwrap();
        let idempotency = Some(Idempotency { key, request_hash: [0; 32] });
        Command::new(TenantId::parse(tenant).unwrap(), subject, idempotency, action).unwrap()
    }

    fn granted(proposal: &Proposal) -> usize {
        let is_granted = |answer: &&Result<Answer, DecideError>| {
            matches!(answer, Ok(Answer { reply: Reply::Event(Event::HoldGranted { .. }), .. }))
        };
        proposal.answers.iter().filter(is_granted).count()
    }

    #[test]
    fn decisions_of_one_block_see_each_other() {
        let mut world = World::new();
        let mut commands = vec![set("acme", 10)];
        commands.extend((0..20).map(|n| reserve("acme", n, 1)));
        let proposal = world.block(&commands, 5);
        assert_eq!((proposal.items.len(), proposal.decisions, granted(&proposal)), (1, 21, 10));

        // All of them again: the same answers, from that block, and nothing to record.
        let seq = world.fold.cursor();
        let again = world.block(&commands[1..], 6);
        assert!(again.items.is_empty());
        let tenant = TenantId::parse("acme").unwrap();
        for (n, answer) in again.answers.iter().enumerate() {
            let key = IdempotencyKey::parse(&format!("key-{n}")).unwrap();
            let reply = Reply::Recorded(tenant.clone(), key);
            assert_eq!(answer, &Ok(Answer { reply, recorded: Some(seq), repeated: true }));
        }
    }

    #[test]
    fn a_key_repeated_within_a_block_is_answered_by_that_block() {
        let mut world = World::new();
        let commands = [set("acme", 10), reserve("acme", 1, 10), reserve("acme", 1, 10)];
        let proposal = world.block(&commands, 5);
        assert_eq!((proposal.decisions, granted(&proposal)), (2, 2));
        assert!(proposal.answers.iter().flatten().all(|answer| answer.recorded.is_none()));
    }

    #[test]
    fn a_block_keeps_to_its_bounds_and_the_rest_waits() {
        let mut world = World::new();
        let budgets: Vec<_> = (0..600).map(|n| set(&format!("tenant-{n}"), 10)).collect();
        let proposal = world.block(&budgets, 5);
        assert_eq!((proposal.items.len(), proposal.answers.len()), (MAX_BLOCK_ITEMS, MAX_BLOCK_ITEMS));
        assert_eq!(world.block(&budgets[MAX_BLOCK_ITEMS..], 5).answers.len(), 600 - MAX_BLOCK_ITEMS);

        let mut waiting = vec![set("acme", 1_000_000)];
        waiting.extend((0..6_000).map(|n| reserve("acme", n, 1)));
        let mut rest = &waiting[..];
        let mut blocks = 0;
        while !rest.is_empty() {
            let proposal = world.block(rest, 6);
            assert!(proposal.items.iter().all(|item| item.len() <= MAX_ITEM_BYTES));
            assert!(world.sealed(&proposal).len() <= MAX_BLOCK_BYTES);
            rest = &rest[proposal.answers.len()..];
            blocks += 1;
        }
        assert!(blocks > 1, "{blocks}");
        assert_eq!(world.fold.budget(0).open_holds(), 6_000);
    }

    #[test]
    fn usage_is_settled_once_even_where_a_block_can_not_take_all_of_it() {
        let mut world = World::new();
        let tenants = 600;
        let mut commands: Vec<_> = (0..tenants).map(|n| set(&format!("tenant-{n}"), 10)).collect();
        commands.extend((0..tenants).map(|n| reserve(&format!("tenant-{n}"), n, 10)));
        let mut rest = &commands[..];
        while !rest.is_empty() {
            rest = &rest[world.block(rest, 1).answers.len()..];
        }
        let holds: Vec<_> = (0..tenants).map(id).collect();
        let before = world.fold.cursor();
        world.finish(&holds[..300]);
        world.finish(&holds[300..]);
        // More tenants than items fit: the cursor stays before the batch that is settled in part.
        let first = world.block(&[], 2);
        assert_eq!((first.decisions, first.usage_cursor), (MAX_BLOCK_ITEMS, before + 1));
        assert_eq!(world.fold.usage_cursor(0), before + 1);
        let second = world.block(&[], 2);
        assert_eq!((second.decisions, second.usage_cursor), (tenants - MAX_BLOCK_ITEMS, before + 3));
        assert_eq!(world.fold.usage_cursor(0), world.fold.cursor());
        assert!(world.block(&[], 2).items.is_empty());
        let spent =
            |n: usize| world.fold.budget(0).usage(&ScopePath::parse(&format!("tenant-{n}")).unwrap()).spent;
        assert!((0..tenants).all(|n| spent(n).get(Meter::CpuMs) == 3));
    }

    #[test]
    fn executions_under_a_lease_are_drawn_once_even_where_a_block_can_not_take_all_of_a_batch() {
        let mut world = World::new();
        world.block(&[set("acme", 100_000), hold("acme", 1, 50_000, true)], 5);
        let executions = 10 * 450;
        for _ in 0..10 {
            world.finish(&vec![id(1); 450]);
        }
        let mut blocks = 0;
        while world.block(&[], 6).decisions > 0 {
            blocks += 1;
            assert!(blocks < 10, "the same is drawn again and again");
        }
        assert!(blocks > 1, "one block has taken all of it");
        let scope = ScopePath::parse("acme").unwrap();
        assert_eq!(world.fold.budget(0).usage(&scope).spent.get(Meter::CpuMs), 3 * executions);
        let lease = world.fold.budget(0).hold(&HoldId::parse(&id(1)).unwrap()).unwrap();
        assert_eq!(u128::from(lease.amounts.get(Meter::CpuMs)), 50_000 - 3 * executions);
    }

    #[test]
    fn what_is_due_is_ended_before_anything_is_decided() {
        let mut world = World::new();
        world.block(&[set("acme", 10), reserve("acme", 1, 10)], 5);
        assert!(world.block(&[], 1_004).items.is_empty(), "nothing is due yet");
        assert_eq!(granted(&world.block(&[reserve("acme", 2, 10)], 1_004)), 0);
        let proposal = world.block(&[reserve("acme", 3, 10)], 1_005);
        assert_eq!((proposal.decisions, granted(&proposal)), (2, 1));
        // A clock that went back does not take time back.
        assert_eq!(world.block(&[reserve("acme", 4, 1)], 3).now_ms, 1_005);
    }

    #[test]
    fn another_writers_block_leaves_ours_without_effect() {
        let mut world = World::new();
        world.block(&[set("acme", 10)], 5);
        let mut ours = world.speculative.clone();
        let late = propose(&world.fold, 0, &mut ours, &[reserve("acme", 1, 10)], 6);
        let late = world.sealed(&late);
        world.block(&[reserve("acme", 2, 10)], 6);
        let before = world.fold.budget(0).clone();
        let folded = world.read(&budget_subject("0"), late);
        assert_eq!(folded, Folded::VoidBlock { partition: 0, reason: "Fenced".to_owned() });
        assert!(*world.fold.budget(0) == before);
    }

    #[test]
    fn a_snapshot_is_the_fold_again_and_damage_shows() {
        let mut world = World::new();
        world.block(&[set("acme", 100), reserve("acme", 1, 10), reserve("acme", 2, 10)], 5);
        world.finish(&[id(1)]);
        let (restored, bytes) = stored_and_back(&world.fold);
        assert_eq!(stored_and_back(&restored).1, bytes);
        assert_eq!(restored.past(0), world.fold.past(0));
        assert!(restored.past(0).count() > 0);
        // What waited to be settled still does, once.
        world.fold = restored;
        assert_eq!(world.block(&[], 6).decisions, 1);
        assert_eq!(world.block(&[], 6).decisions, 0);
        for at in [0, 40, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(!is_whole(&damaged), "at {at}");
        }
        assert!(!is_whole(&bytes[..20]));
    }
}
