//! Watching budgets.

use exchequer_auth::Role;
use exchequer_event::v1;
use tonic::Code;

use crate::world::{World, granted, reserve, set, within};

fn watch(scope: &str) -> v1::WatchBudgetsRequest {
    v1::WatchBudgetsRequest { scope: scope.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_told_what_stands_then_what_changes_and_when_the_service_stops() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    for scope in ["acme", "acme/py", "acme-2"] {
        admin.set_budget(set(scope, &[("cpu_ms", 100)])).await.unwrap();
    }
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let mut watching = user.watch_budgets(watch("acme")).await.unwrap().into_inner();
    let first = within(watching.message()).await.unwrap().unwrap();
    let scopes: Vec<_> = first.budgets.iter().map(|budget| budget.scope.as_str()).collect();
    assert_eq!((scopes, first.removed.len()), (vec!["acme", "acme/py"], 0));

    // What happens elsewhere, or changes nothing, is no news.
    admin.set_budget(set("acme-2", &[("cpu_ms", 7)])).await.unwrap();
    admin.set_budget(set("acme/py", &[("cpu_ms", 100)])).await.unwrap();
    let hold = granted(agent.reserve(reserve("acme", &[("cpu_ms", 10)], "a")).await.unwrap().into_inner());
    let news = within(watching.message()).await.unwrap().unwrap();
    assert_eq!((news.budgets.len(), news.removed.len()), (1, 0), "{news:?}");
    assert_eq!((&*news.budgets[0].scope, news.budgets[0].balances[0].held), ("acme", 10));
    assert!(news.stream_seq > first.stream_seq);
    assert!(!hold.hold_id.is_empty());

    let remove =
        v1::RemoveBudgetRequest { scope: "acme/py".to_owned(), ..v1::RemoveBudgetRequest::default() };
    admin.remove_budget(remove).await.unwrap();
    let news = within(watching.message()).await.unwrap().unwrap();
    assert_eq!((news.budgets.len(), &*news.removed[0].scope), (0, "acme/py"));
    assert_eq!(news.removed[0].meters, ["cpu_ms"]);

    let told = tokio::spawn(async move { watching.message().await });
    // The service first, as a daemon stops: an answer that goes on ends with it.
    running.service.stop().await;
    assert_eq!(within(told).await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_bounded_and_see_their_own_tenant_alone() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    assert_eq!(user.watch_budgets(watch("zeta")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(user.watch_budgets(watch("")).await.unwrap_err().code(), Code::InvalidArgument);
    let mut agent = world.agent(&running);
    assert_eq!(agent.watch_budgets(watch("acme")).await.unwrap_err().code(), Code::PermissionDenied);
    let mut watching = Vec::new();
    for _ in 0..16 {
        let mut answers = user.watch_budgets(watch("acme")).await.unwrap().into_inner();
        assert!(within(answers.message()).await.unwrap().is_some(), "even where there is nothing yet");
        watching.push(answers);
    }
    assert_eq!(user.watch_budgets(watch("acme")).await.unwrap_err().code(), Code::ResourceExhausted);
    let mut other = world.client(running.address, "v", Some("acme"), &[Role::User]);
    other.watch_budgets(watch("acme")).await.unwrap();
    // Who goes away gives the place back.
    watching.pop();
    exchequer_testkit::eventually(crate::world::PATIENCE, || async {
        user.clone().watch_budgets(watch("acme")).await.is_ok()
    })
    .await;
    drop(watching);
    running.service.stop().await;
}
