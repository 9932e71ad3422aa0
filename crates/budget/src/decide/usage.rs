//! Usage: settle, draw, report, correct. What was used is recorded in full; what budgets charge of it is decided here.

use std::sync::Arc;

use super::{Asked, MAX_AHEAD_MS, admission, refused_field, refused_hold, thresholds::Spent};
use crate::{
    event::{Event, MAX_UNCHARGED, Refusal, Uncharged},
    id::{HoldId, Label},
    meter::{Amounts, MAX_AMOUNT, Meter},
    policy::{Correction, Overage, Source},
    scope::ScopePath,
    state::HoldStatus,
};

impl Asked<'_> {
    pub(super) fn settle(
        &self,
        hold_id: &HoldId,
        used: &Amounts,
        source: Option<&Arc<Source>>,
    ) -> Vec<Event> {
        let hold = match self.own_hold(hold_id) {
            Ok(hold) => hold,
            Err(refusal) => return vec![refused_hold(refusal, hold_id)],
        };
        if let Some(refused) = self.unusable_of_hold(used, source) {
            return vec![refused];
        }
        let late = hold.status == HoldStatus::Expired;
        let used = self.costed(&hold.scope, &hold.used, used);
        let holds = if late { &Amounts::NONE } else { &hold.amounts };
        let uncharged = self.uncharged(&hold.scope, &used, holds);
        let reached = self.reached_by(&hold.scope, &Spent::More { used: &used, uncharged: &uncharged });
        let settled = Event::HoldSettled {
            hold_id: hold_id.clone(),
            scope: hold.scope.clone(),
            used,
            late,
            source: source.cloned(),
            uncharged,
        };
        followed_by(settled, reached)
    }

    pub(super) fn draw(&self, hold_id: &HoldId, used: &Amounts, source: Option<&Arc<Source>>) -> Vec<Event> {
        let hold = match self.own_hold(hold_id) {
            Ok(hold) if !hold.lease => return vec![refused_hold(Refusal::NotALease, hold_id)],
            Ok(hold) => hold,
            Err(refusal) => return vec![refused_hold(refusal, hold_id)],
        };
        if let Some(refused) = self.unusable_of_hold(used, source) {
            return vec![refused];
        }
        let late = hold.status == HoldStatus::Expired;
        let used = self.costed(&hold.scope, &hold.used, used);
        let holds = if late { &Amounts::NONE } else { &hold.amounts };
        let uncharged = self.uncharged(&hold.scope, &used, holds);
        let reached = self.reached_by(&hold.scope, &Spent::More { used: &used, uncharged: &uncharged });
        let drawn = Event::LeaseDrawn {
            hold_id: hold_id.clone(),
            scope: hold.scope.clone(),
            used,
            late,
            source: source.cloned(),
            uncharged,
        };
        followed_by(drawn, reached)
    }

    pub(super) fn report(
        &self,
        scope: &ScopePath,
        used: &Amounts,
        source: Option<&Arc<Source>>,
        subject: Option<&Label>,
    ) -> Vec<Event> {
        if let Some(refused) = self.unusable(used, "used", source, "source") {
            return vec![refused];
        }
        if let Some(refused) = self.too_many_scopes(scope, "scope") {
            return vec![refused];
        }
        let used = self.costed(scope, &Amounts::NONE, used);
        let uncharged = self.uncharged(scope, &used, &Amounts::NONE);
        let reached = self.reached_by(scope, &Spent::More { used: &used, uncharged: &uncharged });
        let reported = Event::UsageReported {
            scope: scope.clone(),
            used,
            source: source.cloned(),
            uncharged,
            subject: subject.cloned(),
        };
        followed_by(reported, reached)
    }

    pub(super) fn correct(&self, correction: &Arc<Correction>) -> Vec<Event> {
        let Correction { scope, amounts, added, source, .. } = &**correction;
        let fields = ("correction.amounts", "correction.source");
        if let Some(refused) = self.unusable(amounts, fields.0, source.as_ref(), fields.1) {
            return vec![refused];
        }
        if *added {
            if let Some(refused) = self.too_many_scopes(scope, "correction.scope") {
                return vec![refused];
            }
            let uncharged = self.uncharged(scope, amounts, &Amounts::NONE);
            let reached = self.reached_by(scope, &Spent::More { used: amounts, uncharged: &uncharged });
            let corrected = Event::UsageCorrected { correction: Arc::clone(correction), uncharged };
            return followed_by(corrected, reached);
        }
        let around = self.state.around(scope);
        let is_known = around.numbers().last().is_some_and(|&node| self.state.nodes[node].path == *scope);
        let covers = |meter, amount: u64| {
            let mut nodes = around.numbers().iter().map(|&number| &self.state.nodes[number]);
            nodes.all(|node| node.usage.spent.get(meter) >= u128::from(amount))
        };
        if !is_known || !amounts.iter().all(|(meter, amount)| covers(meter, amount)) {
            return vec![refused_field(Refusal::BelowZero, fields.0)];
        }
        let reached = self.reached_by(scope, &Spent::Less(amounts));
        let corrected = Event::UsageCorrected { correction: Arc::clone(correction), uncharged: Vec::new() };
        followed_by(corrected, reached)
    }

    /// Without a key it is the writer's own, of an execution that was recorded: refused for its time it would be lost, and what it
    /// used be granted again.
    fn unusable_of_hold(&self, used: &Amounts, source: Option<&Arc<Source>>) -> Option<Event> {
        let timed = source.filter(|_| self.command.idempotency().is_some());
        self.unusable(used, "used", timed, "source")
    }

    fn unusable(
        &self,
        amounts: &Amounts,
        field: &str,
        source: Option<&Arc<Source>>,
        source_field: &str,
    ) -> Option<Event> {
        let latest = self.now_ms.saturating_add(MAX_AHEAD_MS);
        if source.is_some_and(|source| source.used_ms > latest) {
            return Some(refused_field(Refusal::Time, &format!("{source_field}.used_unix_ms")));
        }
        self.unknown_meter(amounts, field)
    }

    /// `used` with its cost at the prices of now, unless a cost is given. It is what the cost of all that the hold used grows by, so
    /// that any number of draws is rounded up once, as the hold was.
    fn costed(&self, scope: &ScopePath, before: &Amounts, used: &Amounts) -> Amounts {
        let mut costed = used.clone();
        if used.get(Meter::CostMicros) == 0 {
            let cost = |amounts: &Amounts| admission::cost(self.state, scope, amounts);
            // Beyond what a hold keeps of its usage the growth is not known.
            let grown = before.checked_add(used).map(|sum| cost(&sum).saturating_sub(cost(before)));
            let cost = admission::narrow(grown.unwrap_or_else(|| cost(used)));
            if cost > 0 {
                costed.set(Meter::CostMicros, cost.min(MAX_AMOUNT));
            }
        }
        costed
    }

    /// What capped budgets do not charge of `used`: what would not be available if `holds` were given back.
    fn uncharged(&self, scope: &ScopePath, used: &Amounts, holds: &Amounts) -> Vec<Uncharged> {
        let mut uncharged = Vec::new();
        for &number in self.state.around(scope).numbers() {
            let node = &self.state.nodes[number];
            for budget in node.budgets.iter().filter(|budget| budget.overage == Overage::Cap) {
                for line in &budget.lines {
                    let (meter, amount) = (line.meter, used.get(line.meter));
                    if amount == 0 {
                        // Most lines: what is left of them need not be summed up over their grants.
                        continue;
                    }
                    let others = node.usage.held.get(meter).saturating_sub(u128::from(holds.get(meter)));
                    let (covered, _) = line.available_and_debt(others);
                    let amount = amount.saturating_sub(admission::narrow(covered));
                    if amount > 0 && uncharged.len() < MAX_UNCHARGED {
                        let (scope, window) = (node.path.clone(), budget.window);
                        uncharged.push(Uncharged { scope, window, meter, amount });
                    }
                }
            }
        }
        uncharged
    }
}

pub(super) fn followed_by(first: Event, reached: Vec<Event>) -> Vec<Event> {
    let mut events = Vec::with_capacity(1 + reached.len());
    events.push(first);
    events.extend(reached);
    events
}
