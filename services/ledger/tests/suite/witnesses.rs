//! A ledger and its witnesses: what is published, what waits, and what a witness can't do.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::post,
};
use ed25519_dalek::SigningKey;
use exchequer_auth::keys;
use exchequer_event::name::receipt_key;
use exchequer_ledger::{
    Options, Service, StartError,
    witness::{Witness, WitnessAddress, WitnessOptions, WitnessedLog},
};
use exchequer_stream::{EventStream, Message};
use exchequer_testkit::{SimAgent, eventually, temp_dir};
use exchequer_tlog::{
    AddCheckpoint, Checkpoint, Cosigner, Hash, NoteSigner, Policy, SignedCheckpoint, VerifierKey,
};
use futures::StreamExt as _;

use super::support::{PATIENCE, checkpoint, covered, local_stream, options, receipt, start};

/// A server on a free port, as long as the value lives.
struct Served {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn new(router: Router) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        Self { url, task: tokio::spawn(async { axum::serve(listener, router).await.unwrap() }) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A witness that can be out of order.
struct Neighbour {
    witness: Witness,
    is_up: Arc<AtomicBool>,
    served: Served,
}

async fn unless_down(State(is_up): State<Arc<AtomicBool>>, request: Request, next: Next) -> Response {
    if is_up.load(Ordering::SeqCst) {
        next.run(request).await
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "out of order").into_response()
    }
}

impl Neighbour {
    async fn new(data: &Path, name: &str, logs: &[&VerifierKey], is_up: bool) -> Self {
        let logs = logs.iter().map(|key| WitnessedLog { origin: key.name().into(), key: (*key).clone() });
        let data = data.join(name);
        let key_file = data.join("witness.key");
        let witness =
            Witness::open(&WitnessOptions { data, name: name.into(), key_file, logs: logs.collect() })
                .unwrap();
        let is_up = Arc::new(AtomicBool::new(is_up));
        let router = witness.routes().layer(from_fn_with_state(is_up.clone(), unless_down));
        Self { witness, is_up, served: Served::new(router).await }
    }

    fn address(&self) -> WitnessAddress {
        WitnessAddress { key: self.witness.verifier_key().clone(), url: self.served.url.clone() }
    }
}

/// The verifier key that the log of these options will have.
fn log_key(options: &Options) -> VerifierKey {
    std::fs::create_dir_all(&options.data).unwrap();
    let key = keys::load_or_create(&options.key_file).unwrap();
    NoteSigner::new(&*options.origin, key).unwrap().verifier().clone()
}

/// Who cosigned, beside the log; every signature by a known key holds, and there are at least so many.
fn cosigned(
    signed: &SignedCheckpoint,
    log: &VerifierKey,
    witnesses: &[WitnessAddress],
    quorum: usize,
) -> BTreeSet<String> {
    let keys: Vec<_> = witnesses.iter().map(|witness| witness.key.clone()).collect();
    let policy =
        Policy { origin: log.name().into(), log_keys: vec![log.clone()], witnesses: keys.clone(), quorum };
    let by = signed.verify(&policy).unwrap().by;
    by.into_iter().filter(|by| keys.contains(&by.key)).map(|by| by.key.name().to_owned()).collect()
}

async fn told(service: &Service, expected: &str) {
    eventually(PATIENCE, || std::future::ready(format!("{:?}", service.readiness()).contains(expected)))
        .await;
}

async fn take(stream: &Arc<dyn EventStream>, agent: &mut SimAgent) {
    let batch = agent.batch("acme", 3);
    stream.append(Message::new(agent.subject(), batch)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_and_nobody_is_told_before_the_quorum_has_cosigned() {
    let dir = temp_dir();
    let mut agent = SimAgent::new("a1");
    let stream = local_stream(dir.path());
    let mut options = options(dir.path().join("ledger"), &[&agent]);
    let log = log_key(&options);
    let up = Neighbour::new(dir.path(), "w.example/up", &[&log], true).await;
    let down = Neighbour::new(dir.path(), "w.example/down", &[&log], false).await;
    options.witnesses = vec![up.address(), down.address()];
    options.witness_quorum = 2;
    let service = start(&options, &stream).await;
    // Genesis and enrolment are signed, as the witness that is up knows.
    eventually(PATIENCE, || std::future::ready(up.witness.logs()[0].1 >= 2)).await;
    take(&stream, &mut agent).await;
    told(&service, "1 of 2 witnesses cosigned, 2 have to; w.example/down: status 503: out of order").await;
    assert!(!service.readiness().is_ready());

    let is_silent = async |service: &Service| {
        let mut receipts = stream.watch_latest(&receipt_key("a1")).await.unwrap();
        let receipt = tokio::time::timeout(Duration::from_millis(300), receipts.next()).await;
        receipt.is_err() && service.checkpoint().is_empty() && !options.data.join("log/checkpoint").exists()
    };
    assert!(is_silent(&service).await);
    // Signed it is: the one witness that is up holds it. A restart does not publish it either, at whatever moment.
    eventually(PATIENCE, || std::future::ready(up.witness.logs()[0].1 > 0)).await;
    service.stop().await;
    let service = start(&options, &stream).await;
    told(&service, "w.example/down: status 503").await;
    assert!(is_silent(&service).await);

    down.is_up.store(true, Ordering::SeqCst);
    let key = service.public_key();
    let receipt =
        receipt(&stream, &key, "a1", |receipt| receipt.head.as_ref().unwrap().seq == agent.seq()).await;
    let both = BTreeSet::from(["w.example/up".to_owned(), "w.example/down".to_owned()]);
    let told_with = SignedCheckpoint::parse(&receipt.checkpoint).unwrap();
    assert_eq!(cosigned(&told_with, &log, &options.witnesses, 2), both);
    told(&service, "\"ledger.witness\": Works").await;
    eventually(PATIENCE, || std::future::ready(service.readiness().is_ready())).await;

    // One is away again: what was published stays, what is new waits.
    let published = service.checkpoint();
    up.is_up.store(false, Ordering::SeqCst);
    take(&stream, &mut agent).await;
    told(&service, "w.example/up: status 503").await;
    assert_eq!(service.checkpoint(), published);
    drop(service);
    let service = start(&options, &stream).await;
    told(&service, "w.example/up: status 503").await;
    assert_eq!(service.checkpoint(), published);
    assert_eq!(std::fs::read(options.data.join("log/checkpoint")).unwrap(), published);
    up.is_up.store(true, Ordering::SeqCst);
    covered(&service, checkpoint_size(&published) + 7).await;
    assert_eq!(cosigned(&checkpoint(&service), &log, &options.witnesses, 2), both);
    service.stop().await;
}

fn checkpoint_size(note: &[u8]) -> u64 {
    SignedCheckpoint::parse(note).unwrap().checkpoint().size()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ledgers_witness_each_other_over_restarts_of_either() {
    let dirs = [temp_dir(), temp_dir()];
    let mut agents = [SimAgent::new("a1"), SimAgent::new("a1")];
    let streams = [local_stream(dirs[0].path()), local_stream(dirs[1].path())];
    let mut all = [0, 1].map(|side| Options {
        origin: format!("party-{side}.example/log"),
        ..options(dirs[side].path().join("ledger"), &[&agents[side]])
    });
    let logs = [0, 1].map(|side| log_key(&all[side]));
    // Each party's witness knows the other's log.
    let witnesses = [
        Neighbour::new(dirs[0].path(), "party-0.example/witness", &[&logs[1]], true).await,
        Neighbour::new(dirs[1].path(), "party-1.example/witness", &[&logs[0]], true).await,
    ];
    for side in [0, 1] {
        all[side].witnesses = vec![witnesses[1 - side].address()];
        all[side].witness_quorum = 1;
    }
    let mut services = [start(&all[0], &streams[0]).await, start(&all[1], &streams[1]).await];
    for service in &services {
        covered(service, 2).await;
    }
    for round in 0..4u64 {
        for side in [0, 1] {
            take(&streams[side], &mut agents[side]).await;
            covered(&services[side], 2 + 7 * (round + 1)).await;
            let signed = checkpoint(&services[side]);
            let other = format!("party-{}.example/witness", 1 - side);
            assert_eq!(cosigned(&signed, &logs[side], &all[side].witnesses, 1), BTreeSet::from([other]));
            let held = witnesses[1 - side].witness.logs();
            assert!(held[0].0 == all[side].origin && held[0].1 >= signed.checkpoint().size());
        }
        // A ledger forgets what its witness holds and is told by it.
        let side = usize::try_from(round % 2).unwrap();
        let [one, other] = services;
        let (stopped, kept) = if side == 0 { (one, other) } else { (other, one) };
        stopped.stop().await;
        let again = start(&all[side], &streams[side]).await;
        services = if side == 0 { [again, kept] } else { [kept, again] };
    }
    for service in services {
        service.stop().await;
    }
}

/// What a witness that is not one answers to a request under its key.
fn misbehave(kind: usize, cosigner: &Cosigner, asked: &AddCheckpoint, count: u64) -> Response {
    let checkpoint = asked.signed.checkpoint();
    let size = |size: u64| {
        let content_type = [(axum::http::header::CONTENT_TYPE, "text/x.tlog.size")];
        (StatusCode::CONFLICT, content_type, format!("{size}\n")).into_response()
    };
    match kind {
        0 => "— w.example/0 AAAA\nsomething\u{0}".into_response(),
        1 => {
            let other = Checkpoint::new(checkpoint.origin(), checkpoint.size(), Hash([1; 32])).unwrap();
            format!("{}\n", other.cosign(cosigner, 1)).into_response()
        }
        2 => vec![b'x'; 1024 * 1024].into_response(),
        3 => size(1_000_000_000),
        4 => size(count % 2),
        5 => (StatusCode::CONFLICT, "no size").into_response(),
        _ => (StatusCode::FOUND, [(axum::http::header::LOCATION, "/elsewhere")]).into_response(),
    }
}

const KINDS: usize = 7;

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_answers_garbage_is_named_and_ignored() {
    let dir = temp_dir();
    let mut agent = SimAgent::new("a1");
    let stream = local_stream(dir.path());
    let mut options = options(dir.path().join("ledger"), &[&agent]);
    let log = log_key(&options);
    let honest = Neighbour::new(dir.path(), "w.example/honest", &[&log], true).await;
    options.witnesses = vec![honest.address()];
    let mut served = Vec::new();
    for kind in 0..KINDS {
        let key = SigningKey::from_bytes(&[u8::try_from(kind).unwrap() + 50; 32]);
        let cosigner = Cosigner::new(format!("w.example/{kind}"), key).unwrap();
        let witness_key = cosigner.verifier().clone();
        let count = AtomicU64::new(0);
        let answer = move |body: Bytes| {
            let asked = AddCheckpoint::parse(&body).unwrap();
            let count = count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(misbehave(kind, &cosigner, &asked, count))
        };
        let answer = Arc::new(answer);
        let route = post(move |body: Bytes| answer(body));
        served.push(Served::new(Router::new().route("/add-checkpoint", route)).await);
        options.witnesses.push(WitnessAddress { key: witness_key, url: served[kind].url.clone() });
    }
    // Nobody listens there.
    let nobody = Cosigner::new("w.example/nobody", SigningKey::from_bytes(&[90; 32])).unwrap();
    let closed = Served::new(Router::new()).await;
    let gone = closed.url.clone();
    drop(closed);
    options.witnesses.push(WitnessAddress { key: nobody.verifier().clone(), url: gone });

    options.witness_quorum = 1;
    let service = start(&options, &stream).await;
    let expected = [
        "1 of 9 witnesses cosigned, 1 have to",
        "w.example/0: its answer has no signature by its key",
        "w.example/1: the signature by w.example/1",
        "w.example/2: status 200: its answer is too long",
        "w.example/3: it holds a tree of 1000000000 entries",
        "w.example/4: it refused 3 sizes in turn",
        "w.example/5: status 409: no size",
        "w.example/6: status 302",
        "w.example/nobody: error sending request",
    ];
    let mut shown = String::new();
    covered(&service, 2).await;
    let all_named = async {
        // On a slow machine one of them may have had no time to say its nonsense.
        for round in 1.. {
            take(&stream, &mut agent).await;
            covered(&service, 2 + 7 * round).await;
            shown = format!("{:?}", service.readiness());
            if expected.iter().all(|expected| shown.contains(expected)) {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all_named).await.is_ok();
    for expected in expected {
        assert!(shown.contains(expected), "`{expected}` is missing in {shown}");
    }
    assert!(in_time);
    assert!(service.readiness().is_ready(), "{shown}");
    let signed = checkpoint(&service);
    let honest_only = BTreeSet::from(["w.example/honest".to_owned()]);
    assert_eq!(cosigned(&signed, &log, &options.witnesses, 1), honest_only);
    assert_eq!(signed.note().signatures().len(), 3, "{signed}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_never_answers_holds_up_nothing_but_what_has_to_wait_for_it() {
    let dir = temp_dir();
    let mut agent = SimAgent::new("a1");
    let stream = local_stream(dir.path());
    let mut options = options(dir.path().join("ledger"), &[&agent]);
    let mute = Served::new(Router::new().route("/add-checkpoint", post(std::future::pending::<()>))).await;
    let cosigner = Cosigner::new("w.example/mute", SigningKey::from_bytes(&[50; 32])).unwrap();
    options.witnesses = vec![WitnessAddress { key: cosigner.verifier().clone(), url: mute.url.clone() }];
    let service = start(&options, &stream).await;
    covered(&service, 2).await;
    take(&stream, &mut agent).await;
    covered(&service, 9).await;
    told(&service, "w.example/mute: no answer in time").await;
    service.stop().await;
    options.witness_quorum = 1;
    let service = start(&options, &stream).await;
    let published = service.checkpoint();
    take(&stream, &mut agent).await;
    told(&service, "0 of 1 witnesses cosigned, 1 have to; w.example/mute").await;
    assert_eq!(service.checkpoint(), published);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_own_key_is_no_witness() {
    let dir = temp_dir();
    let mut options = options(dir.path().join("ledger"), &[]);
    log_key(&options);
    let key = keys::load_or_create(&options.key_file).unwrap();
    let cosigner = Cosigner::new("w.example/w", key).unwrap();
    options.witnesses =
        vec![WitnessAddress { key: cosigner.verifier().clone(), url: "http://127.0.0.1:1".into() }];
    let error = Service::start(options, local_stream(dir.path())).await.map(drop).unwrap_err();
    assert!(matches!(error, StartError::Witnesses(_)), "{error}");
}
