//! What tenant admins set: budgets with windows, grants, limits, prices, meters, webhooks.

use exchequer_auth::Role;
use exchequer_event::v1::{
    self, DenialReason, Enforcement, Overage, Window, reserve_response::Outcome, threshold::At,
};
use tonic::{Code, Status};

use crate::{
    calls::fields,
    world::{Client, Running, World, amounts, denied, granted, reserve, set},
};

fn chief(world: &World, running: &Running) -> Client {
    world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin])
}

fn monthly(scope: &str) -> v1::SetBudgetRequest {
    v1::SetBudgetRequest {
        window: Window::Month.into(),
        time_zone: "Europe/Vienna".to_owned(),
        enforcement: Enforcement::Soft.into(),
        overage: Overage::Overdraft.into(),
        overdraft: amounts(&[("cpu_ms", 5)]),
        rollover_cap: amounts(&[("cpu_ms", 20)]),
        carry_debt: true,
        thresholds: vec![v1::Threshold { at: Some(At::SpentPercent(80)) }],
        ..set(scope, &[("cpu_ms", 100)])
    }
}

fn grant(grant_id: &str) -> v1::AddGrantRequest {
    let grant = v1::GrantAdded {
        grant_id: grant_id.to_owned(),
        scope: "acme".to_owned(),
        meter: "cpu_ms".to_owned(),
        amount: 50,
        ..v1::GrantAdded::default()
    };
    v1::AddGrantRequest { grant: Some(grant), idempotency_key: String::new() }
}

fn rate(amount: u64, period_ms: u64, burst: u64) -> v1::SetRateLimitRequest {
    let meter = "invocations".to_owned();
    let limit = v1::RateLimitSet { scope: "acme".to_owned(), meter, amount, period_ms, burst };
    v1::SetRateLimitRequest { limit: Some(limit), idempotency_key: String::new() }
}

fn open_holds(max_open_holds: u64) -> v1::SetConcurrencyLimitRequest {
    let limit = v1::ConcurrencyLimitSet { scope: "acme".to_owned(), max_open_holds };
    v1::SetConcurrencyLimitRequest { limit: Some(limit), idempotency_key: String::new() }
}

fn price(meter: &str, micros: u64, per: u64) -> v1::SetPriceRequest {
    let price = v1::PriceSet { scope: "acme".to_owned(), meter: meter.to_owned(), micros, per };
    v1::SetPriceRequest { price: Some(price), idempotency_key: String::new() }
}

fn meter(name: &str) -> v1::DefineMeterRequest {
    let description = "Time on a GPU, milliseconds".to_owned();
    let meter = v1::MeterDefined { tenant: "acme".to_owned(), meter: name.to_owned(), description };
    v1::DefineMeterRequest { meter: Some(meter), idempotency_key: String::new() }
}

fn webhook(url: &str) -> v1::SetWebhookRequest {
    let webhook = v1::WebhookSet { tenant: "acme".to_owned(), url: url.to_owned() };
    v1::SetWebhookRequest { webhook: Some(webhook), idempotency_key: String::new() }
}

fn remove(window: Window, meters: &[&str]) -> v1::RemoveBudgetRequest {
    v1::RemoveBudgetRequest {
        scope: "acme".to_owned(),
        window: window.into(),
        meters: meters.iter().map(|meter| (*meter).to_owned()).collect(),
        idempotency_key: String::new(),
    }
}

async fn budgets(client: &mut Client) -> Vec<v1::Budget> {
    let request = v1::GetBudgetRequest { scope: "acme".to_owned() };
    match client.get_budget(request).await {
        Ok(response) => response.into_inner().budgets,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            Vec::new()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_has_budgets_over_several_windows_until_they_are_removed() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut chief = chief(&world, &running);
    let first = chief.set_budget(monthly("acme")).await.unwrap().into_inner().budget.unwrap();
    assert_eq!((first.window(), &*first.time_zone), (Window::Month, "Europe/Vienna"));
    assert_eq!(
        (first.enforcement(), first.overage(), first.carry_debt),
        (Enforcement::Soft, Overage::Overdraft, true)
    );
    assert!(first.window_start_unix_ms < first.window_end_unix_ms);
    assert_eq!((first.balances[0].overdraft, first.balances[0].rollover_cap), (5, 20));
    assert_eq!(first.thresholds, [v1::Threshold { at: Some(At::SpentPercent(80)) }]);
    let daily =
        v1::SetBudgetRequest { window: Window::Day.into(), ..set("acme", &[("cpu_ms", 10), ("wall_ms", 9)]) };
    let daily = chief.set_budget(daily).await.unwrap().into_inner().budget.unwrap();
    assert_eq!(daily.time_zone, "UTC");
    // Without one over all time, the longest window's is the budget.
    let request = v1::GetBudgetRequest { scope: "acme".to_owned() };
    let found = chief.get_budget(request.clone()).await.unwrap().into_inner();
    assert_eq!(found.budget.unwrap().window(), Window::Month);
    chief.set_budget(set("acme", &[("cpu_ms", 1000)])).await.unwrap();
    let found = chief.get_budget(request).await.unwrap().into_inner();
    assert_eq!(found.budget.unwrap().window(), Window::Unspecified);
    let windows: Vec<_> = found.budgets.iter().map(v1::Budget::window).collect();
    assert_eq!(windows, [Window::Unspecified, Window::Day, Window::Month]);

    // Pages are by scope and window.
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListBudgetsRequest { tenant: String::new(), page_size: 1, page_token };
        let page = chief.list_budgets(request).await.unwrap().into_inner();
        seen.extend(page.budgets.iter().map(v1::Budget::window));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, windows);

    // What binds is the narrowest.
    let mut agent = world.agent(&running);
    let refused = denied(agent.reserve(reserve("acme", &[("cpu_ms", 11)], "a")).await.unwrap().into_inner());
    assert_eq!((refused.binding_window(), refused.available), (Window::Day, 10));
    let removed = chief.remove_budget(remove(Window::Day, &["cpu_ms"])).await.unwrap().into_inner();
    assert_eq!(removed.removed.unwrap().meters, ["cpu_ms"]);
    let over = agent.reserve(reserve("acme", &[("cpu_ms", 111)], "b")).await.unwrap().into_inner();
    let over = granted(over);
    assert_eq!(
        (over.exceeded.len(), over.exceeded[0].window()),
        (1, Window::Month),
        "soft: granted, and told"
    );
    chief.remove_budget(remove(Window::Day, &[])).await.unwrap();
    chief.remove_budget(remove(Window::Month, &[])).await.unwrap();
    chief.remove_budget(remove(Window::Unspecified, &[])).await.unwrap();
    assert_eq!(budgets(&mut chief).await, []);
    let again = chief.remove_budget(remove(Window::Day, &[])).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_limits_prices_and_meters_do_what_they_say() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut chief, mut admin, mut agent) =
        (chief(&world, &running), world.admin(&running), world.agent(&running));
    chief.set_budget(set("acme", &[("cpu_ms", 10), ("cost_micros", 1_000)])).await.unwrap();
    let added = chief.add_grant(grant("g-1")).await.unwrap().into_inner();
    assert!(added.stream_seq > 0 && added.grant.unwrap().effective_unix_ms > 0);
    assert_eq!(budgets(&mut chief).await[0].balances[0].granted, 60);
    assert_eq!(chief.add_grant(grant("g-1")).await.unwrap_err().code(), Code::AlreadyExists);
    let revoke = |grant_id: &str| v1::RevokeGrantRequest {
        tenant: "acme".to_owned(),
        grant_id: grant_id.to_owned(),
        idempotency_key: String::new(),
    };
    let ended = chief.revoke_grant(revoke("g-1")).await.unwrap().into_inner().ended.unwrap();
    assert_eq!((ended.revoked, ended.remainder), (true, 50));
    for grant_id in ["g-1", "g-2"] {
        assert_eq!(chief.revoke_grant(revoke(grant_id)).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(budgets(&mut chief).await[0].balances[0].granted, 10);

    admin.set_price(price("cpu_ms", 3, 2)).await.unwrap();
    let hold = granted(agent.reserve(reserve("acme", &[("cpu_ms", 5)], "a")).await.unwrap().into_inner());
    assert_eq!(hold.amounts, amounts(&[("cpu_ms", 5), ("cost_micros", 8)]));

    chief.set_concurrency_limit(open_holds(1)).await.unwrap();
    let refused = denied(agent.reserve(reserve("acme", &[("cpu_ms", 1)], "b")).await.unwrap().into_inner());
    assert_eq!(refused.reason(), DenialReason::Concurrency);
    chief.set_concurrency_limit(open_holds(0)).await.unwrap();
    chief.set_rate_limit(rate(1, 86_400_000, 1)).await.unwrap();
    granted(agent.reserve(reserve("acme", &[("cpu_ms", 1)], "c")).await.unwrap().into_inner());
    let refused = denied(agent.reserve(reserve("acme", &[("cpu_ms", 1)], "d")).await.unwrap().into_inner());
    assert_eq!(refused.reason(), DenialReason::RateLimited);
    assert!(refused.retry_after_ms > 0);

    let unknown = agent.reserve(reserve("acme", &[("gpu_ms", 1)], "e")).await.unwrap_err();
    assert_eq!(
        (unknown.code(), fields(&unknown)),
        (Code::InvalidArgument, vec!["amounts[0].meter".to_owned()])
    );
    chief.define_meter(meter("gpu_ms")).await.unwrap();
    chief.set_webhook(webhook("https://hooks.example/budgets?team=1")).await.unwrap();
    chief.set_rate_limit(rate(60, 60_000, 10)).await.unwrap();
    chief.set_concurrency_limit(open_holds(7)).await.unwrap();
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let settings = user.get_settings(v1::GetSettingsRequest::default()).await.unwrap().into_inner();
    assert_eq!(settings.rate_limits, [rate(60, 60_000, 10).limit.unwrap()]);
    assert_eq!(settings.concurrency_limits, [open_holds(7).limit.unwrap()]);
    assert_eq!(settings.prices, [price("cpu_ms", 3, 2).price.unwrap()]);
    assert_eq!(settings.meters, [meter("gpu_ms").meter.unwrap()]);
    assert_eq!(settings.webhook, webhook("https://hooks.example/budgets?team=1").webhook);
    chief.set_webhook(webhook("")).await.unwrap();
    admin.set_price(price("cpu_ms", 0, 0)).await.unwrap();
    chief.set_rate_limit(rate(0, 0, 0)).await.unwrap();
    let settings = user.get_settings(v1::GetSettingsRequest::default()).await.unwrap().into_inner();
    assert_eq!((settings.webhook, settings.prices, settings.rate_limits), (None, vec![], vec![]));

    // A dry run says what would be, and is nothing.
    let asked = v1::ReserveRequest { dry_run: true, ..reserve("acme", &[("cpu_ms", 4)], "") };
    let before = running.service.position();
    let would = agent.reserve(asked.clone()).await.unwrap().into_inner();
    assert_eq!(would.stream_seq, 0);
    let hold_id = granted(would).hold_id;
    let none = admin.get_hold(v1::GetHoldRequest { hold_id }).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let too_much = v1::ReserveRequest { amounts: amounts(&[("cpu_ms", 5)]), ..asked.clone() };
    assert!(matches!(agent.reserve(too_much).await.unwrap().into_inner().outcome, Some(Outcome::Denied(_))));
    assert_eq!(user.reserve(asked).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(running.service.position(), before);

    // Balancing holds what is left, unless that is too little.
    let balancing = |least: u64, key: &str| v1::ReserveRequest {
        at_least: amounts(&[("cpu_ms", least)]),
        ..reserve("acme", &[("cpu_ms", 100)], key)
    };
    let refused = denied(agent.reserve(balancing(5, "f")).await.unwrap().into_inner());
    assert_eq!(refused.available, 4);
    let hold = granted(agent.reserve(balancing(4, "g")).await.unwrap().into_inner());
    assert_eq!(hold.amounts, amounts(&[("cpu_ms", 4)]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_the_tenants_own_and_prices_the_operators() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut chief = chief(&world, &running);
    chief.set_budget(set("acme", &[("cpu_ms", 10)])).await.unwrap();
    chief.add_grant(grant("g")).await.unwrap();
    let before = running.service.position().blocks;
    let mut clients = [
        world.client(running.address, "c", Some("zeta"), &[Role::TenantAdmin]),
        world.client(running.address, "u", Some("acme"), &[Role::User]),
        world.client(running.address, "agent-1", None, &[Role::Agent]),
        world.client(running.address, "a", None, &[Role::Auditor]),
    ];
    let revoke = v1::RevokeGrantRequest {
        tenant: "acme".to_owned(),
        grant_id: "g".to_owned(),
        idempotency_key: String::new(),
    };
    for client in &mut clients {
        let refused: Vec<Status> = vec![
            client.set_budget(set("acme", &[("cpu_ms", 1)])).await.unwrap_err(),
            client.remove_budget(remove(Window::Unspecified, &[])).await.unwrap_err(),
            client.add_grant(grant("h")).await.unwrap_err(),
            client.revoke_grant(revoke.clone()).await.unwrap_err(),
            client.set_rate_limit(rate(1, 1, 1)).await.unwrap_err(),
            client.set_concurrency_limit(open_holds(1)).await.unwrap_err(),
            client.set_price(price("cpu_ms", 1, 1)).await.unwrap_err(),
            client.define_meter(meter("gpu_ms")).await.unwrap_err(),
            client.set_webhook(webhook("https://hooks.example/")).await.unwrap_err(),
        ];
        for status in refused {
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        }
    }
    assert_eq!(chief.set_price(price("cpu_ms", 1, 1)).await.unwrap_err().code(), Code::PermissionDenied);
    let of = |tenant: &str| v1::GetSettingsRequest { tenant: tenant.to_owned() };
    assert_eq!(clients[0].get_settings(of("acme")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(clients[2].get_settings(of("acme")).await.unwrap_err().code(), Code::PermissionDenied);
    clients[3].get_settings(of("acme")).await.unwrap();
    assert_eq!(running.service.position().blocks, before, "nothing was recorded");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_badly_is_refused_with_the_paths_of_its_faults() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let before = running.service.position();
    let check = |result: Result<(), Status>, paths: &[&str]| {
        let status = result.expect_err(&format!("{paths:?}"));
        assert_eq!(
            (status.code(), fields(&status)),
            (Code::InvalidArgument, paths.iter().map(|path| (*path).to_owned()).collect()),
            "{status:?}"
        );
    };
    let threshold = |at| v1::SetBudgetRequest { thresholds: vec![v1::Threshold { at }], ..monthly("acme") };
    let wrong_budgets = [
        (v1::SetBudgetRequest::default(), vec!["scope", "granted"]),
        (v1::SetBudgetRequest { window: 99, ..monthly("acme") }, vec!["window"]),
        (v1::SetBudgetRequest { enforcement: -1, ..monthly("acme") }, vec!["enforcement"]),
        (v1::SetBudgetRequest { time_zone: "Mars/Base".to_owned(), ..monthly("acme") }, vec!["time_zone"]),
        (
            v1::SetBudgetRequest { time_zone: "../etc/passwd".to_owned(), ..monthly("acme") },
            vec!["time_zone"],
        ),
        (
            v1::SetBudgetRequest { time_zone: "UTC".to_owned(), ..set("acme", &[("cpu_ms", 1)]) },
            vec!["time_zone"],
        ),
        (
            v1::SetBudgetRequest { overdraft: amounts(&[("wall_ms", 1)]), ..monthly("acme") },
            vec!["overdraft"],
        ),
        (
            v1::SetBudgetRequest { overdraft: amounts(&[("cpu_ms", u64::MAX)]), ..monthly("acme") },
            vec!["overdraft[0].amount"],
        ),
        (
            v1::SetBudgetRequest { rollover_cap: amounts(&[("x-y", 1)]), ..monthly("acme") },
            vec!["rollover_cap[0].meter"],
        ),
        (v1::SetBudgetRequest { carry_debt: true, ..set("acme", &[("cpu_ms", 1)]) }, vec!["carry_debt"]),
        (threshold(None), vec!["thresholds[0].at"]),
        (threshold(Some(At::SpentPercent(0))), vec!["thresholds[0].spent_percent"]),
        (threshold(Some(At::ForecastPercent(1001))), vec!["thresholds[0].forecast_percent"]),
        (set("a/b/c/d/e/f/g", &[("cpu_ms", 1)]), vec!["scope"]),
    ];
    for (request, paths) in wrong_budgets {
        check(admin.set_budget(request).await.map(drop), &paths);
    }
    let removals = [
        (v1::RemoveBudgetRequest::default(), vec!["scope"]),
        (v1::RemoveBudgetRequest { window: 7, ..remove(Window::Day, &[]) }, vec!["window"]),
        (remove(Window::Day, &["cpu_ms", "CPU"]), vec!["meters[1]"]),
        (remove(Window::Day, &["cpu_ms", "cpu_ms"]), vec!["meters[1]"]),
    ];
    for (request, paths) in removals {
        check(admin.remove_budget(request).await.map(drop), &paths);
    }
    let change = |change: fn(&mut v1::GrantAdded)| {
        let mut request = grant("g");
        change(request.grant.as_mut().unwrap());
        request
    };
    let grants = [
        (v1::AddGrantRequest::default(), vec!["grant"]),
        (change(|grant| grant.grant_id.clear()), vec!["grant.grant_id"]),
        (change(|grant| grant.scope = "acme//x".to_owned()), vec!["grant.scope"]),
        (change(|grant| grant.window = 12), vec!["grant.window"]),
        (change(|grant| grant.meter = "CPU".to_owned()), vec!["grant.meter"]),
        (change(|grant| grant.amount = 0), vec!["grant.amount"]),
        (change(|grant| grant.amount = u64::MAX), vec!["grant.amount"]),
        (
            change(|grant| (grant.effective_unix_ms, grant.expires_unix_ms) = (2, 1)),
            vec!["grant.expires_unix_ms"],
        ),
        (change(|grant| grant.recurring = true), vec!["grant.recurring"]),
        (change(|grant| grant.rollover_cap = 1), vec!["grant.rollover_cap"]),
    ];
    for (request, paths) in grants {
        check(admin.add_grant(request).await.map(drop), &paths);
    }
    let rates = [
        (v1::SetRateLimitRequest::default(), vec!["limit"]),
        (rate(1, 0, 1), vec!["limit.period_ms"]),
        (rate(1, u64::MAX, 1), vec!["limit.period_ms"]),
        (rate(1, 1, 0), vec!["limit.burst"]),
        (rate(u64::MAX, 1, 1), vec!["limit.amount"]),
    ];
    for (request, paths) in rates {
        check(admin.set_rate_limit(request).await.map(drop), &paths);
    }
    check(admin.set_concurrency_limit(v1::SetConcurrencyLimitRequest::default()).await.map(drop), &["limit"]);
    let prices = [
        (v1::SetPriceRequest::default(), vec!["price"]),
        (price("cost_micros", 1, 1), vec!["price.meter"]),
        (price("cpu_ms", 1, 0), vec!["price.micros"]),
        (price("cpu_ms", u64::MAX, 1), vec!["price.micros"]),
        (price("cpu_ms", 1, u64::MAX), vec!["price.per"]),
    ];
    for (request, paths) in prices {
        check(admin.set_price(request).await.map(drop), &paths);
    }
    check(admin.define_meter(v1::DefineMeterRequest::default()).await.map(drop), &["meter"]);
    for name in ["cpu_ms", "GPU", "", &"g".repeat(33)] {
        check(admin.define_meter(meter(name)).await.map(drop), &["meter.meter"]);
    }
    check(admin.set_webhook(v1::SetWebhookRequest::default()).await.map(drop), &["webhook"]);
    let long = format!("https://hooks.example/{}", "x".repeat(2048));
    for url in [
        "ftp://hooks.example/",
        "hooks.example",
        "https://",
        "https://user:secret@hooks.example/",
        "https://user@hooks.example/",
        "https://hooks.example/\r\nx",
        &long,
    ] {
        check(admin.set_webhook(webhook(url)).await.map(drop), &["webhook.url"]);
    }
    let reservations = [
        (
            v1::ReserveRequest {
                at_least: amounts(&[("cpu_ms", 2)]),
                ..reserve("acme", &[("cpu_ms", 1)], "k")
            },
            "at_least[0].amount",
        ),
        (
            v1::ReserveRequest {
                at_least: amounts(&[("wall_ms", 1)]),
                ..reserve("acme", &[("cpu_ms", 1)], "k")
            },
            "at_least[0].meter",
        ),
        (
            v1::ReserveRequest {
                at_least: amounts(&[("cpu_ms", 0)]),
                ..reserve("acme", &[("cpu_ms", 1)], "k")
            },
            "at_least[0].amount",
        ),
    ];
    for (request, path) in reservations {
        check(admin.reserve(request).await.map(drop), &[path]);
    }
    assert_eq!(running.service.position(), before, "the state is untouched");

    // What only the state can say is an answer of its own, and changes nothing either.
    let none = admin.add_grant(change(|grant| grant.window = Window::Day.into())).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let undefined = admin.set_budget(set("acme", &[("gpu_ms", 1)])).await.unwrap_err();
    assert_eq!(undefined.code(), Code::InvalidArgument, "{undefined}");
    assert_eq!(budgets_of(&mut admin).await.len(), 1);
    running.stop().await;
}

async fn budgets_of(client: &mut Client) -> Vec<v1::Balance> {
    budgets(client).await.into_iter().flat_map(|budget| budget.balances).collect()
}
