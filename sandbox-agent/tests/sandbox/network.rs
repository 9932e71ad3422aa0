//! The loopback is as the profile asks, and the agent's listener is on it.

use std::io::Read as _;
use std::net::TcpListener;

use sandbox_agent::sandbox::{Control, ControlStatus, EGRESS_PORT, Layer, Network, Prepared, Spec};
use tokio::sync::mpsc;

use crate::rig::{HOSTS, Host, finish, shell};

fn spec(network: Network, command: &str) -> Spec {
    let mut spec = shell(command);
    spec.profile.network = network;
    spec
}

fn namespace(controls: &[Control]) -> &Control {
    controls.iter().find(|control| control.layer == Layer::NetNamespace).unwrap()
}

async fn prepared(host: Host, spec: &Spec) -> (Prepared, Control) {
    let (sender, _output) = mpsc::channel(16);
    let prepared = host.sandbox().prepare(spec, None, sender).await.unwrap();
    let control = namespace(prepared.controls()).clone();
    (prepared, control)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loopback_is_up_only_where_the_profile_says_so() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        for (network, state) in [
            (Network::None, "lists: lo, down (network: none)"),
            (
                Network::Loopback,
                "lists: lo, up (network: loopback); fib_trie has the local addresses 127.0.0.1",
            ),
            (Network::Egress, "lists: lo, up (network: egress); fib_trie has the local addresses 127.0.0.1"),
        ] {
            let (mut prepared, control) = prepared(host, &spec(network, "true")).await;
            assert_eq!(control.status, ControlStatus::Enforced, "{host:?}: {}", control.evidence);
            assert!(control.evidence.contains(state), "{host:?}: {}", control.evidence);
            let listener = prepared.take_listener();
            assert_eq!(listener.is_some(), network == Network::Egress, "{host:?}: {network:?}");
            if let Some(listener) = listener {
                let address = listener.local_addr().unwrap();
                assert_eq!(address.to_string(), format!("127.0.0.1:{EGRESS_PORT}"), "{host:?}");
                assert!(prepared.take_listener().is_none());
                let row = format!("0100007F:{EGRESS_PORT:04X}");
                assert!(
                    control.evidence.ends_with(&format!("net/tcp has the listeners {row}")),
                    "{}",
                    control.evidence
                );
            }
            prepared.abort().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_namespace_the_agent_listens_nowhere() {
    let mut spec = spec(Network::Egress, "true");
    spec.omit = vec![Layer::NetNamespace];
    for host in HOSTS {
        let (mut prepared, control) = prepared(host, &spec).await;
        assert_eq!(control.status, ControlStatus::Unavailable, "{host:?}: {}", control.evidence);
        assert!(prepared.take_listener().is_none(), "{host:?}");
        prepared.abort().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_inside_reaches_the_agents_listener_and_no_other() {
    const SEND: &str = "import socket, sys
for port in sys.argv[1:]:
    try:
        socket.create_connection(('127.0.0.1', int(port)), 5).sendall(b'hello')
        print('sent')
    except OSError as error:
        print(error.errno)";
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [EGRESS_PORT, outside.local_addr().unwrap().port()].map(|port| port.to_string());
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let mut spec = spec(Network::Egress, "");
        spec.program = "/usr/bin/python3".to_owned();
        spec.args = ["-c", SEND, &ports[0], &ports[1]].map(str::to_owned).to_vec();
        // Which calls for sockets are allowed is the profile's matter: here it is Landlock and the namespace.
        spec.omit = vec![Layer::Seccomp];
        let (sender, output) = mpsc::channel(16);
        let mut prepared = host.sandbox().prepare(&spec, None, sender).await.unwrap();
        let listener = prepared.take_listener().unwrap();
        let served = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            text
        });
        let ran = finish(prepared.release().await.unwrap(), output).await;
        assert_eq!(ran.stdout, format!("sent\n{}\n", libc::EACCES), "{host:?}: {}", ran.stderr);
        assert_eq!(served.await.unwrap(), "hello", "{host:?}");
    }
}
