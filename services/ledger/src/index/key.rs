//! The index's keys. A term and then a block's first index, so that the postings of a term lie in log order.
//!
//! | key | value |
//! |---|---|
//! | `b` block | least and greatest time of its entries |
//! | `k` kind, block; `e` event kind, block | ranges of indexes |
//! | `t` 0 tenant 00 block; `s` 0 skill 00 block | ranges of indexes |
//! | `a` 0 agent 00 block | runs of indexes and seqs |
//! | `t`, `s` or `a`, 1, share, block | where a block has many: names of that share, each with its posting |
//! | `x` 0 unit, block | executions that began in that unit of time, with their indexes |
//! | `x` 1 unit, share, block | where those are many: the ones of that share |
//! | `x` 2 share, block | where the units are many: the executions of that share |
//! | `meta` | version, size, last leaf |

pub(super) const META: &[u8] = b"meta";

/// A term's key in a block.
pub(super) fn of_block(term: &[u8], first: u64) -> Vec<u8> {
    [term, &first.to_be_bytes()].concat()
}

/// The block of a term's key; `None` if the key is another term's.
pub(super) fn block_of(term: &[u8], key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.strip_prefix(term)?.try_into().ok()?))
}

/// Every block.
pub(super) fn blocks() -> Vec<u8> {
    vec![b'b']
}

pub(super) fn number(tag: u8, number: u8) -> Vec<u8> {
    vec![tag, number]
}

pub(super) fn name(tag: u8, name: &str) -> Vec<u8> {
    [&[tag, 0], name.as_bytes(), &[0]].concat()
}

pub(super) fn shared_names(tag: u8, share: u8) -> Vec<u8> {
    vec![tag, 1, share]
}

pub(super) fn unit(unit: u32) -> Vec<u8> {
    [&[b'x', 0][..], &unit.to_be_bytes()].concat()
}

pub(super) fn spread_unit(unit: u32, share: u8) -> Vec<u8> {
    [&[b'x', 1][..], &unit.to_be_bytes(), &[share]].concat()
}

pub(super) fn shared_executions(share: u8) -> Vec<u8> {
    vec![b'x', 2, share]
}
