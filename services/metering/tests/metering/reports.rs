//! Usage that no hold covers, corrections, and where the fold stands.

use exchequer_auth::Role;
use exchequer_event::v1;
use tonic::{Code, Status};

use crate::{
    calls::fields,
    world::{World, amounts, denied, reserve, set},
};

fn report(scope: &str, used: &[(&str, u64)], key: &str) -> v1::ReportUsageRequest {
    v1::ReportUsageRequest {
        scope: scope.to_owned(),
        used: amounts(used),
        idempotency_key: key.to_owned(),
        ..v1::ReportUsageRequest::default()
    }
}

fn correct(scope: &str, taken: &[(&str, u64)], added: bool, key: &str) -> v1::CorrectUsageRequest {
    let correction = v1::UsageCorrected {
        scope: scope.to_owned(),
        amounts: amounts(taken),
        added,
        reason: "counted twice".to_owned(),
        ..v1::UsageCorrected::default()
    };
    v1::CorrectUsageRequest { correction: Some(correction), idempotency_key: key.to_owned() }
}

fn by(agent_id: &str) -> v1::UsageSource {
    v1::UsageSource { agent_id: agent_id.to_owned(), skill: "chat".to_owned(), ..v1::UsageSource::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_charged_once_and_corrections_take_back_no_more_than_was_spent() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    chief.set_budget(set("acme", &[("input_tokens", 10)])).await.unwrap();
    let first = v1::ReportUsageRequest {
        source: Some(by("")),
        subject: "alice".to_owned(),
        ..report("acme/chat", &[("input_tokens", 12)], "a")
    };
    let reported = agent.report_usage(first.clone()).await.unwrap().into_inner();
    assert!(!reported.repeated);
    let said = reported.reported.clone().unwrap();
    let source = said.source.unwrap();
    assert_eq!((&*source.agent_id, &*source.skill, &*said.subject), ("agent-1", "chat", "alice"));
    let again = agent.report_usage(first.clone()).await.unwrap().into_inner();
    assert_eq!(again, v1::ReportUsageResponse { repeated: true, ..reported });
    let changed = v1::ReportUsageRequest { subject: "bob".to_owned(), ..first };
    assert_eq!(agent.report_usage(changed).await.unwrap_err().code(), Code::AlreadyExists);
    // More than was granted is debt, which blocks.
    let refused =
        denied(agent.reserve(reserve("acme", &[("input_tokens", 1)], "b")).await.unwrap().into_inner());
    assert_eq!(refused.reason(), v1::DenialReason::InDebt);

    let too_much =
        chief.correct_usage(correct("acme/chat", &[("input_tokens", 13)], false, "c")).await.unwrap_err();
    assert_eq!(too_much.code(), Code::FailedPrecondition);
    let asked = correct("acme/chat", &[("input_tokens", 5)], false, "d");
    let corrected = chief.correct_usage(asked.clone()).await.unwrap().into_inner();
    assert_eq!(chief.correct_usage(asked).await.unwrap().into_inner(), corrected, "once");
    chief.correct_usage(correct("acme", &[("input_tokens", 1)], true, "e")).await.unwrap();
    let usage = |scope: &str| v1::GetUsageRequest { scope: scope.to_owned() };
    assert_eq!(
        admin.get_usage(usage("acme")).await.unwrap().into_inner().spent,
        amounts(&[("input_tokens", 8)])
    );
    let below = admin.get_usage(usage("acme/chat")).await.unwrap().into_inner();
    assert_eq!(below.spent, amounts(&[("input_tokens", 7)]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_reports_and_corrections_are_refused_by_path_and_by_role() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut agent, mut admin) = (world.agent(&running), world.admin(&running));
    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let before = running.service.position();
    let check = |result: Result<(), Status>, code: Code, paths: &[&str]| {
        let status = result.expect_err(&format!("{paths:?}"));
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        assert_eq!((status.code(), fields(&status)), (code, paths), "{status:?}");
    };
    let good = report("acme", &[("cpu_ms", 1)], "k");
    let source = |change: fn(&mut v1::UsageSource)| {
        let mut source = v1::UsageSource::default();
        change(&mut source);
        v1::ReportUsageRequest { source: Some(source), ..good.clone() }
    };
    let reports = [
        (v1::ReportUsageRequest::default(), vec!["scope", "used", "idempotency_key"]),
        (report("acme", &[("cpu_ms", 0)], "k"), vec!["used[0].amount"]),
        (report("acme", &[("cpu_ms", u64::MAX)], "k"), vec!["used[0].amount"]),
        (report("acme", &[("cpu_ms", 1), ("cpu_ms", 1)], "k"), vec!["used[1].meter"]),
        (report("a/b/c/d/e/f/g", &[("cpu_ms", 1)], "k"), vec!["scope"]),
        (source(|source| source.agent_id = "Agent".to_owned()), vec!["source.agent_id"]),
        (source(|source| source.skill = "a b".to_owned()), vec!["source.skill"]),
        (source(|source| source.execution_id = "7".to_owned()), vec!["source.execution_id"]),
        (v1::ReportUsageRequest { subject: "x".repeat(257), ..good.clone() }, vec!["subject"]),
    ];
    for (request, paths) in reports {
        check(agent.report_usage(request).await.map(drop), Code::InvalidArgument, &paths);
    }
    let corrections = [
        (v1::CorrectUsageRequest::default(), vec!["correction", "idempotency_key"]),
        (correct("acme//x", &[("cpu_ms", 1)], false, "k"), vec!["correction.scope"]),
        (correct("acme", &[], false, "k"), vec!["correction.amounts"]),
        (correct("acme", &[("cpu_ms", 0)], false, "k"), vec!["correction.amounts[0].amount"]),
        (correct("acme", &[("CPU", 1)], false, "k"), vec!["correction.amounts[0].meter"]),
    ];
    for (request, paths) in corrections {
        check(chief.correct_usage(request).await.map(drop), Code::InvalidArgument, &paths);
    }
    let mut silent = correct("acme", &[("cpu_ms", 1)], true, "k");
    silent.correction.as_mut().unwrap().reason.clear();
    check(chief.correct_usage(silent).await.map(drop), Code::InvalidArgument, &["correction.reason"]);

    let others = v1::ReportUsageRequest { source: Some(by("agent-2")), ..good.clone() };
    check(agent.report_usage(others).await.map(drop), Code::PermissionDenied, &["source.agent_id"]);
    check(user.report_usage(good.clone()).await.map(drop), Code::PermissionDenied, &[]);
    let foreign = report("zeta", &[("cpu_ms", 1)], "k");
    check(chief.report_usage(foreign).await.map(drop), Code::PermissionDenied, &[]);
    let fine = correct("acme", &[("cpu_ms", 1)], true, "k");
    check(agent.correct_usage(fine.clone()).await.map(drop), Code::PermissionDenied, &[]);
    check(user.correct_usage(fine).await.map(drop), Code::PermissionDenied, &[]);
    let foreign = correct("zeta", &[("cpu_ms", 1)], true, "k");
    check(chief.correct_usage(foreign).await.map(drop), Code::PermissionDenied, &[]);
    assert_eq!(running.service.position(), before, "the state is untouched");

    let undefined = report("acme", &[("gpu_ms", 1)], "k");
    check(admin.report_usage(undefined).await.map(drop), Code::InvalidArgument, &["used[0].meter"]);
    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!(usage.spent, []);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_fold_stands_is_told_to_auditors() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    admin.set_budget(set("acme", &[("cpu_ms", 10)])).await.unwrap();
    let mut auditor = world.client(running.address, "a", None, &[Role::Auditor]);
    let at = auditor.get_position(v1::GetPositionRequest::default()).await.unwrap().into_inner();
    let want = running.service.position();
    assert_eq!(
        (at.stream_seq, at.blocks, &at.state_digest[..]),
        (want.cursor, want.blocks, &want.digest[..])
    );
    assert_eq!((&*at.partition, at.owner.is_empty()), ("0", false));
    // The genesis, the enrolled key, and the block's seal with its one item.
    assert_eq!((at.log_index, at.snapshots.len()), (4, 0));
    for roles in [&[Role::User][..], &[Role::TenantAdmin], &[Role::Agent]] {
        let mut client = world.client(running.address, "x", Some("acme"), roles);
        let refused = client.get_position(v1::GetPositionRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    for partition in ["1", "00", "x"] {
        let request = v1::GetPositionRequest { partition: partition.to_owned() };
        assert_eq!(auditor.get_position(request).await.unwrap_err().code(), Code::NotFound);
    }
    running.stop().await;

    // A snapshot says what the fold said.
    let running = world.metering("m").await;
    let mut auditor = world.client(running.address, "a", None, &[Role::Auditor]);
    let again = auditor.get_position(v1::GetPositionRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        again.snapshots,
        [v1::SnapshotPosition { stream_seq: at.stream_seq, state_digest: at.state_digest.clone() }]
    );
    assert!(again.log_index > at.log_index && again.state_digest == at.state_digest);
    running.stop().await;
}
