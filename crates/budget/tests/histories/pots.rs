//! One meter's budget as pots that usage is taken from, in the order that `GrantAdded` in `event.proto` gives.
//!
//! Left out: what is held. Kept are sizes and what was used of each; what is covered, granted and owed is reckoned from them anew.

use std::sync::Arc;

use exchequer_budget::{GrantTerms, Threshold};

pub(crate) struct Pot {
    pub(crate) terms: Arc<GrantTerms>,
    pub(crate) effective: bool,
    ended: bool,
    size: u128,
    used: u128,
}

impl Pot {
    pub(crate) fn left(&self) -> u128 {
        self.size - self.used
    }

    fn rank(&self) -> (u32, u64, &str) {
        let GrantTerms { priority, expires_ms, grant_id, .. } = &*self.terms;
        (*priority, expires_ms.wrapping_sub(1), grant_id.as_str())
    }
}

#[derive(Default)]
pub(crate) struct Pots {
    pub(crate) allowance: u64,
    pub(crate) overdraft: u64,
    pub(crate) rollover_cap: u64,
    pub(crate) spent: u128,
    pub(crate) uncharged: u128,
    pub(crate) reached: Vec<Threshold>,
    rolled: u128,
    base_used: u128,
    /// Those that ended in this window too, for what was used of them.
    grants: Vec<Pot>,
}

impl Pots {
    pub(crate) fn live(&self) -> impl Iterator<Item = &Pot> {
        self.grants.iter().filter(|pot| !pot.ended)
    }

    pub(crate) fn grant(&self, id: &str) -> Option<&Pot> {
        self.live().find(|pot| pot.terms.grant_id.as_str() == id)
    }

    fn base(&self) -> u128 {
        u128::from(self.allowance) + self.rolled
    }

    fn covered(&self) -> u128 {
        self.base_used + self.grants.iter().map(|pot| pot.used).sum::<u128>()
    }

    pub(crate) fn granted(&self) -> u128 {
        self.base() + self.grants.iter().map(|pot| pot.size).sum::<u128>()
    }

    /// What is beyond `held`, and what is missing to it.
    pub(crate) fn available_and_debt(&self, held: u128) -> (u128, u128) {
        let taken = self.spent + held;
        (self.granted().saturating_sub(taken), taken.saturating_sub(self.granted()))
    }

    /// Lets the pots cover what was spent and no more; what was used of grants that ended goes back first, then
    /// what was used last in their order.
    fn level(&mut self) {
        self.base_used = self.base_used.min(self.base());
        let mut over = self.covered().saturating_sub(self.spent);
        let in_order = self.grants.iter_mut().rev();
        let (live, ended): (Vec<_>, Vec<_>) = in_order.partition(|pot| !pot.ended);
        for pot in ended {
            let back = over.min(pot.used);
            pot.used -= back;
            pot.size = pot.used;
            over -= back;
        }
        for pot in live {
            let back = over.min(pot.used);
            pot.used -= back;
            over -= back;
        }
        self.base_used -= over;
        let mut missing = self.spent - self.covered();
        let taken = missing.min(self.base() - self.base_used);
        self.base_used += taken;
        missing -= taken;
        for pot in &mut self.grants {
            let taken = missing.min(pot.left());
            pot.used += taken;
            missing -= taken;
        }
    }

    pub(crate) fn set_allowance(&mut self, allowance: u64) {
        self.allowance = allowance;
        self.level();
    }

    pub(crate) fn charge(&mut self, amount: u128) {
        self.spent += amount;
        self.level();
    }

    pub(crate) fn take_back(&mut self, amount: u128) {
        let uncharged = amount.min(self.uncharged);
        self.uncharged -= uncharged;
        self.spent = self.spent.saturating_sub(amount - uncharged);
        self.level();
    }

    pub(crate) fn add(&mut self, terms: &Arc<GrantTerms>, effective: bool) {
        let size = if effective { terms.amount.into() } else { 0 };
        self.grants.push(Pot { terms: Arc::clone(terms), effective, ended: false, size, used: 0 });
        self.grants.sort_by(|a, b| a.rank().cmp(&b.rank()));
        self.level();
    }

    pub(crate) fn begin(&mut self, id: &str) {
        if let Some(pot) = self.grants.iter_mut().find(|pot| pot.terms.grant_id.as_str() == id) {
            (pot.effective, pot.size) = (true, pot.terms.amount.into());
        }
        self.level();
    }

    pub(crate) fn end(&mut self, id: &str) {
        if let Some(pot) = self.grants.iter_mut().find(|pot| pot.terms.grant_id.as_str() == id) {
            (pot.ended, pot.size) = (true, pot.used);
        }
    }

    pub(crate) fn roll(&mut self, carry_debt: bool) {
        let owed = if carry_debt { self.spent - self.covered() } else { 0 };
        self.rolled = (self.base() - self.base_used).min(self.rollover_cap.into());
        self.base_used = 0;
        self.grants.retain(|pot| !pot.ended);
        for pot in &mut self.grants {
            pot.size = pot.left();
            pot.used = 0;
            if pot.terms.recurring && pot.effective {
                pot.size = u128::from(pot.terms.amount) + pot.size.min(pot.terms.rollover_cap.into());
            }
        }
        (self.spent, self.uncharged) = (owed, 0);
        self.reached.clear();
        self.level();
    }
}
