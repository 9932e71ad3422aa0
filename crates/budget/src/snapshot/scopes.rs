//! Scopes in the canonical encoding: path; usage; limit on open holds; rate limits; prices; budgets with their lines and grants.

use std::{collections::BTreeMap, sync::Arc};

use exchequer_proto::v1;
use prost::Message;

use super::{
    SnapshotError,
    bytes::{Input, put, put_bytes, put_flag, put_len, put_meter, put_totals},
    index_grant,
};
use crate::{
    budget::{Budget, Grant, Line},
    event::Event,
    fault::Fault,
    meter::{Allowance, MAX_GRANTED},
    policy::BudgetTerms,
    rate::Rate,
    scope::ScopePath,
    state::{Node, NodeId, Place, State, Timer},
};

impl State {
    /// Writes the scopes; the place of each in the table.
    pub(super) fn put_scopes<'s>(&'s self, out: &mut Vec<u8>) -> BTreeMap<&'s str, usize> {
        let nodes: BTreeMap<&str, &Node> = self.nodes.iter().map(|node| (node.path.as_str(), node)).collect();
        put_len(out, nodes.len());
        for (path, node) in &nodes {
            put_bytes(out, path.as_bytes());
            put(out, node.usage.open_holds);
            put(out, node.usage.settled_holds);
            put_totals(out, &node.usage.held);
            put_totals(out, &node.usage.spent);
            put(out, node.max_open_holds);
            put_len(out, node.rates.len());
            for (meter, rate) in &node.rates {
                put_meter(out, *meter);
                put(out, rate.amount);
                put(out, rate.period_ms);
                put(out, rate.burst);
                put(out, rate.tat);
            }
            put_len(out, node.prices.len());
            for (meter, (micros, per)) in &node.prices {
                put_meter(out, *meter);
                put(out, *micros);
                put(out, *per);
            }
            put_len(out, node.budgets.len());
            for budget in &node.budgets {
                put_budget(out, &node.path, budget);
            }
        }
        nodes.into_keys().zip(0..).collect()
    }

    /// Reads the scopes, and derives what follows from them.
    pub(super) fn take_scopes(&mut self, input: &mut Input<'_>) -> Result<Vec<ScopePath>, SnapshotError> {
        let mut scopes = Vec::new();
        for _ in 0..input.u64("scopes")? {
            let path = input.text("scopes", ScopePath::parse)?;
            let number = self.numbered(&path);
            let mut node = self.nodes[number].clone();
            node.usage.open_holds = input.u64("scopes.open_holds")?;
            node.usage.settled_holds = input.u64("scopes.settled_holds")?;
            node.usage.held = input.totals("scopes.held")?;
            node.usage.spent = input.totals("scopes.spent")?;
            node.max_open_holds = input.u64("scopes.max_open_holds")?;
            for _ in 0..input.u64("scopes.rates")? {
                let meter = input.meter("scopes.rates")?;
                let rate = Rate {
                    amount: input.u64("scopes.rates")?,
                    period_ms: input.u64("scopes.rates")?,
                    burst: input.u64("scopes.rates")?,
                    tat: input.u128("scopes.rates")?,
                };
                if rate.amount == 0 || rate.period_ms == 0 {
                    return Err(Fault::Missing.at("scopes.rates").into());
                }
                node.rates.push((meter, rate));
            }
            for _ in 0..input.u64("scopes.prices")? {
                let meter = input.meter("scopes.prices")?;
                let price = (input.u64("scopes.prices")?, input.u64("scopes.prices")?);
                if price.1 == 0 {
                    return Err(Fault::Missing.at("scopes.prices").into());
                }
                node.prices.push((meter, price));
            }
            for _ in 0..input.u64("scopes.budgets")? {
                let budget = take_budget(input, &path)?;
                self.index_budget(&path, number, &budget)?;
                node.budgets.push(budget);
            }
            self.index_scope(number, node);
            scopes.push(path);
        }
        Ok(scopes)
    }

    fn index_scope(&mut self, number: NodeId, node: Node) {
        if node.is_configured() {
            self.configured.insert(node.path.clone(), number);
            let tenant = self.tenants.entry(node.path.tenant_id()).or_default();
            tenant.budgets += node.budgets.len();
            tenant.rate_limits += node.rates.len();
            tenant.prices += node.prices.len();
            tenant.concurrency_limits += usize::from(node.max_open_holds > 0);
        }
        self.nodes[number] = node;
    }

    fn index_budget(&mut self, path: &ScopePath, node: NodeId, budget: &Budget) -> Result<(), SnapshotError> {
        let window = budget.window;
        if budget.end_ms > 0 && budget.end_ms < u64::MAX {
            self.timers.insert((budget.end_ms, Timer::WindowEnds(path.clone(), window)));
        }
        for line in &budget.lines {
            for grant in &line.grants {
                let terms = &grant.terms;
                if (&terms.scope, terms.window, terms.meter) != (path, window, line.meter)
                    || self.place(&path.tenant_id(), &terms.grant_id).is_some()
                {
                    return Err(Fault::Repeated.at("scopes.grants").into());
                }
                let place = Place { node, window, meter: line.meter };
                index_grant(self, place, terms, grant.effective);
            }
        }
        Ok(())
    }
}

/// The terms as an event of their own, then what they don't say.
fn put_budget(out: &mut Vec<u8>, path: &ScopePath, budget: &Budget) {
    let rows = |value: fn(&Line) -> u64| {
        let rows = budget.lines.iter().map(|line| (line.meter, value(line)));
        Allowance::new(rows).unwrap_or_default()
    };
    let nonzero = |value: fn(&Line) -> u64| {
        let rows = budget.lines.iter().map(|line| (line.meter, value(line)));
        Allowance::new(rows.filter(|row| row.1 > 0)).unwrap_or_default()
    };
    let is_overdraft = budget.overage == crate::Overage::Overdraft;
    let terms = BudgetTerms {
        window: budget.window,
        zone: budget.zone.clone(),
        granted: rows(|line| line.allowance),
        overdraft: if is_overdraft { nonzero(|line| line.overdraft) } else { Allowance::default() },
        rollover_cap: nonzero(|line| line.rollover_cap),
        enforcement: budget.enforcement,
        overage: budget.overage,
        carry_debt: budget.carry_debt,
        thresholds: Arc::clone(&budget.thresholds),
    };
    let (start_ms, end_ms) = (budget.start_ms, budget.end_ms);
    super::put_event(
        out,
        &Event::BudgetSet { scope: path.clone(), terms: Arc::new(terms), start_ms, end_ms },
    );
    for line in &budget.lines {
        if !is_overdraft {
            put(out, line.overdraft);
        }
        for value in [line.rolled_in, line.base_used] {
            put(out, value);
        }
        for value in [line.ended_used, line.uncovered, line.spent, line.uncharged] {
            put(out, value);
        }
        out.push(line.reached);
        put_len(out, line.grants.len());
        for grant in &line.grants {
            put_bytes(out, &v1::GrantAdded::from(&*grant.terms).encode_to_vec());
            put_flag(out, grant.effective);
            put(out, grant.left);
            put(out, grant.used);
        }
    }
}

fn take_budget(input: &mut Input<'_>, path: &ScopePath) -> Result<Budget, SnapshotError> {
    let Event::BudgetSet { scope, terms, start_ms, end_ms } = input.event("scopes.budgets")? else {
        return Err(Fault::Missing.at("scopes.budgets").into());
    };
    if scope != *path {
        return Err(Fault::OutsideTenant.at("scopes.budgets").into());
    }
    let mut budget = Budget::new(terms.window);
    budget.set(&terms, (start_ms, end_ms), |_| 0);
    let is_overdraft = budget.overage == crate::Overage::Overdraft;
    for line in &mut budget.lines {
        if !is_overdraft {
            line.overdraft = input.at_most("scopes.overdraft", MAX_GRANTED)?;
        }
        line.rolled_in = input.at_most("scopes.rolled_in", MAX_GRANTED)?;
        line.base_used = input.u64("scopes.used")?;
        line.ended_used = input.u128("scopes.used")?;
        line.uncovered = input.u128("scopes.uncovered")?;
        line.spent = input.u128("scopes.spent")?;
        line.uncharged = input.u128("scopes.uncharged")?;
        line.reached = input.byte()?;
        for _ in 0..input.u64("scopes.grants")? {
            let message = v1::GrantAdded::decode(input.bytes("scopes.grants")?)
                .map_err(|_| Fault::Undecodable.at("scopes.grants"))?;
            let terms = crate::wire::grant(&message).map_err(|invalid| invalid.within("scopes.grants"))?;
            line.grants.push(Grant {
                terms: Arc::new(terms),
                effective: input.flag("scopes.grants")?,
                left: input.at_most("scopes.grants", 2 * crate::MAX_GRANT)?,
                used: input.at_most("scopes.grants", 2 * crate::MAX_GRANT)?,
            });
        }
    }
    Ok(budget)
}
