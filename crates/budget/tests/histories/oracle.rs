//! The same rules, told naively: every answer is worked out from the list of all events so far. Shares no arithmetic, index or
//! state with the crate, only the words of its events.

use exchequer_budget::{
    Action, Command, DecideError, Decided, Decision, Denial, Event, Meter, Refusal, ScopePath,
};

#[derive(Default)]
pub(crate) struct Oracle {
    now_ms: u64,
    /// (tenant, decision), in order.
    log: Vec<(String, Decision)>,
}

/// A hold as its events left it.
struct Told {
    scope: String,
    holder: String,
    held: [i128; 8],
    used: Option<[i128; 8]>,
    expires_ms: u64,
    /// "open", "settled", "voided" or "expired".
    standing: &'static str,
}

/// What a scope has of one meter.
#[derive(Debug, PartialEq)]
pub(crate) struct Sheet {
    pub(crate) granted: Option<i128>,
    pub(crate) held: i128,
    pub(crate) spent: i128,
    pub(crate) open: i128,
    pub(crate) settled: i128,
}

impl Oracle {
    pub(crate) fn note(&mut self, tenant: &str, decision: &Decision, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.log.push((tenant.to_owned(), decision.clone()));
    }

    fn events(&self) -> impl Iterator<Item = &Event> {
        self.log.iter().flat_map(|(_, decision)| &decision.events)
    }

    fn tell(&self, wanted: &str) -> Option<Told> {
        let mut told: Option<Told> = None;
        for event in self.events() {
            match event {
                Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms }
                    if hold_id.as_str() == wanted =>
                {
                    told = Some(Told {
                        scope: scope.to_string(),
                        holder: holder.to_string(),
                        held: Meter::ALL.map(|meter| amounts.get(meter).into()),
                        used: None,
                        expires_ms: *expires_ms,
                        standing: "open",
                    });
                }
                Event::HoldExtended { hold_id, added, expires_ms } if hold_id.as_str() == wanted => {
                    let hold = told.as_mut().unwrap();
                    for (slot, meter) in hold.held.iter_mut().zip(Meter::ALL) {
                        *slot += i128::from(added.get(meter));
                    }
                    hold.expires_ms = *expires_ms;
                }
                Event::HoldSettled { hold_id, used, late } if hold_id.as_str() == wanted => {
                    let hold = told.as_mut().unwrap();
                    assert_eq!(*late, hold.standing == "expired");
                    hold.used = Some(Meter::ALL.map(|meter| used.get(meter).into()));
                    hold.standing = "settled";
                }
                Event::HoldVoided { hold_id } if hold_id.as_str() == wanted => {
                    told.as_mut().unwrap().standing = "voided";
                }
                Event::HoldExpired { hold_id } if hold_id.as_str() == wanted => {
                    told.as_mut().unwrap().standing = "expired";
                }
                _ => {}
            }
        }
        told
    }

    fn all(&self) -> Vec<(String, Told)> {
        self.events()
            .filter_map(|event| match event {
                Event::HoldGranted { hold_id, .. } => Some(hold_id.to_string()),
                _ => None,
            })
            .map(|id| (id.clone(), self.tell(&id).unwrap()))
            .collect()
    }

    pub(crate) fn sheet(&self, scope: &str, meter: Meter) -> Sheet {
        let mut sheet = Sheet { granted: None, held: 0, spent: 0, open: 0, settled: 0 };
        for event in self.events() {
            if let Event::BudgetSet { scope: set, granted } = event
                && set.as_str() == scope
                && let Some((_, amount)) = granted.iter().find(|&(named, _)| named == meter)
            {
                sheet.granted = Some(amount.into());
            }
        }
        for (_, hold) in self.all() {
            if hold.scope == scope || hold.scope.starts_with(&format!("{scope}/")) {
                match hold.standing {
                    "open" => {
                        sheet.open += 1;
                        sheet.held += hold.held[meter as usize];
                    }
                    "settled" => {
                        sheet.settled += 1;
                        sheet.spent += hold.used.unwrap()[meter as usize];
                    }
                    _ => {}
                }
            }
        }
        sheet
    }

    /// What can still be held; below zero is debt. None without a limit.
    pub(crate) fn left(&self, scope: &str, meter: Meter) -> Option<i128> {
        let sheet = self.sheet(scope, meter);
        Some(sheet.granted? - sheet.held - sheet.spent)
    }

    fn why_not(&self, asked: &ScopePath, amounts: &[(Meter, u64)]) -> Option<Denial> {
        let segments: Vec<&str> = asked.as_str().split('/').collect();
        let scopes: Vec<String> = (1..=segments.len()).map(|n| segments[..n].join("/")).collect();
        let limited = |scope: &String| Meter::ALL.iter().any(|&meter| self.left(scope, meter).is_some());
        if amounts.is_empty() {
            return None;
        }
        if !scopes.iter().any(limited) {
            return Some(Denial::NoBudget);
        }
        for name in &scopes {
            for &(meter, requested) in amounts {
                let scope = ScopePath::parse(name).unwrap();
                match self.left(name, meter) {
                    Some(left) if left < 0 => {
                        return Some(Denial::InDebt { scope, meter, requested });
                    }
                    Some(left) if left < i128::from(requested) => {
                        let available = u64::try_from(left).unwrap();
                        return Some(Denial::Exhausted { scope, meter, requested, available });
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// What has to become of `command`.
    pub(crate) fn predict(&self, command: &Command, now_ms: u64) -> Result<Decided, DecideError> {
        if let Some(asked) = command.idempotency() {
            for (tenant, decision) in &self.log {
                if let Some(known) = &decision.idempotency
                    && tenant == command.tenant().as_str()
                    && known.key == asked.key
                {
                    return if known.request_hash == asked.request_hash {
                        Ok(Decided::Repeated(decision.events[0].clone()))
                    } else {
                        Err(DecideError::IdempotencyConflict)
                    };
                }
            }
        }
        let now_ms = now_ms.max(self.now_ms);
        let event = match command.action().clone() {
            Action::SetBudget { scope, granted } => Event::BudgetSet { scope, granted },
            Action::Reserve { hold_id, scope, holder, amounts, ttl } => {
                if self.tell(hold_id.as_str()).is_some() {
                    return Err(DecideError::HoldIdTaken);
                }
                let expires_ms = now_ms + ttl.as_ms();
                match self.why_not(&scope, &amounts.iter().collect::<Vec<_>>()) {
                    Some(denial) => Event::HoldDenied { scope, denial },
                    None => Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms },
                }
            }
            Action::Extend { hold_id, added, ttl } => {
                let hold = self.tell(hold_id.as_str());
                if let Some(refusal) = refuse(hold.as_ref(), command, &["open"]) {
                    Event::CommandRefused { refusal, hold_id }
                } else {
                    let hold = hold.unwrap();
                    let scope = ScopePath::parse(&hold.scope).unwrap();
                    let expires_ms = hold.expires_ms.max(now_ms + ttl.as_ms());
                    match self.why_not(&scope, &added.iter().collect::<Vec<_>>()) {
                        Some(denial) => Event::HoldDenied { scope, denial },
                        None => Event::HoldExtended { hold_id, added, expires_ms },
                    }
                }
            }
            Action::Settle { hold_id, used } => {
                let hold = self.tell(hold_id.as_str());
                match refuse(hold.as_ref(), command, &["open", "expired"]) {
                    Some(refusal) => Event::CommandRefused { refusal, hold_id },
                    None => Event::HoldSettled { hold_id, used, late: hold.unwrap().standing == "expired" },
                }
            }
            Action::Void { hold_id } => {
                let hold = self.tell(hold_id.as_str());
                match refuse(hold.as_ref(), command, &["open"]) {
                    Some(refusal) => Event::CommandRefused { refusal, hold_id },
                    None => Event::HoldVoided { hold_id },
                }
            }
        };
        Ok(Decided::New(Decision {
            idempotency: command.idempotency().cloned(),
            actor: command.actor().clone(),
            events: vec![event],
        }))
    }

    /// The holds that have to expire by `now_ms`, with their tenants, in no order.
    pub(crate) fn overdue(&self, now_ms: u64) -> Vec<(String, String)> {
        let now_ms = now_ms.max(self.now_ms);
        let due = |hold: &Told| hold.standing == "open" && hold.expires_ms <= now_ms;
        let tenant = |hold: &Told| hold.scope.split('/').next().unwrap().to_owned();
        self.all().into_iter().filter(|(_, hold)| due(hold)).map(|(id, hold)| (tenant(&hold), id)).collect()
    }
}

fn refuse(hold: Option<&Told>, command: &Command, standings: &[&str]) -> Option<Refusal> {
    let Some(hold) = hold else {
        return Some(Refusal::UnknownHold);
    };
    let tenant = hold.scope.split('/').next().unwrap();
    if tenant != command.tenant().as_str() || hold.holder != command.actor().as_str() {
        return Some(Refusal::NotHolder);
    }
    (!standings.contains(&hold.standing)).then_some(Refusal::HoldClosed)
}
