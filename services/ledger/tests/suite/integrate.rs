//! Integration depends on the messages alone, not on how they are cut.

use exchequer_event::{accept::Acceptor, control::sign_control, v1};
use exchequer_ledger::{Prepared, integrate};
use exchequer_stream::Record;
use exchequer_testkit::SimAgent;
use exchequer_tlog::leaf_hash;
use proptest::prelude::*;
use prost::{Message as _, bytes::Bytes};

/// A genesis, an enrolment, and batches of which some are repeated, left out or damaged.
fn records(choices: &[u8]) -> Vec<Record> {
    let ledger = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let mut agent = SimAgent::new("a1");
    let control = |kind| {
        let record = v1::ControlRecord { kind: Some(kind), ..v1::ControlRecord::default() };
        Bytes::from(sign_control(&ledger, &record).encode_to_vec())
    };
    let genesis =
        v1::Genesis { origin: "o/log".into(), ledger_key: ledger.verifying_key().as_bytes().to_vec().into() };
    let enrolled = v1::KeyEnrolled {
        role: v1::KeyRole::Agent.into(),
        holder: "a1".into(),
        public_key: agent.public_key().as_bytes().to_vec().into(),
    };
    let mut messages = vec![
        ("control.genesis".to_owned(), control(v1::control_record::Kind::Genesis(genesis))),
        ("control.keys".to_owned(), control(v1::control_record::Kind::KeyEnrolled(enrolled))),
    ];
    for choice in choices {
        let batch = agent.batch("acme", usize::from(choice % 3) + 1);
        match choice / 32 {
            0 => {}
            1 => messages.push((agent.subject(), batch.slice(..batch.len() / 2))),
            2 => messages.push(("events.NOBODY".to_owned(), batch)),
            3 => messages.extend([(agent.subject(), batch.clone()), (agent.subject(), batch)]),
            4 => {
                messages.push((agent.subject(), batch));
                agent.new_epoch();
            }
            _ => messages.push((agent.subject(), batch)),
        }
    }
    let record =
        |(seq, (subject, payload))| Record { seq, subject, time_unix_ms: 0, headers: Vec::new(), payload };
    (1..).zip(messages).map(record).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_same_stream_is_the_same_log_whatever_the_batching(
        choices in proptest::collection::vec(any::<u8>(), 1..20),
        cuts in proptest::collection::vec(1usize..5, 1..30),
    ) {
        let records = records(&choices);
        let mut acceptor = Acceptor::new();
        let whole = integrate(&mut acceptor, records.iter().map(|record| Prepared::new(record.clone(), &[])));
        let keys = acceptor.keys().to_vec();
        let mut again = Acceptor::new();
        let (mut rest, mut entries, mut kinds) = (&records[..], Vec::new(), std::collections::BTreeMap::new());
        for cut in cuts.iter().cycle() {
            let (run, tail) = rest.split_at((*cut).min(rest.len()));
            // Prepared with keys that are not enrolled yet, or with none.
            let likely = if cut % 2 == 0 { &keys[..] } else { &[] };
            let part = integrate(&mut again, run.iter().map(|record| Prepared::new(record.clone(), likely)));
            prop_assert!(part.leaves.iter().copied().eq(part.entries.iter().map(|entry| leaf_hash(entry))));
            entries.extend(part.entries);
            for (kind, count) in part.kinds {
                *kinds.entry(kind).or_insert(0) += count;
            }
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&entries, &whole.entries);
        prop_assert_eq!(kinds, whole.kinds);
        prop_assert!(again == acceptor);
        // And from the log alone.
        let mut replayed = Acceptor::new();
        for bytes in &entries {
            replayed.evolve(&exchequer_event::entry::decode(bytes).unwrap());
        }
        prop_assert!(replayed == acceptor);
    }
}
