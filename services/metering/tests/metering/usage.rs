//! Usage over time through the service: what holds were settled with, to whom it may be told.

use std::sync::Arc;

use exchequer_auth::Role;
use exchequer_event::v1;
use exchequer_testkit::eventually;
use tonic::Code;

use crate::world::{PATIENCE, World, amounts, granted, reserve, set};

#[tokio::test]
async fn settled_usage_is_answered_over_time_and_to_its_tenant_alone() {
    let world = World::local().await;
    let options = world.options("m");
    let running = world.metering_with(options.clone(), Arc::clone(&world.stream)).await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 1000)])).await.unwrap();
    for (key, used) in [("1", 5), ("2", 70)] {
        let asked = reserve("acme/a", &[("cpu_ms", 50)], key);
        let hold_id = granted(client.reserve(asked).await.unwrap().into_inner()).hold_id;
        let settle = v1::SettleRequest {
            hold_id,
            used: amounts(&[("cpu_ms", used)]),
            idempotency_key: format!("settle-{key}"),
            ..v1::SettleRequest::default()
        };
        client.settle(settle).await.unwrap();
    }
    let request = v1::QueryUsageRequest { tenant: "acme".to_owned(), ..v1::QueryUsageRequest::default() };
    let count = async |admin: &crate::world::Client| {
        let answer = admin.clone().query_usage(request.clone()).await;
        answer.map(|answer| answer.into_inner().rows.first().map(|row| (row.sum, row.count, row.max)))
    };
    let want = Some((75, 2, 70));
    eventually(PATIENCE, || async { count(&admin).await.is_ok_and(|row| row == want) }).await;
    let mut other = world.client(running.address, "eve", Some("other"), &[Role::TenantAdmin]);
    let refused = other.query_usage(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    running.stop().await;
    std::fs::remove_dir_all(options.data.join("usage")).unwrap();
    let running = world.metering_with(options, Arc::clone(&world.stream)).await;
    let admin = world.admin(&running);
    eventually(PATIENCE, || async { count(&admin).await.is_ok_and(|row| row == want) }).await;
    running.stop().await;
}
