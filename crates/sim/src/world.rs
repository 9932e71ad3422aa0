//! The world: one queue of what happens when, and the rules by which things go wrong.
//!
//! Trouble lasts for the first part of a run. Then everything heals, what is under way is brought to its end, and all is checked:
//! what clients were told against the stream ([`crate::audit`]), and the instances against each other.

mod calls;
mod trouble;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_event::{
    control::{sign_control, topic},
    name::control_subject,
    v1::{self, control_record},
};
use exchequer_metering::core::{Answered, Appended, Held, Input, Output, ReadFault, Unanswered};
use exchequer_stream::Message;
use prost::Message as _;

use crate::{
    audit::{Answers, Log},
    broker::Broker,
    client::Client,
    instance::{EPOCH_MS, Instance},
    rng::Rng,
};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// How long an append may go without an answer before its outcome counts as unknown.
const ATTEMPT: u64 = 2 * SECOND;
const LEASE_TTL: u64 = 1_500 * MS;
/// How long a client waits before it asks again.
const PATIENCE: u64 = 3 * SECOND;
/// Events after which a run that does not end is given up: a failure too.
const MAX_EVENTS: u64 = 400_000;

/// What kind of world it is.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Says all that happens by chance.
    pub seed: u64,
    /// Instances of metering.
    pub instances: u8,
    /// Partitions of the stream.
    pub partitions: u16,
    /// Clients; each belongs to one of as many tenants as there are partitions, and one more.
    pub clients: usize,
    /// Calls of each client.
    pub calls: u64,
    /// How long trouble lasts, seconds.
    pub trouble_s: u64,
}

impl Settings {
    /// A world of a seed: its size is by chance too.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(!seed);
        Self {
            seed,
            instances: u8::try_from(rng.between(2, 4)).unwrap_or(3),
            partitions: u16::try_from(rng.between(1, 3)).unwrap_or(1),
            clients: usize::try_from(rng.between(2, 5)).unwrap_or(3),
            calls: rng.between(5, 20),
            trouble_s: rng.between(5, 25),
        }
    }
}

/// What happened in a world in which everything held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answers that clients got, repeated ones too.
    pub answers: u64,
    /// Decisions in accepted blocks.
    pub decisions: u64,
    /// Holds that were denied.
    pub denied: u64,
    /// Accepted blocks.
    pub blocks: u64,
    /// Blocks in the stream that the chain voids.
    pub void: u64,
    /// Appends that the broker's fence refused.
    pub fenced: u64,
    /// Crashes.
    pub crashes: u64,
    /// Digest over the stream's bytes: the same for the same settings.
    pub stream: [u8; 32],
}

#[derive(Debug)]
enum Happening {
    /// Something reaches an instance, if it still lives the life that it was meant for.
    Arrives {
        to: usize,
        life: u64,
        input: Input<u64>,
    },
    /// An append reaches the broker.
    Appends {
        attempt: usize,
    },
    /// Nobody heard of an append for long.
    GivesUp {
        attempt: usize,
    },
    /// A question for the stream's end reaches the broker.
    Asks {
        from: usize,
        life: u64,
        partition: u16,
        probe: u64,
        subject: String,
    },
    /// A reader is opened.
    Opens {
        to: usize,
        life: u64,
        reader: u64,
        from: u64,
    },
    /// A reader delivers.
    Reads {
        to: usize,
        reader: u64,
    },
    /// An instance asks for a lease, or for its renewal.
    Leases {
        from: usize,
        life: u64,
        partition: u16,
    },
    /// An instance is woken.
    Wakes {
        to: usize,
        life: u64,
    },
    /// A client calls some instance.
    Calls {
        client: usize,
        attempt: u64,
    },
    /// An answer reaches its client.
    Answers {
        ticket: u64,
        answer: Result<Answered, Unanswered>,
    },
    /// Trouble.
    Trouble,
    /// The end of one trouble.
    Restarts(usize),
    Resumes(usize),
    Reconnects(usize),
}

/// An append on its way.
#[derive(Debug)]
struct Attempt {
    from: usize,
    life: u64,
    partition: u16,
    block: u64,
    message: Message,
    /// Whether the instance was told something of it.
    told: bool,
}

struct World {
    settings: Settings,
    rng: Rng,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<(u64, u64), Happening>,
    broker: Broker,
    instances: Vec<Instance>,
    clients: Vec<Client>,
    /// Who asked with which ticket: client and attempt.
    tickets: Vec<(usize, u64)>,
    /// The key of each call.
    asked: BTreeMap<(usize, u64), String>,
    attempts: Vec<Attempt>,
    answers: Answers,
    outcome: Outcome,
    drawn: u64,
}

/// Runs a world to its end; what did not hold in it, if anything.
pub fn run(settings: Settings) -> Result<Outcome, String> {
    let mut world = World::new(settings);
    world.begin();
    let mut events = 0;
    while !world.is_over() {
        let Some(Reverse(at)) = world.queue.pop() else { return Err("nothing happens any more".to_owned()) };
        let Some(happening) = world.happenings.remove(&at) else { continue };
        world.now = at.0;
        world.happens(happening)?;
        events += 1;
        if events > MAX_EVENTS {
            return Err(format!(
                "it does not end: {} clients wait at {} s",
                world.waiting(),
                world.now / SECOND
            ));
        }
    }
    world.check()
}

impl World {
    fn new(settings: Settings) -> Self {
        let mut rng = Rng::new(settings.seed);
        let tenants: Vec<_> = (0..=settings.partitions).map(|n| format!("tenant-{n}")).collect();
        let clients = (0..settings.clients)
            .map(|n| Client::new(n, &tenants[rng.index(tenants.len())], settings.calls, &mut rng))
            .collect();
        let mut world = Self {
            settings,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            broker: Broker::new(rng.chance(250), rng.chance(200)),
            instances: (0..settings.instances).map(|n| Instance::new(n, settings.partitions)).collect(),
            clients,
            tickets: Vec::new(),
            asked: BTreeMap::new(),
            attempts: Vec::new(),
            answers: Answers::default(),
            outcome: Outcome::default(),
            drawn: 0,
            rng,
        };
        world.enrol();
        world
    }

    /// The log's first records: its name, and the writers' keys.
    fn enrol(&mut self) {
        let ledger = SigningKey::from_bytes(&[1; 32]);
        let bytes = |key: VerifyingKey| key.as_bytes().to_vec().into();
        let genesis = v1::Genesis { origin: "sim".to_owned(), ledger_key: bytes(ledger.verifying_key()) };
        let mut kinds = vec![control_record::Kind::Genesis(genesis)];
        kinds.extend(self.instances.iter().map(|instance| {
            control_record::Kind::KeyEnrolled(v1::KeyEnrolled {
                role: v1::KeyRole::Metering.into(),
                holder: "metering".to_owned(),
                public_key: bytes(instance.key.verifying_key()),
            })
        }));
        for kind in kinds {
            let subject = control_subject(topic(&kind));
            let record = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
            let message = Message::new(subject, sign_control(&ledger, &record).encode_to_vec());
            self.broker.append(&message, EPOCH_MS).expect("nothing is expected");
        }
    }

    fn begin(&mut self) {
        for to in 0..self.instances.len() {
            self.wakes_up(to);
        }
        for client in 0..self.clients.len() {
            let at = self.rng.between(0, 500 * MS);
            self.after(at, Happening::Calls { client, attempt: 0 });
        }
        self.after(SECOND, Happening::Trouble);
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.order += 1;
        let at = (self.now + delay, self.order);
        self.happenings.insert(at, happening);
        self.queue.push(Reverse(at));
    }

    fn is_troubled(&self) -> bool {
        self.now < self.settings.trouble_s * SECOND
    }

    fn waiting(&self) -> usize {
        self.clients.iter().filter(|client| client.left > 0).count()
    }

    /// Everybody was answered, and every instance has read all there is.
    fn is_over(&self) -> bool {
        let tip = self.broker.tip();
        let has_read = |instance: &Instance| {
            instance.core.as_ref().is_some_and(|core| core.is_idle() && core.fold().cursor() == tip)
        };
        !self.is_troubled() && self.waiting() == 0 && self.instances.iter().all(has_read)
    }

    /// The way between an instance and the broker, or a client: mostly short, and at times very long.
    fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0 if self.is_troubled() => self.rng.between(100 * MS, 6 * SECOND),
            1..=10 => self.rng.between(2 * MS, 60 * MS),
            _ => self.rng.between(100, 2 * MS),
        }
    }

    fn is_lost(&mut self, instance: usize) -> bool {
        self.instances[instance].cut || (self.is_troubled() && self.rng.chance(20))
    }

    fn wakes_up(&mut self, to: usize) {
        let life = self.instances[to].life;
        for partition in 0..self.settings.partitions {
            let at = self.rng.between(0, 200 * MS);
            self.after(at, Happening::Leases { from: to, life, partition });
        }
        self.carry_out(to);
    }

    fn happens(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrives { to, life, input } if self.instances[to].life == life => self.give(to, input),
            Happening::Appends { attempt } => self.appends(attempt),
            Happening::GivesUp { attempt } => {
                self.tell(attempt, Appended::Unknown("no acknowledgement".to_owned()), 0);
            }
            Happening::Asks { from, life, partition, probe, subject } => {
                let ends = Ok((self.broker.tip(), self.broker.last(&subject)));
                let delay = self.delay();
                self.after(
                    delay,
                    Happening::Arrives { to: from, life, input: Input::Tip { partition, probe, ends } },
                );
            }
            Happening::Opens { to, life, reader, from } if self.instances[to].life == life => {
                self.opens(to, life, reader, from);
            }
            Happening::Reads { to, reader } => self.reads(to, reader),
            Happening::Leases { from, life, partition } if self.instances[from].life == life => {
                self.leases(from, life, partition);
            }
            Happening::Wakes { to, life } if self.instances[to].life == life => {
                self.instances[to].wake_at = None;
                self.give(to, Input::Tick);
            }
            Happening::Calls { client, attempt } => self.calls(client, attempt),
            Happening::Answers { ticket, answer } => self.answered(ticket, answer)?,
            Happening::Trouble => self.trouble(),
            Happening::Restarts(to) if self.instances[to].core.is_none() => {
                self.instances[to].start(self.settings.partitions);
                self.wakes_up(to);
            }
            Happening::Resumes(to) => {
                for input in self.instances[to].stalled.take().unwrap_or_default() {
                    self.give(to, input);
                }
            }
            Happening::Reconnects(to) => self.instances[to].cut = false,
            Happening::Arrives { .. }
            | Happening::Opens { .. }
            | Happening::Leases { .. }
            | Happening::Wakes { .. }
            | Happening::Restarts(_) => {}
        }
        Ok(())
    }

    fn give(&mut self, to: usize, input: Input<u64>) {
        let instance = &mut self.instances[to];
        if let Some(waiting) = &mut instance.stalled {
            waiting.push_back(input);
            return;
        }
        let now = instance.now(self.now);
        let Some(core) = &mut instance.core else { return };
        core.handle(now, input);
        self.carry_out(to);
    }

    /// Does what an instance's core wants done.
    fn carry_out(&mut self, to: usize) {
        let life = self.instances[to].life;
        let Some(core) = &mut self.instances[to].core else { return };
        for output in core.outputs() {
            match output {
                Output::Open { from, after, .. } => {
                    let instance = &mut self.instances[to];
                    instance.reader += 1;
                    instance.reads_next = None;
                    let reader = instance.reader;
                    let delay = micros(after) + self.delay();
                    self.after(delay, Happening::Opens { to, life, reader, from });
                }
                Output::ReadTip { partition, subject, probe, after } => {
                    let delay = micros(after) + self.delay();
                    if self.is_lost(to) {
                        let input = Input::Tip { partition, probe, ends: Err("no answer".to_owned()) };
                        self.after(delay + ATTEMPT, Happening::Arrives { to, life, input });
                    } else {
                        self.after(delay, Happening::Asks { from: to, life, partition, probe, subject });
                    }
                }
                Output::Append { partition, block, message, after } => {
                    self.sends(
                        Attempt { from: to, life, partition, block, message, told: false },
                        micros(after),
                    );
                }
                Output::Answer { ticket, answer } => {
                    let delay = self.delay();
                    // A client waits no longer for what does not come.
                    if !(self.is_troubled() && self.rng.chance(20)) {
                        self.after(delay, Happening::Answers { ticket, answer });
                    }
                }
                Output::Forfeit { partition, .. } => {
                    self.instances[to].leases[usize::from(partition)] = None;
                    let input = Input::Lease { partition, lease: Err("overtaken".to_owned()) };
                    self.after(0, Happening::Arrives { to, life, input });
                }
                Output::Status { .. }
                | Output::Folded(_)
                | Output::Note { .. }
                | Output::Foreign(_)
                | Output::BegunAgain => {}
            }
        }
        let instance = &mut self.instances[to];
        let now = instance.now(self.now);
        let at = instance.core.as_ref().and_then(|core| core.wake_at(now)).map(micros);
        if let Some(at) = at
            && instance.wake_at.is_none_or(|before| at < before)
        {
            instance.wake_at = Some(at);
            // Never at once again: what is due now was done just now, as far as it could be.
            self.after(at.saturating_sub(self.now).max(MS), Happening::Wakes { to, life });
        }
    }

    fn sends(&mut self, attempt: Attempt, after: u64) {
        let from = attempt.from;
        self.attempts.push(attempt);
        let attempt = self.attempts.len() - 1;
        self.after(after + ATTEMPT, Happening::GivesUp { attempt });
        if !self.is_lost(from) {
            let delay = after + self.delay();
            self.after(delay, Happening::Appends { attempt });
        }
        if self.is_troubled() && self.rng.chance(30) {
            let delay = after + self.delay();
            self.after(delay, Happening::Appends { attempt });
        }
    }

    fn appends(&mut self, number: usize) {
        let attempt = &self.attempts[number];
        let (from, expected) = (attempt.from, attempt.message.expect_last);
        let outcome = match self.broker.append(&attempt.message, EPOCH_MS + self.now / 1000) {
            Ok(seq) => {
                self.announce();
                Appended::Acked(seq)
            }
            Err(last) if Some(last) == expected => {
                Appended::Unknown("another append is under way".to_owned())
            }
            Err(last) => {
                self.outcome.fenced += 1;
                Appended::Overtaken(last)
            }
        };
        if !self.is_lost(from) {
            let delay = self.delay();
            self.tell(number, outcome, delay);
        }
    }

    /// An instance hears once of an attempt.
    fn tell(&mut self, number: usize, outcome: Appended, delay: u64) {
        let attempt = &mut self.attempts[number];
        if !std::mem::replace(&mut attempt.told, true) {
            let input = Input::Appended { partition: attempt.partition, block: attempt.block, outcome };
            let (to, life) = (attempt.from, attempt.life);
            self.after(delay, Happening::Arrives { to, life, input });
        }
    }

    /// There is a new record: readers that wait get it.
    fn announce(&mut self) {
        let tip = self.broker.tip();
        for to in 0..self.instances.len() {
            if self.instances[to].reads_next == Some(tip) {
                let (reader, delay) = (self.instances[to].reader, self.delay());
                self.after(delay, Happening::Reads { to, reader });
            }
        }
    }

    fn opens(&mut self, to: usize, life: u64, reader: u64, from: u64) {
        if self.instances[to].reader != reader {
            return;
        }
        if self.is_lost(to) {
            let input = Input::ReadFailed(ReadFault::Passing("no answer to reading".to_owned()));
            return self.after(500 * MS, Happening::Arrives { to, life, input });
        }
        self.give(to, Input::Opened(None));
        if self.instances[to].reader == reader {
            self.instances[to].reads_next = Some(from);
            self.after(100, Happening::Reads { to, reader });
        }
    }

    fn reads(&mut self, to: usize, reader: u64) {
        let life = self.instances[to].life;
        if self.instances[to].reader != reader {
            return;
        }
        let Some(seq) = self.instances[to].reads_next else { return };
        if self.instances[to].cut {
            self.instances[to].reads_next = None;
            self.instances[to].reader += 1;
            let input = Input::ReadFailed(ReadFault::Passing("the connection broke".to_owned()));
            return self.after(300 * MS, Happening::Arrives { to, life, input });
        }
        let Some(record) = self.broker.record(seq).cloned() else { return };
        self.instances[to].reads_next = Some(seq + 1);
        self.give(to, Input::Read(record));
        if self.broker.record(seq + 1).is_some() && self.instances[to].reader == reader {
            self.after(200, Happening::Reads { to, reader });
        }
    }

    fn leases(&mut self, from: usize, life: u64, partition: u16) {
        let at = usize::from(partition);
        let again = if self.instances[from].stalled.is_some() || self.is_lost(from) {
            LEASE_TTL / 3
        } else {
            // The holder counts from when it asked, the service from when it heard.
            let delay = self.delay().min(100 * MS);
            let held = self.instances[from].leases[at];
            let until = self.now + LEASE_TTL;
            let epoch = self.broker.lease(partition, from, held, self.now, until + delay);
            self.instances[from].leases[at] = epoch;
            let lease = match epoch {
                Some(epoch) => Ok(Held { epoch, until: Duration::from_micros(until) }),
                None => Err("another holds it".to_owned()),
            };
            let arrives = Happening::Arrives { to: from, life, input: Input::Lease { partition, lease } };
            self.after(delay, arrives);
            if epoch.is_some() { LEASE_TTL / 3 } else { self.rng.between(LEASE_TTL / 4, LEASE_TTL) }
        };
        self.after(again, Happening::Leases { from, life, partition });
    }

    fn check(self) -> Result<Outcome, String> {
        let keys: Vec<_> = self.instances.iter().map(|instance| instance.key.verifying_key()).collect();
        let log = Log::read(&self.broker.records, &keys)?;
        self.answers.check(&log)?;
        let mut digests = self.instances.iter().filter_map(|instance| instance.core.as_ref()).map(|core| {
            let fold = core.fold();
            (0..self.settings.partitions)
                .map(|partition| fold.budget(partition).digest(fold.past(partition)))
                .collect::<Vec<_>>()
        });
        let first = digests.next();
        if digests.any(|other| Some(&other) != first.as_ref()) {
            return Err("the instances' states differ".to_owned());
        }
        let mut stream = blake3::Hasher::new();
        for record in &self.broker.records {
            stream.update(&record.seq.to_be_bytes()).update(&record.payload);
        }
        Ok(Outcome {
            answers: self.answers.count,
            decisions: log.decisions,
            denied: log.denied,
            blocks: log.blocks,
            void: log.void,
            stream: *stream.finalize().as_bytes(),
            ..self.outcome
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}
