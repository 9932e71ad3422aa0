//! Leases, revoked holds, and holds that are over.

use exchequer_auth::Role;
use exchequer_event::v1::{self, HoldState};
use exchequer_testkit::eventually;
use tonic::Code;

use crate::{
    calls::{extend, fields, get_hold, settle, void},
    world::{Agent, PATIENCE, World, amounts, granted, reserve, set},
};

fn draw(hold_id: &str, used: &[(&str, u64)], key: &str) -> v1::DrawLeaseRequest {
    v1::DrawLeaseRequest {
        hold_id: hold_id.to_owned(),
        used: amounts(used),
        idempotency_key: key.to_owned(),
        source: None,
    }
}

fn revoke(hold_id: &str, reason: &str) -> v1::RevokeHoldRequest {
    v1::RevokeHoldRequest {
        hold_id: hold_id.to_owned(),
        reason: reason.to_owned(),
        idempotency_key: String::new(),
    }
}

fn lease(scope: &str, asked: &[(&str, u64)], key: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { lease: true, ..reserve(scope, asked, key) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_drawn_from_until_it_is_settled_and_revoked_it_is_not_extended() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let plain = granted(agent.reserve(reserve("acme", &[("cpu_ms", 10)], "a")).await.unwrap().into_inner());
    let leased = granted(agent.reserve(lease("acme/py", &[("cpu_ms", 60)], "b")).await.unwrap().into_inner());
    assert!(leased.lease && !plain.lease);
    let id = leased.hold_id.as_str();

    let drawn = agent.draw_lease(draw(id, &[("cpu_ms", 15)], "c")).await.unwrap().into_inner();
    let said = drawn.drawn.clone().unwrap();
    assert_eq!(
        (said.used, said.late, &*said.source.unwrap().agent_id),
        (amounts(&[("cpu_ms", 15)]), false, "agent-1")
    );
    assert_eq!(agent.draw_lease(draw(id, &[("cpu_ms", 15)], "c")).await.unwrap().into_inner(), drawn, "once");
    let hold = agent.get_hold(get_hold(id)).await.unwrap().into_inner();
    assert_eq!(
        (hold.amounts, hold.used, hold.lease),
        (amounts(&[("cpu_ms", 45)]), amounts(&[("cpu_ms", 15)]), true)
    );

    let no_lease = agent.draw_lease(draw(&plain.hold_id, &[("cpu_ms", 1)], "d")).await.unwrap_err();
    assert_eq!(no_lease.code(), Code::FailedPrecondition);
    assert_eq!(
        chief.draw_lease(draw(id, &[("cpu_ms", 1)], "e")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let empty = agent.draw_lease(draw(id, &[], "f")).await.unwrap_err();
    assert_eq!((empty.code(), fields(&empty)), (Code::InvalidArgument, vec!["used".to_owned()]));
    let other = v1::UsageSource { agent_id: "agent-2".to_owned(), ..v1::UsageSource::default() };
    let in_its_name = v1::DrawLeaseRequest { source: Some(other), ..draw(id, &[("cpu_ms", 1)], "g") };
    let refused = agent.draw_lease(in_its_name).await.unwrap_err();
    assert_eq!(
        (refused.code(), fields(&refused)),
        (Code::PermissionDenied, vec!["source.agent_id".to_owned()])
    );

    // Who administers the tenant forbids that it lives on; its holder still pays what it used.
    for client in [&mut agent, &mut world.client(running.address, "c", Some("zeta"), &[Role::TenantAdmin])] {
        let refused = client.revoke_hold(revoke(id, "leaving")).await.unwrap_err();
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::NotFound), "{refused}");
    }
    // That an agent's role spans tenants lets no one administer another's.
    let mut both = world.client(running.address, "c", Some("zeta"), &[Role::Agent, Role::TenantAdmin]);
    assert_eq!(both.revoke_hold(revoke(id, "leaving")).await.unwrap_err().code(), Code::NotFound);
    let silent = chief.revoke_hold(revoke(id, "")).await.unwrap_err();
    assert_eq!((silent.code(), fields(&silent)), (Code::InvalidArgument, vec!["reason".to_owned()]));
    assert!(chief.revoke_hold(revoke(id, "leaving")).await.unwrap().into_inner().stream_seq > 0);
    assert_eq!(agent.extend(extend(id, &[], "h")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert!(agent.get_hold(get_hold(id)).await.unwrap().into_inner().revoked);
    agent.settle(settle(id, &[("cpu_ms", 5)], "i")).await.unwrap();
    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!((usage.spent, usage.held), (amounts(&[("cpu_ms", 20)]), amounts(&[("cpu_ms", 10)])));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_holds_are_listed_below_a_scope_a_page_at_a_time() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    for tenant in ["acme", "acme-2"] {
        admin.set_budget(set(tenant, &[("cpu_ms", 100)])).await.unwrap();
    }
    let mut ids = Vec::new();
    for n in 0..5 {
        let scope = ["acme", "acme/py", "acme/py/x"][n % 3];
        let asked =
            v1::ReserveRequest { lease: n == 4, ..reserve(scope, &[("cpu_ms", 1)], &format!("k{n}")) };
        ids.push(granted(agent.reserve(asked).await.unwrap().into_inner()).hold_id);
    }
    agent.reserve(reserve("acme-2", &[("cpu_ms", 1)], "k")).await.unwrap();
    agent.void(void(&ids[0], "v")).await.unwrap();
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let list = |scope: &str, page_size: u32, page_token: &str| v1::ListHoldsRequest {
        scope: scope.to_owned(),
        leases_only: false,
        page_size,
        page_token: page_token.to_owned(),
    };
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = user.list_holds(list("acme", 3, &page_token)).await.unwrap().into_inner();
        assert!(page.holds.iter().all(|hold| hold.state() == HoldState::Open));
        seen.extend(page.holds.into_iter().map(|hold| hold.hold_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let mut want = ids[1..].to_vec();
    want.sort();
    assert_eq!(seen, want);
    let below = user.list_holds(list("acme/py", 0, "")).await.unwrap().into_inner().holds;
    assert_eq!(below.len(), 3);
    let leases = v1::ListHoldsRequest { leases_only: true, ..list("acme", 0, "") };
    let leases = user.list_holds(leases).await.unwrap().into_inner().holds;
    assert_eq!(leases.iter().map(|hold| &hold.hold_id).collect::<Vec<_>>(), [&ids[4]]);

    assert_eq!(user.list_holds(list("acme-2", 0, "")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(agent.list_holds(list("acme", 0, "")).await.unwrap_err().code(), Code::PermissionDenied);
    for (size, token) in [(1001, ""), (0, "zz"), (0, "00")] {
        assert_eq!(user.list_holds(list("acme", size, token)).await.unwrap_err().code(), Code::OutOfRange);
    }
    let faulty = user.list_holds(list("a//b", 0, "")).await.unwrap_err();
    assert_eq!((faulty.code(), fields(&faulty)), (Code::InvalidArgument, vec!["scope".to_owned()]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_over_is_read_back_and_its_requests_are_answered_again() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let first = agent.reserve(lease("acme/py", &[("cpu_ms", 60)], "a")).await.unwrap().into_inner();
    let id = granted(first.clone()).hold_id;
    let extended = agent.extend(extend(&id, &[("cpu_ms", 5)], "b")).await.unwrap().into_inner();
    let drawn = agent.draw_lease(draw(&id, &[("cpu_ms", 15)], "c")).await.unwrap().into_inner();
    let settled = agent.settle(settle(&id, &[("cpu_ms", 4)], "d")).await.unwrap().into_inner();
    let voided =
        granted(agent.reserve(reserve("acme", &[("cpu_ms", 7)], "e")).await.unwrap().into_inner()).hold_id;
    agent.void(void(&voided, "f")).await.unwrap();

    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    let mut rival = world.client(running.address, "c", Some("zeta"), &[Role::TenantAdmin]);
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let mut nobody = world.client(running.address, "n", None, &[Role::User]);
    for time in 1..=2 {
        let hold = user.get_hold(get_hold(&id)).await.unwrap().into_inner();
        assert_eq!((hold.state(), &*hold.scope, &*hold.holder), (HoldState::Settled, "acme/py", "agent-1"));
        assert_eq!((hold.used.clone(), hold.lease), (amounts(&[("cpu_ms", 19)]), true), "asked {time} times");
        for client in [&mut agent, &mut admin, &mut chief] {
            assert_eq!(client.get_hold(get_hold(&id)).await.unwrap().into_inner(), hold);
        }
        for client in [&mut rival, &mut nobody] {
            assert_eq!(client.get_hold(get_hold(&id)).await.unwrap_err().code(), Code::NotFound);
        }
        assert_eq!(rival.void(void(&id, &format!("x{time}"))).await.unwrap_err().code(), Code::NotFound);
        let other = user.get_hold(get_hold(&voided)).await.unwrap().into_inner();
        assert_eq!((other.state(), other.amounts), (HoldState::Voided, amounts(&[("cpu_ms", 7)])));

        // The same requests again: the same answers, whole; another under their keys is none.
        let again = lease("acme/py", &[("cpu_ms", 60)], "a");
        assert_eq!(agent.reserve(again).await.unwrap().into_inner(), first);
        assert_eq!(agent.extend(extend(&id, &[("cpu_ms", 5)], "b")).await.unwrap().into_inner(), extended);
        assert_eq!(agent.draw_lease(draw(&id, &[("cpu_ms", 15)], "c")).await.unwrap().into_inner(), drawn);
        assert_eq!(agent.settle(settle(&id, &[("cpu_ms", 4)], "d")).await.unwrap().into_inner(), settled);
        let changed = agent.settle(settle(&id, &[("cpu_ms", 5)], "d")).await.unwrap_err();
        assert_eq!(changed.code(), Code::AlreadyExists);
        let closed = agent.settle(settle(&id, &[("cpu_ms", 4)], &format!("late-{time}"))).await.unwrap_err();
        assert_eq!(closed.code(), Code::FailedPrecondition);
        let refused = chief.void(void(&voided, &format!("later-{time}"))).await.unwrap_err();
        assert!(matches!(refused.code(), Code::FailedPrecondition | Code::PermissionDenied), "{refused}");
    }
    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!((usage.spent, usage.open_holds), (amounts(&[("cpu_ms", 19)]), 0));
    running.stop().await;

    let running = world.metering("m").await;
    let mut agent = world.agent(&running);
    assert_eq!(agent.settle(settle(&id, &[("cpu_ms", 4)], "d")).await.unwrap().into_inner(), settled);
    let hold = agent.get_hold(get_hold(&id)).await.unwrap().into_inner();
    assert_eq!((hold.state(), hold.used), (HoldState::Settled, amounts(&[("cpu_ms", 19)])));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_under_a_lease_draws_from_it_by_its_recorded_end() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let leased = granted(client.reserve(lease("acme", &[("cpu_ms", 60)], "a")).await.unwrap().into_inner());
    let mut agent = Agent::enrolled(&world, "agent-1").await;
    let id = leased.hold_id.as_str();
    world.stream.append(agent.batch(&[(id, Some(7)), (id, Some(8))])).await.unwrap();
    eventually(PATIENCE, || async {
        let hold = client.clone().get_hold(get_hold(id)).await.unwrap().into_inner();
        let drawn = hold.used.iter().find(|used| used.meter == "cpu_ms").map_or(0, |used| used.amount);
        drawn == 15 && hold.state() == HoldState::Open
    })
    .await;
    running.stop().await;
}
