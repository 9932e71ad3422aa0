//! The network of an execution as an agent grants, holds, bounds and records it.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use exchequer_config::Reader;
use exchequer_event::{
    metered::Metered,
    v1::{self, execute_response::Part},
};
use rig::{Metering, Rig};
use sandbox_agent::profiles::Profiles;
use tonic_types::StatusExt as _;

/// A server outside that takes what it is sent and says nothing; its port, and how much it got.
fn outside() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, received) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&received);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, counted) = (stream.unwrap(), Arc::clone(&counted));
            std::thread::spawn(move || {
                stream.write_all(b"hello").unwrap();
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    counted.fetch_add(count, Ordering::Relaxed);
                }
            });
        }
    });
    (port, received)
}

/// An agent with a profile `out` that may reach this port of the host's loopback; `None` where the host gives no network namespace.
async fn start(port: u16) -> Option<Rig> {
    let directory = exchequer_testkit::temp_dir();
    let profile = format!(
        "name = \"out\"\nextends = \"python\"\nnetwork = \"egress\"\negress = [\"127.0.0.1:{port}\"]\n"
    );
    fs::write(directory.path().join("out.toml"), profile).unwrap();
    let config = format!(
        "[agent]\nprofiles = \"{}\"\n[agent.ceiling]\nnetworks = [\"none\", \"loopback\", \"egress\"]\negress = [\"127.0.0.1:{port}\"]\n",
        directory.path().display()
    );
    let mut reader = Reader::new(Some(("agent.toml", &config)), std::iter::empty(), Vec::new());
    let profiles = Profiles::read(&mut reader, &[]);
    reader.finish().unwrap();
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.profiles = profiles;
        options.default_limits.egress_bytes = 1000;
        options.max_limits.egress_bytes = 2000;
    })
    .await;
    let controls = rig.capabilities().await.controls;
    let enforced = |control: &v1::Control| control.status() == v1::ControlStatus::Enforced;
    controls.iter().any(|control| control.name == "net_namespace" && enforced(control)).then_some(rig)
}

/// Opens a tunnel to this port by what its environment says, and sends so many bytes.
fn send(profile: &str, port: u16, bytes: usize) -> v1::ExecuteRequest {
    let script = format!(
        r#"
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["https_proxy"])
s = socket.create_connection((proxy.hostname, proxy.port), timeout=20)
s.sendall(b"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n")
answer = s.makefile("rb")
print(answer.readline().decode().strip())
s.sendall(b"x" * {bytes})
s.shutdown(socket.SHUT_WR)
answer.read()
"#
    );
    v1::ExecuteRequest {
        profile: profile.into(),
        program: "/usr/bin/python3".into(),
        arguments: vec!["-c".into(), script],
        ..v1::ExecuteRequest::default()
    }
}

/// What was admitted and held, what was said, and how it ended.
async fn execute(rig: &Rig, request: v1::ExecuteRequest) -> (v1::Admitted, String, v1::Finished) {
    let parts = rig.execute("acme", request).await.unwrap();
    let Some(Part::Admitted(admitted)) = parts.first().unwrap().clone() else { panic!() };
    let Some(Part::Finished(finished)) = parts.last().unwrap().clone() else { panic!() };
    let said = parts.iter().filter_map(|part| match part {
        Some(Part::Stdout(bytes) | Part::Stderr(bytes)) => Some(&bytes[..]),
        _ => None,
    });
    let said = String::from_utf8(said.collect::<Vec<_>>().concat()).unwrap();
    (admitted, said, finished)
}

fn egress_of(amounts: &[v1::MeterAmount]) -> Option<u64> {
    amounts.iter().find(|amount| amount.meter == "egress_bytes").map(|amount| amount.amount)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_held_by_its_limit_charged_as_measured_and_recorded_by_target() {
    let (port, received) = outside();
    let Some(rig) = start(port).await else { return };
    let (admitted, said, finished) = execute(&rig, send("out", port, 1000)).await;
    assert_eq!(said, "HTTP/1.1 200 Connection established\n");
    let record = finished.record.unwrap();
    assert_eq!((record.cause(), record.exit_code), (v1::ExitCause::Exited, 0));
    assert_eq!(egress_of(&admitted.held), Some(1000), "the default limit is held");
    let usage = record.usage.as_ref().unwrap();
    assert_eq!((usage.egress_bytes, usage.ingress_bytes), (1000, 5));
    assert_eq!(egress_of(&Metered::charge(&record).unwrap().amounts()), Some(1000));
    let target = v1::EgressTarget {
        host: "127.0.0.1".into(),
        port: port.into(),
        connections: 1,
        sent: 1000,
        received: 5,
        refused: 0,
    };
    assert_eq!(record.egress, [target]);
    exchequer_testkit::eventually(std::time::Duration::from_secs(20), async || {
        received.load(Ordering::Relaxed) == 1000
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_beyond_the_limit_ends_it_and_is_not_sent() {
    let (port, received) = outside();
    let Some(rig) = start(port).await else { return };
    let (_, _, finished) = execute(&rig, send("out", port, 1001)).await;
    let record = finished.record.unwrap();
    assert_eq!(record.cause(), v1::ExitCause::EgressLimit);
    assert_eq!(record.usage.unwrap().egress_bytes, 1000);
    assert!(received.load(Ordering::Relaxed) <= 1000);
    let mut more = send("out", port, 1);
    more.limits = Some(v1::Limits { egress_bytes: 2001, ..v1::Limits::default() });
    let refused = rig.execute("acme", more).await.unwrap_err();
    let violation = &refused.get_details_bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "limits.egress_bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_on_the_list_is_refused_and_recorded() {
    let (port, _) = outside();
    let (other, received) = outside();
    let Some(rig) = start(port).await else { return };
    let (_, said, finished) = execute(&rig, send("out", other, 10)).await;
    assert!(said.starts_with("HTTP/1.1 403 Forbidden\n"), "{said}");
    let record = finished.record.unwrap();
    assert_eq!((record.usage.unwrap().egress_bytes, received.load(Ordering::Relaxed)), (0, 0));
    let refused: Vec<_> =
        record.egress.iter().map(|target| (target.port, target.connections, target.refused)).collect();
    assert_eq!(refused, [(u32::from(other), 0, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_nothing_is_held_for_one() {
    let (port, received) = outside();
    let Some(rig) = start(port).await else { return };
    let (admitted, said, finished) = execute(&rig, send("python", port, 10)).await;
    assert_eq!(egress_of(&admitted.held), None);
    assert!(said.contains("KeyError: 'https_proxy'"), "{said}");
    assert_eq!((finished.record.unwrap().egress, received.load(Ordering::Relaxed)), (Vec::new(), 0));
}
