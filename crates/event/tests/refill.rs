//! What stands for a lost message: whoever reads it holds the same entries and state as who read the message.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/world.rs"]
mod world;

use exchequer_event::{
    accept::{Acceptor, Decided, Incoming, Outcome},
    audit::Auditor,
    control::{MAX_KEY_CHAIN, sign_control, topic},
    name::{MAX_BATCH_EVENTS, MAX_REFILL_BYTES, control_subject},
    v1::{self, RejectionReason as Reason, control_record, entry::Kind},
};
use prost::{Message, bytes::Bytes};
use world::{Agent, World, key, public};

/// A world in which every message of note came: an overlap, a rejection, an equivocation and a duplicate.
struct Story {
    world: World,
    /// The state before each message.
    before: Vec<Acceptor>,
}

impl Story {
    fn new() -> Self {
        let world = World::new();
        // The messages so far: genesis and three enrolments.
        let mut story = Self { before: vec![Acceptor::new(); world.messages.len()], world };
        let mut a = Agent::new("a", 1);
        let mut overlapping = a.clone();
        let mut liar = a.clone();
        let first = a.batch(3, "");
        story.take("events.a", first.clone());
        story.take("events.a", overlapping.batch(5, ""));
        story.take("events.a", first);
        story.take("events.a", liar.batch(2, "lie"));
        story.take("events.a", Bytes::from_static(b"\xff"));
        story
    }

    fn take(&mut self, subject: &str, payload: Bytes) {
        self.before.push(self.world.acceptor.clone());
        self.world.publish(subject, payload);
    }

    /// The entries of the message at `seq`, encoded.
    fn entries(&self, seq: u64) -> Vec<Bytes> {
        let of = |entry: &&v1::Entry| entry.stream_seq == seq;
        self.world.entries.iter().filter(of).map(|entry| entry.encode_to_vec().into()).collect()
    }

    /// What a record that stands for `seq` with these entries becomes where message `at` was.
    fn stand_in(&self, at: u64, seq: u64, entries: Vec<Bytes>) -> Decided {
        self.stand_in_by(&self.world.ledger, at, seq, entries)
    }

    fn stand_in_by(&self, by: &ed25519_dalek::SigningKey, at: u64, seq: u64, entries: Vec<Bytes>) -> Decided {
        self.stand_in_led(by, Vec::new(), at, seq, entries)
    }

    fn stand_in_led(
        &self,
        by: &ed25519_dalek::SigningKey,
        key_chain: Vec<v1::SignedControl>,
        at: u64,
        seq: u64,
        entries: Vec<Bytes>,
    ) -> Decided {
        let kind = control_record::Kind::StreamRefilled(v1::StreamRefilled { seq, entries, key_chain });
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 9, actor: "ledger".into(), kind: Some(kind) };
        let payload = sign_control(by, &record).encode_to_vec().into();
        let place = usize::try_from(at).unwrap() - 1;
        self.before[place].decide(&Incoming { stream_seq: at, subject: &subject, payload })
    }

    fn refused(&self, at: u64, seq: u64, entries: Vec<Bytes>, reason: Reason) {
        let outcome = self.stand_in(at, seq, entries).outcome;
        assert_eq!(outcome, Outcome::Rejected { agent_id: None, reason });
    }
}

const BATCH: u64 = 5;
const OVERLAP: u64 = 6;
const DUPLICATE: u64 = 7;
const EQUIVOCATION: u64 = 8;
const GARBAGE: u64 = 9;

#[test]
fn it_becomes_the_entries_and_the_outcome_of_the_lost_message() {
    let story = Story::new();
    let agent_id = || "a".to_owned();
    for (seq, expected) in [
        (BATCH, Outcome::Batch { agent_id: agent_id(), new_events: 3 }),
        (OVERLAP, Outcome::Batch { agent_id: agent_id(), new_events: 2 }),
        (DUPLICATE, Outcome::Refilled),
        (EQUIVOCATION, Outcome::Equivocation { agent_id: agent_id() }),
        (GARBAGE, Outcome::Rejected { agent_id: Some(agent_id()), reason: Reason::Malformed }),
    ] {
        let entries = story.entries(seq);
        let decided = story.stand_in(seq, seq, entries.clone());
        assert_eq!(decided.outcome, expected, "{seq}");
        let yielded: Vec<Bytes> = decided.entries.iter().map(|entry| entry.encode_to_vec().into()).collect();
        assert_eq!(yielded, entries, "{seq}");
    }
}

#[test]
fn it_counts_at_its_own_sequence_and_by_an_enrolled_ledger_key_only() {
    let story = Story::new();
    story.refused(GARBAGE, BATCH, story.entries(BATCH), Reason::SealMismatch);
    // The right place, but an entry of another message.
    story.refused(GARBAGE, GARBAGE, story.entries(BATCH), Reason::SealMismatch);
    let entries = story.entries(GARBAGE);
    let outcome = story.stand_in_by(&key(1), GARBAGE, GARBAGE, entries.clone()).outcome;
    assert_eq!(outcome, Outcome::Rejected { agent_id: None, reason: Reason::UnknownKey });
    // Nothing vouches for it before the genesis.
    assert_eq!(
        story.stand_in(1, 1, Vec::new()).outcome,
        Outcome::Rejected { agent_id: None, reason: Reason::Genesis }
    );
}

#[test]
fn a_key_that_was_enrolled_only_behind_the_place_counts_where_records_lead_to_it() {
    use v1::KeyRole::{Agent as AgentKey, Ledger};
    let mut story = Story::new();
    let (ledger, second, third) = (story.world.ledger.clone(), key(101), key(102));
    let enrolled = |role: v1::KeyRole, of: &ed25519_dalek::SigningKey| {
        let public_key = Bytes::copy_from_slice(of.verifying_key().as_bytes());
        control_record::Kind::KeyEnrolled(v1::KeyEnrolled {
            role: role.into(),
            holder: "ledger".into(),
            public_key,
        })
    };
    let link = |by: &ed25519_dalek::SigningKey, role, of: &ed25519_dalek::SigningKey| {
        let record =
            v1::ControlRecord { time_unix_ms: 9, actor: "ledger".into(), kind: Some(enrolled(role, of)) };
        sign_control(by, &record)
    };
    let outcome = |story: &Story, at, key_chain| {
        story.stand_in_led(&third, key_chain, at, at, story.entries(at)).outcome
    };
    let both = || vec![link(&ledger, Ledger, &second), link(&second, Ledger, &third)];
    let taken = Outcome::Batch { agent_id: "a".to_owned(), new_events: 2 };
    let unknown = Outcome::Rejected { agent_id: None, reason: Reason::UnknownKey };
    assert_eq!(outcome(&story, OVERLAP, both()), taken);
    for chain in [
        vec![],
        both()[..1].to_vec(),
        both()[1..].to_vec(),
        vec![link(&ledger, AgentKey, &third)],
        vec![link(&third, Ledger, &third)],
        vec![both()[0].clone(); MAX_KEY_CHAIN].into_iter().chain(both()).collect(),
    ] {
        assert_eq!(outcome(&story, OVERLAP, chain), unknown);
    }
    // What was revoked before the place leads nowhere.
    let revoked = v1::KeyRevoked {
        role: Ledger.into(),
        holder: "ledger".into(),
        public_key: Bytes::copy_from_slice(second.verifying_key().as_bytes()),
        reason: String::new(),
    };
    assert_eq!(story.world.control(enrolled(Ledger, &second)), Outcome::Control);
    assert_eq!(story.world.control(control_record::Kind::KeyRevoked(revoked)), Outcome::Control);
    let at = story.world.messages.len() as u64 + 1;
    story.before.resize(usize::try_from(at).unwrap(), story.world.acceptor.clone());
    assert_eq!(outcome(&story, at, both()), unknown);
    assert_eq!(outcome(&story, at, vec![link(&ledger, Ledger, &third)]), Outcome::Refilled);
}

#[test]
fn who_has_folded_a_lost_message_takes_a_ledger_keys_word_for_it_and_nobody_elses() {
    let world = World::new();
    let stated = |by: &ed25519_dalek::SigningKey, kind: control_record::Kind| {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 9, actor: "ledger".into(), kind: Some(kind) };
        (subject, Bytes::from(sign_control(by, &record).encode_to_vec()))
    };
    let refilled =
        || control_record::Kind::StreamRefilled(v1::StreamRefilled { seq: 7, ..Default::default() });
    let lost = v1::StreamLost { from: 3, to: 7, refilled: 0, reappended: 5 };
    for (by, is_believed) in [(world.ledger.clone(), true), (key(1), false)] {
        let (subject, payload) = stated(&by, refilled());
        let at = |stream_seq| Incoming { stream_seq, subject: &subject, payload: payload.clone() };
        assert_eq!(world.acceptor.stands_for_lost(&at(7)), is_believed);
        assert!(!world.acceptor.stands_for_lost(&at(8)), "of another place");
        assert_eq!(world.acceptor.stated_loss(&at(8)), None);
        let (subject, payload) = stated(&by, control_record::Kind::StreamLost(lost));
        let at = |stream_seq| Incoming { stream_seq, subject: &subject, payload: payload.clone() };
        assert_eq!(world.acceptor.stated_loss(&at(8)), is_believed.then_some(lost));
        assert_eq!(world.acceptor.stated_loss(&at(7)), None, "from within what was lost");
        assert!(!world.acceptor.stands_for_lost(&at(7)));
    }
}

#[test]
fn a_ledger_key_can_not_make_up_events() {
    let story = Story::new();
    let entries = story.entries(OVERLAP);
    story.refused(OVERLAP, OVERLAP, entries[..2].to_vec(), Reason::SealMismatch);
    let swapped = vec![entries[0].clone(), entries[2].clone(), entries[1].clone()];
    story.refused(OVERLAP, OVERLAP, swapped, Reason::SealMismatch);
    story.refused(OVERLAP, OVERLAP, entries[1..].to_vec(), Reason::Malformed);
    // A seal of somebody else.
    let decoded = v1::Entry::decode(entries[0].clone()).unwrap();
    let Some(Kind::BatchSealed(mut sealed)) = decoded.kind else { panic!("no seal") };
    sealed.public_key = public(&key(2));
    let forged = v1::Entry { stream_seq: OVERLAP, kind: Some(Kind::BatchSealed(sealed)) };
    let mut with_forged = entries.clone();
    with_forged[0] = forged.encode_to_vec().into();
    story.refused(OVERLAP, OVERLAP, with_forged, Reason::BadSignature);
    // The same batch where its events are recorded already.
    let moved = |bytes: &Bytes| {
        let entry = v1::Entry::decode(bytes.clone()).unwrap();
        Bytes::from(v1::Entry { stream_seq: GARBAGE, ..entry }.encode_to_vec())
    };
    story.refused(GARBAGE, GARBAGE, entries.iter().map(moved).collect(), Reason::WrongChain);
    // Evidence that shows nothing.
    let decoded = v1::Entry::decode(story.entries(EQUIVOCATION)[0].clone()).unwrap();
    let Some(Kind::Equivocation(evidence)) = decoded.kind else { panic!("no evidence") };
    // Neither one event twice, nor an honest event beside one that the log never held.
    for recorded_digest in [evidence.offered_digest.clone(), vec![7; 32].into()] {
        let hollow = v1::Equivocation { recorded_digest, ..evidence.clone() };
        let hollow = v1::Entry { stream_seq: EQUIVOCATION, kind: Some(Kind::Equivocation(hollow)) };
        story.refused(EQUIVOCATION, EQUIVOCATION, vec![hollow.encode_to_vec().into()], Reason::SealMismatch);
    }
}

#[test]
fn a_control_record_or_a_block_is_put_back_itself_and_no_stand_in_takes_its_place() {
    let story = Story::new();
    for seq in 2..=4 {
        let entries: Vec<_> = story.entries(seq);
        let moved = v1::Entry { stream_seq: GARBAGE, ..v1::Entry::decode(entries[0].clone()).unwrap() };
        story.refused(GARBAGE, GARBAGE, vec![moved.encode_to_vec().into()], Reason::Malformed);
    }
}

#[test]
fn bytes_that_an_integrator_would_encode_differently_are_refused() {
    let story = Story::new();
    let mut padded = story.entries(GARBAGE)[0].to_vec();
    // An unknown field, which decoders pass over.
    padded.extend([0xf8, 0x07, 0x01]);
    story.refused(GARBAGE, GARBAGE, vec![padded.into()], Reason::Malformed);
    let rejection = story.entries(GARBAGE)[0].clone();
    story.refused(GARBAGE, GARBAGE, vec![rejection.clone(); MAX_BATCH_EVENTS + 2], Reason::Malformed);
    story.refused(GARBAGE, GARBAGE, vec![vec![0; MAX_REFILL_BYTES].into()], Reason::TooLarge);
}

#[test]
fn it_is_never_an_entry_itself_and_a_loss_is_one() {
    let mut world = World::new();
    let mut auditor = Auditor::new();
    for entry in &world.entries {
        auditor.check(entry).unwrap();
    }
    let refilled = v1::StreamRefilled { seq: 5, ..Default::default() };
    let record = v1::ControlRecord {
        time_unix_ms: 1,
        actor: "ledger".into(),
        kind: Some(control_record::Kind::StreamRefilled(refilled)),
    };
    let signed = sign_control(&world.ledger, &record);
    let entry = v1::Entry { stream_seq: 5, kind: Some(Kind::Control(signed)) };
    assert_eq!(auditor.check(&entry).unwrap_err().reason, Reason::SealMismatch);

    let lost =
        |from, to| control_record::Kind::StreamLost(v1::StreamLost { from, to, refilled: 1, reappended: 0 });
    assert_eq!(world.control(lost(3, 4)), Outcome::Control);
    let Some(Kind::Control(_)) = &world.entries.last().unwrap().kind else { panic!("no entry") };
    for (from, to) in [(0, 4), (5, 4)] {
        let outcome = world.control(lost(from, to));
        assert_eq!(outcome, Outcome::Rejected { agent_id: None, reason: Reason::Malformed });
    }
}

#[test]
fn the_largest_batch_fits_into_what_may_stand_for_it() {
    let (mut world, mut first) = (World::new(), Agent::new("a", 1));
    let salt = "x".repeat(446);
    let mut longer = first.clone();
    world.events("a", first.batch(1, &salt));
    let payload = longer.batch(MAX_BATCH_EVENTS, &salt);
    assert!(payload.len() > 250 * 1024, "{}", payload.len());
    let outcome = world.events("a", payload);
    assert_eq!(outcome, Outcome::Batch { agent_id: "a".into(), new_events: MAX_BATCH_EVENTS - 1 });
    let seq = world.messages.len() as u64;
    let entries: Vec<Bytes> = world
        .entries
        .iter()
        .filter(|entry| entry.stream_seq == seq)
        .map(|entry| entry.encode_to_vec().into())
        .collect();
    assert_eq!(entries.len(), MAX_BATCH_EVENTS);
    let kind =
        control_record::Kind::StreamRefilled(v1::StreamRefilled { seq, entries, ..Default::default() });
    let record = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".into(), kind: Some(kind) };
    let size = sign_control(&world.ledger, &record).encode_to_vec().len();
    assert!(size < MAX_REFILL_BYTES, "{size}");
}
