//! Idempotency keys and closed holds, in blocks that are retired and in those that are not.

use exchequer_budget::{DecideError, Decided, Past, ROW_BYTES, Refusal};

use crate::words::*;

#[test]
fn a_repeated_key_gets_its_answer_before_and_after_it_is_retired() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=5"));
    let reserve = |id: &str| reserve(id, "acme", "cpu_ms=3");
    let first = world.ask("acme", "agent-1", Some(("key", 1)), reserve("h1")).unwrap();
    let again = world.ask("acme", "agent-1", Some(("key", 1)), reserve("h2")).unwrap();
    assert_eq!(again, Decided::Repeated(first.reply().unwrap().clone()));
    let other = world.ask("acme", "agent-1", Some(("key", 2)), reserve("h2"));
    assert_eq!(other, Err(DecideError::IdempotencyConflict));
    // Another tenant's key is another key.
    assert!(matches!(
        world.ask("b", "agent-1", Some(("key", 2)), self::reserve("h9", "b", "cpu_ms=1")),
        Ok(Decided::New(_))
    ));
    world.retire(7);
    world.run(void("h1"));
    let again = world.ask("acme", "agent-1", Some(("key", 1)), reserve("h2")).unwrap();
    assert_eq!(again, Decided::RepeatedAt(7));
    let other = world.ask("acme", "agent-1", Some(("key", 2)), reserve("h2"));
    assert_eq!(other, Err(DecideError::IdempotencyConflict));
    world.check("acme", [5, 5, 0, 0, 0]);
}

#[test]
fn a_hold_that_is_over_goes_to_the_past_with_its_places() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=50"));
    world.run(reserve("h1", "acme", "cpu_ms=3"));
    world.run(reserve("h2", "acme", "cpu_ms=3"));
    world.retire(3);
    assert_eq!(world.state.hold(&hold("h1")).unwrap().granted_seq, 3);
    world.run(settle("h1", "cpu_ms=1"));
    world.run(reserve("h3", "acme", "cpu_ms=3"));
    world.run(void("h3"));
    assert!(world.state.hold(&hold("h1")).is_some());
    world.retire(8);
    assert!(world.state.hold(&hold("h1")).is_none() && world.state.hold(&hold("h2")).is_some());
    let seqs = |id: &str| {
        let over = world.past.hold(&scope("acme").tenant_id(), &hold(id))?;
        Some((over.granted_seq, over.closed_seq))
    };
    assert_eq!([seqs("h1"), seqs("h2"), seqs("h3")], [Some((3, 8)), None, Some((8, 8))]);
    assert_eq!(world.past.hold(&scope("b").tenant_id(), &hold("h1")), None);
    assert_eq!(refused(&world.run(settle("h1", ""))), Refusal::HoldClosed);
    let taken = world.ask("acme", "agent-1", None, reserve("h1", "acme", "cpu_ms=1"));
    assert_eq!(taken, Err(DecideError::HoldIdTaken));
}

#[test]
fn a_hold_that_is_over_is_answered_the_same_before_and_after_it_is_retired() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=50"));
    world.run(reserve("h", "acme", "cpu_ms=3"));
    world.run(void("h"));
    for seq in [1, 2] {
        for (tenant, actor, action, want) in [
            ("acme", "agent-1", draw("h", "cpu_ms=1"), Refusal::HoldClosed),
            ("acme", "agent-2", settle("h", ""), Refusal::HoldClosed),
            ("b", "agent-1", settle("h", ""), Refusal::NotHolder),
        ] {
            let answered = world.ask(tenant, actor, None, action).unwrap();
            assert_eq!(refused(&[answered.reply().unwrap().clone()]), want);
        }
        world.retire(seq);
    }
}

#[test]
fn a_state_that_is_ahead_retires_the_block_s_part_only() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=50"));
    world.ask("acme", "agent-1", Some(("k1", 1)), reserve("h1", "acme", "cpu_ms=3")).unwrap();
    let mut durable = world.state.clone();
    world.ask("acme", "agent-1", Some(("k2", 1)), void("h1")).unwrap();
    let mut past = Past::default();
    durable.retire(&mut past, 4);
    let mut ahead = world.state.clone();
    ahead.retire_up_to(&mut past, 4, durable.decisions());
    assert_eq!((past.count(), ahead.check()), (1, Ok(())));
    assert!(ahead.hold(&hold("h1")).is_some_and(|hold| hold.granted_seq == 4));
    ahead.retire(&mut past, 5);
    assert_eq!((past.count(), ahead.hold(&hold("h1")).is_none()), (3, true));
}

#[test]
fn a_past_is_its_rows_in_their_order() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=50"));
    let mut copy = Past::default();
    for n in 1..5 {
        let (id, key) = (format!("h{n}"), format!("k{n}"));
        world.ask("acme", "agent-1", Some((&key, 1)), reserve(&id, "acme", "cpu_ms=1")).unwrap();
        world.run(void(&id));
        world.retire(n);
        let digest = world.state.digest(&copy);
        copy.extend(&bytes_after(&world.past, copy.count())).unwrap();
        assert_eq!((copy.chain(), copy.count()), (world.past.chain(), world.past.count()));
        assert_ne!(world.state.digest(&copy), digest);
        assert_eq!(world.state.digest(&copy), world.state.digest(&world.past));
    }
    let rows = bytes_after(&world.past, 0);
    assert!(copy.extend(&rows[..40]).is_err() && copy.extend(&rows[..39]).is_err());
    assert_eq!(copy, world.past);
}

#[test]
fn rows_are_handed_on_whole_from_wherever_they_are_asked_for() {
    let rows: Vec<u8> = (0..10_000_u64)
        .flat_map(|n| [&blake3::hash(&n.to_be_bytes()).as_bytes()[..], &n.to_be_bytes()].concat())
        .collect();
    let mut past = Past::default();
    past.extend(&rows).unwrap();
    assert_eq!(past.count(), 10_000);
    for skip in [0, 1, 4095, 4096, 4097, 8192, 9999, 10_000, 10_001, u64::MAX] {
        let from =
            usize::try_from(skip).map_or(rows.len(), |skip| skip.saturating_mul(ROW_BYTES).min(rows.len()));
        assert_eq!(bytes_after(&past, skip), rows[from..], "after {skip}");
        let counted: u64 = past.rows_after(skip).pieces().map(|(count, _)| count).sum();
        assert_eq!(counted, 10_000_u64.saturating_sub(skip));
    }
    for (n, row) in rows.chunks(ROW_BYTES).enumerate() {
        assert!(past.extend(row).is_err(), "row {n} is there");
    }
}

fn bytes_after(past: &Past, skip: u64) -> Vec<u8> {
    past.rows_after(skip).pieces().flat_map(|(_, bytes)| bytes.to_vec()).collect()
}
