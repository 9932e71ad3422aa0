//! Random histories over three levels of scopes and two tenants, against a naive oracle: every answer, every balance after every
//! event, replay of what was journaled, and a state that went through a snapshot in between.
#![allow(clippy::unwrap_used, missing_docs)]

mod oracle;

use exchequer_budget::{
    Action, Allowance, Amounts, Command, Decided, DecisionRun, Event, HoldId, Idempotency, IdempotencyKey,
    Meter, ScopePath, State, Subject, TenantId, Ttl, decide, sweep, wire,
};
use oracle::Oracle;
use proptest::{collection::vec, option, prelude::*, sample::select};

const SCOPES: [&str; 9] = ["t", "t/a", "t/a/x", "t/a/y", "t/b", "t/b/x", "t-b", "u", "u/a/x"];
const METERS: [Meter; 3] = [Meter::CpuMs, Meter::Invocations, Meter::CostMicros];
const HOLDERS: [&str; 2] = ["agent-1", "agent-2"];

#[derive(Clone, Debug)]
enum Op {
    Set {
        scope: &'static str,
        granted: Vec<(Meter, u64)>,
    },
    Reserve {
        scope: &'static str,
        amounts: Vec<(Meter, u64)>,
        ttl_ms: u64,
    },
    Extend {
        hold: usize,
        added: Vec<(Meter, u64)>,
        ttl_ms: u64,
    },
    Settle {
        hold: usize,
        used: Vec<(Meter, u64)>,
    },
    Void {
        hold: usize,
    },
    Sweep,
    /// The very command that was given this many steps ago.
    Again {
        back: usize,
    },
    /// Encodes the state, and goes on with what that decodes to.
    Restart,
}

#[derive(Clone, Debug)]
struct Step {
    op: Op,
    wait_ms: u64,
    holder: &'static str,
    /// Out of few, so that keys collide.
    key: Option<u8>,
    /// Makes the actor another than the holder, or the tenant another than the hold's.
    intrude: (bool, bool),
}

fn amounts(max: u64) -> impl Strategy<Value = Vec<(Meter, u64)>> {
    vec((select(&METERS[..]), 0..=max), 1..=3).prop_map(|mut amounts| {
        amounts.sort_unstable();
        amounts.dedup_by_key(|(meter, _)| *meter);
        amounts
    })
}

fn step() -> impl Strategy<Value = Step> {
    let ttl = || 1_000..5_000_u64;
    let hold = || any::<usize>();
    let op = prop_oneof![
        3 => (select(&SCOPES[..]), amounts(60)).prop_map(|(scope, granted)| Op::Set { scope, granted }),
        8 => (select(&SCOPES[..]), amounts(12), ttl())
            .prop_map(|(scope, amounts, ttl_ms)| Op::Reserve { scope, amounts, ttl_ms }),
        3 => (hold(), amounts(5), ttl()).prop_map(|(hold, added, ttl_ms)| Op::Extend { hold, added, ttl_ms }),
        5 => (hold(), amounts(15)).prop_map(|(hold, used)| Op::Settle { hold, used }),
        2 => hold().prop_map(|hold| Op::Void { hold }),
        3 => Just(Op::Sweep),
        2 => (1..12_usize).prop_map(|back| Op::Again { back }),
        1 => Just(Op::Restart),
    ];
    let rarely = || prop_oneof![9 => Just(false), 1 => Just(true)];
    (op, 0..800_u64, select(&HOLDERS[..]), option::weighted(0.3, 0..40_u8), (rarely(), rarely()))
        .prop_map(|(op, wait_ms, holder, key, intrude)| Step { op, wait_ms, holder, key, intrude })
}

/// The history so far, told three times: to the state, to the oracle, and to the journal.
#[derive(Default)]
struct World {
    state: State,
    oracle: Oracle,
    journal: Vec<(u64, Vec<u8>)>,
    /// Scope and holder of each hold that was granted.
    holds: Vec<(HoldId, ScopePath, Subject)>,
    commands: Vec<Command>,
    now_ms: u64,
    drawn: u64,
}

impl World {
    fn take(&mut self, step: &Step) {
        self.now_ms += step.wait_ms;
        match &step.op {
            Op::Sweep => self.sweep(),
            Op::Restart => self.state = State::decode(&self.state.encode()).unwrap(),
            Op::Again { back } => {
                if let Some(at) = self.commands.len().checked_sub(*back) {
                    self.command(&self.commands[at].clone());
                }
            }
            op => {
                if let Some(command) = self.draw(op, step) {
                    self.commands.push(command.clone());
                    self.command(&command);
                }
            }
        }
    }

    fn draw(&mut self, op: &Op, step: &Step) -> Option<Command> {
        let holder = Subject::parse(step.holder).unwrap();
        let of = |amounts: &[(Meter, u64)]| Amounts::new(amounts.iter().copied()).unwrap();
        let hold =
            |index: usize| (!self.holds.is_empty()).then(|| self.holds[index % self.holds.len()].clone());
        let scope = |name: &str| ScopePath::parse(name).unwrap();
        let (tenant, actor, action) = match op {
            Op::Set { scope: name, granted } => {
                let granted = Allowance::new(granted.iter().copied()).unwrap();
                (scope(name).tenant_id(), holder, Action::SetBudget { scope: scope(name), granted })
            }
            Op::Reserve { scope: name, amounts, ttl_ms } => {
                let (amounts, ttl) = (of(amounts), Ttl::from_ms(*ttl_ms).unwrap());
                if amounts.is_empty() {
                    return None;
                }
                self.drawn += 1;
                let hold_id = HoldId::parse(&format!("h{}", self.drawn)).unwrap();
                let reserve =
                    Action::Reserve { hold_id, scope: scope(name), holder: holder.clone(), amounts, ttl };
                (scope(name).tenant_id(), holder, reserve)
            }
            Op::Extend { hold: index, added, ttl_ms } => {
                let (hold_id, scope, holder) = hold(*index)?;
                let (added, ttl) = (of(added), Ttl::from_ms(*ttl_ms).unwrap());
                (scope.tenant_id(), holder, Action::Extend { hold_id, added, ttl })
            }
            Op::Settle { hold: index, used } => {
                let (hold_id, scope, holder) = hold(*index)?;
                (scope.tenant_id(), holder, Action::Settle { hold_id, used: of(used) })
            }
            Op::Void { hold: index } => {
                let (hold_id, scope, holder) = hold(*index)?;
                (scope.tenant_id(), holder, Action::Void { hold_id })
            }
            Op::Sweep | Op::Again { .. } | Op::Restart => return None,
        };
        let on_hold = !matches!(op, Op::Set { .. } | Op::Reserve { .. });
        let (other_actor, other_tenant) = step.intrude;
        let actor = if on_hold && other_actor { Subject::metering() } else { actor };
        let tenant = if on_hold && other_tenant { TenantId::parse("other").unwrap() } else { tenant };
        let idempotency = step.key.map(|key| Idempotency {
            key: IdempotencyKey::parse(&format!("key {key}")).unwrap(),
            request_hash: blake3::hash(format!("{actor} {action:?}").as_bytes()).into(),
        });
        Some(Command::new(tenant, actor, idempotency, action).unwrap())
    }

    fn command(&mut self, command: &Command) {
        let decided = decide(&self.state, command, self.now_ms);
        assert_eq!(decided, self.oracle.predict(command, self.now_ms));
        let Ok(Decided::New(decision)) = decided else {
            return;
        };
        let before = State::clone(&self.state);
        self.record(command.tenant(), decision.clone());
        match &decision.events[0] {
            Event::HoldGranted { hold_id, scope, holder, amounts, .. } => {
                self.holds.push((hold_id.clone(), scope.clone(), holder.clone()));
                self.covered(scope, amounts);
            }
            Event::HoldExtended { hold_id, added, .. } => {
                let scope = self.state.hold(hold_id).unwrap().scope.clone();
                self.covered(&scope, added);
            }
            Event::HoldDenied { .. } | Event::CommandRefused { .. } => {
                for name in SCOPES {
                    let scope = ScopePath::parse(name).unwrap();
                    assert_eq!(self.state.usage(&scope), before.usage(&scope));
                    assert_eq!(self.state.balances(&scope), before.balances(&scope));
                }
            }
            _ => {}
        }
    }

    /// What was just held is within every budget around it.
    fn covered(&self, scope: &ScopePath, amounts: &Amounts) {
        for name in scope.enclosing() {
            for (meter, _) in amounts.iter() {
                assert!(
                    self.oracle.left(name, meter).is_none_or(|left| left >= 0),
                    "{name} {meter} overdrawn"
                );
            }
        }
    }

    fn sweep(&mut self) {
        let mut overdue = self.oracle.overdue(self.now_ms);
        let mut ended = Vec::new();
        for (tenant, decision) in sweep(&self.state, self.now_ms) {
            for event in &decision.events {
                let Event::HoldExpired { hold_id } = event else { panic!("{event:?} in a sweep") };
                ended.push((tenant.to_string(), hold_id.to_string()));
            }
            self.record(&tenant, decision);
        }
        overdue.sort();
        ended.sort();
        assert_eq!(ended, overdue);
    }

    fn record(&mut self, tenant: &TenantId, decision: exchequer_budget::Decision) {
        self.state.record(&decision, tenant, self.now_ms);
        self.oracle.note(tenant.as_str(), &decision, self.now_ms);
        let run = DecisionRun { tenant: tenant.clone(), decisions: vec![decision] };
        self.journal.push((self.now_ms, wire::encode_run(&run)));
        assert_eq!(self.state.check(), Ok(()));
        self.compare();
    }

    fn compare(&self) {
        for name in SCOPES {
            let scope = ScopePath::parse(name).unwrap();
            let usage = self.state.usage(&scope);
            for meter in METERS {
                let told = self.oracle.sheet(name, meter);
                let got = oracle::Sheet {
                    granted: self.state.balance(&scope, meter).map(|balance| balance.granted.into()),
                    held: i128::try_from(usage.held.get(meter)).unwrap(),
                    spent: i128::try_from(usage.spent.get(meter)).unwrap(),
                    open: usage.open_holds.into(),
                    settled: usage.settled_holds.into(),
                };
                assert_eq!(got, told, "{name} {meter}");
                if let (Some(balance), Some(left)) =
                    (self.state.balance(&scope, meter), self.oracle.left(name, meter))
                {
                    let debt = i128::try_from(balance.debt).unwrap();
                    assert_eq!((i128::from(balance.available), debt), (left.max(0), (-left).max(0)));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_history_goes_as_the_oracle_says_and_replays_to_the_same_state(steps in vec(step(), 1..70)) {
        let mut world = World::default();
        for step in &steps {
            world.take(step);
        }
        let mut replayed = State::default();
        for (now_ms, bytes) in &world.journal {
            let run = wire::decode_run(bytes).unwrap();
            prop_assert_eq!(&wire::encode_run(&run), bytes);
            replayed.record_run(&run, *now_ms);
        }
        prop_assert_eq!(replayed.digest(), world.state.digest());
        prop_assert_eq!(&replayed, &world.state);
    }

    #[test]
    fn a_snapshot_anywhere_changes_nothing_that_follows(steps in vec(step(), 2..70), at in any::<prop::sample::Index>()) {
        let mut world = World::default();
        for step in steps.iter().filter(|step| !matches!(step.op, Op::Restart)) {
            world.take(step);
        }
        let cut = at.index(world.journal.len() + 1);
        let (mut whole, mut restored) = (State::default(), State::default());
        for (index, (now_ms, bytes)) in world.journal.iter().enumerate() {
            if index == cut {
                restored = State::decode(&whole.encode()).unwrap();
                prop_assert_eq!(restored.digest(), whole.digest());
            }
            let run = wire::decode_run(bytes).unwrap();
            whole.record_run(&run, *now_ms);
            if index >= cut {
                restored.record_run(&run, *now_ms);
                prop_assert_eq!(&restored, &whole);
            }
        }
        prop_assert_eq!(whole.digest(), world.state.digest());
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_is_another_state(
        steps in vec(step(), 1..30), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
    ) {
        let mut world = World::default();
        for step in &steps {
            world.take(step);
        }
        let mut bytes = world.state.encode();
        let at = at.index(bytes.len());
        prop_assert!(State::decode(&bytes[..at]).is_err());
        bytes[at] ^= flip;
        if let Ok(other) = State::decode(&bytes) {
            prop_assert_ne!(other.digest(), world.state.digest());
        }
        bytes[at] ^= flip;
        bytes.push(0);
        prop_assert!(State::decode(&bytes).is_err());
    }
}
