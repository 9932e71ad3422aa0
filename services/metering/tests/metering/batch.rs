//! Many commands in one call.

use std::sync::Arc;

use exchequer_auth::Role;
use exchequer_event::v1::{
    self, DecideFailure, decide_answer::Answer, decide_command::Command, reserve_response::Outcome,
};
use exchequer_testkit::eventually;
use serde_json::json;
use tonic::Code;

use crate::{
    calls::{extend, fields, settle, void},
    events::{BATCH, event, outcomes, sender, used},
    partitions::{hold_back, options, owners, tenants},
    world::{Client, PATIENCE, World, amounts, granted, reserve, set},
};

async fn decide(client: &mut Client, commands: Vec<Command>) -> Vec<Answer> {
    let commands = commands.into_iter().map(|command| v1::DecideCommand { command: Some(command) });
    let request = v1::DecideRequest { commands: commands.collect() };
    let answers = client.decide(request).await.unwrap().into_inner().answers;
    answers.into_iter().map(|answer| answer.answer.unwrap()).collect()
}

fn failure(answer: &Answer) -> &DecideFailure {
    match answer {
        Answer::Failure(failure) => failure,
        other => panic!("not a failure: {other:?}"),
    }
}

fn seq(answer: &Answer) -> u64 {
    match answer {
        Answer::Reserve(response) => response.stream_seq,
        other => panic!("not a reservation: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_decided_in_order_in_one_block_and_answered_in_order() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 1000)])).await.unwrap();

    let asked: Vec<_> =
        (0..1024).map(|n| Command::Reserve(reserve("acme/py", &[("cpu_ms", 1)], &format!("k{n}")))).collect();
    let answers = decide(&mut agent, asked.clone()).await;
    assert_eq!(answers.len(), 1024);
    for (at, answer) in answers.iter().enumerate() {
        let Answer::Reserve(response) = answer else { panic!("{answer:?}") };
        let is_granted = matches!(response.outcome, Some(Outcome::Granted(_)));
        assert_eq!(is_granted, at < 1000, "{at}: the first 1,000 fit");
        assert_eq!(response.stream_seq, seq(&answers[0]), "one block");
    }
    // All of it again: the same answers.
    assert_eq!(decide(&mut agent, asked).await, answers);

    let hold_id = |at: usize| match &answers[at] {
        Answer::Reserve(response) => granted(response.clone()).hold_id,
        other => panic!("{other:?}"),
    };
    let mixed = vec![
        Command::Extend(extend(&hold_id(0), &[], "x0")),
        Command::Settle(settle(&hold_id(0), &[("cpu_ms", 1)], "x1")),
        Command::Void(void(&hold_id(1), "x2")),
        Command::Void(void(&hold_id(1), "x3")),
        Command::Reserve(reserve("acme", &[("cpu_ms", 1)], "x4")),
        Command::Reserve(reserve("acme", &[("cpu_ms", 1)], "x5")),
    ];
    let answers = decide(&mut agent, mixed).await;
    assert!(matches!(answers[0], Answer::Extend(_)), "{answers:?}");
    assert!(matches!(answers[1], Answer::Settle(_)), "{answers:?}");
    assert!(matches!(answers[2], Answer::Void(_)), "{answers:?}");
    assert_eq!(failure(&answers[3]).code, Code::FailedPrecondition as u32);
    // What the void gave back is there for the next command of the same call, once.
    let outcomes = answers[4..].iter().map(|answer| match answer {
        Answer::Reserve(response) => matches!(response.outcome, Some(Outcome::Granted(_))),
        other => panic!("{other:?}"),
    });
    assert_eq!(outcomes.collect::<Vec<_>>(), [true, false]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_fails_by_itself_with_its_own_path() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    for tenant in ["acme", "zeta"] {
        admin.set_budget(set(tenant, &[("cpu_ms", 100)])).await.unwrap();
    }
    let foreign = granted(agent.reserve(reserve("zeta", &[("cpu_ms", 1)], "z")).await.unwrap().into_inner());
    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    let good = |key: &str| reserve("acme", &[("cpu_ms", 1)], key);
    let unknown = "0190b2a4-0000-7000-8000-00000000000f";
    let cases: Vec<(Command, Option<(Code, &str)>)> = vec![
        (Command::Reserve(good("a")), None),
        (
            Command::Reserve(v1::ReserveRequest { ttl_ms: 1, ..good("b") }),
            Some((Code::InvalidArgument, "commands[1].reserve.ttl_ms")),
        ),
        (
            Command::Reserve(reserve("acme", &[("cpu_ms", 1), ("Cpu", 1)], "c")),
            Some((Code::InvalidArgument, "commands[2].reserve.amounts[1].meter")),
        ),
        (Command::Reserve(reserve("zeta", &[("cpu_ms", 1)], "d")), Some((Code::PermissionDenied, ""))),
        (Command::Void(void(&foreign.hold_id, "e")), Some((Code::NotFound, ""))),
        (Command::Void(void(unknown, "f")), Some((Code::NotFound, ""))),
        (
            Command::Settle(settle(unknown, &[], "")),
            Some((Code::InvalidArgument, "commands[6].settle.idempotency_key")),
        ),
        (Command::Extend(extend("", &[], "g")), Some((Code::InvalidArgument, "commands[7].extend.hold_id"))),
        (Command::Reserve(reserve("acme", &[("cpu_ms", 2)], "a")), Some((Code::AlreadyExists, ""))),
        (Command::Reserve(good("h")), None),
    ];
    let answers = decide(&mut chief, cases.iter().map(|case| case.0.clone()).collect()).await;
    for (at, (answer, (_, want))) in answers.iter().zip(&cases).enumerate() {
        match want {
            None => assert!(matches!(answer, Answer::Reserve(_)), "{at}: {answer:?}"),
            Some((code, field)) => {
                let failure = failure(answer);
                let got = (failure.code, failure.field.as_str());
                assert_eq!(got, (*code as u32, *field), "{at}: {failure:?}");
            }
        }
    }
    let usage = admin.get_usage(v1::GetUsageRequest { scope: "acme".to_owned() }).await.unwrap().into_inner();
    assert_eq!(usage.held, amounts(&[("cpu_ms", 2)]), "what was good was decided, and nothing else");

    // A caller who may do none of this learns nothing, and no command at all is no call.
    let mut user = world.client(running.address, "u", Some("acme"), &[Role::User]);
    let answers =
        decide(&mut user, vec![Command::Void(void(unknown, "i")), Command::Reserve(good("j"))]).await;
    assert!(
        answers.iter().all(|answer| failure(answer).code == Code::PermissionDenied as u32),
        "{answers:?}"
    );
    let missing = chief.decide(v1::DecideRequest { commands: vec![v1::DecideCommand { command: None }] });
    let missing = missing.await.unwrap().into_inner().answers;
    let want = (Code::InvalidArgument as u32, "commands[0]");
    let failed = failure(missing[0].answer.as_ref().unwrap());
    assert_eq!((failed.code, failed.field.as_str()), want);
    for count in [0, 1025] {
        let commands = vec![v1::DecideCommand { command: Some(Command::Reserve(good("k"))) }; count];
        let refused = chief.decide(v1::DecideRequest { commands }).await.unwrap_err();
        assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["commands".to_owned()]));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_several_owners_is_split_and_its_answers_are_put_together_in_order() {
    let world = World::local().await;
    hold_back(&world.stream).await;
    let here = world.enrolled(options(&world, "here"), Arc::clone(&world.stream)).await;
    let there = world.enrolled(options(&world, "there"), Arc::clone(&world.stream)).await;
    eventually(PATIENCE, || async {
        let is_ready = [&here, &there].iter().all(|running| running.service.readiness().is_ready());
        is_ready && owners(&here).len() == 2
    })
    .await;
    let tenants = tenants();
    for tenant in &tenants {
        let budget = set(tenant, &[("cpu_ms", 10), ("input_tokens", 10)]);
        world.admin(&here).set_budget(budget).await.unwrap();
    }
    for (n, running) in [&here, &there].into_iter().enumerate() {
        let mut agent = world.agent(running);
        let mut commands: Vec<_> = tenants
            .iter()
            .map(|tenant| Command::Reserve(reserve(tenant, &[("cpu_ms", 1)], &format!("k{n}"))))
            .collect();
        let faulty = |tenant: &String| {
            Command::Reserve(v1::ReserveRequest { ttl_ms: 1, ..reserve(tenant, &[("cpu_ms", 1)], "f") })
        };
        commands.extend(tenants.iter().map(faulty));
        let answers = decide(&mut agent, commands).await;
        for (at, tenant) in tenants.iter().enumerate() {
            let Answer::Reserve(response) = &answers[at] else { panic!("{:?}", answers[at]) };
            let hold = granted(response.clone());
            assert_eq!(hold.scope, *tenant);
            // From wherever it is asked, whoever owns it: the hold is found, and voided.
            agent.void(void(&hold.hold_id, &format!("v{n}"))).await.unwrap();
            let at = tenants.len() + at;
            assert_eq!(failure(&answers[at]).field, format!("commands[{at}].reserve.ttl_ms"));
        }
        let events: Vec<_> =
            tenants.iter().map(|tenant| event("e", used(tenant, "input_tokens", 1))).collect();
        let token = world.token("agent-1", None, &[Role::Agent]);
        let answer = sender(running, &token).send(BATCH, json!(events)).await;
        let want = if n == 0 { ("recorded", "") } else { ("duplicate", "") };
        assert_eq!(outcomes(&answer), vec![want; tenants.len()]);
    }
    // Its own tenants a stranger can't reach by way of the other instance either.
    let mut chief = world.client(here.address, "c", Some(&tenants[0]), &[Role::TenantAdmin]);
    let commands = tenants.iter().map(|tenant| Command::Reserve(reserve(tenant, &[("cpu_ms", 1)], "c")));
    let answers = decide(&mut chief, commands.collect()).await;
    assert!(matches!(answers[0], Answer::Reserve(_)), "{answers:?}");
    assert!(
        answers[1..].iter().all(|answer| failure(answer).code == Code::PermissionDenied as u32),
        "{answers:?}"
    );
    here.stop().await;
    there.stop().await;
}
