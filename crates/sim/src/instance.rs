//! One instance: its core, its clocks, and what of the world reaches it now.

use std::{collections::VecDeque, time::Duration};

use ed25519_dalek::SigningKey;
use exchequer_metering::{
    Fold,
    core::{Core, Input, Now},
};

/// How long a block's outcome may be unknown before its callers are told so.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// What the world's clock is by the calendar when it begins, milliseconds since the Unix epoch.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) key: SigningKey,
    /// None while it is down.
    pub(crate) core: Option<Core<u64>>,
    /// Rises with every start: what was meant for an earlier life gets lost.
    pub(crate) life: u64,
    /// What it kept of its fold.
    pub(crate) snapshot: Option<Fold>,
    /// While it stalls: what reaches it meanwhile waits here.
    pub(crate) stalled: Option<VecDeque<Input<u64>>>,
    /// Whether the broker and it can't reach each other.
    pub(crate) cut: bool,
    /// How far its calendar clock is off, milliseconds.
    pub(crate) clock_off_ms: i64,
    /// The reader that counts, and the sequence that it delivers next; none while it has none.
    pub(crate) reader: u64,
    pub(crate) reads_next: Option<u64>,
    /// Epochs of the leases that it believes to hold, by partition.
    pub(crate) leases: Vec<Option<u64>>,
    /// When it is to be woken.
    pub(crate) wake_at: Option<u64>,
}

impl Instance {
    pub(crate) fn new(number: u8, partitions: u16) -> Self {
        let mut instance = Self {
            key: SigningKey::from_bytes(&[number + 100; 32]),
            core: None,
            life: 0,
            snapshot: None,
            stalled: None,
            cut: false,
            clock_off_ms: 0,
            reader: 0,
            reads_next: None,
            leases: vec![None; usize::from(partitions)],
            wake_at: None,
        };
        instance.start(partitions);
        instance
    }

    /// Begins from the snapshot, or from nothing.
    pub(crate) fn start(&mut self, partitions: u16) {
        let fold = self.snapshot.clone().unwrap_or_else(|| Fold::new(partitions));
        self.core = Some(Core::new(fold, self.key.clone(), APPEND_TIMEOUT));
        self.life += 1;
    }

    /// All but the snapshot is gone.
    pub(crate) fn crash(&mut self) {
        self.core = None;
        self.stalled = None;
        self.reads_next = None;
        self.reader += 1;
        self.leases.fill(None);
        self.wake_at = None;
        self.life += 1;
    }

    /// What its clocks say when the world's says `now` microseconds.
    pub(crate) fn now(&self, now: u64) -> Now {
        let wall_ms = (EPOCH_MS + now / 1000).saturating_add_signed(self.clock_off_ms);
        Now { mono: Duration::from_micros(now), wall_ms }
    }
}
