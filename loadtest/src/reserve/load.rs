//! The work that both sides do: holds of two meters at the innermost of three scopes, each settled with a part of it.
//!
//! Left out: who does it. Invariant: what a hold asks and uses follows from its number alone, so that both sides do the same.

use exchequer_event::v1;

/// The scopes with budgets, the outermost first.
pub(super) const SCOPES: [&str; 3] = ["acme", "acme/research", "acme/research/crawler"];
/// A scope of the same tenant whose budget runs out.
pub(super) const SCARCE: &str = "acme/research/scarce";
/// What each scope is granted, of both meters: more than the load takes.
pub(super) const PLENTY: u64 = 1_000_000_000_000;
/// The meters.
pub(super) const METERS: [&str; 2] = ["cpu_ms", "invocations"];
/// Who asks.
pub(super) const HOLDER: &str = "agent-1";
/// How long holds live, milliseconds.
pub(super) const TTL_MS: u64 = 3_600_000;

/// An amount of each meter.
pub(super) type Pair = [u64; 2];

/// What hold `number` asks for.
pub(super) fn asked(number: u64) -> Pair {
    [100 + number % 50, 1]
}

/// What hold `number` uses of it.
pub(super) fn used(number: u64) -> Pair {
    [40 + number % 60, 1]
}

/// How hard, on both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Connections, each of which waits for the answers to its batch before it sends the next.
    pub(super) connections: usize,
    /// Commands per batch: half of them reserve, half settle what the batch before was granted.
    pub(super) batch: usize,
}

/// Amounts as the protocol has them.
pub(super) fn amounts(pair: Pair) -> Vec<v1::MeterAmount> {
    let amount = |(meter, amount): (&str, u64)| v1::MeterAmount { meter: meter.to_owned(), amount };
    METERS.into_iter().zip(pair).map(amount).collect()
}

/// The pair that the protocol's amounts are; `None` for other meters.
pub(super) fn pair(amounts: &[v1::MeterAmount]) -> Option<Pair> {
    let mut pair = Pair::default();
    for amount in amounts {
        pair[METERS.iter().position(|meter| *meter == amount.meter)?] += amount.amount;
    }
    Some(pair)
}

/// Adds to a pair.
pub(super) fn add(to: &mut Pair, pair: Pair) {
    to[0] += pair[0];
    to[1] += pair[1];
}
