//! Whether amounts fit at a scope, and what they cost there.
//!
//! The outermost scope that binds is named: of its budgets the one over the first window and of that the first meter, then its rate
//! limits in order of meter, then its limit on open holds. Meters that no enclosing budget limits are free.

use crate::{
    budget::{Budget, Line},
    event::{Denial, Exceeded, MAX_EXCEEDED},
    evolve::rate_units,
    meter::{Amounts, MAX_AMOUNT, Meter},
    policy::{Enforcement, Window},
    price::Cost,
    scope::ScopePath,
    state::{Node, State},
};

pub(super) fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// What forbids `amounts` at `scope`; or else the soft and shadow budgets that do not cover them.
pub(super) fn admit(
    state: &State,
    scope: &ScopePath,
    amounts: &Amounts,
    is_new: bool,
    now_ms: u64,
) -> Result<Vec<Exceeded>, Denial> {
    let mut exceeded = Vec::new();
    if amounts.is_empty() && !is_new {
        return Ok(exceeded);
    }
    let mut limited = false;
    for &number in state.around(scope).numbers() {
        let node = &state.nodes[number];
        for budget in &node.budgets {
            limited = true;
            for line in &budget.lines {
                let requested = amounts.get(line.meter);
                if requested > 0 {
                    let Some(denial) = short(node, budget, line, requested) else { continue };
                    if budget.enforcement == Enforcement::Hard {
                        return Err(denial);
                    }
                    if exceeded.len() < MAX_EXCEEDED {
                        exceeded.push(Exceeded {
                            scope: node.path.clone(),
                            window: budget.window,
                            meter: line.meter,
                            requested,
                            available: match denial {
                                Denial::Exhausted { available, .. } => available,
                                _ => 0,
                            },
                            enforcement: budget.enforcement,
                        });
                    }
                }
            }
        }
        for (meter, rate) in &node.rates {
            let requested = rate_units(*meter, amounts, is_new);
            if requested > 0
                && let Err(excess) = rate.admits(requested, now_ms)
            {
                return Err(Denial::RateLimited {
                    scope: node.path.clone(),
                    meter: *meter,
                    requested,
                    available: excess.available,
                    retry_after_ms: excess.retry_after_ms,
                });
            }
        }
        if is_new && node.max_open_holds > 0 && node.usage.open_holds >= node.max_open_holds {
            return Err(Denial::Concurrency { scope: node.path.clone() });
        }
    }
    if limited { Ok(exceeded) } else { Err(Denial::NoBudget) }
}

/// Why a budget does not cover what is asked, if it does not.
fn short(node: &Node, budget: &Budget, line: &Line, requested: u64) -> Option<Denial> {
    let (scope, window, meter) = (&node.path, budget.window, line.meter);
    match budget.headroom(line, node.usage.held.get(meter)) {
        None => Some(Denial::InDebt { scope: scope.clone(), window, meter, requested }),
        Some(left) if left < u128::from(requested) => {
            let available = narrow(left);
            Some(Denial::Exhausted { scope: scope.clone(), window, meter, requested, available })
        }
        Some(_) => None,
    }
}

/// Of each meter of `at_least` as much of its amount as hard budgets have left; the denial where that is less.
pub(super) fn balance(
    state: &State,
    scope: &ScopePath,
    amounts: &Amounts,
    at_least: &Amounts,
) -> Result<Amounts, Denial> {
    let mut balanced = amounts.clone();
    for &number in state.around(scope).numbers() {
        let node = &state.nodes[number];
        for budget in node.budgets.iter().filter(|budget| budget.enforcement == Enforcement::Hard) {
            for line in &budget.lines {
                let least = at_least.get(line.meter);
                if least > 0 {
                    if let Some(denial) = short(node, budget, line, least) {
                        return Err(denial);
                    }
                    let left = budget.headroom(line, node.usage.held.get(line.meter)).map_or(0, narrow);
                    balanced.set(line.meter, balanced.get(line.meter).min(left));
                }
            }
        }
    }
    Ok(balanced)
}

/// What `amounts` cost at `scope`: each meter at the price of the innermost scope that has one for it.
pub(super) fn cost(state: &State, scope: &ScopePath, amounts: &Amounts) -> u128 {
    let around = state.around(scope);
    if around.numbers().iter().all(|&number| state.nodes[number].prices.is_empty()) {
        return 0;
    }
    let mut cost = Cost::ZERO;
    for (meter, amount) in amounts.iter() {
        let prices = around.numbers().iter().rev().flat_map(|&number| &state.nodes[number].prices);
        if let Some(&(_, (micros, per))) = prices.into_iter().find(|(priced, _)| *priced == meter) {
            cost.add(amount, micros, per);
        }
    }
    cost.round_up()
}

/// `amounts` with their cost added. One hold can't hold more than [`MAX_AMOUNT`].
pub(super) fn priced(state: &State, scope: &ScopePath, amounts: Amounts) -> Result<Amounts, Denial> {
    let cost = narrow(cost(state, scope, &amounts));
    if cost == 0 {
        return Ok(amounts);
    }
    let total = cost.saturating_add(amounts.get(Meter::CostMicros));
    if total > MAX_AMOUNT {
        return Err(beyond_one_hold(scope, Meter::CostMicros, total, MAX_AMOUNT));
    }
    let mut priced = amounts;
    priced.set(Meter::CostMicros, total);
    Ok(priced)
}

pub(super) fn beyond_one_hold(scope: &ScopePath, meter: Meter, requested: u64, available: u64) -> Denial {
    Denial::Exhausted { scope: scope.clone(), window: Window::AllTime, meter, requested, available }
}
