//! A witness over HTTP, over a store that fails, and under requests that race.

use std::{path::Path, thread};

use axum::{body::Body, http::Request};
use ed25519_dalek::SigningKey;
use exchequer_tlog::{
    Checkpoint, Hash, NoteSigner, RightEdge, SignedCheckpoint, TileId, TileReader, consistency_proof,
    leaf_hash,
};
use tower::ServiceExt as _;

use super::*;
use crate::store::faults::Shared;

const ORIGIN: &str = "log.example/a";
const NAME: &str = "witness.example/w";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn log() -> NoteSigner {
    NoteSigner::new(ORIGIN, key(1)).unwrap()
}

fn options(data: &Path) -> WitnessOptions {
    let log = WitnessedLog { origin: ORIGIN.into(), key: log().verifier().clone() };
    WitnessOptions {
        data: data.into(),
        name: NAME.into(),
        key_file: data.join("witness.key"),
        logs: vec![log],
    }
}

fn over(files: &Shared) -> Result<Witness, StartError> {
    let cosigner = Cosigner::new(NAME, key(2)).unwrap();
    let lock = Arc::new(tempfile::tempfile().unwrap());
    Witness::over(Arc::new(files.clone()), &options(Path::new("/data")), cosigner, lock)
}

/// The leaves of a tree that is smaller than a tile; `fork` tells trees apart.
struct Leaves(Vec<Hash>);

impl TileReader for Leaves {
    type Tile = Vec<Hash>;
    type Error = std::convert::Infallible;

    fn tile(&self, _: TileId) -> Result<Vec<Hash>, Self::Error> {
        Ok(self.0.clone())
    }
}

fn leaves(size: u64, fork: u8) -> Leaves {
    Leaves((0..size).map(|index| leaf_hash(&[index.to_le_bytes()[0], fork])).collect())
}

fn signed(size: u64, fork: u8) -> SignedCheckpoint {
    let root = RightEdge::new().integrate(&leaves(size, fork).0).root;
    Checkpoint::new(ORIGIN, size, root).unwrap().sign(&log())
}

fn request(old: u64, size: u64, fork: u8) -> Vec<u8> {
    let proof = consistency_proof(old, size, &leaves(size, fork)).unwrap();
    AddCheckpoint { old, proof, signed: signed(size, fork) }.to_string().into_bytes()
}

/// Whether this signs the checkpoint of that size, and when.
fn verified(witness: &Witness, signature: NoteSignature, size: u64, fork: u8) -> Option<u64> {
    let mut signed = signed(size, fork);
    signed.add(signature).unwrap();
    signed.note().verify([witness.verifier_key()]).unwrap().by[0].time
}

#[tokio::test]
async fn over_http_each_answer_has_its_status_type_and_body() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::open(&options(dir.path())).unwrap();
    let ask = async |body: Vec<u8>| {
        let asked = Request::post("/add-checkpoint").body(Body::from(body)).unwrap();
        let answer = witness.routes().oneshot(asked).await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = axum::body::to_bytes(answer.into_body(), 100_000).await.unwrap();
        let content_type = headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    };
    let before = unix_s();
    let (status, content_type, body) = ask(request(0, 5, 0)).await;
    assert_eq!((status, content_type.as_str()), (200, TEXT));
    let signature = NoteSignature::parse(body.strip_suffix('\n').unwrap()).unwrap();
    let time = verified(&witness, signature, 5, 0).unwrap();
    assert!((before..=unix_s()).contains(&time), "{time}");
    // The size that is held, and nothing else, tells the log from where to prove.
    assert_eq!(ask(request(0, 9, 0)).await, (409, SIZE_TYPE.to_owned(), "5\n".to_owned()));
    assert_eq!(ask(request(5, 9, 0)).await.0, 200);
    let (status, content_type, _) = ask(request(9, 9, 1)).await;
    assert_eq!((status, content_type.as_str()), (409, TEXT));
    assert_eq!(ask(b"old".to_vec()).await.0, 400);
    assert_eq!(ask(vec![b'x'; MAX_REQUEST_BYTES + 1]).await.0, 413);

    let asked = Request::get("/verifier-key").body(Body::empty()).unwrap();
    let answer = witness.routes().oneshot(asked).await.unwrap();
    let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
    assert_eq!(body, format!("{}\n", witness.verifier_key()));
    // One process a directory; and what was cosigned outlasts the process.
    assert!(matches!(Witness::open(&options(dir.path())), Err(StartError::Locked(_))));
    drop(witness);
    let witness = Witness::open(&options(dir.path())).unwrap();
    assert_eq!(witness.logs(), [(ORIGIN.to_owned(), 9)]);
    assert!(matches!(witness.answer(&request(5, 9, 0)), Err(Refusal::Stale { held: 9 })));
}

#[test]
fn nothing_is_cosigned_that_is_not_on_disk_whichever_operation_fails_and_however() {
    let sizes = [3u64, 3, 7, 200];
    let run = |files: &Shared| -> (Vec<u64>, bool) {
        let Ok(witness) = over(files) else { return (Vec::new(), false) };
        let mut cosigned = Vec::new();
        for size in sizes {
            let old = witness.0.registers[0].held().size;
            match witness.answer(&request(old, size, 0)) {
                Ok(signature) => {
                    verified(&witness, signature, size, 0).unwrap();
                    cosigned.push(size);
                }
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NotKept);
                    assert!(!witness.readiness().is_ready());
                    return (cosigned, false);
                }
            }
        }
        (cosigned, true)
    };
    let clean = Shared::default();
    assert_eq!(run(&clean), (sizes.to_vec(), true));
    let operations = clean.operations();
    assert!(operations >= 3 * 3, "{operations}");
    Shared::each_fault(operations, |files, fault| {
        let (cosigned, is_whole) = run(&files);
        assert!(!is_whole, "{fault} went unnoticed");
        // After the power came back, the other tree is refused wherever a cosignature exists.
        files.reboot();
        let newest = cosigned.last().copied().unwrap_or(0);
        let witness = over(&files).unwrap_or_else(|error| panic!("{fault}: {error}"));
        let held = witness.0.registers[0].held().size;
        assert!(held >= newest, "{fault}: {newest} was cosigned, {held} is held");
        if newest > 0 {
            for (old, size) in [(0, newest), (newest, newest), (held, held), (held, 250)] {
                assert!(witness.answer(&request(old, size, 1)).is_err(), "{fault}: a fork was cosigned");
            }
        }
        // And the log goes on.
        witness.answer(&request(held, 250, 0)).unwrap_or_else(|error| panic!("{fault}: {error}"));
    });
}

#[test]
fn a_failed_write_is_tried_again_and_leaves_the_witness_as_it_was() {
    let files = Shared::default();
    let witness = over(&files).unwrap();
    witness.answer(&request(0, 5, 0)).unwrap();
    files.fail_once();
    assert_eq!(witness.answer(&request(5, 9, 0)).unwrap_err(), Refusal::NotKept);
    assert!(files.has_failed() && !witness.readiness().is_ready());
    assert_eq!(witness.logs(), [(ORIGIN.to_owned(), 5)]);
    witness.answer(&request(5, 9, 0)).unwrap();
    assert!(witness.readiness().is_ready());
}

#[test]
fn of_requests_that_race_the_trees_that_are_cosigned_continue_each_other() {
    let witness = over(&Shared::default()).unwrap();
    let cosigned: Vec<(u64, u8)> = thread::scope(|scope| {
        let racers: Vec<_> = (0..8u8)
            .map(|racer| {
                let witness = &witness;
                scope.spawn(move || {
                    // Half of them are served another tree.
                    let (mut cosigned, fork) = (Vec::new(), racer % 2);
                    for step in 0..60u64 {
                        let old = witness.0.registers[0].held().size;
                        let size = (old + 1 + (step * 7 + u64::from(racer)) % 5).min(250);
                        if witness.answer(&request(old, size, fork)).is_ok() {
                            cosigned.push((size, fork));
                        }
                    }
                    cosigned
                })
            })
            .collect();
        racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect()
    });
    // Two trees share no size but 0, so one history can have been cosigned.
    assert!(cosigned.len() > 10, "{cosigned:?}");
    assert!(cosigned.iter().all(|(_, fork)| *fork == cosigned[0].1), "{cosigned:?}");
    assert_eq!(witness.logs()[0].1, cosigned.iter().map(|(size, _)| *size).max().unwrap());
}

#[test]
fn a_damaged_state_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::open(&options(dir.path())).unwrap();
    witness.answer(&request(0, 5, 0)).unwrap();
    drop(witness);
    let file = std::fs::read_dir(dir.path().join(LOGS)).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    for damaged in [&b""[..], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), &whole.repeat(2)] {
        std::fs::write(&file, damaged).unwrap();
        let error = Witness::open(&options(dir.path())).unwrap_err();
        assert!(matches!(error, StartError::Store(StoreError::Damaged { .. })), "{error}");
    }
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(Witness::open(&options(dir.path())).unwrap().logs(), [(ORIGIN.to_owned(), 5)]);
}

#[test]
fn a_log_is_named_by_its_key_and_where_it_differs_its_origin() {
    let key = log().verifier().to_string();
    let parsed = |text: &str| text.parse::<WitnessedLog>();
    assert_eq!(parsed(&key).unwrap().origin, ORIGIN);
    assert_eq!(parsed(&format!("{key}=go.sum database tree")).unwrap().origin, "go.sum database tree");
    let odd = NoteSigner::new("a=b", self::key(1)).unwrap().verifier().to_string();
    assert_eq!(parsed(&odd).unwrap().origin, "a=b");
    for wrong in ["", "x", &format!("{key}="), &format!("{key}=a\nb"), &key[1..]] {
        assert!(parsed(wrong).is_err(), "{wrong}");
    }
    let witness = Cosigner::new(NAME, self::key(2)).unwrap().verifier().to_string();
    assert!(parsed(&witness).unwrap_err().contains("a witness's key"));
}
