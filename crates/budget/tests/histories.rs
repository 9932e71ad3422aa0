//! Random histories of everything that can be asked, over two tenants, three levels of scopes, windows that end and holds that run
//! out. After every decision the state is looked over; what was journaled leads to the same state; a snapshot anywhere, and retiring
//! at any time, change nothing that follows.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use exchequer_budget::{
    Action, Allowance, Amounts, BudgetTerms, Command, Correction, Decided, DecisionRun, Enforcement, Event,
    GrantId, GrantTerms, HoldId, Idempotency, IdempotencyKey, Label, Meter, Overage, Past, Price, RateLimit,
    ScopePath, State, Subject, TenantId, Threshold, Ttl, WebhookUrl, Window, Zone, decide, sweep, wire,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

const SCOPES: [&str; 7] = ["t", "t/a", "t/a/x", "t/b", "t-b", "u", "u/a/x"];
const WINDOWS: [Window; 5] = [Window::AllTime, Window::Hour, Window::Day, Window::Week, Window::Month];
const ZONES: [&str; 3] = ["UTC", "Europe/Vienna", "Australia/Lord_Howe"];
/// 29 March 2026: clocks change in Vienna, and soon after on Lord Howe Island.
const START_MS: u64 = 1_774_742_400_000;

fn meters() -> [Meter; 3] {
    [Meter::CpuMs, Meter::CostMicros, Meter::parse("gpu_ms").unwrap()]
}

fn rows(max: u64) -> impl Strategy<Value = Vec<(Meter, u64)>> {
    vec((select(meters().to_vec()), 0..=max), 1..=3).prop_map(|mut rows| {
        rows.sort_unstable();
        rows.dedup_by_key(|(meter, _)| *meter);
        rows
    })
}

fn amounts(max: u64) -> impl Strategy<Value = Amounts> {
    rows(max).prop_map(|rows| Amounts::new(rows).unwrap())
}

fn scope() -> impl Strategy<Value = ScopePath> {
    select(&SCOPES[..]).prop_map(|name| ScopePath::parse(name).unwrap())
}

fn hold() -> impl Strategy<Value = HoldId> {
    (0..24_u32).prop_map(|n| HoldId::parse(&format!("h{n}")).unwrap())
}

fn ttl() -> impl Strategy<Value = Ttl> {
    (1_000..5_000_000_u64).prop_map(|ms| Ttl::from_ms(ms).unwrap())
}

fn terms() -> impl Strategy<Value = BudgetTerms> {
    let threshold = prop_oneof![
        (1..150_u32).prop_map(Threshold::SpentPercent),
        (1..60_u64).prop_map(Threshold::SpentAmount),
        (1..150_u32).prop_map(Threshold::ForecastPercent),
    ];
    let kinds = (
        select(&[Enforcement::Hard, Enforcement::Hard, Enforcement::Soft, Enforcement::Shadow][..]),
        select(&[Overage::Debt, Overage::Cap, Overage::Overdraft][..]),
        any::<bool>(),
    );
    (select(&WINDOWS[..]), select(&ZONES[..]), rows(60), 0..30_u64, 0..30_u64, kinds, vec(threshold, 0..3))
        .prop_map(
            |(window, zone, granted, overdraft, rollover, (enforcement, overage, carry), thresholds)| {
                let is_window = window != Window::AllTime;
                let all = |value: u64| Allowance::new(granted.iter().map(|row| (row.0, value))).unwrap();
                let mut distinct: Vec<Threshold> = Vec::new();
                for threshold in thresholds {
                    let fits = is_window || !matches!(threshold, Threshold::ForecastPercent(_));
                    if fits && !distinct.contains(&threshold) {
                        distinct.push(threshold);
                    }
                }
                BudgetTerms {
                    window,
                    zone: is_window.then(|| Zone::parse(zone).unwrap()),
                    granted: Allowance::new(granted.clone()).unwrap(),
                    overdraft: if overage == Overage::Overdraft {
                        all(overdraft)
                    } else {
                        Allowance::default()
                    },
                    rollover_cap: if is_window { all(rollover) } else { Allowance::default() },
                    enforcement,
                    overage,
                    carry_debt: carry && is_window,
                    thresholds: distinct.into(),
                }
            },
        )
}

fn grant() -> impl Strategy<Value = GrantTerms> {
    let times = (0..9_000_000_u64, 1..90_000_000_u64, any::<bool>());
    let place = (scope(), select(&WINDOWS[..]), select(meters().to_vec()));
    (0..12_u32, place, 1..40_u64, 0..3_u32, times, any::<bool>(), 0..20_u64).prop_map(
        |(id, (scope, window, meter), amount, priority, (from, life, ends), recurring, cap)| {
            let recurring = recurring && window != Window::AllTime;
            let effective_ms = if from % 2 == 0 { 0 } else { START_MS + from };
            GrantTerms {
                grant_id: GrantId::parse(&format!("g{id}")).unwrap(),
                scope,
                window,
                meter,
                amount,
                priority,
                effective_ms,
                expires_ms: if ends { START_MS + from + life } else { 0 },
                recurring,
                rollover_cap: if recurring { cap } else { 0 },
            }
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let label = || Label::parse("why").unwrap();
    let holder = || Subject::parse("agent-1").unwrap();
    let holds = prop_oneof![
        6 => (hold(), scope(), amounts(12), ttl(), any::<(bool, bool)>()).prop_map(
            move |(hold_id, scope, amounts, ttl, (lease, balancing))| {
                let at_least = if balancing {
                    Amounts::new(amounts.iter().map(|(meter, amount)| (meter, amount.div_ceil(2)))).unwrap()
                } else {
                    Amounts::NONE
                };
                Action::Reserve { hold_id, scope, holder: holder(), amounts, ttl, at_least, lease }
            }
        ),
        2 => (hold(), amounts(5), ttl()).prop_map(|(hold_id, added, ttl)| Action::Extend { hold_id, added, ttl }),
        4 => (hold(), amounts(15)).prop_map(|(hold_id, used)| Action::Settle { hold_id, used, source: None }),
        3 => (hold(), amounts(9)).prop_map(|(hold_id, used)| Action::Draw { hold_id, used, source: None }),
        1 => hold().prop_map(|hold_id| Action::Void { hold_id }),
        1 => hold().prop_map(move |hold_id| Action::Revoke { hold_id, reason: label() }),
        2 => (scope(), amounts(15)).prop_map(|(scope, used)| {
            Action::Report { scope, used, source: None, subject: None }
        }),
        2 => (scope(), amounts(15), any::<bool>()).prop_map(move |(scope, amounts, added)| {
            let (reason, reference, source) = (label(), None, None);
            Action::Correct(Arc::new(Correction { scope, amounts, added, reason, reference, source }))
        }),
    ];
    let meter = || select(meters().to_vec());
    let settings = prop_oneof![
        6 => (scope(), terms()).prop_map(|(scope, terms)| Action::SetBudget { scope, terms: Arc::new(terms) }),
        1 => (scope(), select(&WINDOWS[..])).prop_map(|(scope, window)| {
            Action::RemoveBudget { scope, window, meters: Vec::new() }
        }),
        4 => grant().prop_map(|terms| Action::AddGrant(Arc::new(terms))),
        1 => (0..12_u32).prop_map(|id| Action::RevokeGrant { grant_id: GrantId::parse(&format!("g{id}")).unwrap() }),
        1 => (scope(), meter(), 0..9_u64, 1..9_u64).prop_map(|(scope, meter, amount, burst)| {
            let (period_ms, burst) = if amount > 0 { (1_000, burst) } else { (0, 0) };
            Action::SetRateLimit(RateLimit { scope, meter, amount, period_ms, burst })
        }),
        1 => (scope(), 0..4_u64).prop_map(|(scope, max_open_holds)| {
            Action::SetConcurrencyLimit { scope, max_open_holds }
        }),
        1 => (scope(), 1..4_u64, 0..4_u64).prop_map(|(scope, micros, per)| {
            let micros = if per > 0 { micros } else { 0 };
            Action::SetPrice(Price { scope, meter: Meter::CpuMs, micros, per })
        }),
        2 => Just(Action::DefineMeter { meter: Meter::parse("gpu_ms").unwrap(), description: None }),
        1 => any::<bool>().prop_map(|on| {
            Action::SetWebhook { url: on.then(|| WebhookUrl::parse("https://x.example/").unwrap()) }
        }),
        1 => (1..9_u64).prop_map(|notification| {
            Action::EndNotification { notification, delivered: true, attempts: 1, detail: None }
        }),
    ];
    prop_oneof![3 => holds, 2 => settings]
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    wait_ms: u64,
    /// Out of few, so that keys collide.
    key: Option<u8>,
    retire: bool,
    restart: bool,
    tenant: &'static str,
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![6 => 0..5_000_u64, 2 => 0..7_200_000_u64, 1 => 0..900_000_000_u64];
    let rarely = || prop::bool::weighted(0.15);
    (action(), wait, option::weighted(0.3, 0..20_u8), rarely(), rarely(), select(&["t", "u"][..])).prop_map(
        |(action, wait_ms, key, retire, restart, tenant)| Step {
            action,
            wait_ms,
            key,
            retire,
            restart,
            tenant,
        },
    )
}

struct World {
    state: State,
    past: Past,
    replica: State,
    replica_past: Past,
    now_ms: u64,
    blocks: u64,
}

impl World {
    fn take(&mut self, step: &Step) {
        self.now_ms += step.wait_ms;
        for sweeps in 0.. {
            assert!(sweeps < 1_000, "time does not pass");
            let due = sweep(&self.state, self.now_ms);
            if due.is_empty() {
                break;
            }
            for (tenant, decision) in &due {
                self.record(tenant, decision);
            }
        }
        assert!(self.state.next_due_ms().is_none_or(|due| due > self.now_ms));
        if step.retire {
            self.blocks += 1;
            self.state.retire(&mut self.past, self.blocks);
            self.replica.retire(&mut self.replica_past, self.blocks);
            assert_eq!(self.state.check(), Ok(()));
        }
        if step.restart {
            let mut past = Past::default();
            past.extend(self.past.rows_after(0).as_flattened()).unwrap();
            let state = State::decode(&self.state.encode()).unwrap();
            assert_eq!(state.digest(&past), self.state.digest(&self.past));
            (self.state, self.past) = (state, past);
        }
        let tenant =
            step.action.scope().map_or_else(|| TenantId::parse(step.tenant).unwrap(), ScopePath::tenant_id);
        let idempotency = step.key.map(|key| Idempotency {
            key: IdempotencyKey::parse(&format!("key {key}")).unwrap(),
            request_hash: blake3::hash(format!("{:?}", step.action).as_bytes()).into(),
        });
        let actor = Subject::parse("agent-1").unwrap();
        let Ok(command) = Command::new(tenant.clone(), actor, idempotency, step.action.clone()) else {
            return;
        };
        let decided = decide(&self.state, &self.past, &command, self.now_ms);
        assert_eq!(decided, decide(&self.replica, &self.replica_past, &command, self.now_ms));
        if let Ok(Decided::New(decision)) = decided {
            self.record(&tenant, &decision);
            self.look_at(&decision.events[0]);
        }
    }

    fn record(&mut self, tenant: &TenantId, decision: &exchequer_budget::Decision) {
        self.state.record(decision, tenant, self.now_ms);
        let run = DecisionRun { tenant: tenant.clone(), decisions: vec![decision.clone()] };
        let bytes = wire::encode_run(&run);
        let decoded = wire::decode_run(&bytes).unwrap();
        assert_eq!(wire::encode_run(&decoded), bytes);
        self.replica.record_run(&decoded, self.now_ms);
        assert_eq!(self.state.check(), Ok(()));
        assert!(self.state == self.replica, "a replay leads to the same state");
    }

    /// What was just held is within every hard budget around it; a capped budget owes nothing for what was just used.
    fn look_at(&self, event: &Event) {
        let (scope, amounts) = match event {
            Event::HoldGranted { scope, amounts, .. } => (scope.clone(), amounts),
            Event::HoldExtended { hold_id, added, .. } => {
                (self.state.hold(hold_id).unwrap().scope.clone(), added)
            }
            _ => return,
        };
        for name in scope.enclosing() {
            for view in self.state.budgets_of(&ScopePath::parse(name).unwrap()) {
                for (meter, balance) in view.balances() {
                    let overdraft =
                        if view.budget().overage() == Overage::Overdraft { balance.overdraft } else { 0 };
                    let within = balance.debt <= u128::from(overdraft);
                    let is_hard = view.budget().enforcement() == Enforcement::Hard;
                    assert!(!is_hard || amounts.get(meter) == 0 || within, "{name} {meter} is overdrawn");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_history_balances_and_replays_to_the_same_state(steps in vec(step(), 1..80)) {
        let mut world = World {
            state: State::default(),
            past: Past::default(),
            replica: State::default(),
            replica_past: Past::default(),
            now_ms: START_MS,
            blocks: 0,
        };
        for step in &steps {
            world.take(step);
        }
        prop_assert_eq!(world.state.digest(&world.past), world.replica.digest(&world.replica_past));
        let mut bytes = world.state.encode();
        let at = steps.len() * 7919 % bytes.len();
        prop_assert!(State::decode(&bytes[..at]).is_err());
        bytes[at] ^= 1;
        if let Ok(other) = State::decode(&bytes) {
            prop_assert!(other != world.state, "a damaged snapshot is another state, or none");
        }
    }
}
