//! Files of budgets: what they say, and every fault of them.

use super::*;

const EXAMPLE: &str = include_str!("../../../../../docs/budgets.yaml");

#[test]
fn the_documented_example_says_what_it_seems_to_say() {
    let plans = read(EXAMPLE).unwrap();
    assert_eq!(plans.keys().collect::<Vec<_>>(), ["acme", "globex"]);
    let acme = &plans["acme"];
    assert_eq!(acme.webhook.as_deref(), Some("https://hooks.acme.example/budgets"));
    assert_eq!(acme.meters[0].meter, "gpu_ms");
    assert_eq!((acme.prices[0].micros, acme.prices[0].per), (3, 1000));
    assert_eq!((acme.rate_limits[0].period_ms, acme.rate_limits[0].burst), (60_000, 20));
    assert_eq!(acme.concurrency_limits[0].max_open_holds, 50);
    let month = &acme.budgets[0];
    assert_eq!(
        (month.scope.as_str(), month.window(), &*month.time_zone),
        ("acme", Window::Month, "Europe/Vienna")
    );
    assert_eq!(month.granted.len(), 2);
    assert_eq!(month.overage(), Overage::Overdraft);
    assert_eq!((month.overdraft[0].amount, month.rollover_cap[0].amount), (50_000_000, 100_000_000));
    assert_eq!(month.thresholds.len(), 3);
    let grant = &acme.grants[0];
    assert_eq!((grant.grant_id.as_str(), grant.meter.as_str()), ("onboarding-2026", "cost_micros"));
    assert!(grant.expires_unix_ms > grant.effective_unix_ms && grant.window() == Window::Month);
    assert_eq!(plans["globex"].budgets[0].enforcement(), Enforcement::Shadow);
}

fn faults(text: &str) -> Vec<String> {
    read(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_is_told_at_once_with_its_path_and_line() {
    let text = "\
version: 1
tenants:
  acme:
    webhook: ftp://x
    meters:
      cpu_ms: own
      Bad: x
    prices:
      - {scope: globex, meter: cost_micros, micros: x}
    rate_limits:
      - {scope: acme, meter: invocations, amount: 0, period: 25h}
      - {scope: acme, meter: invocations, amount: 1, period: 1s}
    concurrency_limits: 5
    budgets:
      - scope: acme
        time_zone: UTC
        carry_debt: true
        amounts:
          cpu_ms: {granted: 5, overdraft: 1, rollover_cap: 1, held: 2}
          wall_ms: lots
        thresholds: [50%, forecast 10%, 50%, x]
        grants:
          - {id: a b, meter: gpu_ms, amount: 0, recurring: true}
          - {id: g, meter: cpu_ms, amount: 1, effective: 2026-02-01, expires: 2026-01-01, rollover_cap: 3}
      - {scope: acme, window: year, amounts: {cpu_ms: 1}}
      - {scope: acme, amounts: {}}
      - {window: day, time_zone: Europe/Wien, amounts: {cpu_ms: 1}}
  Ac/me: {}
";
    let expected = [
        "line 1: version: there is no such field",
        "line 4: tenants.acme.webhook: is not an http or https URL; or `none`",
        "line 6: tenants.acme.meters.cpu_ms: is one of the product's own",
        "line 7: tenants.acme.meters.Bad: must match [a-z][a-z0-9_]{0,31}",
        "line 9: tenants.acme.prices[0].meter: what costs is priced, and not the cost",
        "line 9: tenants.acme.prices[0].micros: expected a whole number, such as 5000 or 5_000",
        "line 9: tenants.acme.prices[0].scope: must begin with the tenant, `acme`",
        "line 11: tenants.acme.rate_limits[0].amount: must be above zero",
        "line 11: tenants.acme.rate_limits[0].period: must be 1ms to 24h",
        "line 12: tenants.acme.rate_limits[1]: the rate limit of invocations at acme is given on line 11 already",
        "line 13: tenants.acme.concurrency_limits: expected a list",
        "line 16: tenants.acme.budgets[0].time_zone: is only with a window",
        "line 17: tenants.acme.budgets[0].carry_debt: is only with a window",
        "line 19: tenants.acme.budgets[0].amounts.cpu_ms.held: there is no such field",
        "line 19: tenants.acme.budgets[0].amounts.cpu_ms.overdraft: is only with overage: overdraft",
        "line 19: tenants.acme.budgets[0].amounts.cpu_ms.rollover_cap: is only with a window",
        "line 20: tenants.acme.budgets[0].amounts.wall_ms: expected a whole number, such as 5000 or 5_000",
        "line 21: tenants.acme.budgets[0].thresholds[1]: a forecast is only with a window",
        "line 21: tenants.acme.budgets[0].thresholds[2]: is given twice",
        "line 21: tenants.acme.budgets[0].thresholds[3]: expected a threshold such as 80%, 4000 or \"forecast 100%\"",
        "line 23: tenants.acme.budgets[0].grants[0].amount: must be above zero",
        "line 23: tenants.acme.budgets[0].grants[0].id: contains a character that is not allowed",
        "line 23: tenants.acme.budgets[0].grants[0].meter: is none of this budget's",
        "line 23: tenants.acme.budgets[0].grants[0].recurring: is only with a window",
        "line 24: tenants.acme.budgets[0].grants[1].expires: must be after effective",
        "line 24: tenants.acme.budgets[0].grants[1].rollover_cap: is only with recurring: true",
        "line 25: tenants.acme.budgets[1]: the budget of acme, lifetime, is given on line 15 already",
        "line 25: tenants.acme.budgets[1].window: expected one of lifetime, hour, day, week, month",
        "line 26: tenants.acme.budgets[2]: the budget of acme, lifetime, is given on line 15 already",
        "line 26: tenants.acme.budgets[2].amounts: names no meter",
        "line 27: tenants.acme.budgets[3].scope: is missing",
        "line 27: tenants.acme.budgets[3].time_zone: is not a known IANA time zone",
    ];
    let found = faults(text);
    for fault in expected {
        assert!(found.iter().any(|found| found == fault), "{fault}\nnot in {found:#?}");
    }
    assert!(found.last().unwrap().starts_with("line 28: tenants.Ac/me: "), "{found:#?}");
    assert_eq!(found.len(), expected.len() + 1, "{found:#?}");
}

#[test]
fn what_is_no_such_file_is_one_fault() {
    assert_eq!(faults(""), ["line 1: expected fields with values"]);
    assert_eq!(faults("a: [1"), faults("a: [1").iter().take(1).cloned().collect::<Vec<_>>());
    assert_eq!(faults("{}"), ["line 1: tenants: is missing"]);
    assert!(faults(&"#".repeat(yaml::MAX_BYTES + 1))[0].contains("larger than"));
}

#[test]
fn a_tenant_that_is_only_named_wants_nothing() {
    assert_eq!(read("tenants:\n  acme:\n").unwrap()["acme"], Plan::default());
    let none = read("tenants: {acme: {webhook: none}}").unwrap();
    assert_eq!(none["acme"].webhook.as_deref(), Some(""));
}
