//! Postings: which entries of a block a term has: ranges, an agent's runs with their seqs, lists of executions and of names.
//!
//! Left out: where they are stored. Invariant: ranges are ascending, disjoint and not adjacent.

use prost::encoding::{decode_varint, encode_varint};

/// Ranges of indexes, each `start..end`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// One range.
    pub(super) fn all(start: u64, end: u64) -> Self {
        Self(if start < end { vec![(start, end)] } else { Vec::new() })
    }

    /// Adds an index that is greater than all before.
    pub(super) fn push(&mut self, index: u64) {
        self.push_range(index, index.saturating_add(1));
    }

    fn push_range(&mut self, start: u64, end: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => self.0.push((start, end)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As gaps and lengths from the block's first index on.
    pub(super) fn encode(&self, first: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = first;
        for (start, end) in &self.0 {
            push_varint(&mut bytes, start - at);
            push_varint(&mut bytes, end - start);
            at = *end;
        }
        bytes
    }

    /// What [`Self::encode`] wrote.
    pub(super) fn decode(mut bytes: &[u8], first: u64) -> Self {
        let mut ranges = Vec::new();
        let mut at = first;
        while let (Some(gap), Some(length)) = (take_varint(&mut bytes), take_varint(&mut bytes)) {
            let start = at.saturating_add(gap);
            at = start.saturating_add(length);
            ranges.push((start, at));
        }
        Self(ranges)
    }

    /// What is in both.
    pub(super) fn intersect(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some((a_start, a_end)), Some((b_start, b_end))) = (ours.peek(), theirs.peek()) {
            let (start, end) = (*a_start.max(b_start), *a_end.min(b_end));
            if start < end {
                both.push((start, end));
            }
            if a_end <= b_end {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both)
    }

    /// What is in either.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// The indexes, ascending.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|(start, end)| *start..*end)
    }
}

pub(super) fn push_varint(bytes: &mut Vec<u8>, number: u64) {
    encode_varint(number, bytes);
}

pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    if bytes.is_empty() { None } else { decode_varint(bytes).ok() }
}

/// An agent's entries in a block: consecutive ones that are no events, or events of consecutive seqs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AgentRuns(Vec<Run>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    length: u64,
    /// 0 for entries that are no events.
    first_seq: u64,
}

impl AgentRuns {
    /// Adds an index that is greater than all before; seq 0 for what is no event.
    pub(super) fn push(&mut self, index: u64, seq: u64) {
        match self.0.last_mut() {
            Some(run)
                if run.start + run.length == index
                    && if seq == 0 { run.first_seq == 0 } else { run.next_seq() == Some(seq) } =>
            {
                run.length += 1;
            }
            _ => self.0.push(Run { start: index, length: 1, first_seq: seq }),
        }
    }

    /// Least and greatest seq, then each run: its gap, its length twice and whether it has seqs, and how far its first seq is from the
    /// one that was to be expected.
    pub(super) fn encode(&self, first: u64) -> Vec<u8> {
        let seqs = || self.0.iter().filter(|run| run.first_seq > 0);
        let mut bytes = Vec::new();
        push_varint(&mut bytes, seqs().map(|run| run.first_seq).min().unwrap_or(0));
        push_varint(&mut bytes, seqs().filter_map(Run::next_seq).max().map_or(0, |next| next - 1));
        let (mut at, mut expected) = (first, 0);
        for run in &self.0 {
            push_varint(&mut bytes, run.start - at);
            push_varint(&mut bytes, run.length << 1 | u64::from(run.first_seq > 0));
            if run.first_seq > 0 {
                push_varint(&mut bytes, run.first_seq.wrapping_sub(expected));
                expected = run.first_seq.wrapping_add(run.length);
            }
            at = run.start + run.length;
        }
        bytes
    }

    /// The indexes of what [`Self::encode`] wrote: all, or of one seq.
    pub(super) fn find(mut bytes: &[u8], first: u64, seq: u64) -> Ranges {
        let mut ranges = Ranges::default();
        let least = take_varint(&mut bytes).unwrap_or_default();
        let greatest = take_varint(&mut bytes).unwrap_or_default();
        if seq > 0 && !(least..=greatest).contains(&seq) {
            return ranges;
        }
        let (mut at, mut expected) = (first, 0u64);
        while let (Some(gap), Some(length)) = (take_varint(&mut bytes), take_varint(&mut bytes)) {
            let (has_seqs, length) = (length & 1 == 1, length >> 1);
            let start = at.saturating_add(gap);
            at = start.saturating_add(length);
            let mut first_seq = 0;
            if has_seqs {
                first_seq = expected.wrapping_add(take_varint(&mut bytes).unwrap_or_default());
                expected = first_seq.wrapping_add(length);
            }
            if seq == 0 {
                ranges.push_range(start, at);
            } else if let Some(place) = seq.checked_sub(first_seq)
                && has_seqs
                && place < length
            {
                ranges.push_range(start + place, start + place + 1);
            }
        }
        ranges
    }
}

impl Run {
    fn next_seq(&self) -> Option<u64> {
        if self.first_seq == 0 { None } else { self.first_seq.checked_add(self.length) }
    }
}

/// An execution in postings: 8 bytes that hardly any two executions share. Where two do, the query tells them apart.
pub(super) type Fingerprint = u64;

/// Adds an execution's entries to a list: offsets from the block's first index, ascending.
pub(super) fn push_execution(list: &mut Vec<u8>, execution: Fingerprint, offsets: &[u64]) {
    list.extend(execution.to_be_bytes());
    push_varint(list, offsets.len() as u64);
    let mut at = 0;
    for offset in offsets {
        push_varint(list, offset - at);
        at = *offset;
    }
}

/// The entries of an execution in a list.
pub(super) fn execution(mut list: &[u8], wanted: Fingerprint, first: u64) -> Ranges {
    let mut ranges = Ranges::default();
    while let Some((execution, rest)) = list.split_first_chunk::<8>() {
        list = rest;
        let is_wanted = u64::from_be_bytes(*execution) == wanted;
        let mut at = first;
        for _ in 0..take_varint(&mut list).unwrap_or_default() {
            let Some(gap) = take_varint(&mut list) else { return ranges };
            at = at.saturating_add(gap);
            if is_wanted {
                ranges.push(at);
            }
        }
    }
    ranges
}

/// Adds a name and its posting to a list of several.
pub(super) fn push_named(list: &mut Vec<u8>, name: &str, posting: &[u8]) {
    for bytes in [name.as_bytes(), posting] {
        push_varint(list, bytes.len() as u64);
        list.extend(bytes);
    }
}

/// The posting of a name in such a list.
pub(super) fn named<'a>(mut list: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let mut part = || {
        let length = usize::try_from(take_varint(&mut list)?).ok()?;
        let (part, rest) = list.split_at_checked(length)?;
        list = rest;
        Some(part)
    };
    loop {
        let (name, posting) = (part()?, part()?);
        if name == wanted.as_bytes() {
            return Some(posting);
        }
    }
}

/// Spreads keys evenly over 64 bits. Stored with the index: another function is another version of it.
pub(super) fn spread(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(FACTOR);
        mixed ^ mixed >> 32
    };
    let word = |chunk: &[u8]| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let hash = bytes.chunks(8).map(word).fold(bytes.len() as u64, mix);
    mix(hash, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeSet;

    fn ranges(indexes: &BTreeSet<u64>) -> Ranges {
        let mut ranges = Ranges::default();
        for index in indexes {
            ranges.push(*index);
        }
        ranges
    }

    proptest! {
        #[test]
        fn ranges_are_the_set_of_their_indexes(
            a in proptest::collection::btree_set(10u64..80, 0..40),
            b in proptest::collection::btree_set(10u64..80, 0..40),
        ) {
            let (left, right) = (ranges(&a), ranges(&b));
            prop_assert_eq!(left.indexes().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(Ranges::decode(&left.encode(10), 10), left.clone());
            prop_assert_eq!(left.intersect(&right), ranges(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(left.union(&right), ranges(&a.union(&b).copied().collect()));
        }

        /// Seals among events, and epochs that begin again at 1 or go anywhere.
        #[test]
        fn an_agents_entries_are_found_by_their_seq(
            steps in vec((1u64..4, prop_oneof![4 => Just(1u64), 1 => Just(0), 1 => any::<u64>()]), 0..60),
        ) {
            let (mut index, mut seq, mut entries) = (99, 0u64, Vec::new());
            for (gap, step) in steps {
                index += if gap < 3 { 1 } else { gap };
                let is_event = step > 0;
                if is_event {
                    seq = seq.wrapping_add(step).max(1);
                }
                entries.push((index, if is_event { seq } else { 0 }));
            }
            let mut runs = AgentRuns::default();
            for (index, seq) in &entries {
                runs.push(*index, *seq);
            }
            let bytes = runs.encode(100);
            let all: BTreeSet<_> = entries.iter().map(|(index, _)| *index).collect();
            prop_assert_eq!(AgentRuns::find(&bytes, 100, 0), ranges(&all));
            let seqs = entries.iter().map(|(_, seq)| *seq).filter(|seq| *seq > 0);
            for wanted in seqs.flat_map(|seq| [seq, seq.saturating_add(1)]) {
                let expected = entries.iter().filter(|(_, seq)| *seq == wanted).map(|(index, _)| *index);
                prop_assert_eq!(AgentRuns::find(&bytes, 100, wanted), ranges(&expected.collect()), "{}", wanted);
            }
        }

        #[test]
        fn damaged_postings_are_read_as_something(bytes in vec(any::<u8>(), 0..40), seq in any::<u64>()) {
            let _ = AgentRuns::find(&bytes, 10, seq);
            let _ = execution(&bytes, seq, 10);
            let _ = named(&bytes, "a");
            let _ = Ranges::decode(&bytes, 10);
        }
    }

    #[test]
    fn an_execution_and_a_name_are_found_among_others() {
        let mut list = Vec::new();
        push_execution(&mut list, 7, &[0, 300]);
        push_execution(&mut list, 9, &[3]);
        assert_eq!(execution(&list, 7, 1000).indexes().collect::<Vec<_>>(), [1000, 1300]);
        assert_eq!(execution(&list, 9, 1000).indexes().collect::<Vec<_>>(), [1003]);
        assert_eq!(execution(&list, 8, 1000), Ranges::default());
        let mut names = Vec::new();
        push_named(&mut names, "acme", b"one");
        push_named(&mut names, "acme2", b"");
        assert_eq!(named(&names, "acme"), Some(&b"one"[..]));
        assert_eq!((named(&names, "acme2"), named(&names, "acm")), (Some(&b""[..]), None));
    }
}
