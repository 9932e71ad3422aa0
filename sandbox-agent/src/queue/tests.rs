//! The queue by hand and by chance. No clock, no task: an order of calls is all that there is.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn enter(queue: &mut Queue, tenant: &str) -> Ticket {
    queue.enter(tenant).unwrap().ticket
}

#[test]
fn a_tenant_with_one_request_is_next_whatever_another_has_waiting() {
    let mut queue = Queue::new(1, 1, 2000);
    let mut running = enter(&mut queue, "busy");
    let crowd: Vec<_> = (0..1000).map(|_| enter(&mut queue, "busy")).collect();
    let one = enter(&mut queue, "quiet");
    running = queue.leave(running).unwrap();
    assert_eq!(running, crowd[0], "whose turn it was when the other came");
    running = queue.leave(running).unwrap();
    assert_eq!(running, one);
    assert_eq!(queue.leave(running), Some(crowd[1]));
}

#[test]
fn tenants_take_turns_and_each_is_served_oldest_first() {
    let mut queue = Queue::new(1, 1, 100);
    let mut running = enter(&mut queue, "z");
    let tickets: Vec<_> = ["a", "a", "a", "b", "b", "c"].map(|tenant| enter(&mut queue, tenant)).to_vec();
    let mut order = Vec::new();
    while let Some(next) = queue.leave(running) {
        running = next;
        order.push(tickets.iter().position(|ticket| *ticket == next).unwrap());
    }
    assert_eq!(order, [0, 3, 5, 1, 4, 2]);
    assert_eq!((queue.running(), queue.waiting()), (0, 0));
}

#[test]
fn a_full_queue_makes_room_for_who_has_less_and_refuses_the_rest() {
    let mut queue = Queue::new(1, 1, 4);
    enter(&mut queue, "a");
    let crowd: Vec<_> = (0..4).map(|_| enter(&mut queue, "a")).collect();
    assert_eq!(queue.enter("a"), Err(Refusal::Full));
    assert_eq!(queue.enter("b").unwrap().displaced, Some(crowd[3]), "the newest of who has most");
    assert_eq!(queue.enter("b").unwrap().displaced, Some(crowd[2]));
    assert_eq!(queue.enter("b"), Err(Refusal::Full), "two each: nobody has more than its share");
    assert!(queue.enter("c").unwrap().displaced.is_some(), "who has none has less than its share");
    assert_eq!(queue.enter("c"), Err(Refusal::Full), "to take another would turn it round");
    assert_eq!(queue.leave(crowd[3]), None, "who was displaced has left");
    assert_eq!(queue.waiting(), 4);
}

#[test]
fn who_stops_waiting_gets_no_slot_and_what_runs_when_it_closes_goes_on() {
    let mut queue = Queue::new(1, 1, 10);
    let running = enter(&mut queue, "a");
    let (gone, second, third) = (enter(&mut queue, "a"), enter(&mut queue, "b"), enter(&mut queue, "b"));
    assert_eq!(queue.leave(gone), None);
    assert_eq!(queue.leave(running), Some(second));
    assert_eq!(queue.close(), [third]);
    assert_eq!(queue.enter("a"), Err(Refusal::Closed));
    assert_eq!(queue.leave(second), None);
    assert_eq!(queue.running(), 0);
}

#[test]
fn without_a_queue_a_request_runs_or_is_refused() {
    let mut queue = Queue::new(1, 1, 0);
    let running = enter(&mut queue, "a");
    assert_eq!(queue.enter("b"), Err(Refusal::Full));
    assert_eq!(queue.leave(running), None);
    assert!(queue.enter("b").unwrap().runs);
}

#[test]
fn one_tenant_leaves_slots_to_others_though_it_waits() {
    let mut queue = Queue::new(4, 3, 10);
    let long: Vec<_> = (0..3).map(|_| enter(&mut queue, "busy")).collect();
    let waits = queue.enter("busy").unwrap();
    assert!(!waits.runs, "it runs as many as one may");
    assert_eq!((queue.running(), queue.waiting()), (3, 1));
    let other = queue.enter("quiet").unwrap();
    assert!(other.runs);
    assert_eq!(queue.leave(other.ticket), None, "the slot stays free");
    assert_eq!(queue.leave(long[0]), Some(waits.ticket));
}

#[test]
fn who_runs_the_fewest_is_next_whoever_came_first() {
    let mut queue = Queue::new(4, 4, 10);
    let [first, second, _, _] = ["a", "a", "a", "b"].map(|tenant| enter(&mut queue, tenant));
    let [of_a, of_b, of_c] = ["a", "b", "c"].map(|tenant| enter(&mut queue, tenant));
    assert_eq!(queue.leave(first), Some(of_c), "it runs none");
    assert_eq!(queue.leave(second), Some(of_a), "both run one, and it was first");
    assert_eq!(queue.leave(of_a), Some(of_b));
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u8),
    /// The n-th of those that run ends.
    End(usize),
    /// The n-th of those that wait goes away.
    GoAway(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5u8).prop_map(Step::Enter),
        3 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::GoAway),
    ]
}

proptest! {
    #[test]
    fn no_slot_stays_free_for_nothing_nobody_is_forgotten_and_nobody_is_passed_twice_by_who_has_as_many(
        slots in 1..4usize,
        max_per_tenant in 1..4usize,
        max_waiting in 0..8usize,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut queue = Queue::new(slots, max_per_tenant, max_waiting);
        let mut running: BTreeMap<Ticket, u8> = BTreeMap::new();
        let runs_of = |running: &BTreeMap<Ticket, u8>, tenant: u8| {
            running.values().filter(|other| **other == tenant).count()
        };
        // Who waits, and how often each other tenant that ran as many has been served since it came to be first of its tenant.
        let mut waiting: BTreeMap<Ticket, u8> = BTreeMap::new();
        let mut passed: BTreeMap<u8, BTreeMap<u8, usize>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Enter(tenant) => match queue.enter(&tenant.to_string()) {
                    Ok(Entry { ticket, runs, displaced }) => {
                        if let Some(lost) = displaced {
                            let loser = waiting.remove(&lost).expect("who waited");
                            let of = |tenant| waiting.values().filter(|other| **other == tenant).count();
                            prop_assert!(of(loser) > of(tenant), "it keeps at least as many");
                        }
                        if runs {
                            let may_run = |of: &u8| runs_of(&running, *of) < max_per_tenant;
                            prop_assert!(!waiting.values().any(may_run), "nobody was passed over");
                            running.insert(ticket, tenant);
                        } else {
                            waiting.insert(ticket, tenant);
                        }
                    }
                    Err(refusal) => {
                        prop_assert_eq!(refusal, Refusal::Full);
                        prop_assert_eq!(waiting.len(), max_waiting);
                        prop_assert!(running.len() == slots || runs_of(&running, tenant) == max_per_tenant);
                    }
                },
                Step::End(at) if !running.is_empty() => {
                    let ended = *running.keys().nth(at % running.len()).unwrap();
                    running.remove(&ended);
                    let next = queue.leave(ended);
                    let may_run = waiting.values().any(|of| runs_of(&running, *of) < max_per_tenant);
                    prop_assert_eq!(next.is_some(), may_run, "a wake-up for whoever waits and may run");
                    if let Some(next) = next {
                        let tenant = waiting.remove(&next).expect("it waited");
                        prop_assert!(waiting.iter().all(|(other, of)| *of != tenant || *other > next));
                        passed.remove(&tenant);
                        let others: BTreeSet<_> = waiting.values().copied().collect();
                        let has = runs_of(&running, tenant);
                        for other in others.into_iter().filter(|other| *other != tenant) {
                            let others_has = runs_of(&running, other);
                            prop_assert!(has <= others_has, "{} has fewer than {}", other, tenant);
                            if has < others_has {
                                continue;
                            }
                            let times = passed.entry(other).or_default().entry(tenant).or_default();
                            *times += 1;
                            prop_assert!(*times <= 1, "{} was passed twice by {}", other, tenant);
                        }
                        running.insert(next, tenant);
                    }
                }
                Step::GoAway(at) if !waiting.is_empty() => {
                    let gone = *waiting.keys().nth(at % waiting.len()).unwrap();
                    waiting.remove(&gone);
                    prop_assert_eq!(queue.leave(gone), None);
                }
                Step::End(_) | Step::GoAway(_) => {}
            }
            passed.retain(|tenant, _| waiting.values().any(|other| other == tenant));
            prop_assert_eq!((queue.running(), queue.waiting()), (running.len(), waiting.len()));
            let may_run = waiting.values().any(|of| runs_of(&running, *of) < max_per_tenant);
            prop_assert!(running.len() == slots || !may_run, "a slot is free and somebody waits that may run");
            prop_assert!(running.values().all(|of| runs_of(&running, *of) <= max_per_tenant));
            prop_assert!(running.len() <= slots && waiting.len() <= max_waiting);
        }
    }
}
