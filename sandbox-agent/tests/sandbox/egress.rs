//! Programs inside and the proxy outside: what is allowed gets out, nothing else does.
//!
//! The filter is left off where a program makes sockets that it would kill for: what holds here is the network.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use futures::{FutureExt as _, future::BoxFuture};
use sandbox_agent::{
    egress::{self, Egress, Policy, Proxy, Resolve},
    sandbox::{Control, ControlStatus, ExitCause, KillReason, Layer, Network, Spec},
};
use tokio::sync::mpsc;

use crate::rig::{Host, Ran, finish};

/// A web server outside, and what it was sent.
struct Outside {
    port: u16,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Outside {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let outside = Self { port: listener.local_addr().unwrap().port(), received: Arc::default() };
        let received = Arc::clone(&outside.received);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, received) = (stream.unwrap(), Arc::clone(&received));
                std::thread::spawn(move || {
                    let (mut buffer, mut answered) = ([0; 4096], false);
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        received.lock().unwrap().extend_from_slice(&buffer[..count]);
                        if !answered && buffer[..count].windows(4).any(|four| four == b"\r\n\r\n") {
                            answered = true;
                            let _ =
                                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\noutside\n");
                        }
                    }
                });
            }
        });
        outside
    }

    fn received(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}

/// Every name is this host.
struct Here;

impl Resolve for Here {
    fn resolve(&self, _: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        async move { Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]) }.boxed()
    }
}

/// Whether a listener of the sandbox's can be had here.
fn has_network(controls: &[Control]) -> bool {
    controls
        .iter()
        .all(|control| control.layer != Layer::NetNamespace || control.status == ControlStatus::Enforced)
}

fn python(script: &str) -> Spec {
    let mut spec = Spec::new("/usr/bin/python3", ["-c", script]);
    spec.profile.network = Network::Egress;
    spec.env = egress::environment();
    spec.omit = vec![Layer::Seccomp];
    spec.limits.memory_bytes = 1 << 30;
    spec
}

/// Runs it with these rules; `None` where the host gives no network namespace.
async fn run(host: Host, spec: &Spec, rules: &[String], limit: u64) -> Option<(Ran, Egress)> {
    let sandbox = host.sandbox();
    let (sender, output) = mpsc::channel(16);
    let mut prepared = sandbox.prepare(spec, None, sender).await.unwrap();
    let listener = prepared.take_listener();
    assert_eq!(listener.is_some(), has_network(prepared.controls()), "{host:?}: {:?}", prepared.controls());
    let Some(listener) = listener else {
        assert!(!host.allows_namespaces(), "{host:?}");
        return None;
    };
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let policy = Policy { resolver: Arc::new(Here), ..Policy::new(rules, limit) };
    let killer = prepared.killer();
    let proxy = Proxy::start(listener, policy, move || killer.kill(KillReason::EgressLimit)).unwrap();
    let mut ran = finish(prepared.release().await.unwrap(), output).await;
    let egress = proxy.finish().await;
    egress.add_to(&mut ran.outcome);
    Some((ran, egress))
}

const HOSTS: [Host; 3] = crate::rig::HOSTS;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_knows_proxies_reaches_what_is_allowed_and_nothing_else() {
    let outside = Outside::start();
    let port = outside.port;
    let script = format!(
        r#"
import urllib.request, urllib.error
def get(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode().strip()
    except urllib.error.HTTPError as error:
        return f"{{error.code}} {{error.read().decode().strip()}}"
print(get("http://allowed.test:{port}/path"))
print(get("http://denied.test:{port}/path"))
print(get("http://allowed.test:{}/path"))
"#,
        port ^ 1
    );
    for host in HOSTS {
        let rules = [format!("allowed.test:{port}"), format!("127.0.0.1:{port}")];
        let Some((ran, egress)) = run(host, &python(&script), &rules, 10_000).await else { continue };
        let want = format!(
            "outside\n403 denied.test:{port} is not on the list of what may be reached\n\
             403 allowed.test:{0} is not on the list of what may be reached\n",
            port ^ 1
        );
        assert_eq!(
            (ran.stdout, ran.outcome.cause),
            (want, ExitCause::Exited { code: 0 }),
            "{host:?} {}",
            ran.stderr
        );
        assert_eq!(egress.targets.iter().map(|target| target.refused).sum::<u64>(), 2, "{host:?}");
        assert_eq!(ran.outcome.usage.egress_bytes, egress.sent);
        assert!(egress.sent > 0 && egress.received > 0, "{egress:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_proxy_nothing_leaves() {
    // The controls, in the same program: TCP to the proxy, UDP to itself.
    let script = r#"
import errno, socket
def tried(what, call):
    try:
        call(); print(what, "ok")
    except socket.gaierror:
        print(what, "no name")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
def tcp(host, port):
    socket.create_connection((host, port), timeout=20).close()
def udp(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"x", (host, port)); s.close()
def itself():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
    s.sendto(b"x", s.getsockname()); assert s.recv(1) == b"x"
tried("proxy", lambda: tcp("127.0.0.1", 3128))
tried("itself", itself)
tried("tcp, the proxy's port", lambda: tcp("192.0.2.1", 3128))
tried("tcp", lambda: tcp("192.0.2.1", 80))
tried("tcp6", lambda: tcp("2001:db8::1", 3128))
tried("udp", lambda: udp("192.0.2.1", 53))
tried("dns", lambda: socket.getaddrinfo("example.org", 80))
"#;
    for host in HOSTS {
        let Some((ran, egress)) = run(host, &python(script), &[], 0).await else { continue };
        let want = "proxy ok\nitself ok\ntcp, the proxy's port ENETUNREACH\ntcp EACCES\ntcp6 ENETUNREACH\n\
                    udp ENETUNREACH\ndns no name\n";
        assert_eq!(ran.stdout, want, "{host:?} {}", ran.stderr);
        assert_eq!(egress.sent, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_would_send_more_than_its_limit_is_killed_and_not_a_byte_more_is_sent() {
    const LIMIT: u64 = 50_001;
    let script = |port: u16, bytes: u64| {
        format!(
            r#"
import socket, sys
s = socket.create_connection(("127.0.0.1", 3128), timeout=20)
s.sendall(b"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n")
assert s.recv(100).startswith(b"HTTP/1.1 200 ")
s.sendall(b"x" * {bytes})
s.shutdown(socket.SHUT_WR)
while s.recv(100): pass
"#
        )
    };
    for host in HOSTS {
        for (bytes, cause) in [(LIMIT, ExitCause::Exited { code: 0 }), (LIMIT + 1, ExitCause::EgressLimit)] {
            let outside = Outside::start();
            let rules = [format!("127.0.0.1:{}", outside.port)];
            let Some((ran, egress)) = run(host, &python(&script(outside.port, bytes)), &rules, LIMIT).await
            else {
                continue;
            };
            assert_eq!(ran.outcome.cause, cause, "{host:?} {}", ran.stderr);
            assert_eq!((egress.sent, ran.outcome.usage.egress_bytes), (LIMIT, LIMIT), "{host:?}");
            crate::rig::until("all that was sent has come", || outside.received() as u64 == LIMIT).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_network_a_profile_has_no_proxy_and_no_loopback() {
    let mut spec = python(
        "import socket\ntry: socket.create_connection(('127.0.0.1', 3128))\nexcept OSError as e: print(e.errno)",
    );
    spec.profile.network = Network::None;
    spec.omit.push(Layer::Landlock);
    let (sender, output) = mpsc::channel(16);
    let mut prepared = Host::AsIs.sandbox().prepare(&spec, None, sender).await.unwrap();
    assert!(prepared.take_listener().is_none());
    if !has_network(prepared.controls()) {
        return;
    }
    let ran = finish(prepared.release().await.unwrap(), output).await;
    assert_eq!(ran.stdout.trim(), rustix::io::Errno::NETUNREACH.raw_os_error().to_string(), "{}", ran.stderr);
}
