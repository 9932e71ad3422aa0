//! Postings: which entries of a block a term has, as ranges, and the executions of a block.
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
        match self.0.last_mut() {
            Some((_, end)) if *end == index => *end += 1,
            _ => self.0.push((index, index + 1)),
        }
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

/// The 16 bytes of an execution's UUID.
pub(super) fn execution_bytes(execution_id: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let digits = execution_id.bytes().filter_map(|digit| char::from(digit).to_digit(16));
    for (place, digit) in digits.take(32).enumerate() {
        bytes[place / 2] = bytes[place / 2] << 4 | u8::try_from(digit).unwrap_or_default();
    }
    bytes
}

/// Adds an entry of an execution.
pub(super) fn push_execution(list: &mut Vec<u8>, execution_id: &str, offset: u64) {
    list.extend(execution_bytes(execution_id));
    push_varint(list, offset);
}

/// The entries of an execution in a list.
pub(super) fn execution(mut list: &[u8], execution_id: &str, first: u64) -> Ranges {
    let wanted = execution_bytes(execution_id);
    let mut ranges = Ranges::default();
    while let Some((execution, rest)) = list.split_first_chunk::<16>() {
        list = rest;
        let Some(offset) = take_varint(&mut list) else { break };
        if *execution == wanted {
            ranges.push(first + offset);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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
    }

    #[test]
    fn an_execution_is_found_among_others() {
        let ids = ["0190b2a4-0000-7000-8000-00000000000f", "0190b2a4-0000-7000-8000-000000000010"];
        let mut list = Vec::new();
        for (offset, which) in [(0, 0), (3, 1), (300, 0)] {
            push_execution(&mut list, ids[which], offset);
        }
        assert_eq!(execution(&list, ids[0], 1000).indexes().collect::<Vec<_>>(), [1000, 1300]);
        assert_eq!(execution(&list, ids[1], 1000).indexes().collect::<Vec<_>>(), [1003]);
    }
}
