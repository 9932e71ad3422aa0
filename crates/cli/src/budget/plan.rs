//! A tenant's budgets and settings as a set of named things, and the difference between two of them.
//!
//! Pure. The same form is made of a file (`file`) and of what metering answers (`live`), so that what is compared is compared field by
//! field in the same words. Left out: reading either, and sending what differs. Invariant: two plans without a difference set the same.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use exchequer_event::v1::{self, Enforcement, MeterAmount, Overage, Window};
use serde::Serialize;

use super::words::{period_text, threshold_text, word};
use crate::describe::utc;

/// All that a tenant has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Each sets meters of one scope over one window, with the same settings.
    pub budgets: Vec<v1::SetBudgetRequest>,
    pub grants: Vec<v1::GrantAdded>,
    pub rate_limits: Vec<v1::RateLimitSet>,
    pub concurrency_limits: Vec<v1::ConcurrencyLimitSet>,
    pub prices: Vec<v1::PriceSet>,
    pub meters: Vec<v1::MeterDefined>,
    /// None where a file says nothing of it.
    pub webhook: Option<String>,
}

/// What names a thing within its tenant. In the order in which things are set: what a later one needs comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Key {
    Meter { meter: String },
    Price { scope: String, meter: String },
    RateLimit { scope: String, meter: String },
    ConcurrencyLimit { scope: String },
    Webhook,
    Budget { scope: String, window: String, meter: String },
    Grant { grant_id: String },
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meter { meter } => write!(f, "meter {meter}"),
            Self::Price { scope, meter } => write!(f, "price of {meter} at {scope}"),
            Self::RateLimit { scope, meter } => write!(f, "rate limit of {meter} at {scope}"),
            Self::ConcurrencyLimit { scope } => write!(f, "limit on open holds at {scope}"),
            Self::Webhook => f.write_str("webhook"),
            Self::Budget { scope, window, meter } => write!(f, "budget of {scope}, {window}, {meter}"),
            Self::Grant { grant_id } => write!(f, "grant {grant_id}"),
        }
    }
}

/// A thing's fields in words. Those that are as by default are left out, so that files need not name them.
type Fields = BTreeMap<&'static str, String>;

/// A thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    #[serde(flatten)]
    pub key: Key,
    pub action: Action,
    /// Name, old and new value of each field that differs.
    pub fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Add,
    Change,
    Remove,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Add => '+',
            Action::Change => '~',
            Action::Remove => '−',
        };
        let mut text = format!("{sign} {}", self.key);
        for (place, Field { name, old, new }) in self.fields.iter().enumerate() {
            text += if place == 0 { ": " } else { ", " };
            let none = default_of(name);
            // Writing to a string can't fail.
            let _ = match (self.action, old, new) {
                (Action::Change, old, new) => write!(
                    text,
                    "{name} {} → {}",
                    old.as_deref().unwrap_or(none),
                    new.as_deref().unwrap_or(none)
                ),
                (_, Some(value), _) | (_, None, Some(value)) => write!(text, "{name} {value}"),
                (_, None, None) => Ok(()),
            };
        }
        f.write_str(&text)
    }
}

/// The zone that a budget is reckoned in, with the default said.
pub fn zone(window: Window, time_zone: &str) -> &str {
    match (window, time_zone) {
        (Window::Unspecified, _) => "",
        (_, "") => "UTC",
        (_, zone) => zone,
    }
}

fn amount_of(amounts: &[MeterAmount], meter: &str) -> u64 {
    amounts.iter().find(|amount| amount.meter == meter).map_or(0, |amount| amount.amount)
}

impl Plan {
    /// What names each budget that a request sets.
    pub fn budget_keys(set: &v1::SetBudgetRequest) -> impl Iterator<Item = Key> + '_ {
        set.granted.iter().map(|granted| Key::Budget {
            scope: set.scope.clone(),
            window: word::<Window>(set.window),
            meter: granted.meter.clone(),
        })
    }

    /// Everything in it, in words.
    pub fn items(&self) -> BTreeMap<Key, Fields> {
        let mut items = BTreeMap::new();
        for set in &self.budgets {
            for (key, granted) in Self::budget_keys(set).zip(&set.granted) {
                items.insert(key, budget_fields(set, granted));
            }
        }
        for grant in &self.grants {
            let mut fields = Fields::from([
                ("scope", grant.scope.clone()),
                ("window", word::<Window>(grant.window)),
                ("meter", grant.meter.clone()),
                ("amount", grant.amount.to_string()),
            ]);
            unless_zero(&mut fields, "priority", grant.priority.into());
            if grant.effective_unix_ms > 0 {
                fields.insert("effective", utc(grant.effective_unix_ms));
            }
            if grant.expires_unix_ms > 0 {
                fields.insert("expires", utc(grant.expires_unix_ms));
            }
            if grant.recurring {
                fields.insert("recurring", "yes".to_owned());
            }
            unless_zero(&mut fields, "rollover_cap", grant.rollover_cap);
            items.insert(Key::Grant { grant_id: grant.grant_id.clone() }, fields);
        }
        for limit in &self.rate_limits {
            let key = Key::RateLimit { scope: limit.scope.clone(), meter: limit.meter.clone() };
            let fields = [
                ("amount", limit.amount.to_string()),
                ("period", period_text(limit.period_ms)),
                ("burst", limit.burst.to_string()),
            ];
            items.insert(key, fields.into());
        }
        for limit in &self.concurrency_limits {
            let key = Key::ConcurrencyLimit { scope: limit.scope.clone() };
            items.insert(key, [("max_open_holds", limit.max_open_holds.to_string())].into());
        }
        for price in &self.prices {
            let key = Key::Price { scope: price.scope.clone(), meter: price.meter.clone() };
            items.insert(key, [("micros", price.micros.to_string()), ("per", price.per.to_string())].into());
        }
        for meter in &self.meters {
            let key = Key::Meter { meter: meter.meter.clone() };
            items.insert(key, [("description", meter.description.clone())].into());
        }
        if let Some(url) = self.webhook.as_ref().filter(|url| !url.is_empty()) {
            items.insert(Key::Webhook, [("url", url.clone())].into());
        }
        items
    }
}

fn unless_zero(fields: &mut Fields, name: &'static str, amount: u64) {
    if amount > 0 {
        fields.insert(name, amount.to_string());
    }
}

fn budget_fields(set: &v1::SetBudgetRequest, granted: &MeterAmount) -> Fields {
    let mut fields = Fields::from([("granted", granted.amount.to_string())]);
    let zone = zone(set.window(), &set.time_zone);
    if !zone.is_empty() {
        fields.insert("time_zone", zone.to_owned());
    }
    if set.enforcement() != Enforcement::Unspecified {
        fields.insert("enforcement", word::<Enforcement>(set.enforcement));
    }
    if set.overage() != Overage::Unspecified {
        fields.insert("overage", word::<Overage>(set.overage));
    }
    unless_zero(&mut fields, "overdraft", amount_of(&set.overdraft, &granted.meter));
    unless_zero(&mut fields, "rollover_cap", amount_of(&set.rollover_cap, &granted.meter));
    if set.carry_debt {
        fields.insert("carry_debt", "yes".to_owned());
    }
    if !set.thresholds.is_empty() {
        let mut thresholds: Vec<_> = set.thresholds.iter().map(threshold_text).collect();
        thresholds.sort();
        fields.insert("thresholds", thresholds.join(" "));
    }
    fields
}

/// What has to change so that `live` becomes `wanted`, and how many things that `wanted` does not name stay as they are. Only with
/// `prune` are those removed; a meter that was defined stays defined.
pub fn differences(live: &Plan, wanted: &Plan, prune: bool) -> (Vec<Change>, usize) {
    let (old, mut new) = (live.items(), wanted.items());
    let mut changes = Vec::new();
    let mut unnamed = 0;
    for (key, old) in &old {
        if let Some(new) = new.get_mut(key) {
            if matches!(key, Key::Grant { .. }) && !new.contains_key("effective") {
                // From when it is added on, which is recorded.
                new.extend(old.get_key_value("effective").map(|(name, at)| (*name, at.clone())));
            }
            let fields = compare(old, new);
            if !fields.is_empty() {
                changes.push(Change { key: key.clone(), action: Action::Change, fields });
            }
            continue;
        }
        let is_told = *key == Key::Webhook && wanted.webhook.is_some();
        if (prune || is_told) && !matches!(key, Key::Meter { .. }) {
            let fields = compare(old, &Fields::new());
            changes.push(Change { key: key.clone(), action: Action::Remove, fields });
        } else {
            unnamed += 1;
        }
    }
    for (key, new) in new.iter().filter(|(key, _)| !old.contains_key(key)) {
        let fields = compare(&Fields::new(), new);
        changes.push(Change { key: key.clone(), action: Action::Add, fields });
    }
    changes.sort_by(|a, b| order(a).cmp(&order(b)));
    (changes, unnamed)
}

/// What is removed goes last, and in the other direction: a grant before its budget.
fn order(change: &Change) -> (bool, std::cmp::Ordering, &Key) {
    let removed = change.action == Action::Remove;
    let is_grant = matches!(change.key, Key::Grant { .. });
    let first = if removed && is_grant { std::cmp::Ordering::Less } else { std::cmp::Ordering::Equal };
    (removed, first, &change.key)
}

fn compare(old: &Fields, new: &Fields) -> Vec<Field> {
    let mut names: Vec<_> = old.keys().chain(new.keys()).copied().collect();
    names.sort_by_key(|name| (rank(name), *name));
    names.dedup();
    let fields = names.into_iter().filter(|name| old.get(name) != new.get(name));
    fields.map(|name| Field { name, old: old.get(name).cloned(), new: new.get(name).cloned() }).collect()
}

/// What a field is that is left out.
fn default_of(name: &str) -> &'static str {
    match name {
        "enforcement" => "hard",
        "overage" => "debt",
        "carry_debt" | "recurring" => "no",
        "overdraft" | "rollover_cap" | "priority" => "0",
        _ => "none",
    }
}

/// What comes first where all fields are shown.
fn rank(name: &str) -> usize {
    let first = ["scope", "window", "meter", "granted", "amount"];
    first.iter().position(|known| *known == name).unwrap_or(first.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(meter: &str, amount: u64) -> MeterAmount {
        MeterAmount { meter: meter.into(), amount }
    }

    fn monthly(granted: &[(&str, u64)]) -> v1::SetBudgetRequest {
        v1::SetBudgetRequest {
            scope: "acme".into(),
            granted: granted.iter().map(|(meter, of)| amount(meter, *of)).collect(),
            window: Window::Month.into(),
            ..Default::default()
        }
    }

    fn grant(id: &str) -> v1::GrantAdded {
        v1::GrantAdded {
            grant_id: id.into(),
            scope: "acme".into(),
            window: Window::Month.into(),
            meter: "cpu_ms".into(),
            amount: 7,
            ..Default::default()
        }
    }

    fn lines(live: &Plan, wanted: &Plan, prune: bool) -> Vec<String> {
        differences(live, wanted, prune).0.iter().map(ToString::to_string).collect()
    }

    fn full() -> Plan {
        Plan {
            budgets: vec![monthly(&[("cpu_ms", 5), ("cost_micros", 9)])],
            grants: vec![grant("g1")],
            rate_limits: vec![v1::RateLimitSet {
                scope: "acme".into(),
                meter: "invocations".into(),
                amount: 10,
                period_ms: 60_000,
                burst: 3,
            }],
            concurrency_limits: vec![v1::ConcurrencyLimitSet { scope: "acme".into(), max_open_holds: 4 }],
            prices: vec![v1::PriceSet { scope: "acme".into(), meter: "cpu_ms".into(), micros: 3, per: 1000 }],
            meters: vec![v1::MeterDefined {
                tenant: "acme".into(),
                meter: "gpu_ms".into(),
                description: "GPU".into(),
            }],
            webhook: Some("http://hook".into()),
        }
    }

    #[test]
    fn a_plan_does_not_differ_from_itself_and_adds_everything_to_nothing_in_order() {
        assert_eq!(differences(&full(), &full(), true), (Vec::new(), 0));
        let added = lines(&Plan::default(), &full(), false);
        assert_eq!(
            added,
            [
                "+ meter gpu_ms: description GPU",
                "+ price of cpu_ms at acme: micros 3, per 1000",
                "+ rate limit of invocations at acme: amount 10, burst 3, period 1m",
                "+ limit on open holds at acme: max_open_holds 4",
                "+ webhook: url http://hook",
                "+ budget of acme, month, cost_micros: granted 9, time_zone UTC",
                "+ budget of acme, month, cpu_ms: granted 5, time_zone UTC",
                "+ grant g1: scope acme, window month, meter cpu_ms, amount 7",
            ]
        );
    }

    #[test]
    fn what_is_not_named_stays_or_is_pruned_grants_before_their_budgets() {
        let (changes, unnamed) = differences(&full(), &Plan::default(), false);
        assert_eq!((changes.len(), unnamed), (0, 8));
        let (changes, unnamed) = differences(&full(), &Plan::default(), true);
        assert_eq!((changes.len(), unnamed), (7, 1), "a meter stays defined");
        let keys: Vec<_> = changes.iter().map(|change| change.key.to_string()).collect();
        assert_eq!(keys[0], "grant g1");
        assert!(changes[0].to_string().starts_with("− grant g1: scope acme"), "{}", changes[0]);
        // An empty URL is said, and needs no pruning.
        let none = Plan { webhook: Some(String::new()), ..full() };
        assert_eq!(lines(&full(), &none, false), ["− webhook: url http://hook"]);
        assert_eq!(differences(&full(), &Plan { webhook: None, ..full() }, false), (Vec::new(), 1));
    }

    #[test]
    fn a_change_shows_old_and_new_of_the_fields_that_differ() {
        let mut wanted = full();
        let budget = &mut wanted.budgets[0];
        budget.enforcement = Enforcement::Soft.into();
        budget.granted[0].amount = 6;
        budget.overdraft = vec![amount("cpu_ms", 2)];
        budget.thresholds = vec![super::super::words::threshold("80%").unwrap()];
        budget.time_zone = "Europe/Vienna".into();
        assert_eq!(
            lines(&full(), &wanted, true),
            [
                "~ budget of acme, month, cost_micros: enforcement hard → soft, thresholds none → 80%, time_zone UTC → \
                 Europe/Vienna",
                "~ budget of acme, month, cpu_ms: granted 5 → 6, enforcement hard → soft, overdraft 0 → 2, thresholds \
                 none → 80%, time_zone UTC → Europe/Vienna",
            ]
        );
    }

    #[test]
    fn a_default_that_is_said_is_no_difference() {
        let mut said = full();
        said.budgets[0].time_zone = "UTC".into();
        // The same budgets, set one by one and in another order.
        let [cpu, cost] = [&said.budgets[0].granted[0], &said.budgets[0].granted[1]]
            .map(|one| v1::SetBudgetRequest { granted: vec![one.clone()], ..said.budgets[0].clone() });
        said.budgets = vec![cost, cpu];
        assert_eq!(differences(&full(), &said, true), (Vec::new(), 0));
        // A lifetime has no zone.
        assert_eq!(zone(Window::Unspecified, "UTC"), "");
    }

    #[test]
    fn a_grant_without_a_beginning_begins_when_it_is_added() {
        let mut live = full();
        live.grants[0].effective_unix_ms = 1_795_309_323_456;
        assert_eq!(differences(&live, &full(), true), (Vec::new(), 0));
        let mut wanted = full();
        wanted.grants[0].effective_unix_ms = 1_795_309_323_457;
        assert_eq!(lines(&live, &wanted, true).len(), 1);
    }
}
