//! The RPCs: what they do, whom they serve, and what they refuse.

use exchequer_auth::{BearerToken, Role};
use exchequer_event::v1::{self, HoldState, metering_service_client::MeteringServiceClient};
use exchequer_testkit::eventually;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::world::{PATIENCE, World, amounts, denied, granted, reserve, set};

pub fn extend(hold_id: &str, added: &[(&str, u64)], key: &str) -> v1::ExtendRequest {
    v1::ExtendRequest {
        hold_id: hold_id.to_owned(),
        amounts: amounts(added),
        ttl_ms: 60_000,
        idempotency_key: key.to_owned(),
    }
}

pub fn settle(hold_id: &str, used: &[(&str, u64)], key: &str) -> v1::SettleRequest {
    v1::SettleRequest {
        hold_id: hold_id.to_owned(),
        used: amounts(used),
        idempotency_key: key.to_owned(),
        source: None,
    }
}

pub fn void(hold_id: &str, key: &str) -> v1::VoidRequest {
    v1::VoidRequest { hold_id: hold_id.to_owned(), idempotency_key: key.to_owned() }
}

pub fn get_hold(hold_id: &str) -> v1::GetHoldRequest {
    v1::GetHoldRequest { hold_id: hold_id.to_owned() }
}

pub fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|details| details.field_violations);
    violations.into_iter().flatten().map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_reserved_extended_settled_voided_and_runs_out() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    let budget = admin.set_budget(set("acme", &[("cpu_ms", 100), ("wall_ms", 1000)])).await.unwrap();
    assert_eq!(budget.into_inner().budget.unwrap().balances[0].available, 100);

    let first = agent.reserve(reserve("acme/py", &[("cpu_ms", 60)], "a")).await.unwrap().into_inner();
    assert!(first.stream_seq > 0);
    let first = granted(first);
    assert_eq!(first.holder, "agent-1");
    let unique = first.hold_id.strip_prefix("0_").expect("the partition's number");
    assert!(exchequer_event::name::is_uuid(unique), "{}", first.hold_id);
    assert_eq!(unique.as_bytes()[14], b'7');

    let refused =
        denied(agent.reserve(reserve("acme/py", &[("cpu_ms", 41)], "b")).await.unwrap().into_inner());
    assert_eq!((&*refused.binding_scope, &*refused.binding_meter), ("acme", "cpu_ms"));
    assert_eq!((refused.requested, refused.available), (41, 40));
    assert_eq!(refused.reason(), v1::DenialReason::Exhausted);

    let extended = agent.extend(extend(&first.hold_id, &[("cpu_ms", 30)], "c")).await.unwrap().into_inner();
    assert!(matches!(extended.outcome, Some(v1::extend_response::Outcome::Extended(_))), "{extended:?}");
    let refused = agent.extend(extend(&first.hold_id, &[("cpu_ms", 11)], "d")).await.unwrap().into_inner();
    assert!(matches!(refused.outcome, Some(v1::extend_response::Outcome::Denied(_))), "{refused:?}");

    let settled = agent.settle(settle(&first.hold_id, &[("cpu_ms", 70)], "e")).await.unwrap().into_inner();
    assert!(!settled.settled.unwrap().late);
    let again = agent.settle(settle(&first.hold_id, &[("cpu_ms", 70)], "f")).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);

    let second = granted(agent.reserve(reserve("acme", &[("cpu_ms", 30)], "g")).await.unwrap().into_inner());
    agent.void(void(&second.hold_id, "h")).await.unwrap();
    let hold = agent.get_hold(get_hold(&second.hold_id)).await.unwrap().into_inner();
    assert_eq!(hold.state(), HoldState::Voided);

    let brief = v1::ReserveRequest { ttl_ms: 1000, ..reserve("acme", &[("cpu_ms", 30)], "i") };
    let third = granted(agent.reserve(brief).await.unwrap().into_inner());
    let client = agent.clone();
    eventually(PATIENCE, || async {
        let hold = client.clone().get_hold(get_hold(&third.hold_id)).await.unwrap().into_inner();
        hold.state() == HoldState::Expired
    })
    .await;
    let late = agent.settle(settle(&third.hold_id, &[("cpu_ms", 5)], "j")).await.unwrap().into_inner();
    assert!(late.settled.unwrap().late);

    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!(usage.spent, amounts(&[("cpu_ms", 75)]));
    assert_eq!((usage.held, usage.open_holds, usage.settled_holds), (vec![], 0, 2));
    let budget = admin.get_budget(v1::GetBudgetRequest { scope: "acme".to_owned() }).await.unwrap();
    let balance = &budget.into_inner().budget.unwrap().balances[0];
    assert_eq!((balance.granted, balance.available, balance.held, balance.spent), (100, 25, 0, 75));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_one_request_for_good() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100), ("wall_ms", 100)])).await.unwrap();

    let request = reserve("acme", &[("cpu_ms", 10), ("wall_ms", 20)], "k");
    let first = agent.reserve(request.clone()).await.unwrap().into_inner();
    let swapped = reserve("acme", &[("wall_ms", 20), ("cpu_ms", 10)], "k");
    for repeated in [request.clone(), swapped] {
        assert_eq!(agent.reserve(repeated).await.unwrap().into_inner(), first);
    }
    let other = agent.reserve(reserve("acme", &[("cpu_ms", 11), ("wall_ms", 20)], "k")).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert!(other.message().contains("`k`"), "{other}");
    let mut another = world.client(running.address, "agent-2", None, &[Role::Agent]);
    assert_eq!(another.reserve(request).await.unwrap_err().code(), Code::AlreadyExists);
    let hold_id = granted(first).hold_id;
    assert_eq!(agent.void(void(&hold_id, "k")).await.unwrap_err().code(), Code::AlreadyExists);

    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!(usage.held, amounts(&[("cpu_ms", 10), ("wall_ms", 20)]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_touches_only_its_own() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    for tenant in ["acme", "acme-2", "zeta"] {
        admin.set_budget(set(tenant, &[("cpu_ms", 100)])).await.unwrap();
    }
    let hold = granted(agent.reserve(reserve("zeta", &[("cpu_ms", 10)], "k")).await.unwrap().into_inner());
    let own = granted(agent.reserve(reserve("acme", &[("cpu_ms", 10)], "k")).await.unwrap().into_inner());

    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    let mut auditor = world.client(running.address, "x", None, &[Role::Auditor]);
    let mut rival = world.client(running.address, "agent-2", None, &[Role::Agent]);

    let budget = |scope: &str| v1::GetBudgetRequest { scope: scope.to_owned() };
    let usage = |scope: &str| v1::GetUsageRequest { scope: scope.to_owned() };
    assert_eq!(user.get_budget(budget("zeta")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(user.get_usage(usage("zeta")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(user.get_usage(usage("acme-2")).await.unwrap_err().code(), Code::PermissionDenied);
    user.get_budget(budget("acme")).await.unwrap();
    user.get_usage(usage("acme/none")).await.unwrap();
    assert_eq!(user.get_budget(budget("acme/none")).await.unwrap_err().code(), Code::NotFound);
    auditor.get_budget(budget("zeta")).await.unwrap();

    // A foreign hold and one that never was are the same to a tenant.
    let unknown = "0190b2a4-0000-7000-8000-00000000000f";
    for hold_id in [&*hold.hold_id, unknown] {
        assert_eq!(user.get_hold(get_hold(hold_id)).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(chief.get_hold(get_hold(hold_id)).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(rival.get_hold(get_hold(hold_id)).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(chief.void(void(hold_id, "n")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(chief.settle(settle(hold_id, &[], "n")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(chief.extend(extend(hold_id, &[], "n")).await.unwrap_err().code(), Code::NotFound);
    }
    user.get_hold(get_hold(&own.hold_id)).await.unwrap();
    assert_eq!(chief.void(void(&own.hold_id, "n")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(rival.void(void(&own.hold_id, "o")).await.unwrap_err().code(), Code::PermissionDenied);

    // Who may do what.
    assert_eq!(
        user.set_budget(set("acme", &[("cpu_ms", 1)])).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        agent.set_budget(set("acme", &[("cpu_ms", 1)])).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        chief.set_budget(set("zeta", &[("cpu_ms", 1)])).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    chief.set_budget(set("acme", &[("cpu_ms", 90)])).await.unwrap();
    let asked = |key| reserve("acme", &[("cpu_ms", 1)], key);
    for client in [&mut user, &mut auditor] {
        assert_eq!(client.reserve(asked("p")).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(client.void(void(&own.hold_id, "p")).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let mine = granted(chief.reserve(asked("q")).await.unwrap().into_inner());
    assert_eq!(mine.holder, "tenant-admin:c");
    let zeta = reserve("zeta", &[("cpu_ms", 1)], "q");
    assert_eq!(chief.reserve(zeta).await.unwrap_err().code(), Code::PermissionDenied);
    let for_other = v1::ReserveRequest { holder: "agent-2".to_owned(), ..asked("r") };
    assert_eq!(agent.reserve(for_other.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(granted(admin.reserve(for_other).await.unwrap().into_inner()).holder, "agent-2");

    // Lists.
    let list = |tenant: &str| v1::ListBudgetsRequest { tenant: tenant.to_owned(), ..Default::default() };
    let scopes = |response: tonic::Response<v1::ListBudgetsResponse>| -> Vec<String> {
        response.into_inner().budgets.into_iter().map(|budget| budget.scope).collect()
    };
    assert_eq!(scopes(user.list_budgets(list("")).await.unwrap()), ["acme"]);
    assert_eq!(scopes(auditor.list_budgets(list("")).await.unwrap()), ["acme", "acme-2", "zeta"]);
    assert_eq!(scopes(auditor.list_budgets(list("zeta")).await.unwrap()), ["zeta"]);
    assert_eq!(user.list_budgets(list("zeta")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(agent.list_budgets(list("")).await.unwrap_err().code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_equals_an_agent_id_is_not_the_agent() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let asked = |key| reserve("acme", &[("cpu_ms", 10)], key);
    let hold_id = granted(agent.reserve(asked("a")).await.unwrap().into_inner()).hold_id;

    let roles: [(Option<&str>, &[Role]); 3] = [
        (Some("acme"), &[Role::TenantAdmin]),
        (Some("acme"), &[Role::User, Role::TenantAdmin]),
        (None, &[Role::Admin]),
    ];
    for (n, (tenant, roles)) in roles.into_iter().enumerate() {
        let mut twin = world.client(running.address, "agent-1", tenant, roles);
        let codes = [
            twin.void(void(&hold_id, &format!("v{n}"))).await.unwrap_err().code(),
            twin.settle(settle(&hold_id, &[("cpu_ms", 0)], &format!("s{n}"))).await.unwrap_err().code(),
            twin.extend(extend(&hold_id, &[], &format!("e{n}"))).await.unwrap_err().code(),
        ];
        assert_eq!(codes, [Code::PermissionDenied; 3], "{roles:?}");
        // Nor can it answer for the agent in advance: a key belongs to who asked first.
        assert_eq!(twin.reserve(asked("a")).await.unwrap_err().code(), Code::AlreadyExists, "{roles:?}");
    }
    let mut chief = world.client(running.address, "agent-1", Some("acme"), &[Role::TenantAdmin]);
    let as_agent = v1::ReserveRequest { holder: "agent-1".to_owned(), ..asked("b") };
    assert_eq!(chief.reserve(as_agent).await.unwrap_err().code(), Code::PermissionDenied);
    let as_itself = v1::ReserveRequest { holder: "tenant-admin:agent-1".to_owned(), ..asked("c") };
    let own = granted(chief.reserve(as_itself).await.unwrap().into_inner()).hold_id;
    assert_eq!(agent.void(void(&own, "d")).await.unwrap_err().code(), Code::PermissionDenied);
    chief.void(void(&own, "f")).await.unwrap();

    // An agent whose subject is spelled like somebody else's name, or is no agent id, is nobody.
    let mut spelled = world.client(running.address, "tenant-admin:agent-1", None, &[Role::Agent]);
    assert_eq!(spelled.reserve(asked("g")).await.unwrap_err().code(), Code::PermissionDenied);

    let hold = agent.get_hold(get_hold(&hold_id)).await.unwrap().into_inner();
    assert_eq!((hold.state(), &*hold.holder), (HoldState::Open, "agent-1"));
    agent.settle(settle(&hold_id, &[("cpu_ms", 7)], "h")).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_budgets_join_without_gap_or_repetition() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    let mut wanted: Vec<_> = (0..7).map(|n| format!("acme/{n}")).collect();
    wanted.push("zeta".to_owned());
    for scope in &wanted {
        admin.set_budget(set(scope, &[("cpu_ms", 1)])).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListBudgetsRequest { tenant: String::new(), page_size: 3, page_token };
        let page = admin.list_budgets(request).await.unwrap().into_inner();
        assert!(page.budgets.len() <= 3);
        seen.extend(page.budgets.into_iter().map(|budget| budget.scope));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, wanted);
    for (page_size, page_token) in [(1001, ""), (1, "zz"), (1, "ff"), (1, "61")] {
        let request =
            v1::ListBudgetsRequest { tenant: String::new(), page_size, page_token: page_token.to_owned() };
        let refused = admin.list_budgets(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{page_size} {page_token}");
        assert_eq!(fields(&refused).len(), 1);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_with_the_paths_of_all_faults() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let blocks = running.service.position().blocks;

    let check = |result: Result<(), Status>, paths: &[&str]| {
        let status = result.expect_err(&format!("{paths:?}"));
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(fields(&status), paths, "{status:?}");
    };
    let good = reserve("acme", &[("cpu_ms", 1)], "k");
    let long = "x".repeat(129);
    let deep = "a/b/c/d/e/f/g";
    let cases: Vec<(v1::ReserveRequest, Vec<&str>)> = vec![
        (v1::ReserveRequest::default(), vec!["scope", "amounts", "ttl_ms", "idempotency_key"]),
        (reserve("", &[("cpu_ms", 1)], "k"), vec!["scope"]),
        (reserve(deep, &[("cpu_ms", 1)], "k"), vec!["scope"]),
        (reserve("acme//x", &[("cpu_ms", 1)], "k"), vec!["scope"]),
        (reserve("acmé", &[("cpu_ms", 1)], "k"), vec!["scope"]),
        (reserve("acme", &[], "k"), vec!["amounts"]),
        (reserve("acme", &[("cpu_ms", 0)], "k"), vec!["amounts[0].amount"]),
        (reserve("acme", &[("cpu_ms", u64::MAX)], "k"), vec!["amounts[0].amount"]),
        (reserve("acme", &[("cpu_ms", 1), ("CPU", 1)], "k"), vec!["amounts[1].meter"]),
        (reserve("acme", &[("cpu_ms", 1), ("cpu_ms", 1)], "k"), vec!["amounts[1].meter"]),
        (reserve("acme", &[("cpu_ms", 1); exchequer_budget::MAX_METERS + 1], "k"), vec!["amounts"]),
        (reserve("acme", &[("cpu_ms", 1)], ""), vec!["idempotency_key"]),
        (reserve("acme", &[("cpu_ms", 1)], &long), vec!["idempotency_key"]),
        (reserve("acme", &[("cpu_ms", 1)], "a\nb"), vec!["idempotency_key"]),
        (v1::ReserveRequest { ttl_ms: 999, ..good.clone() }, vec!["ttl_ms"]),
        (v1::ReserveRequest { ttl_ms: u64::MAX, ..good.clone() }, vec!["ttl_ms"]),
        (v1::ReserveRequest { holder: "a\0".to_owned(), ..good.clone() }, vec!["holder"]),
    ];
    for (request, paths) in cases {
        check(admin.reserve(request).await.map(drop), &paths);
    }
    check(admin.set_budget(set("", &[])).await.map(drop), &["scope", "granted"]);
    check(admin.set_budget(set("acme", &[("cpu_ms", 1 << 63)])).await.map(drop), &["granted[0].amount"]);
    check(
        admin.extend(extend("a b", &[("X", 1)], "")).await.map(drop),
        &["hold_id", "amounts[0].meter", "idempotency_key"],
    );
    check(
        admin.settle(settle("", &[("X", 1)], "")).await.map(drop),
        &["hold_id", "used[0].meter", "idempotency_key"],
    );
    check(admin.void(void("", "")).await.map(drop), &["hold_id", "idempotency_key"]);
    check(admin.get_hold(get_hold("é")).await.map(drop), &["hold_id"]);
    check(admin.get_usage(v1::GetUsageRequest { scope: "/".to_owned() }).await.map(drop), &["scope"]);
    check(admin.get_budget(v1::GetBudgetRequest::default()).await.map(drop), &["scope"]);
    let tenant = v1::ListBudgetsRequest { tenant: "a/b".to_owned(), ..Default::default() };
    check(admin.list_budgets(tenant).await.map(drop), &["tenant"]);

    let huge = reserve(&"a".repeat(2_000_000), &[("cpu_ms", 1)], "k");
    assert_eq!(admin.reserve(huge).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(running.service.position().blocks, blocks, "nothing was recorded");
    granted(admin.reserve(good).await.unwrap().into_inner());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_verified_caller_nothing_is_answered() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let channel =
        Channel::from_shared(format!("http://{}", running.address)).unwrap().connect().await.unwrap();
    let mut nobody = MeteringServiceClient::new(channel.clone());
    let request = v1::GetUsageRequest { scope: "acme".to_owned() };
    assert_eq!(nobody.get_usage(request.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let forged = BearerToken::fixed("eyJhbGciOiJub25lIn0.e30.").unwrap();
    let mut forger = MeteringServiceClient::with_interceptor(channel, forged);
    assert_eq!(forger.get_usage(request).await.unwrap_err().code(), Code::Unauthenticated);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn until_its_key_is_enrolled_and_once_it_is_revoked_it_is_not_ready() {
    let world = World::local().await;
    let running = world.start(world.options("m"), world.stream.clone()).await;
    let mut admin = world.admin(&running);
    let is_unready = |why: &'static str| {
        let running = &running;
        eventually(PATIENCE, move || async move {
            let readiness = format!("{:?}", running.service.readiness());
            !running.service.readiness().is_ready() && readiness.contains(why)
        })
    };
    is_unready("not enrolled").await;
    let refused = admin.set_budget(set("acme", &[("cpu_ms", 1)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("not enrolled"), "{refused}");
    let read = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap_err();
    assert_eq!(read.code(), Code::Unavailable);

    let key = running.service.public_key().to_bytes();
    world.enrol(v1::KeyRole::Metering, "metering", key).await;
    crate::world::within(running.service.ready_here()).await;
    admin.set_budget(set("acme", &[("cpu_ms", 1)])).await.unwrap();

    world.revoke(v1::KeyRole::Metering, "metering", key).await;
    is_unready("revoked").await;
    let refused = admin.set_budget(set("acme", &[("cpu_ms", 2)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(world.journal().await.len(), 1);
    running.stop().await;
}
