//! The proxy over real sockets, with names that lead where a test wants.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Names that lead where a test says; the last answer stays.
#[derive(Default)]
struct Names {
    answers: Mutex<BTreeMap<String, Vec<Vec<&'static str>>>>,
    asked: AtomicU64,
}

impl Names {
    fn of(answers: &[(&str, &[&[&'static str]])]) -> Arc<Self> {
        let answers = answers
            .iter()
            .map(|(name, answers)| ((*name).to_owned(), answers.iter().map(|one| one.to_vec()).collect()));
        Arc::new(Self { answers: Mutex::new(answers.collect()), asked: AtomicU64::new(0) })
    }
}

impl Resolve for Names {
    fn resolve(&self, name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        let found = answers.get_mut(&name).map(|answers| {
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            answer.into_iter().map(|address| SocketAddr::new(address.parse().unwrap(), port)).collect()
        });
        async move { found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)) }.boxed()
    }
}

/// A server outside: greets, then sends back what it is sent.
struct Outside {
    port: u16,
    connections: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Outside {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outside = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            ended: Arc::default(),
            received: Arc::default(),
        };
        let (connections, ended) = (Arc::clone(&outside.connections), Arc::clone(&outside.ended));
        let received = Arc::clone(&outside.received);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (received, ended) = (Arc::clone(&received), Arc::clone(&ended));
                tokio::spawn(async move {
                    let _ = stream.write_all(b"hello ").await;
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        received.lock().unwrap().extend_from_slice(&buffer[..count]);
                        let _ = stream.write_all(&buffer[..count]).await;
                    }
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        outside
    }

    fn received(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}

/// A proxy and what it told.
struct World {
    proxy: Proxy,
    address: SocketAddr,
    over_limit: Arc<Notify>,
}

impl World {
    fn start(rules: &[&str], change: impl FnOnce(&mut Policy)) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut policy = Policy::new(rules, u64::MAX);
        policy.resolver = Names::of(&[]);
        change(&mut policy);
        let over_limit = Arc::new(Notify::new());
        let told = Arc::clone(&over_limit);
        Self {
            proxy: Proxy::start(listener, policy, move || told.notify_one()).unwrap(),
            address,
            over_limit,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Everything that is answered to these bytes, after which nothing more is sent.
    async fn answer(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn tunnel(&self, to: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        expect(&mut stream, "HTTP/1.1 200 Connection established\r\n\r\nhello ").await;
        stream
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it must end");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn expect(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("it must answer").unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

fn forbidden(answer: &str, why: &str) {
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.contains(why), "{why} in {answer}");
}

#[tokio::test]
async fn what_a_rule_names_is_reached_by_tunnel_and_by_url_and_both_ways_are_counted() {
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at, &format!("*.example.org:{}", outside.port)], |policy| {
        policy.resolver = Names::of(&[("a.example.org", &[&["127.0.0.1"]])]);
    });
    let tunnel = format!("CONNECT {at} HTTP/1.1\r\n\r\nearly");
    assert_eq!(world.answer(&tunnel).await, "HTTP/1.1 200 Connection established\r\n\r\nhello early");
    let url = format!("POST http://A.example.org:{}/x HTTP/1.1\r\nHost: evil.org\r\n\r\nbody", outside.port);
    let passed =
        format!("POST /x HTTP/1.1\r\nHost: A.example.org:{}\r\nConnection: close\r\n\r\nbody", outside.port);
    assert_eq!(world.answer(&url).await, format!("hello {passed}"));
    let egress = world.proxy.finish().await;
    let target = |host: &str, sent: u64| Target {
        host: host.into(),
        port: outside.port,
        connections: 1,
        sent,
        received: sent + 6,
        refused: 0,
    };
    let passed = passed.len() as u64;
    assert_eq!(egress.targets, [target("a.example.org", passed), target("127.0.0.1", 5)]);
    assert_eq!((egress.sent, egress.received), (passed + 5, passed + 17));
    assert!(!egress.limit_reached);
}

#[tokio::test]
async fn what_no_rule_names_is_refused_and_counted_and_not_even_looked_up() {
    let outside = Outside::start().await;
    let (port, other) = (outside.port, outside.port ^ 1);
    let names = Names::of(&[("a.org", &[&["127.0.0.1"]]), ("b.org", &[&["127.0.0.1"]])]);
    let resolver = Arc::clone(&names);
    let rules = [format!("a.org:{port}"), format!("127.0.0.1:{port}")];
    let world = World::start(&rules.each_ref().map(String::as_str), |policy| policy.resolver = resolver);
    for asked in [
        format!("b.org:{port}"),
        format!("a.org:{other}"),
        format!("127.0.0.2:{port}"),
        format!("[::1]:{port}"),
    ] {
        let why = format!("{asked} is not on the list");
        forbidden(&world.answer(&format!("CONNECT {asked} HTTP/1.1\r\n\r\n")).await, &why);
        forbidden(&world.answer(&format!("GET http://{asked}/ HTTP/1.1\r\n\r\n")).await, &why);
    }
    assert_eq!((names.asked.load(Ordering::Relaxed), outside.connections.load(Ordering::Relaxed)), (0, 0));
    // The positive control: the same ways lead there.
    drop(world.tunnel(&format!("a.org:{port}")).await);
    drop(world.tunnel(&format!("127.0.0.1:{port}")).await);
    let egress = world.proxy.finish().await;
    let refused: Vec<_> =
        egress.targets.iter().map(|target| (target.host.as_str(), target.refused)).collect();
    let want = [("a.org", 2), ("a.org", 0), ("b.org", 2), ("127.0.0.1", 0), ("127.0.0.2", 2), ("[::1]", 2)];
    let sorted = |mut list: Vec<_>| {
        list.sort_unstable();
        list
    };
    assert_eq!(sorted(refused), sorted(want.to_vec()));
}

#[tokio::test]
async fn a_name_must_not_lead_to_an_address_that_is_not_public_unless_a_rule_names_it() {
    let outside = Outside::start().await;
    let port = outside.port;
    let check = async |answers: &[&'static str], named: Option<&str>, why: Option<&str>| {
        let mut rules = vec![format!("a.org:{port}")];
        rules.extend(named.map(|address| format!("{address}:{port}")));
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        let world = World::start(&rules, |policy| policy.resolver = Names::of(&[("a.org", &[answers])]));
        match why {
            Some(why) => {
                let answer = world.answer(&format!("CONNECT a.org:{port} HTTP/1.1\r\n\r\n")).await;
                forbidden(&answer, &format!("which is {why}, and no rule names that address"));
            }
            None => drop(world.tunnel(&format!("a.org:{port}")).await),
        }
        let egress = world.proxy.finish().await;
        assert_eq!(egress.targets[0].refused, u64::from(why.is_some()), "{answers:?}");
    };
    // The positive control is the address that a rule names.
    check(&["127.0.0.1"], Some("127.0.0.1"), None).await;
    check(&["::ffff:127.0.0.1"], Some("127.0.0.1"), None).await;
    check(&["127.0.0.1"], None, Some("loopback")).await;
    check(&["127.0.0.1"], Some("127.0.0.2"), Some("loopback")).await;
    check(&["::ffff:127.0.0.1"], None, Some("loopback")).await;
    check(&["64:ff9b::7f00:1"], Some("127.0.0.1"), Some("loopback")).await;
    check(&["::1"], None, Some("loopback")).await;
    check(&["10.0.0.1"], None, Some("private")).await;
    check(&["169.254.169.254"], None, Some("the metadata service of clouds")).await;
    // One bad address among good ones spoils the name.
    check(&["127.0.0.1", "10.0.0.1"], Some("127.0.0.1"), Some("private")).await;
    assert_eq!(outside.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_name_is_resolved_once_for_a_connection_so_it_can_not_change_between_check_and_use() {
    let outside = Outside::start().await;
    let (name, address) = (format!("a.org:{}", outside.port), format!("127.0.0.1:{}", outside.port));
    let names = Names::of(&[("a.org", &[&["127.0.0.1"], &["10.0.0.1"]])]);
    let resolver = Arc::clone(&names);
    let world = World::start(&[&name, &address], |policy| policy.resolver = resolver);
    drop(world.tunnel(&name).await);
    assert_eq!(names.asked.load(Ordering::Relaxed), 1);
    forbidden(&world.answer(&format!("CONNECT {name} HTTP/1.1\r\n\r\n")).await, "private");
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_a_failure_and_no_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let world = World::start(&[&closed, "nowhere.org:1"], |_| {});
    for asked in [&closed, "nowhere.org:1"] {
        let answer = world.answer(&format!("CONNECT {asked} HTTP/1.1\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    }
    assert_eq!(world.proxy.finish().await, Egress::default());
}

#[tokio::test]
async fn the_limit_holds_to_the_byte_over_all_connections_together() {
    const LIMIT: usize = 100_003;
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |policy| policy.limit = LIMIT as u64);
    let mut lanes = Vec::new();
    for _ in 0..5 {
        lanes.push(world.tunnel(&at).await);
    }
    // Exactly the limit goes through, the echo proves it.
    for (place, stream) in lanes.iter_mut().enumerate() {
        let text = "x".repeat(if place == 0 { LIMIT - 4 * 20_000 } else { 20_000 });
        stream.write_all(text.as_bytes()).await.unwrap();
        expect(stream, &text).await;
    }
    assert!(world.over_limit.notified().now_or_never().is_none(), "the limit itself is within it");
    for stream in &mut lanes {
        let _ = stream.write_all(b"one more").await;
    }
    tokio::time::timeout(PATIENCE, world.over_limit.notified()).await.expect("it must be told");
    for stream in &mut lanes {
        assert_eq!(read_to_end(stream).await, "");
    }
    let egress = world.proxy.finish().await;
    assert_eq!((egress.sent, egress.limit_reached, outside.received()), (LIMIT as u64, true, LIMIT));
}

#[tokio::test]
async fn many_that_send_at_once_do_not_send_more_than_the_limit() {
    const LIMIT: usize = 777_777;
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |policy| policy.limit = LIMIT as u64);
    let mut lanes = Vec::new();
    for _ in 0..16 {
        let mut stream = world.tunnel(&at).await;
        lanes.push(tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            let (mut sink, endless) = (tokio::io::sink(), [7; 10_000]);
            let send = async { while to.write_all(&endless).await.is_ok() {} };
            let _ = tokio::join!(send, tokio::io::copy(&mut from, &mut sink));
        }));
    }
    for lane in lanes {
        tokio::time::timeout(PATIENCE, lane).await.expect("each is cut").unwrap();
    }
    let egress = world.proxy.finish().await;
    assert_eq!((egress.sent, egress.limit_reached), (LIMIT as u64, true));
    // Connections that are cut may lose what the server had not read; it never has more.
    exchequer_testkit::eventually(PATIENCE, async || outside.ended.load(Ordering::Relaxed) == 16).await;
    assert!((1..=LIMIT).contains(&outside.received()), "{}", outside.received());
}

#[tokio::test]
async fn without_a_limit_to_spend_a_tunnel_opens_and_sends_nothing() {
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |policy| policy.limit = 0);
    let mut stream = world.tunnel(&at).await;
    stream.write_all(b"1").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert_eq!((world.proxy.finish().await.sent, outside.received()), (0, 0));
}

#[tokio::test]
async fn malformed_requests_are_answered_with_what_is_wrong_and_counted() {
    let world = World::start(&["a.org:1"], |policy| policy.bounds.head_bytes = 1000);
    let long = format!("GET http://a.org:1/ HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(1000));
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a.org\r\n\r\n", "400 Bad Request"),
        ("CONNECT a.org HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("GET https://a.org:1/ HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("\x16\x03\x01\x02\x00\x01", "400 Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
    ];
    for (request, status) in &cases {
        let answer = world.answer(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
    }
    assert_eq!(world.answer("GET http://a.org:1/ HTT").await, "", "it went away before it had asked");
    let egress = world.proxy.finish().await;
    let others = Target { refused: cases.len() as u64, ..Target::default() };
    assert_eq!(egress.targets, [others]);
}

#[tokio::test]
async fn a_head_that_does_not_come_and_a_connection_that_stands_still_are_ended() {
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |policy| {
        policy.bounds.head_time = Duration::from_millis(300);
        policy.bounds.idle_time = Duration::from_millis(300);
    });
    let mut slow = world.connect().await;
    slow.write_all(b"CONNECT ").await.unwrap();
    let mut idle = world.tunnel(&at).await;
    assert!(read_to_end(&mut slow).await.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    assert_eq!(read_to_end(&mut idle).await, "");
}

#[tokio::test]
async fn so_many_connections_are_served_at_a_time_and_so_many_in_all() {
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |policy| {
        policy.bounds.at_once = 2;
        policy.bounds.in_all = 4;
    });
    let (mut first, second) = (world.tunnel(&at).await, world.tunnel(&at).await);
    let mut third = world.connect().await;
    third.write_all(format!("CONNECT {at} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    // The others go on, the third waits.
    for _ in 0..20 {
        first.write_all(b"ping").await.unwrap();
        expect(&mut first, "ping").await;
        assert_eq!(third.try_read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    drop(second);
    expect(&mut third, "HTTP/1.1 200 Connection established\r\n\r\nhello ").await;
    drop(third);
    drop(world.tunnel(&at).await);
    exchequer_testkit::eventually(PATIENCE, async || TcpStream::connect(world.address).await.is_err()).await;
    first.write_all(b"ping").await.unwrap();
    expect(&mut first, "ping").await;
    assert_eq!(world.proxy.finish().await.targets[0].connections, 4);
}

#[tokio::test]
async fn the_end_closes_listener_and_connections() {
    let outside = Outside::start().await;
    let at = format!("127.0.0.1:{}", outside.port);
    let world = World::start(&[&at], |_| {});
    let mut open = world.tunnel(&at).await;
    let mut asking = world.connect().await;
    asking.write_all(b"CONN").await.unwrap();
    world.proxy.finish().await;
    let refused = TcpStream::connect(world.address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(read_to_end(&mut open).await, "");
    assert_eq!(read_to_end(&mut asking).await, "");
}

#[tokio::test]
async fn the_systems_resolver_finds_this_host() {
    let found = SystemResolver::default().resolve("localhost".to_owned(), 7).await.unwrap();
    assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 7), "{found:?}");
    assert!(!found.is_empty());
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue_and_one_execution_has_a_few_lookups() {
    let resolver = SystemResolver::default();
    let taken = Arc::clone(&resolver.own).acquire_many_owned(4).await.unwrap();
    let waiting = resolver.resolve("localhost".to_owned(), 7);
    assert!(tokio::time::timeout(Duration::from_millis(10), waiting).await.is_err());
    let other = SystemResolver::default();
    assert!(other.resolve("localhost".to_owned(), 7).await.is_ok(), "another execution goes on");
    drop(taken);
    assert_eq!(resolver.own.available_permits(), MAX_OWN_LOOKUPS);
}
