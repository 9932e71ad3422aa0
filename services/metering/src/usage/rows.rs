//! Keys and values of the directory.
//!
//! | key | value |
//! |---|---|
//! | `p` | [`Position`]: how far the stream has been read |
//! | `a` agent; `c` agent 00 epoch, chunk | the acceptor's agents: see [`super::windows`] |
//! | `n` tenant 00 dimension name | [`Name`]: the name's number and its meters |
//! | `b` number, granularity, start | [`Bucket`]: what was used in a minute, hour, day or month |
//! | `d` number, minute, first log index | [`Chunk`]: the same minute entry by entry, as it was flushed |
//! | `s` number, granularity, start, subject | [`FirstUses`] of a distinct subject |
//!
//! Numbers in keys are big-endian, so that time runs with the keys. Left out: sled. Pure. Invariant: bytes that were not written as a value
//! don't read as one, or read as one of the same form.

use bytes::Bytes as Shared;

use super::{
    calendar::Granularity,
    gather::{Delta, FirstUses},
    record::{Dimension, SubjectDigest},
    tally::{Bytes, Tallies, Tally, put_number, put_tallies, put_text},
};

/// Raised with every change of the rows; another format is rebuilt.
pub(super) const FORMAT: u32 = 1;
pub(super) const POSITION_KEY: &[u8] = b"p";

/// How far the stream has been read.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Position {
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    /// Stream sequence of the last message.
    #[prost(uint64, tag = "2")]
    pub(super) cursor: u64,
    /// Digest of that message.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) cursor_digest: Shared,
    /// Log index that follows its last entry.
    #[prost(uint64, tag = "4")]
    pub(super) log_index: u64,
    /// Names numbered so far.
    #[prost(uint64, tag = "5")]
    pub(super) names: u64,
    /// The acceptor without its agents.
    #[prost(bytes = "bytes", tag = "6")]
    pub(super) acceptor: Shared,
}

/// A scope, skill or agent of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// What its rows are found by.
    pub(super) number: u64,
    /// The first and the last minute with usage.
    pub(super) first_minute: u32,
    pub(super) last_minute: u32,
    /// Its meters; rows go by the place here.
    pub(super) meters: Vec<String>,
}

impl Name {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, self.number.into());
        put_number(&mut out, self.first_minute.into());
        put_number(&mut out, self.last_minute.into());
        put_number(&mut out, self.meters.len() as u128);
        self.meters.iter().for_each(|meter| put_text(&mut out, meter));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let (number, first_minute, last_minute) = (bytes.u64()?, bytes.u32()?, bytes.u32()?);
        let len = bytes.len()?;
        let meters = (0..len).map(|_| bytes.text().map(str::to_owned)).collect::<Option<_>>()?;
        bytes.end(Self { number, first_minute, last_minute, meters })
    }
}

/// What a bucket holds of one meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metered {
    pub(super) meter: u16,
    pub(super) tally: Tally,
    /// Distinct subjects of the records that used some of it.
    pub(super) unique: u64,
}

/// What one name used in one span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The first log index that added to it, and the last.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) meters: Vec<Metered>,
}

impl Bucket {
    pub(super) fn of(delta: &Delta) -> Self {
        let mut bucket = Self { first: delta.index, last: delta.index, meters: Vec::new() };
        bucket.add_tallies(&delta.tallies);
        bucket
    }

    pub(super) fn add(&mut self, other: &Self) {
        (self.first, self.last) = (self.first.min(other.first), self.last.max(other.last));
        for it in &other.meters {
            let metered = self.metered(it.meter);
            metered.tally.add(&it.tally);
            metered.unique += it.unique;
        }
    }

    pub(super) fn add_delta(&mut self, delta: &Delta) {
        (self.first, self.last) = (self.first.min(delta.index), self.last.max(delta.index));
        self.add_tallies(&delta.tallies);
    }

    fn add_tallies(&mut self, tallies: &Tallies) {
        for (meter, tally) in tallies {
            self.metered(*meter).tally.add(tally);
        }
    }

    pub(super) fn metered(&mut self, meter: u16) -> &mut Metered {
        let known = self.meters.iter().position(|it| it.meter == meter);
        let place = known.unwrap_or_else(|| {
            self.meters.push(Metered { meter, tally: Tally::default(), unique: 0 });
            self.meters.len() - 1
        });
        &mut self.meters[place]
    }

    pub(super) fn get(&self, meter: u16) -> Option<&Metered> {
        self.meters.iter().find(|it| it.meter == meter)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_number(&mut out, self.first.into());
        put_number(&mut out, (self.last - self.first).into());
        put_number(&mut out, self.meters.len() as u128);
        for it in &self.meters {
            put_number(&mut out, it.meter.into());
            it.tally.encode(&mut out);
            put_number(&mut out, it.unique.into());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let first = bytes.u64()?;
        let last = first.checked_add(bytes.u64()?)?;
        let len = bytes.len()?;
        let metered = |bytes: &mut Bytes<'_>| {
            Some(Metered { meter: bytes.u16()?, tally: Tally::decode(bytes)?, unique: bytes.u64()? })
        };
        let meters = (0..len).map(|_| metered(&mut bytes)).collect::<Option<_>>()?;
        bytes.end(Self { first, last, meters })
    }
}

/// A part of one name's minute, entry by entry. Of an earlier index than `last`, its entries have to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) last: u64,
    pub(super) totals: Tallies,
    deltas: Bytes<'a>,
}

impl<'a> Chunk<'a> {
    /// `deltas` is not empty; it is in order of index, and the key says the first.
    pub(super) fn encode(deltas: &[Delta]) -> Vec<u8> {
        let mut totals = Tallies::new();
        let (mut last, mut body) = (deltas.first().map_or(0, |delta| delta.index), Vec::new());
        for delta in deltas {
            for (meter, tally) in &delta.tallies {
                super::tally::add_to(&mut totals, *meter, tally);
            }
            put_number(&mut body, (delta.index - last).into());
            put_tallies(&mut body, &delta.tallies);
            last = delta.index;
        }
        let mut out = Vec::with_capacity(body.len() + 64);
        put_number(&mut out, last.into());
        put_tallies(&mut out, &totals);
        put_number(&mut out, deltas.len() as u128);
        out.extend_from_slice(&body);
        out
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        Some(Self { last: bytes.u64()?, totals: bytes.tallies()?, deltas: bytes })
    }

    /// Its entries; `first` is of its key.
    pub(super) fn deltas(&self, first: u64) -> Option<Vec<Delta>> {
        let (mut bytes, mut index) = (self.deltas, first);
        let len = bytes.len()?;
        let mut deltas = Vec::new();
        for _ in 0..len {
            index = index.checked_add(bytes.u64()?)?;
            deltas.push(Delta { index, tallies: bytes.tallies()? });
        }
        bytes.end(deltas)
    }
}

pub(super) fn encode_first_uses(uses: &FirstUses) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    for (meter, first) in uses {
        put_number(&mut out, (*meter).into());
        put_number(&mut out, (*first).into());
    }
    out
}

pub(super) fn decode_first_uses(bytes: &[u8]) -> Option<FirstUses> {
    let (mut bytes, mut uses) = (Bytes(bytes), FirstUses::new());
    while !bytes.0.is_empty() {
        uses.push((bytes.u16()?, bytes.u64()?));
    }
    Some(uses)
}

/// Prefix of the keys of a dimension's names; a name follows.
pub(super) fn names_key(tenant: &str, dimension: Dimension, name: &str) -> Vec<u8> {
    [b"n", tenant.as_bytes(), &[0, dimension as u8], name.as_bytes()].concat()
}

pub(super) fn bucket_key(number: u64, granularity: Granularity, start: u32) -> [u8; 14] {
    spanned(b'b', number, granularity, start)
}

/// Prefix of the keys of a span's subjects.
pub(super) fn subjects_key(number: u64, granularity: Granularity, start: u32) -> [u8; 14] {
    spanned(b's', number, granularity, start)
}

pub(super) fn subject_key(subjects: &[u8; 14], subject: &SubjectDigest) -> [u8; 30] {
    let mut key = [0; 30];
    key[..14].copy_from_slice(subjects);
    key[14..].copy_from_slice(subject);
    key
}

/// Prefix of the keys of a minute's chunks.
pub(super) fn chunks_key(number: u64, minute: u32) -> [u8; 13] {
    let mut key = [b'd'; 13];
    key[1..9].copy_from_slice(&number.to_be_bytes());
    key[9..].copy_from_slice(&minute.to_be_bytes());
    key
}

pub(super) fn chunk_key(number: u64, minute: u32, first: u64) -> [u8; 21] {
    let mut key = [0; 21];
    key[..13].copy_from_slice(&chunks_key(number, minute));
    key[13..].copy_from_slice(&first.to_be_bytes());
    key
}

fn spanned(kind: u8, number: u64, granularity: Granularity, start: u32) -> [u8; 14] {
    let mut key = [kind; 14];
    key[1..9].copy_from_slice(&number.to_be_bytes());
    key[9] = granularity as u8;
    key[10..].copy_from_slice(&start.to_be_bytes());
    key
}

/// The number at a key's end.
pub(super) fn tail<const N: usize>(key: &[u8]) -> Option<[u8; N]> {
    key.last_chunk::<N>().copied()
}
