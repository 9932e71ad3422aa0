//! Rate limits, concurrency limits, prices, meters of a tenant's own, webhooks.

use exchequer_budget::{
    Action, Command, Decided, Decision, Denial, Event, Fault, MAX_CUSTOM_METERS, MAX_SCOPES, Meter, Past,
    Price, RateLimit, Refusal, ScopePath, State, Subject, WebhookUrl, Window, decide,
};

use crate::words::*;

fn rate(name: &str, meter: &str, amount: u64, burst: u64) -> Action {
    let period_ms = if amount > 0 { 1_000 } else { 0 };
    let meter = Meter::parse(meter).unwrap();
    Action::SetRateLimit(RateLimit { scope: scope(name), meter, amount, period_ms, burst })
}

fn priced(name: &str, meter: &str, micros: u64, per: u64) -> Action {
    Action::SetPrice(Price { scope: scope(name), meter: Meter::parse(meter).unwrap(), micros, per })
}

fn at_most(name: &str, max_open_holds: u64) -> Action {
    Action::SetConcurrencyLimit { scope: scope(name), max_open_holds }
}

fn define(meter: &str) -> Action {
    Action::DefineMeter { meter: Meter::parse(meter).unwrap(), description: Some(label("what it is")) }
}

#[test]
fn a_rate_limit_refuses_until_it_would_grant_and_grants_then() {
    let mut world = World::at(50_000);
    world.run(set("acme", "cpu_ms=1000"));
    world.run(rate("acme", "invocations", 3, 2));
    // A hold that names no invocations is one.
    world.run(reserve("h1", "acme/a", "cpu_ms=1"));
    world.run(reserve("h2", "acme/b", "cpu_ms=1 invocations=1"));
    let denial = denied(&world.run(reserve("h3", "acme/a", "cpu_ms=1"))).unwrap();
    let (limited, meter) = (scope("acme"), Meter::Invocations);
    let want = Denial::RateLimited { scope: limited, meter, requested: 1, available: 0, retry_after_ms: 334 };
    assert_eq!(denial, want);
    world.now_ms += 333;
    assert!(denied(&world.run(reserve("h3", "acme/a", "cpu_ms=1"))).is_ok());
    world.now_ms += 1;
    assert!(denied(&world.run(reserve("h3", "acme/a", "cpu_ms=1"))).is_err());
    // An extension is no new hold.
    assert!(denied(&world.run(extend("h3", "cpu_ms=1", 1_000))).is_err());
    let never = denied(&world.run(reserve("h4", "acme", "invocations=3"))).unwrap();
    assert!(matches!(never, Denial::RateLimited { retry_after_ms: 0, .. }));
    world.run(rate("acme", "invocations", 0, 0));
    assert!(denied(&world.run(reserve("h4", "acme", "invocations=3"))).is_err());
}

#[test]
fn a_limit_on_open_holds_counts_those_below_and_a_lease_once() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=1000"));
    world.run(at_most("acme/a", 2));
    world.run(lease("l", "acme/a/x", "cpu_ms=9"));
    world.run(draw("l", "cpu_ms=1"));
    world.run(reserve("h1", "acme/a", "cpu_ms=1"));
    let denial = denied(&world.run(reserve("h2", "acme/a/y", "cpu_ms=1")));
    assert_eq!(denial, Ok(Denial::Concurrency { scope: scope("acme/a") }));
    assert!(denied(&world.run(extend("h1", "cpu_ms=1", 1_000))).is_err());
    world.run(reserve("h2", "acme/b", "cpu_ms=1"));
    world.run(void("h1"));
    assert!(denied(&world.run(reserve("h3", "acme/a", "cpu_ms=1"))).is_err());
    world.run(at_most("acme/a", 0));
    assert_eq!(world.state.settings(&scope("acme").tenant_id()).concurrency_limits, []);
}

#[test]
fn what_is_held_and_used_costs_what_the_innermost_price_says() {
    let mut world = World::default();
    world.run(set("acme", "cost_micros=1000"));
    world.run(priced("acme", "input_tokens", 3, 2));
    world.run(priced("acme", "output_tokens", 1, 3));
    world.run(priced("acme/a", "input_tokens", 10, 1));
    // 5·3/2 + 1/3 = 7⅚, rounded up once.
    let events = world.run(reserve("h1", "acme", "input_tokens=5 output_tokens=1"));
    assert_eq!(held(&events), amounts("input_tokens=5 output_tokens=1 cost_micros=8"));
    let events = world.run(reserve("h2", "acme/a/x", "input_tokens=5 cost_micros=1"));
    assert_eq!(held(&events), amounts("input_tokens=5 cost_micros=51"));
    let denial = denied(&world.run(reserve("h3", "acme/a", "input_tokens=95")));
    assert_eq!(denial, Ok(exhausted("acme", Meter::CostMicros, 950, 941)));
    // At the prices of then; but a cost that is given is the cost.
    world.run(priced("acme", "input_tokens", 4, 1));
    world.run(settle("h1", "input_tokens=5"));
    world.run(settle("h2", "input_tokens=5 cost_micros=7"));
    assert_eq!(world.balance("acme", Window::AllTime, Meter::CostMicros), [1000, 973, 0, 27, 0]);
    world.run(priced("acme", "input_tokens", 0, 0));
    world.run(report("acme", "input_tokens=5"));
    assert_eq!(world.balance("acme", Window::AllTime, Meter::CostMicros)[3], 27);
}

#[test]
fn a_meter_of_the_tenant_s_own_is_defined_before_it_is_used() {
    let mut world = World::default();
    assert_eq!(refused(&world.run(set("acme", "gpu_ms=5"))), Refusal::UnknownMeter);
    world.run(define("gpu_ms"));
    world.run(set("acme", "gpu_ms=5 cpu_ms=9"));
    world.run(reserve("h", "acme", "gpu_ms=4"));
    let gpu = Meter::parse("gpu_ms").unwrap();
    assert_eq!(denied(&world.run(reserve("h2", "acme", "gpu_ms=2"))), Ok(exhausted("acme", gpu, 2, 1)));
    for action in [
        reserve("h3", "acme", "disk_ms=1"),
        extend("h", "disk_ms=1", 1_000),
        settle("h", "disk_ms=1"),
        report("acme", "disk_ms=1"),
        rate("acme", "disk_ms", 1, 1),
        priced("acme", "disk_ms", 1, 1),
    ] {
        assert_eq!(refused(&world.run(action)), Refusal::UnknownMeter);
    }
    world.run(settle("h", "gpu_ms=1"));
    assert_eq!(world.balance("acme", Window::AllTime, gpu), [5, 4, 0, 1, 0]);
    let tenant = scope("acme").tenant_id();
    assert!(world.state.defines(&tenant, gpu) && !world.state.defines(&scope("b").tenant_id(), gpu));
    assert_eq!(world.state.settings(&tenant).meters, [(gpu, Some(label("what it is")))]);
}

#[test]
fn a_tenant_defines_no_more_meters_than_it_may_have() {
    let mut world = World::default();
    for n in 0..MAX_CUSTOM_METERS {
        world.run(define(&format!("m{n}")));
    }
    assert_eq!(refused(&world.run(define("one_more"))), Refusal::TooMany);
    assert!(matches!(world.run(define("m1"))[0], Event::MeterDefined { .. }), "describing anew is no more");
}

#[test]
fn a_command_that_fits_no_tenant_or_asks_for_nothing_is_none() {
    use exchequer_budget::{Command, Subject};
    let of = |action| {
        let tenant = scope("acme").tenant_id();
        Command::new(tenant, Subject::metering(), None, action)
            .err()
            .map(|invalid| (invalid.field, invalid.fault))
    };
    let too_large = Fault::OutOfRange { min: 1, max: 86_400_000 };
    let limit = RateLimit { scope: scope("acme"), meter: Meter::CpuMs, amount: 1, period_ms: 0, burst: 1 };
    for (action, field, fault) in [
        (reserve("h", "other", "cpu_ms=1"), "scope", Fault::OutsideTenant),
        (reserve("h", "acme", ""), "amounts", Fault::Empty),
        (set("acme", ""), "granted", Fault::Empty),
        (set_terms("acme", over(Window::Day, "Mars/Olympus", "cpu_ms=1")), "time_zone", Fault::UnknownZone),
        (set_terms("acme", over(Window::AllTime, "UTC", "cpu_ms=1")), "time_zone", Fault::Unexpected),
        (report("acme", ""), "used", Fault::Empty),
        (Action::SetRateLimit(limit), "limit.period_ms", too_large),
        (priced("acme", "cost_micros", 1, 1), "price.meter", Fault::Unexpected),
        (define("cpu_ms"), "meter.meter", Fault::Unexpected),
    ] {
        assert_eq!(of(action), Some((field.to_owned(), fault)), "{field}");
    }
}

#[test]
fn a_webhook_is_one_per_tenant() {
    let mut world = World::default();
    let url = WebhookUrl::parse("https://hooks.example/").unwrap();
    world.run(Action::SetWebhook { url: Some(url.clone()) });
    assert_eq!(world.state.webhook(&scope("acme").tenant_id()), Some(&url));
    world.run(Action::SetWebhook { url: None });
    assert_eq!(world.state.webhook(&scope("acme").tenant_id()), None);
}

#[test]
fn a_tenant_has_no_more_scopes_than_it_may_have_and_settles_all_the_same() {
    let tenant = scope("acme").tenant_id();
    let mut state = State::default();
    let ask = |state: &mut State, action: Action| {
        let tenant = action.scope().map_or_else(|| tenant.clone(), ScopePath::tenant_id);
        let command = Command::new(tenant.clone(), Subject::parse("agent-1").unwrap(), None, action).unwrap();
        let Ok(Decided::New(decision)) = decide(state, &Past::default(), &command, 0) else { unreachable!() };
        state.record(&decision, &tenant, 0);
        decision.events
    };
    ask(&mut state, set("acme", "cpu_ms=5"));
    ask(&mut state, reserve("h", "acme/held", "cpu_ms=1"));
    let reported = |n| Event::UsageReported {
        scope: scope(&format!("acme/{n}")),
        used: amounts("cpu_ms=1"),
        source: None,
        uncharged: Vec::new(),
        subject: None,
    };
    let events = (3..MAX_SCOPES).map(reported).collect();
    state.record(&Decision { idempotency: None, actor: Subject::metering(), events }, &tenant, 0);
    let field = |events: &[Event]| match &events[0] {
        Event::CommandRefused { refusal: Refusal::TooMany, field, .. } => field.as_ref().unwrap().to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&ask(&mut state, report("acme/a/b", "cpu_ms=1"))), "scope", "it would make two");
    ask(&mut state, report("acme/a", "cpu_ms=1"));
    for (action, want) in [
        (report("acme/b", "cpu_ms=1"), "scope"),
        (reserve("h2", "acme/b", "cpu_ms=1"), "scope"),
        (set("acme/b", "cpu_ms=1"), "scope"),
        (rate("acme/b", "cpu_ms", 1, 1), "limit.scope"),
        (priced("acme/b", "cpu_ms", 1, 1), "price.scope"),
        (at_most("acme/b", 1), "limit.scope"),
    ] {
        assert_eq!(field(&ask(&mut state, action)), want);
    }
    assert!(matches!(ask(&mut state, report("acme/a", "cpu_ms=1"))[0], Event::UsageReported { .. }));
    assert!(
        matches!(ask(&mut state, report("b/a", "cpu_ms=1"))[0], Event::UsageReported { .. }),
        "another's"
    );
    assert!(matches!(ask(&mut state, settle("h", "cpu_ms=9"))[0], Event::HoldSettled { .. }));
    assert_eq!(state.check(), Ok(()));
}

#[test]
fn removing_what_is_not_there_makes_no_scope() {
    let mut world = World::default();
    let nothing = world.state.encode().len();
    for action in [rate("acme/a", "cpu_ms", 0, 0), priced("acme/b", "cpu_ms", 0, 0), at_most("acme/c", 0)] {
        world.run(action);
        assert_eq!(world.state.encode().len(), nothing);
    }
}
