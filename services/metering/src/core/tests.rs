//! The core against a stream that the test keeps: each way a block can go, without IO.
//!
//! Invariant: nothing here waits for anything; time is what the test says.

use bytes::Bytes;
use exchequer_budget::{
    Action, Allowance, Amounts, BudgetTerms, HoldId, Idempotency, IdempotencyKey, Meter, ScopePath, Subject,
    TenantId, Ttl,
};
use exchequer_event::{
    control::sign_control,
    name::control_subject,
    v1::{self, ControlRecord, KeyRole, control_record::Kind},
};
use prost::Message as _;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A core and the stream that it is told of.
struct World {
    core: Core<u64>,
    now: Now,
    stream: Vec<Record>,
    /// How much of it was read.
    read: usize,
    outputs: Vec<Output<u64>>,
}

impl World {
    fn new() -> Self {
        let (ledger, metering) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let key = |key: &SigningKey| Bytes::copy_from_slice(key.verifying_key().as_bytes());
        let mut world = Self {
            core: Core::new(Fold::new(1), metering.clone(), TIMEOUT),
            now: Now { mono: Duration::from_secs(1), wall_ms: 1_000_000 },
            stream: Vec::new(),
            read: 0,
            outputs: Vec::new(),
        };
        for kind in [
            Kind::Genesis(v1::Genesis { origin: "log".to_owned(), ledger_key: key(&ledger) }),
            Kind::KeyEnrolled(v1::KeyEnrolled {
                role: KeyRole::Metering.into(),
                holder: "metering".to_owned(),
                public_key: key(&metering),
            }),
        ] {
            let record = ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
            world.store(&control_subject("keys"), sign_control(&ledger, &record).encode_to_vec().into());
        }
        world.tell(Input::Opened(None));
        world.read();
        world.lease(1);
        world.answer_tip();
        world
    }

    fn tell(&mut self, input: Input<u64>) {
        self.core.handle(self.now, input);
        self.outputs.extend(self.core.outputs());
    }

    fn store(&mut self, subject: &str, payload: Bytes) -> u64 {
        let seq = self.stream.len() as u64 + 1;
        let (subject, time_unix_ms) = (subject.to_owned(), self.now.wall_ms);
        self.stream.push(Record { seq, subject, time_unix_ms, headers: Vec::new(), payload });
        seq
    }

    /// Tells what is in the stream and was not yet told.
    fn read(&mut self) {
        while let Some(record) = self.stream.get(self.read).cloned() {
            self.read += 1;
            self.tell(Input::Read(record));
        }
    }

    fn lease(&mut self, epoch: u64) {
        let until = self.now.mono + Duration::from_secs(60);
        self.tell(Input::Lease { partition: 0, lease: Ok(Held { epoch, until }) });
    }

    fn answer_tip(&mut self) {
        let probes = self.take(|output| match output {
            Output::ReadTip { probe, .. } => Some(*probe),
            _ => None,
        });
        let last = self.stream.iter().rev().find(|record| record.subject == "budget.0");
        let ends = Ok((self.stream.len() as u64, last.map_or(0, |record| record.seq)));
        for probe in probes {
            self.tell(Input::Tip { partition: 0, probe, ends: ends.clone() });
        }
    }

    fn take<O>(&mut self, pick: impl Fn(&Output<u64>) -> Option<O>) -> Vec<O> {
        let taken = self.outputs.iter().filter_map(&pick).collect();
        self.outputs.retain(|output| pick(output).is_none());
        taken
    }

    fn appends(&mut self) -> Vec<(u64, Message)> {
        self.take(|output| match output {
            Output::Append { block, message, .. } => Some((*block, message.clone())),
            _ => None,
        })
    }

    /// The one message that is to be appended.
    fn append(&mut self) -> (u64, Message) {
        <[_; 1]>::try_from(self.appends()).unwrap().into_iter().next().unwrap()
    }

    fn answers(&mut self) -> Vec<(u64, Result<Answered, Unanswered>)> {
        self.take(|output| match output {
            Output::Answer { ticket, answer } => Some((*ticket, answer.clone())),
            _ => None,
        })
    }

    /// Tickets that were granted a hold, with the block.
    fn granted(&mut self) -> Vec<(u64, u64)> {
        let answers = self.answers().into_iter();
        let granted = |(ticket, answer)| match answer {
            Ok(Answered { reply: Reply::Event(Event::HoldGranted { .. }), stream_seq, .. }) => {
                Some((ticket, stream_seq))
            }
            _ => None,
        };
        answers.filter_map(granted).collect()
    }

    fn ask(&mut self, ticket: u64, command: Command) {
        self.tell(Input::Asked { partition: 0, commands: vec![(ticket, command)] });
    }

    fn appended(&mut self, block: u64, outcome: Appended) {
        self.tell(Input::Appended { partition: 0, block, outcome });
    }

    /// A budget of 100, acknowledged and read.
    fn with_budget() -> Self {
        let mut world = Self::new();
        world.ask(0, set(100));
        let (block, message) = world.append();
        let seq = world.store(&message.subject, message.payload);
        world.appended(block, Appended::Acked(seq));
        world.read();
        assert_eq!(world.answers().len(), 1);
        world
    }

    fn is_foreign(&self) -> bool {
        self.outputs.iter().any(|output| matches!(output, Output::Foreign(Some(_))))
    }
}

fn set(cpu_ms: u64) -> Command {
    let terms = BudgetTerms::all_time(Allowance::new([(Meter::CpuMs, cpu_ms)]).unwrap());
    let action = Action::SetBudget { scope: ScopePath::parse("acme").unwrap(), terms: terms.into() };
    Command::new(TenantId::parse("acme").unwrap(), Subject::parse("root").unwrap(), None, action).unwrap()
}

fn reserve(n: u64, cpu_ms: u64) -> Command {
    let subject = Subject::parse("agent-1").unwrap();
    let action = Action::Reserve {
        hold_id: HoldId::parse(&format!("0_{n}")).unwrap(),
        scope: ScopePath::parse("acme").unwrap(),
        holder: subject.clone(),
        amounts: Amounts::new([(Meter::CpuMs, cpu_ms)]).unwrap(),
        ttl: Ttl::from_ms(3_600_000).unwrap(),
        at_least: Amounts::NONE,
        lease: false,
    };
    let key = IdempotencyKey::parse(&format!("key-{n}")).unwrap();
    let idempotency = Some(Idempotency { key, request_hash: [0; 32] });
    Command::new(TenantId::parse("acme").unwrap(), subject, idempotency, action).unwrap()
}

#[test]
fn a_block_acknowledged_at_the_next_sequence_is_answered_before_it_is_read_and_its_copy_passed_over() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, message) = world.append();
    assert!(world.answers().is_empty());
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert_eq!(world.granted(), [(1, seq)]);
    let before = world.core.fold().budget(0).clone();
    world.read();
    assert!(*world.core.fold().budget(0) == before && !world.is_foreign());
}

#[test]
fn a_stream_that_holds_something_else_there_is_not_believed_any_more() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, message) = world.append();
    world.appended(block, Appended::Acked(world.stream.len() as u64 + 1));
    assert_eq!(world.granted().len(), 1);
    world.store(&message.subject, "another".into());
    world.read();
    assert!(world.is_foreign());
    world.ask(2, reserve(2, 1));
    assert!(world.appends().is_empty());
    assert!(matches!(world.answers()[..], [(2, Err(Unanswered::Unavailable(_)))]));
}

#[test]
fn behind_anothers_message_it_is_answered_when_it_was_read() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, message) = world.append();
    world.store("events.x", "another's".into());
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert!(world.answers().is_empty());
    world.read();
    assert_eq!(world.granted(), [(1, seq)]);
}

#[test]
fn what_comes_while_a_block_is_in_flight_goes_into_the_next_one_together() {
    let mut world = World::with_budget();
    for n in 1..=3 {
        world.ask(n, reserve(n, 30));
    }
    let (block, message) = world.append();
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert_eq!(world.granted(), [(1, seq)]);
    let (block, message) = world.append();
    assert_eq!(message.expect_last, Some(seq));
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert_eq!(world.granted(), [(2, seq), (3, seq)]);
    assert!(world.appends().is_empty());
}

#[test]
fn an_unknown_outcome_is_tried_again_with_the_same_bytes_and_read_back() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, message) = world.append();
    world.appended(block, Appended::Unknown("silence".to_owned()));
    let (again, same) = world.append();
    assert_eq!((again, &same), (block, &message));
    // The first attempt was in the stream all along.
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Overtaken(seq));
    assert!(world.answers().is_empty());
    world.read();
    assert_eq!(world.granted(), [(1, seq)]);
}

#[test]
fn an_answer_for_a_block_that_was_given_up_says_nothing_about_the_next_one() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, late) = world.append();
    world.now.mono += TIMEOUT;
    world.tell(Input::Tick);
    assert!(matches!(world.answers()[..], [(1, Err(Unanswered::Unavailable(_)))]));
    world.ask(2, reserve(2, 60));
    let (next, _) = world.append();
    assert_ne!(block, next);
    let seq = world.store(&late.subject, late.payload);
    world.appended(block, Appended::Acked(seq));
    assert!(world.answers().is_empty());
    // The late block has the place, and the 60 with it.
    world.appended(next, Appended::Overtaken(seq));
    world.read();
    let (_, message) = world.append();
    assert_eq!(message.expect_last, Some(seq));
    assert!(world.granted().is_empty());
}

#[test]
fn a_lease_below_the_chains_epoch_is_given_up_and_one_that_ran_out_decides_nothing() {
    let mut world = World::with_budget();
    world.lease(0);
    let forfeits = world.take(|output| match output {
        Output::Forfeit { epoch, .. } => Some(*epoch),
        _ => None,
    });
    assert_eq!(forfeits, [0]);
    world.lease(2);
    world.answer_tip();
    world.ask(1, reserve(1, 1));
    assert_eq!(world.appends().len(), 1);

    let mut world = World::with_budget();
    world.now.mono += Duration::from_secs(60);
    world.ask(1, reserve(1, 1));
    assert!(world.appends().is_empty());
    assert!(
        matches!(&world.answers()[..], [(1, Err(Unanswered::Unavailable(why)))] if why.contains("run out"))
    );
}

#[test]
fn a_clock_that_jumps_ahead_is_not_followed_beyond_the_streams() {
    let mut world = World::with_budget();
    let before = world.now.wall_ms;
    world.now.wall_ms += 86_400_000;
    world.ask(1, reserve(1, 1));
    let (block, message) = world.append();
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert_eq!(world.core.fold().head(0).now_unix_ms, before + 60_000);
}

#[test]
fn a_repeated_key_names_the_block_that_answered_it() {
    let mut world = World::with_budget();
    world.ask(1, reserve(1, 60));
    let (block, message) = world.append();
    let seq = world.store(&message.subject, message.payload);
    world.appended(block, Appended::Acked(seq));
    assert_eq!(world.granted(), [(1, seq)]);
    world.ask(2, reserve(1, 60));
    assert!(world.appends().is_empty());
    let [(2, Ok(Answered { reply: Reply::Recorded(tenant, key), stream_seq, repeated: true }))] =
        &world.answers()[..]
    else {
        panic!("not from the past");
    };
    assert_eq!((tenant.as_str(), key.as_str(), *stream_seq), ("acme", "key-1", seq));
}
