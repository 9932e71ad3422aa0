//! Snapshots against the state that the log leads to.

use std::collections::BTreeMap;

use exchequer_event::{control::sign_control, v1};
use exchequer_stream::Record;
use exchequer_testkit::SimAgent;

use super::*;
use crate::{
    integrate::{Prepared, integrate},
    store::{
        Opened,
        faults::{Shared, reopen},
    },
};

/// What sled holds.
type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A log that grows by batches, with the state that its acceptor holds.
struct World {
    opened: Opened,
    acceptor: Acceptor,
    agents: Vec<SimAgent>,
    seq: u64,
    db: sled::Db,
}

impl World {
    fn new(agents: usize) -> Self {
        let mut world = Self {
            opened: reopen(&Shared::default()).unwrap(),
            acceptor: Acceptor::new(),
            agents: (0..agents).map(|number| SimAgent::new(format!("a{number}"))).collect(),
            seq: 0,
            db: sled::Config::new().temporary(true).open().unwrap(),
        };
        let ledger = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
        let ledger_key = Bytes::copy_from_slice(ledger.verifying_key().as_bytes());
        let genesis = v1::Genesis { origin: "o/log".into(), ledger_key };
        let mut kinds = vec![v1::control_record::Kind::Genesis(genesis)];
        kinds.extend(world.agents.iter().map(|agent| {
            v1::control_record::Kind::KeyEnrolled(v1::KeyEnrolled {
                role: v1::KeyRole::Agent.into(),
                holder: agent.id().into(),
                public_key: Bytes::copy_from_slice(agent.public_key().as_bytes()),
            })
        }));
        for kind in kinds {
            let record = v1::ControlRecord { kind: Some(kind), ..v1::ControlRecord::default() };
            world.take("control.keys".to_owned(), sign_control(&ledger, &record).encode_to_vec().into());
        }
        world
    }

    fn take(&mut self, subject: String, payload: Bytes) {
        self.seq += 1;
        let record = Record { seq: self.seq, subject, time_unix_ms: 0, headers: Vec::new(), payload };
        let integrated = integrate(&mut self.acceptor, [Prepared::new(record, &[])]);
        self.opened.writer.commit(&integrated.entries, self.seq, Digest([1; 32])).unwrap();
        self.opened.reader.remove_superseded().unwrap();
    }

    fn batch(&mut self, agent: usize, executions: usize) {
        let batch = self.agents[agent].batch("acme", executions);
        self.take(self.agents[agent].subject(), batch);
    }

    fn event(&mut self, agent: usize) {
        let kind = v1::event::Kind::AgentStopped(v1::AgentStopped::default());
        self.agents[agent].record("", "", kind);
        let seq = self.agents[agent].seq();
        let batch = self.agents[agent].seal(seq, seq).encode_to_vec();
        self.take(self.agents[agent].subject(), batch.into());
    }

    fn size(&self) -> u64 {
        self.opened.writer.position().size
    }

    fn save(&self, snapshots: &mut Snapshots) {
        snapshots.save(&self.opened.reader, self.size(), &self.acceptor).unwrap();
    }

    /// The state as it is found at the next start, and how many entries the snapshot covered.
    fn reopened(&self, db: &sled::Db) -> (Snapshots, u64) {
        let mut snapshots = Snapshots::open(db).unwrap();
        let (acceptor, covered) = snapshots.acceptor(&self.opened.reader).unwrap();
        assert!(acceptor == self.acceptor, "the state is not the one that the log leads to");
        (snapshots, covered)
    }

    fn pairs(&self) -> Pairs {
        let tree = self.db.open_tree("acceptor").unwrap();
        tree.iter().map(|pair| pair.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }
}

#[test]
fn whenever_it_was_saved_the_state_is_the_one_that_the_log_leads_to() {
    let mut world = World::new(3);
    let (mut snapshots, covered) = world.reopened(&world.db);
    assert_eq!(covered, 0);
    // Around the ends of chunks and of the window, past it at once, and epochs that begin again.
    for (round, executions) in [1, 31, 1, 32, 16, 250, 200, 255, 1, 33, 3, 2].into_iter().enumerate() {
        world.batch(round % 2, executions);
        if round % 5 == 4 {
            world.agents[round % 2].new_epoch();
            world.batch(round % 2, 40);
        }
        world.save(&mut snapshots);
        let saved_at = world.size();
        if round % 3 == 0 {
            world.batch(2, 20);
        }
        let covered;
        (snapshots, covered) = world.reopened(&world.db);
        assert_eq!(covered, saved_at, "round {round}");
    }
    // Event by event over the end of a chunk.
    for _ in 0..CHUNK + 2 {
        world.event(0);
        world.save(&mut snapshots);
        assert_eq!(world.reopened(&world.db).1, world.size());
    }
    // No more chunks than the windows span.
    let most = 3 * (exchequer_event::accept::COMPARED_EVENTS / 64 + 1);
    assert!(world.pairs().len() <= 1 + most, "{} keys", world.pairs().len());
}

#[test]
fn only_what_changed_is_written() {
    let mut world = World::new(20);
    let (mut snapshots, _) = world.reopened(&world.db);
    for agent in 0..20 {
        for _ in 0..3 {
            world.batch(agent, 200);
        }
    }
    world.save(&mut snapshots);
    let before = world.pairs();
    assert!(before.len() > 20 * 16);
    world.batch(7, 3);
    world.save(&mut snapshots);
    let after = world.pairs();
    let changed: Vec<_> = after.iter().filter(|(key, value)| before.get(*key) != Some(*value)).collect();
    // What ties it together, and a chunk or two.
    assert!((2..=3).contains(&changed.len()), "{}", changed.len());
    assert!(changed.iter().all(|(key, _)| *key == KEY || key.starts_with(b"da7\0")));
    assert_eq!(world.reopened(&world.db).1, world.size());
}

#[test]
fn a_snapshot_that_is_torn_damaged_or_of_another_log_is_not_used() {
    let mut world = World::new(2);
    let (mut snapshots, _) = world.reopened(&world.db);
    world.batch(0, 100);
    world.batch(1, 250);
    world.save(&mut snapshots);
    let older = world.pairs();
    world.batch(0, 2);
    world.save(&mut snapshots);
    let whole = world.pairs();
    let check = |change: &dyn Fn(&mut Pairs), is_used: bool| {
        let mut pairs = whole.clone();
        change(&mut pairs);
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("acceptor").unwrap();
        for (key, value) in &pairs {
            tree.insert(key, &**value).unwrap();
        }
        let (mut snapshots, covered) = world.reopened(&db);
        assert_eq!(covered, if is_used { world.size() } else { 0 });
        world.save(&mut snapshots);
        assert_eq!(world.reopened(&db).1, world.size());
    };
    check(&|_| (), true);
    for key in whole.keys() {
        check(&|pairs| drop(pairs.remove(key)), false);
        check(&|pairs| pairs.get_mut(key).unwrap()[40] ^= 1, false);
        check(&|pairs| pairs.get_mut(key).unwrap().truncate(50), false);
    }
    // One part of an older snapshot.
    for (key, value) in older.iter().filter(|(key, value)| whole.get(*key) != Some(*value) && *key != KEY) {
        check(&|pairs| drop(pairs.insert(key.clone(), value.clone())), false);
    }
    // A whole one, of a log that went another way.
    let mut other = World::new(2);
    other.agents[0] = SimAgent::new("a0").with_skill("another");
    other.batch(0, 100);
    other.batch(1, 250);
    other.batch(0, 2);
    assert_eq!(other.size(), world.size());
    assert_eq!(other.reopened(&world.db).1, 0);
}
