//! What the histories are made of: two tenants and one that only looks like the first, scopes down to six levels, few holds, grants
//! and keys, so that they meet again, and times around the days on which clocks change.

use std::sync::Arc;

use exchequer_budget::{
    Action, Allowance, Amounts, BudgetTerms, Correction, Enforcement, GrantId, GrantTerms, HoldId, Label,
    MAX_AMOUNT, Meter, Overage, Price, RateLimit, ScopePath, Source, Subject, Threshold, Ttl, WebhookUrl,
    Window, Zone,
};
use proptest::{collection::vec, prelude::*, sample::select};

pub(crate) const SCOPES: [&str; 7] = ["t", "t/a", "t/a/x/y/z/w", "t/b", "t-b", "u", "u/a"];
pub(crate) const WINDOWS: [Window; 5] =
    [Window::AllTime, Window::Hour, Window::Day, Window::Week, Window::Month];
const ZONES: [&str; 7] = [
    "UTC",
    "Europe/Vienna",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "America/Havana",
    "Asia/Kathmandu",
    "America/New_York",
];
const DAY: u64 = 86_400_000;
/// The days before clocks change in Havana and New York, Vienna and Lord Howe, Cairo, Vienna, Cairo, Havana and New York in 2026; and
/// before a leap day.
const STARTS: [u64; 7] = [
    1_772_841_600_000,
    1_774_656_000_000,
    1_776_902_400_000,
    1_792_800_000_000,
    1_793_232_000_000,
    1_793_404_800_000,
    1_835_222_400_000,
];

pub(crate) fn start() -> impl Strategy<Value = u64> {
    (select(&STARTS[..]), 0..DAY).prop_map(|(day, within)| day + within)
}

pub(crate) fn wait() -> impl Strategy<Value = i64> {
    prop_oneof![
        10 => 0..3_000_i64,
        3 => 0..7_200_000_i64,
        1 => 0..900_000_000_i64,
        1 => 0..9_000_000_000_i64,
        1 => -5_000..0_i64,
    ]
}

pub(crate) fn gpu() -> Meter {
    Meter::parse("gpu_ms").unwrap()
}

fn meters() -> Vec<Meter> {
    vec![Meter::CpuMs, Meter::CpuMs, Meter::CpuMs, Meter::Invocations, Meter::CostMicros, gpu()]
}

fn meter() -> impl Strategy<Value = Meter> {
    select(meters())
}

fn rows(max: u64) -> impl Strategy<Value = Vec<(Meter, u64)>> {
    let amount = prop_oneof![99 => 0..=max, 1 => Just(MAX_AMOUNT)];
    vec((meter(), amount), 1..=3).prop_map(|mut rows| {
        rows.sort_unstable();
        rows.dedup_by_key(|(meter, _)| *meter);
        rows
    })
}

pub(crate) fn amounts(max: u64) -> impl Strategy<Value = Amounts> {
    rows(max).prop_map(|rows| Amounts::new(rows).unwrap())
}

pub(crate) fn scope() -> impl Strategy<Value = ScopePath> {
    let near = prop_oneof![4 => 0..2_usize, 2 => 0..4_usize, 1 => 0..SCOPES.len()];
    near.prop_map(|at| ScopePath::parse(SCOPES[at]).unwrap())
}

pub(crate) fn window() -> impl Strategy<Value = Window> {
    prop_oneof![2 => Just(Window::AllTime), 3 => select(&WINDOWS[..])]
}

pub(crate) fn hold() -> impl Strategy<Value = HoldId> {
    (0..14_u32).prop_map(|n| HoldId::parse(&format!("h{n}")).unwrap())
}

pub(crate) fn grant_id() -> impl Strategy<Value = GrantId> {
    (0..4_u32).prop_map(|n| GrantId::parse(&format!("g{n}")).unwrap())
}

pub(crate) fn actor() -> impl Strategy<Value = Subject> {
    prop_oneof![12 => Just("agent-1"), 1 => Just("agent-2")].prop_map(|name| Subject::parse(name).unwrap())
}

fn ttl() -> impl Strategy<Value = Ttl> {
    (1_000..9_000_000_u64).prop_map(|ms| Ttl::from_ms(ms).unwrap())
}

pub(crate) fn label() -> Label {
    Label::parse("why").unwrap()
}

fn source(start: u64) -> impl Strategy<Value = Option<Arc<Source>>> {
    let used = prop_oneof![3 => Just(0), 1 => start - DAY..start + 2 * DAY];
    (used, any::<bool>())
        .prop_map(|(used_ms, skill)| Source { used_ms, skill: skill.then(label), ..Source::default() }.told())
}

pub(crate) fn terms() -> impl Strategy<Value = BudgetTerms> {
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
    (window(), select(&ZONES[..]), rows(30), rows(30), rows(30), kinds, vec(threshold, 0..3)).prop_map(
        |(window, zone, granted, overdraft, rollover, (enforcement, overage, carry), mut thresholds)| {
            let is_window = window != Window::AllTime;
            let some_of = |mut rows: Vec<(Meter, u64)>, fits: bool| {
                rows.retain(|row| fits && granted.iter().any(|other| other.0 == row.0));
                Allowance::new(rows).unwrap()
            };
            thresholds.retain(|at| is_window || !matches!(at, Threshold::ForecastPercent(_)));
            thresholds.dedup();
            BudgetTerms {
                window,
                zone: is_window.then(|| Zone::parse(zone).unwrap()),
                overdraft: some_of(overdraft, overage == Overage::Overdraft),
                rollover_cap: some_of(rollover, is_window),
                granted: Allowance::new(granted).unwrap(),
                enforcement,
                overage,
                carry_debt: carry && is_window,
                thresholds: thresholds.into(),
            }
        },
    )
}

pub(crate) fn grant(start: u64) -> impl Strategy<Value = GrantTerms> {
    let times = (0..9_000_000_u64, 1_000_000..90_000_000_u64, any::<(bool, bool)>());
    (grant_id(), (scope(), window(), meter()), 1..12_u64, 0..3_u32, times, any::<bool>(), 0..20_u64).prop_map(
        move |(
            grant_id,
            (scope, window, meter),
            amount,
            priority,
            (from, life, (later, ends)),
            recurring,
            cap,
        )| {
            let recurring = recurring && window != Window::AllTime;
            let effective_ms = if later { start + from } else { 0 };
            GrantTerms {
                grant_id,
                scope,
                window,
                meter,
                amount,
                priority,
                effective_ms,
                expires_ms: if ends { start + from + life } else { 0 },
                recurring,
                rollover_cap: if recurring { cap } else { 0 },
            }
        },
    )
}

/// The hold that an action names.
pub(crate) fn hold_of(action: &mut Action) -> Option<&mut HoldId> {
    match action {
        Action::Reserve { hold_id, .. }
        | Action::Extend { hold_id, .. }
        | Action::Settle { hold_id, .. }
        | Action::Draw { hold_id, .. }
        | Action::Void { hold_id }
        | Action::Revoke { hold_id, .. } => Some(hold_id),
        _ => None,
    }
}

/// Turns an action to one scope, and limits and grants to one meter, so that more of them meet.
pub(crate) fn narrow(action: &mut Action) {
    let one = ScopePath::parse("t").unwrap();
    match action {
        Action::SetBudget { scope, .. }
        | Action::RemoveBudget { scope, .. }
        | Action::SetConcurrencyLimit { scope, .. }
        | Action::Reserve { scope, .. }
        | Action::Report { scope, .. } => *scope = one,
        Action::AddGrant(terms) => {
            let terms = Arc::make_mut(terms);
            (terms.scope, terms.meter) = (one, Meter::CpuMs);
        }
        Action::SetRateLimit(limit) => (limit.scope, limit.meter) = (one, Meter::CpuMs),
        Action::SetPrice(price) => price.scope = one,
        Action::Correct(correction) => Arc::make_mut(correction).scope = one,
        _ => {}
    }
}

fn reserve() -> impl Strategy<Value = Action> {
    let holder = || Subject::parse("agent-1").unwrap();
    (hold(), scope(), amounts(12), ttl(), any::<(bool, bool)>()).prop_map(
        move |(hold_id, scope, amounts, ttl, (lease, balancing))| {
            let half: Vec<_> = amounts.iter().map(|(meter, amount)| (meter, amount.div_ceil(2))).collect();
            let at_least = if balancing { Amounts::new(half).unwrap() } else { Amounts::NONE };
            Action::Reserve { hold_id, scope, holder: holder(), amounts, ttl, at_least, lease }
        },
    )
}

fn about_usage(start: u64) -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => reserve().boxed(),
        6 => (hold(), amounts(5), ttl()).prop_map(|(hold_id, added, ttl)| Action::Extend { hold_id, added, ttl }),
        4 => (hold(), amounts(15), source(start)).prop_map(|(hold_id, used, source)| {
            Action::Settle { hold_id, used, source }
        }),
        4 => (hold(), amounts(9), source(start)).prop_map(|(hold_id, used, source)| {
            Action::Draw { hold_id, used, source }
        }),
        2 => hold().prop_map(|hold_id| Action::Void { hold_id }),
        4 => hold().prop_map(|hold_id| Action::Revoke { hold_id, reason: label() }),
        2 => (scope(), amounts(15), source(start)).prop_map(|(scope, used, source)| {
            Action::Report { scope, used, source, subject: Some(label()) }
        }),
        2 => (scope(), amounts(9), any::<bool>(), source(start)).prop_map(|(scope, amounts, added, source)| {
            let (reason, reference) = (label(), None);
            Action::Correct(Arc::new(Correction { scope, amounts, added, reason, reference, source }))
        }),
    ]
}

fn about_settings(start: u64) -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (scope(), terms().boxed()).prop_map(|(scope, terms)| Action::SetBudget { scope, terms: Arc::new(terms) }),
        1 => (scope(), window(), vec(meter(), 0..2)).prop_map(|(scope, window, meters)| {
            Action::RemoveBudget { scope, window, meters }
        }),
        8 => grant(start).boxed().prop_map(|terms| Action::AddGrant(Arc::new(terms))),
        4 => grant_id().prop_map(|grant_id| Action::RevokeGrant { grant_id }),
        3 => (scope(), meter(), 0..9_u64, select(&[7, 1_000, 60_000][..]), 1..25_u64).prop_map(
            |(scope, meter, amount, period_ms, burst)| {
                let (period_ms, burst) = if amount > 0 { (period_ms, burst) } else { (0, 0) };
                Action::SetRateLimit(RateLimit { scope, meter, amount, period_ms, burst })
            }
        ),
        2 => (scope(), 0..4_u64).prop_map(|(scope, max_open_holds)| {
            Action::SetConcurrencyLimit { scope, max_open_holds }
        }),
        2 => (scope(), meter(), 0..4_u64, select(&[0, 1, 2, 3, 7, 1_000_000][..])).prop_map(
            |(scope, meter, micros, per)| {
                let micros = if per > 0 { micros } else { 0 };
                Action::SetPrice(Price { scope, meter, micros, per })
            }
        ),
        2 => Just(Action::DefineMeter { meter: gpu(), description: None }),
        1 => any::<bool>().prop_map(|on| {
            Action::SetWebhook { url: on.then(|| WebhookUrl::parse("https://x.example/").unwrap()) }
        }),
        2 => (1..4_u64).prop_map(|notification| {
            Action::EndNotification { notification, delivered: true, attempts: 1, detail: None }
        }),
    ]
}

pub(crate) fn action(start: u64) -> impl Strategy<Value = Action> {
    prop_oneof![7 => about_usage(start).boxed(), 3 => about_settings(start).boxed()].boxed()
}
