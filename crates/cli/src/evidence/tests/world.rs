//! A log with two tenants, two agents and a metering writer, made by the acceptor and written as a ledger writes it.

use std::{collections::BTreeMap, convert::Infallible, fs, path::Path};

use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::{Acceptor, Incoming},
    control,
    digest::Digest,
    entry,
    seal::{self, BlockPlace},
    v1::{self, KeyRole, control_record::Kind, event},
};
use exchequer_tlog::{
    BundleEdge, BundleId, Checkpoint, Cosigner, Hash, NoteSigner, RightEdge, SignedCheckpoint, TileId,
    TileReader, VerifierKey, inclusion_proof, leaf_hash,
};
use prost::{Message, bytes::Bytes};

use crate::evidence::{
    pack::{PackWriter, Scope},
    report::{FaultKind, Report},
    saved::Saved,
    verify::{Target, Trust, verify_blocking},
};

pub(super) const ORIGIN: &str = "test.local/log";
/// Stands in everything that belongs to the other tenant.
pub(super) const MARKER: &str = "globex-secret";
pub(super) const OTHER_EXECUTION: &str = "0190b2a4-0000-7000-8000-0000000000ee";
pub(super) const EXECUTION: &str = "0190b2a4-0000-7000-8000-00000000000f";

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(super) struct World {
    acceptor: Acceptor,
    stream_seq: u64,
    pub(super) entries: Vec<Bytes>,
    agents: BTreeMap<u8, (u64, Digest)>,
    block: (u64, Digest),
    /// Seed of the key that signs blocks.
    pub(super) metering: u8,
}

impl World {
    /// A genesis, a metering key, and the agents `agent-1` and `agent-2`.
    pub(super) fn new() -> Self {
        let mut world = Self {
            acceptor: Acceptor::new(),
            stream_seq: 0,
            entries: Vec::new(),
            agents: BTreeMap::new(),
            block: (0, Digest::ZERO),
            metering: 101,
        };
        let public = |seed| Bytes::copy_from_slice(key(seed).verifying_key().as_bytes());
        let enrol = |role: KeyRole, holder: &str, seed| {
            let (holder, public_key) = (holder.into(), public(seed));
            Kind::KeyEnrolled(v1::KeyEnrolled { role: role.into(), holder, public_key })
        };
        world.control(Kind::Genesis(v1::Genesis { origin: ORIGIN.into(), ledger_key: public(100) }));
        world.control(enrol(KeyRole::Metering, "metering", 101));
        world.control(enrol(KeyRole::Agent, "agent-1", 1));
        world.control(enrol(KeyRole::Agent, "agent-2", 2));
        world
    }

    /// Two mixed batches, a mixed block, a rejection and a revocation: 16 entries.
    pub(super) fn small() -> Self {
        let mut world = Self::new();
        world.batch(1, &["acme", "globex", "", "acme"]);
        world.block(&["globex", "acme"]);
        world.publish("events.agent-2", b"no batch".to_vec().into());
        world.batch(2, &["globex"]);
        world.control(Kind::KeyRevoked(v1::KeyRevoked {
            role: KeyRole::Agent.into(),
            holder: "agent-2".into(),
            public_key: Bytes::copy_from_slice(key(2).verifying_key().as_bytes()),
            reason: "retired".into(),
        }));
        assert_eq!(world.entries.len(), 16);
        world
    }

    /// At least `size` entries in batches of 100.
    pub(super) fn large(size: usize) -> Self {
        let mut world = Self::new();
        while world.entries.len() < size {
            let tenants: Vec<_> = (0..100).map(|n| if n % 3 == 0 { "acme" } else { "globex" }).collect();
            world.batch(1, &tenants);
        }
        world
    }

    pub(super) fn control(&mut self, kind: Kind) {
        self.control_by(100, kind);
    }

    /// A control record by this key.
    pub(super) fn control_by(&mut self, seed: u8, kind: Kind) {
        let subject = format!("control.{}", control::topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
        self.publish(&subject, control::sign_control(&key(seed), &record).encode_to_vec().into());
    }

    /// One event for each tenant.
    pub(super) fn batch(&mut self, agent: u8, tenants: &[&'static str]) {
        let event = |tenant: &&'static str| {
            let reason = if *tenant == "globex" { MARKER } else { "done" };
            (*tenant, event::Kind::AgentStopped(v1::AgentStopped { reason: reason.into() }))
        };
        self.events(agent, tenants.iter().map(event).collect());
    }

    /// A batch of these tenants' events. The time of an event is 1000 and its seq.
    pub(super) fn events(&mut self, agent: u8, kinds: Vec<(&str, event::Kind)>) {
        let id = format!("agent-{agent}");
        let (mut seq, mut prev_hash) = self.agents.get(&agent).copied().unwrap_or_default();
        let (first_seq, first_prev) = (seq + 1, prev_hash);
        let mut events = Vec::new();
        for (tenant, kind) in kinds {
            seq += 1;
            let event = v1::Event {
                agent_id: id.clone(),
                epoch: 1,
                seq,
                prev_hash: prev_hash.into(),
                time_unix_ms: 1_000 + seq,
                tenant: tenant.into(),
                execution_id: match tenant {
                    "" => String::new(),
                    "globex" => OTHER_EXECUTION.into(),
                    _ => EXECUTION.into(),
                },
                kind: Some(kind),
                ..v1::Event::default()
            };
            let bytes = Bytes::from(event.encode_to_vec());
            prev_hash = seal::event_digest(&bytes);
            events.push(bytes);
        }
        self.agents.insert(agent, (seq, prev_hash));
        let batch = seal::seal_batch(&key(agent), &id, 1, first_seq, first_prev, events);
        self.publish(&format!("events.{id}"), batch.encode_to_vec().into());
    }

    /// One decision run for each tenant.
    pub(super) fn block(&mut self, tenants: &[&str]) {
        let run = |tenant: &&str| {
            let actor = if *tenant == "globex" { MARKER } else { "somebody" };
            let decision = v1::Decision { actor: actor.into(), ..v1::Decision::default() };
            v1::DecisionRun { tenant: (*tenant).into(), decisions: vec![decision] }
        };
        self.runs(5, tenants.iter().map(run).collect());
    }

    /// A block of this time.
    pub(super) fn runs(&mut self, now_unix_ms: u64, runs: Vec<v1::DecisionRun>) {
        let (index, prev_hash) = self.block;
        let place = BlockPlace {
            partition: "0".into(),
            epoch: 1,
            index: index + 1,
            prev_hash,
            now_unix_ms,
            usage_cursor: 0,
        };
        let items = runs.iter().map(|run| Bytes::from(run.encode_to_vec())).collect();
        let block = seal::seal_block(&key(self.metering), place, items);
        self.block = (index + 1, seal::block_digest(&block.seal));
        self.publish("budget.0", block.encode_to_vec().into());
    }

    /// Stream sequence of the last message.
    pub(super) fn stream_seq(&self) -> u64 {
        self.stream_seq
    }

    /// A message that is not accepted.
    pub(super) fn refused(&mut self) {
        self.publish("events.agent-2", b"no batch".to_vec().into());
    }

    fn publish(&mut self, subject: &str, payload: Bytes) {
        self.stream_seq += 1;
        let decided = self.acceptor.decide(&Incoming { stream_seq: self.stream_seq, subject, payload });
        for entry in &decided.entries {
            self.acceptor.evolve(entry);
            self.entries.push(entry::encode(entry).unwrap());
        }
    }

    pub(super) fn log(&self) -> Log {
        Log::new(self.entries.clone())
    }
}

/// Tiles, bundles and checkpoint of some entries.
pub(super) struct Log {
    pub(super) entries: Vec<Bytes>,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    tiles: BTreeMap<TileId, Vec<Hash>>,
    pub(super) root: Hash,
}

impl TileReader for Log {
    type Tile = Vec<Hash>;
    type Error = Infallible;

    fn tile(&self, id: TileId) -> Result<Vec<Hash>, Infallible> {
        Ok(self.tiles[&id].clone())
    }
}

impl Log {
    pub(super) fn new(entries: Vec<Bytes>) -> Self {
        let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let tree = RightEdge::new().integrate(&leaves);
        let bundles = BundleEdge::default().integrate(&entries).unwrap();
        let mut files: BTreeMap<_, _> =
            tree.tiles.iter().map(|tile| (tile.id.to_string(), tile.bytes())).collect();
        files.extend(bundles.bundles.into_iter().map(|bundle| (bundle.id.to_string(), bundle.bytes)));
        let tiles = tree.tiles.into_iter().map(|tile| (tile.id, tile.hashes)).collect();
        let mut log = Self { entries, files, tiles, root: tree.root };
        let checkpoint = log.signed_by(100).to_string().into_bytes();
        log.files.insert("checkpoint".into(), checkpoint);
        log
    }

    pub(super) fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The checkpoint, signed and cosigned as a ledger with this key does.
    pub(super) fn signed_by(&self, seed: u8) -> SignedCheckpoint {
        let checkpoint = Checkpoint::new(ORIGIN, self.size(), self.root).unwrap();
        let mut signed = checkpoint.sign(&NoteSigner::new(ORIGIN, key(seed)).unwrap());
        signed.add(checkpoint.cosign(&Cosigner::new(ORIGIN, key(seed)).unwrap(), 1_700_000_000)).unwrap();
        signed
    }

    pub(super) fn bundle_path(&self, index: u64) -> String {
        BundleId::in_tree(index, self.size()).unwrap().to_string()
    }

    pub(super) fn tile_path(&self, level: u8, index: u64) -> String {
        TileId::in_tree(level, index, self.size()).unwrap().to_string()
    }

    pub(super) fn proof(&self, index: u64) -> Vec<Hash> {
        inclusion_proof(index, self.size(), self).unwrap()
    }

    pub(super) fn write(&self, dir: &Path) {
        for (path, bytes) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// A pack of these entries.
    pub(super) fn pack(&self, scope: Scope, indexes: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let mut pack = PackWriter::new(Vec::new(), scope, &vkey(100), self.signed_by(100)).unwrap();
        for index in indexes {
            let entry = &self.entries[usize::try_from(index).unwrap()];
            pack.entry(index, entry, self.proof(index)).unwrap();
        }
        pack.finish().unwrap().0
    }
}

pub(super) fn vkey(seed: u8) -> VerifierKey {
    NoteSigner::new(ORIGIN, key(seed)).unwrap().verifier().clone()
}

pub(super) fn trust() -> Trust {
    Trust { key: Some(vkey(100)), ..Trust::default() }
}

pub(super) fn saved(signed: SignedCheckpoint) -> Saved {
    Saved { from: "saved".into(), signed }
}

pub(super) fn check(target: &Target, trust: &Trust) -> Report {
    verify_blocking(target, trust, None, |_| {})
}

pub(super) fn kinds(report: &Report) -> Vec<(Option<u64>, FaultKind)> {
    report.faults.iter().map(|fault| (fault.index, fault.kind)).collect()
}

/// The work of `count` cases over all cores.
pub(super) fn on_all_cores(count: usize, case: impl Fn(usize, usize) + Sync) {
    let lanes = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let case = &case;
            scope.spawn(move || (lane..count).step_by(lanes).for_each(|n| case(lane, n)));
        }
    });
}
