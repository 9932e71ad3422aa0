//! The sled directory: opening it, and flushing what was gathered.
//!
//! Left out: reading answers from it ([`super::query`]). Invariant: rows, position and the acceptor's state are written in one batch, so the
//! directory is always that of one place in the stream; sled may lose the newest batches in a crash, and never a part of one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use exchequer_event::{accept::Acceptor, digest::Digest};
use prost::Message as _;

use super::{
    calendar::Granularity,
    gather::{Cell, Delta, FirstUses, Gathered, Slot},
    record::SubjectDigest,
    rows::{self, Bucket, Chunk, FORMAT, Name, POSITION_KEY, Position},
    windows::Windows,
};

/// How long a directory that is still open may take to be closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// What sled names its main file.
const SLED_FILE: &str = "db";
/// Memory for sled's pages, bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// Names whose rows are kept at hand.
const CACHED_NAMES: usize = 65_536;
/// Entries of one chunk, so that an answer never decodes more than this for the sake of a few.
const CHUNK_DELTAS: usize = 1024;

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error("{0} can't be read")]
    Damaged(&'static str),
}

impl StoreError {
    /// Whether somebody else has the directory open. sled says so in words only.
    fn is_lock(&self) -> bool {
        matches!(self, Self::Sled(sled::Error::Io(error)) if error.to_string().contains("acquire lock"))
    }
}

/// What follows the stream, at the directory's position.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) acceptor: Acceptor,
    pub(super) cursor: u64,
    pub(super) cursor_digest: Digest,
    pub(super) log_index: u64,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) db: sled::Db,
    dir: PathBuf,
    names: HashMap<Vec<u8>, Name>,
    numbered: u64,
    windows: Windows,
}

impl Store {
    /// Opens the directory. What can't be opened or read is set aside, and a new one is made. Blocks.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Restored)> {
        let give_up = Instant::now() + LOCK_PATIENCE;
        loop {
            match Self::open_as_it_is(dir) {
                Ok(opened) => return Ok(opened),
                // sled's own thread may hold a directory for a moment after it was closed.
                Err(error) if error.is_lock() && Instant::now() < give_up => thread::sleep(LOCK_RETRY),
                Err(error) => {
                    tracing::warn!(%error, "the usage directory can't be used and is rebuilt");
                    return Self::open_anew(dir);
                }
            }
        }
    }

    /// Sets aside what is there, and begins with nothing.
    pub(super) fn open_anew(dir: &Path) -> io::Result<(Self, Restored)> {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let aside = dir.with_extension(format!("set-aside-{millis}"));
        match fs::rename(dir, &aside) {
            Ok(()) => tracing::warn!(to = %aside.display(), "the usage directory is set aside"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Self::open_as_it_is(dir).map_err(io::Error::other)
    }

    fn open_as_it_is(dir: &Path) -> Result<(Self, Restored), StoreError> {
        let db = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).open()?;
        let (restored, windows, numbered) = match db.get(POSITION_KEY)? {
            Some(row) => restore(&db, &row)?,
            None if db.is_empty() => (
                Restored { acceptor: Acceptor::new(), cursor: 0, cursor_digest: Digest::ZERO, log_index: 0 },
                Windows::default(),
                0,
            ),
            None => return Err(StoreError::Damaged("its position")),
        };
        Ok((Self { db, dir: dir.to_owned(), names: HashMap::new(), numbered, windows }, restored))
    }

    /// Whether somebody deleted it.
    pub(super) fn is_gone(&self) -> bool {
        matches!(fs::exists(self.dir.join(SLED_FILE)), Ok(false))
    }

    /// Writes what was gathered, with the place in the stream that it leads to. After an error the directory is to be begun anew.
    pub(super) fn flush(
        &mut self,
        gathered: Gathered,
        at: &Restored,
        changed_agents: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        if self.names.len() > CACHED_NAMES {
            self.names.clear();
        }
        for slot in gathered.slots {
            self.write_slot(&mut batch, slot)?;
        }
        self.windows.save(&mut batch, &at.acceptor, changed_agents);
        let position = Position {
            format: FORMAT,
            cursor: at.cursor,
            cursor_digest: at.cursor_digest.into(),
            log_index: at.log_index,
            names: self.numbered,
            acceptor: at.acceptor.snapshot_without_agents().into(),
        };
        batch.insert(POSITION_KEY, position.encode_to_vec());
        self.db.apply_batch(batch)?;
        Ok(())
    }

    /// Waits until sled has written everything to its file.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    fn write_slot(&mut self, batch: &mut sled::Batch, slot: Slot) -> Result<(), StoreError> {
        let Some((&first_minute, &last_minute)) =
            slot.minutes.keys().next().zip(slot.minutes.keys().next_back())
        else {
            return Ok(());
        };
        let key = rows::names_key(&slot.tenant, slot.dimension, &slot.name);
        let known = match self.names.get(&key) {
            Some(name) => Some(name.clone()),
            None => match self.db.get(&key)? {
                Some(row) => Some(Name::decode(&row).ok_or(StoreError::Damaged("a name"))?),
                None => None,
            },
        };
        let mut name = known.clone().unwrap_or_else(|| {
            self.numbered += 1;
            Name { number: self.numbered, first_minute, last_minute, meters: Vec::new() }
        });
        name.first_minute = name.first_minute.min(first_minute);
        name.last_minute = name.last_minute.max(last_minute);
        let meters = number_meters(&mut name, &slot.meters);
        let number = name.number;
        if known.as_ref() != Some(&name) {
            batch.insert(&*key, name.encode());
            self.names.insert(key, name);
        }
        self.write_minutes(batch, number, &renumbered(slot.minutes, &meters))
    }

    fn write_minutes(
        &self,
        batch: &mut sled::Batch,
        number: u64,
        minutes: &BTreeMap<u32, Cell>,
    ) -> Result<(), StoreError> {
        let mut buckets: BTreeMap<(Granularity, u32), Bucket> = BTreeMap::new();
        for (&minute, cell) in minutes {
            for deltas in cell.deltas.chunks(CHUNK_DELTAS) {
                let first = deltas.first().map_or(0, |delta| delta.index);
                batch.insert(&rows::chunk_key(number, minute, first), Chunk::encode(deltas));
            }
            let Some(added) = add_up(&cell.deltas) else { continue };
            for granularity in Granularity::ALL {
                let bucket = buckets.entry((granularity, granularity.floor(minute)));
                bucket.and_modify(|bucket| bucket.add(&added)).or_insert_with(|| added.clone());
            }
        }
        self.write_subjects(batch, number, minutes, &mut buckets)?;
        for ((granularity, start), mut bucket) in buckets {
            let key = rows::bucket_key(number, granularity, start);
            if let Some(row) = self.db.get(key)? {
                bucket.add(&Bucket::decode(&row).ok_or(StoreError::Damaged("a bucket"))?);
            }
            batch.insert(&key, bucket.encode());
        }
        Ok(())
    }

    /// Writes the subjects that are new in their spans, and counts them there. A subject that is not new in a minute is not new in its
    /// hour either, and so on.
    fn write_subjects(
        &self,
        batch: &mut sled::Batch,
        number: u64,
        minutes: &BTreeMap<u32, Cell>,
        buckets: &mut BTreeMap<(Granularity, u32), Bucket>,
    ) -> Result<(), StoreError> {
        let minutes = minutes.iter();
        let mut offered: BTreeMap<(u32, SubjectDigest), FirstUses> = minutes
            .flat_map(|(minute, cell)| {
                cell.subjects.iter().map(|(subject, uses)| ((*minute, *subject), uses.clone()))
            })
            .collect();
        for granularity in Granularity::ALL {
            let mut spans: BTreeMap<(u32, SubjectDigest), FirstUses> = BTreeMap::new();
            for ((minute, subject), uses) in offered {
                let known = spans.entry((granularity.floor(minute), subject)).or_default();
                for (meter, index) in uses {
                    add_first_use(known, meter, index);
                }
            }
            offered = BTreeMap::new();
            for ((start, subject), uses) in spans {
                let key = rows::subject_key(&rows::subjects_key(number, granularity, start), &subject);
                let mut stored = match self.db.get(key)? {
                    Some(row) => rows::decode_first_uses(&row).ok_or(StoreError::Damaged("a subject"))?,
                    None => FirstUses::new(),
                };
                let is_new = |(meter, _): &(u16, u64)| stored.iter().all(|(known, _)| known != meter);
                let new: FirstUses = uses.into_iter().filter(is_new).collect();
                if new.is_empty() {
                    continue;
                }
                if let Some(bucket) = buckets.get_mut(&(granularity, start)) {
                    for (meter, _) in &new {
                        bucket.metered(*meter).unique += 1;
                    }
                }
                stored.extend(&new);
                batch.insert(&key, rows::encode_first_uses(&stored));
                offered.insert((start, subject), new);
            }
        }
        Ok(())
    }
}

fn restore(db: &sled::Db, row: &[u8]) -> Result<(Restored, Windows, u64), StoreError> {
    let damaged = || StoreError::Damaged("its position");
    let position = Position::decode(row).map_err(|_| damaged())?;
    if position.format != FORMAT {
        return Err(StoreError::Damaged("another version's format"));
    }
    let mut acceptor = Acceptor::restore(&position.acceptor).map_err(|_| damaged())?;
    let windows = Windows::restore(db, &mut acceptor)?;
    let cursor_digest = Digest::from_slice(&position.cursor_digest).ok_or_else(damaged)?;
    let restored =
        Restored { acceptor, cursor: position.cursor, cursor_digest, log_index: position.log_index };
    Ok((restored, windows, position.names))
}

/// The name's numbers of these meters. `None` for those beyond what numbers reach.
fn number_meters(name: &mut Name, meters: &[String]) -> Vec<Option<u16>> {
    let number = |meter: &String| {
        let known = name.meters.iter().position(|known| known == meter);
        let number = u16::try_from(known.unwrap_or(name.meters.len())).ok()?;
        if known.is_none() {
            name.meters.push(meter.clone());
        }
        Some(number)
    };
    meters.iter().map(number).collect()
}

/// The same cells with the name's numbers of the meters.
fn renumbered(mut minutes: BTreeMap<u32, Cell>, meters: &[Option<u16>]) -> BTreeMap<u32, Cell> {
    let number = |place: u16| meters.get(usize::from(place)).copied().flatten();
    for cell in minutes.values_mut() {
        for delta in &mut cell.deltas {
            let tallies = delta.tallies.drain(..);
            delta.tallies = tallies.filter_map(|(meter, tally)| Some((number(meter)?, tally))).collect();
        }
        for uses in cell.subjects.values_mut() {
            *uses = uses.drain(..).filter_map(|(meter, index)| Some((number(meter)?, index))).collect();
        }
    }
    minutes
}

fn add_up(deltas: &[Delta]) -> Option<Bucket> {
    let (first, rest) = deltas.split_first()?;
    let mut bucket = Bucket::of(first);
    for delta in rest {
        bucket.add_delta(delta);
    }
    Some(bucket)
}

fn add_first_use(uses: &mut FirstUses, meter: u16, index: u64) {
    match uses.iter_mut().find(|(known, _)| *known == meter) {
        Some((_, first)) => *first = index.min(*first),
        None => uses.push((meter, index)),
    }
}
