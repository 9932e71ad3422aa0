//! The file that says which budgets and settings there are to be: read as a whole, with every fault at its path and line.
//!
//! Left out: what only metering knows, such as what there is already. Invariant: plans are returned only of a file without fault.

use std::collections::BTreeMap;

use exchequer_budget::{
    GrantId, MAX_GRANT, MAX_GRANTED, MAX_PERIOD_MS, MAX_THRESHOLDS, ScopePath, TenantId, WebhookUrl, Zone,
};
use exchequer_event::v1::{self, Enforcement, MeterAmount, Overage, Window, threshold::At};

use super::{
    plan::Plan,
    words,
    yaml::{self, Node, Value},
};
use crate::export::time;

/// Meters that every tenant has.
const METERS: [&str; 9] = [
    "cpu_ms",
    "wall_ms",
    "memory_mib_ms",
    "output_bytes",
    "egress_bytes",
    "invocations",
    "input_tokens",
    "output_tokens",
    "cost_micros",
];

/// One fault of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub line: usize,
    /// Such as `tenants.acme.budgets[2].window`; empty for the whole file.
    pub path: String,
    pub reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = if self.path.is_empty() { "" } else { ": " };
        write!(f, "line {}: {}{of}{}", self.line, self.path, self.reason)
    }
}

/// What the file wants of each tenant that it names; or every fault of it, by line.
pub fn read(text: &str) -> Result<BTreeMap<String, Plan>, Vec<Fault>> {
    if text.len() > yaml::MAX_BYTES {
        let reason = format!("the file is larger than {} bytes", yaml::MAX_BYTES);
        return Err(vec![Fault { line: 1, path: String::new(), reason }]);
    }
    let root = yaml::parse(text)
        .map_err(|bad| vec![Fault { line: bad.line, path: String::new(), reason: bad.reason }])?;
    let mut reader = Reader::default();
    let mut plans = BTreeMap::new();
    reader.map(&root, "", |reader, fields| {
        if let Some((tenants, path)) = fields.required(reader, "tenants") {
            for (tenant, line, node) in reader.entries(tenants, &path) {
                let path = format!("{path}.{tenant}");
                if let Err(fault) = TenantId::parse(tenant) {
                    reader.fault(*line, &path, fault.to_string());
                }
                let plan = reader.tenant(tenant, node, &path);
                plans.insert(tenant.clone(), plan);
            }
        }
    });
    if reader.faults.is_empty() {
        return Ok(plans);
    }
    reader.faults.sort();
    Err(reader.faults)
}

/// Reads nodes and keeps what is wrong with them.
#[derive(Default)]
struct Reader {
    faults: Vec<Fault>,
    /// Lines on which things were named, to name the first where one is named again.
    named: BTreeMap<String, usize>,
}

/// The fields of a mapping that have not been read yet.
struct Fields<'a> {
    line: usize,
    path: String,
    left: BTreeMap<&'a str, (usize, &'a Node)>,
}

impl<'a> Fields<'a> {
    fn optional(&mut self, name: &str) -> Option<(&'a Node, String)> {
        let (_, node) = self.left.remove(name)?;
        (node.value != Value::Null).then(|| (node, join(&self.path, name)))
    }

    fn required(&mut self, reader: &mut Reader, name: &str) -> Option<(&'a Node, String)> {
        let found = self.optional(name);
        if found.is_none() {
            reader.fault(self.line, &join(&self.path, name), "is missing");
        }
        found
    }

    /// A scalar, read by `parse`.
    fn scalar<T>(
        &mut self,
        reader: &mut Reader,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (node, path) = self.optional(name)?;
        reader.scalar(node, &path, parse)
    }

    /// A scalar that has to be there.
    fn needed<T>(
        &mut self,
        reader: &mut Reader,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (node, path) = self.required(reader, name)?;
        reader.scalar(node, &path, parse)
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn above_zero(text: &str) -> Result<u64, String> {
    match words::number(text)? {
        0 => Err("must be above zero".to_owned()),
        number => Ok(number),
    }
}

fn granted(text: &str) -> Result<u64, String> {
    match words::number(text)? {
        number if number > MAX_GRANTED => Err(format!("must be at most {MAX_GRANTED}")),
        number => Ok(number),
    }
}

fn grant_amount(text: &str) -> Result<u64, String> {
    match granted(text)? {
        number if number > MAX_GRANT => Err(format!("must be at most {MAX_GRANT}")),
        number => Ok(number),
    }
}

fn grant_id(text: &str) -> Result<String, String> {
    GrantId::parse(text).map(|id| id.to_string()).map_err(|fault| fault.to_string())
}

fn known_zone(text: &str) -> Result<String, String> {
    match Zone::parse(text) {
        Ok(zone) if zone.known() => Ok(zone.to_string()),
        Ok(_) => Err("is not a known IANA time zone".to_owned()),
        Err(fault) => Err(fault.to_string()),
    }
}

fn meter(text: &str) -> Result<String, String> {
    let is_one = (1..=32).contains(&text.len())
        && text.as_bytes()[0].is_ascii_lowercase()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if is_one { Ok(text.to_owned()) } else { Err("must match [a-z][a-z0-9_]{0,31}".to_owned()) }
}

fn scope_of(tenant: &str) -> impl Fn(&str) -> Result<String, String> + '_ {
    move |text| {
        ScopePath::parse(text).map_err(|fault| fault.to_string())?;
        if text.split('/').next() == Some(tenant) {
            Ok(text.to_owned())
        } else {
            Err(format!("must begin with the tenant, `{tenant}`"))
        }
    }
}

impl Reader {
    fn fault(&mut self, line: usize, path: &str, reason: impl Into<String>) {
        self.faults.push(Fault { line, path: path.to_owned(), reason: reason.into() });
    }

    /// Reads a mapping's fields by `read`; those that it leaves are unknown.
    fn map<T: Default>(
        &mut self,
        node: &Node,
        path: &str,
        read: impl FnOnce(&mut Self, &mut Fields<'_>) -> T,
    ) -> T {
        let Value::Map(entries) = &node.value else {
            self.fault(node.line, path, "expected fields with values");
            return T::default();
        };
        let left = entries.iter().map(|(name, line, node)| (name.as_str(), (*line, node))).collect();
        let mut fields = Fields { line: node.line, path: path.to_owned(), left };
        let value = read(self, &mut fields);
        for (name, (line, _)) in fields.left {
            self.fault(line, &join(path, name), "there is no such field");
        }
        value
    }

    fn entries<'a>(&mut self, node: &'a Node, path: &str) -> &'a [(String, usize, Node)] {
        if let Value::Map(entries) = &node.value {
            return entries;
        }
        self.fault(node.line, path, "expected names with values");
        &[]
    }

    fn list<'a>(&mut self, found: Option<(&'a Node, String)>) -> Vec<(&'a Node, String)> {
        let Some((node, path)) = found else { return Vec::new() };
        if let Value::List(items) = &node.value {
            return (0..)
                .zip(items)
                .map(|(place, item): (usize, _)| (item, format!("{path}[{place}]")))
                .collect();
        }
        self.fault(node.line, &path, "expected a list");
        Vec::new()
    }

    fn scalar<T>(
        &mut self,
        node: &Node,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let read = match &node.value {
            Value::Scalar(text) => parse(text),
            _ => Err("expected a single value".to_owned()),
        };
        read.map_err(|reason| self.fault(node.line, path, reason)).ok()
    }

    /// Says so if the file names a thing twice.
    fn once(&mut self, name: String, line: usize, path: &str) {
        match self.named.get(&name) {
            Some(first) => {
                let reason = format!("{name} is given on line {first} already");
                self.fault(line, path, reason);
            }
            None => drop(self.named.insert(name, line)),
        }
    }

    fn tenant(&mut self, tenant: &str, node: &Node, path: &str) -> Plan {
        if node.value == Value::Null {
            return Plan::default();
        }
        self.map(node, path, |reader, fields| {
            let mut plan = Plan { webhook: reader.webhook(fields), ..Plan::default() };
            if let Some((meters, path)) = fields.optional("meters") {
                for (name, line, node) in reader.entries(meters, &path) {
                    let path = join(&path, name);
                    let known = METERS.contains(&name.as_str());
                    let reason =
                        if known { Err("is one of the product's own".to_owned()) } else { meter(name) };
                    if let Err(reason) = reason {
                        reader.fault(*line, &path, reason);
                    }
                    let description = match &node.value {
                        Value::Null => Some(String::new()),
                        _ => reader.scalar(node, &path, |text| match text.chars().count() {
                            0..=256 => Ok(text.to_owned()),
                            _ => Err("must be at most 256 characters".to_owned()),
                        }),
                    };
                    plan.meters.push(v1::MeterDefined {
                        tenant: tenant.to_owned(),
                        meter: name.clone(),
                        description: description.unwrap_or_default(),
                    });
                }
            }
            let scope = scope_of(tenant);
            for (node, path) in reader.list(fields.optional("prices")) {
                let price = reader.map(node, &path, |reader, fields| v1::PriceSet {
                    scope: fields.needed(reader, "scope", &scope).unwrap_or_default(),
                    meter: fields
                        .needed(reader, "meter", |text| match text {
                            "cost_micros" => Err("what costs is priced, and not the cost".to_owned()),
                            _ => meter(text),
                        })
                        .unwrap_or_default(),
                    micros: fields.needed(reader, "micros", granted).unwrap_or_default(),
                    per: fields.scalar(reader, "per", above_zero).unwrap_or(1),
                });
                reader.once(format!("the price of {} at {}", price.meter, price.scope), node.line, &path);
                plan.prices.push(price);
            }
            for (node, path) in reader.list(fields.optional("rate_limits")) {
                let limit = reader.map(node, &path, |reader, fields| rate_limit(reader, fields, &scope));
                let name = format!("the rate limit of {} at {}", limit.meter, limit.scope);
                reader.once(name, node.line, &path);
                plan.rate_limits.push(limit);
            }
            for (node, path) in reader.list(fields.optional("concurrency_limits")) {
                let limit = reader.map(node, &path, |reader, fields| v1::ConcurrencyLimitSet {
                    scope: fields.needed(reader, "scope", &scope).unwrap_or_default(),
                    max_open_holds: fields.needed(reader, "max_open_holds", above_zero).unwrap_or_default(),
                });
                reader.once(format!("the limit on open holds at {}", limit.scope), node.line, &path);
                plan.concurrency_limits.push(limit);
            }
            for (node, path) in reader.list(fields.optional("budgets")) {
                let budget =
                    reader.map(node, &path, |reader, fields| reader.budget(tenant, fields, &mut plan.grants));
                // Its settings are those of all meters of the scope over the window.
                let window = words::word::<Window>(budget.window);
                reader.once(format!("the budget of {}, {window},", budget.scope), node.line, &path);
                plan.budgets.push(budget);
            }
            plan
        })
    }

    /// None where nothing is said; empty for none.
    fn webhook(&mut self, fields: &mut Fields<'_>) -> Option<String> {
        fields.scalar(self, "webhook", |text| match text {
            "none" => Ok(String::new()),
            url => WebhookUrl::parse(url)
                .map(|url| url.to_string())
                .map_err(|fault| format!("{fault}; or `none`")),
        })
    }

    fn budget(
        &mut self,
        tenant: &str,
        fields: &mut Fields<'_>,
        grants: &mut Vec<v1::GrantAdded>,
    ) -> v1::SetBudgetRequest {
        let scope = fields.needed(self, "scope", scope_of(tenant)).unwrap_or_default();
        let window = fields.scalar(self, "window", words::read::<Window>).unwrap_or_default();
        let overage = fields.scalar(self, "overage", words::read::<Overage>).unwrap_or_default();
        let mut set = v1::SetBudgetRequest {
            scope,
            window: window.into(),
            overage: overage.into(),
            time_zone: fields
                .scalar(self, "time_zone", |zone| match window {
                    Window::Unspecified => Err("is only with a window".to_owned()),
                    _ => known_zone(zone),
                })
                .unwrap_or_default(),
            enforcement: fields
                .scalar(self, "enforcement", words::read::<Enforcement>)
                .unwrap_or_default()
                .into(),
            carry_debt: fields
                .scalar(self, "carry_debt", |text| match (yes_or_no(text)?, window) {
                    (true, Window::Unspecified) => Err("is only with a window".to_owned()),
                    (carry, _) => Ok(carry),
                })
                .unwrap_or_default(),
            ..v1::SetBudgetRequest::default()
        };
        if let Some((amounts, path)) = fields.required(self, "amounts") {
            for (name, line, node) in self.entries(amounts, &path) {
                let path = join(&path, name);
                if let Err(reason) = meter(name) {
                    self.fault(*line, &path, reason);
                }
                self.amount(name, node, &path, &mut set);
            }
            if set.granted.is_empty() {
                self.fault(amounts.line, &path, "names no meter");
            }
        }
        self.thresholds(fields, &mut set);
        for (node, path) in self.list(fields.optional("grants")) {
            let grant = self.map(node, &path, |reader, fields| reader.grant(fields, &set));
            self.once(format!("grant {} of {tenant}", grant.grant_id), node.line, &path);
            grants.push(grant);
        }
        set
    }

    /// `METER: 5` or `METER: {granted: 5, overdraft: 1, rollover_cap: 2}`.
    fn amount(&mut self, name: &str, node: &Node, path: &str, set: &mut v1::SetBudgetRequest) {
        let of = |amount: u64| MeterAmount { meter: name.to_owned(), amount };
        if let Value::Scalar(_) = node.value {
            set.granted.push(of(self.scalar(node, path, granted).unwrap_or_default()));
            return;
        }
        let (overage, window) = (set.overage(), set.window());
        let [total, overdraft, rollover] = self.map(node, path, |reader, fields| {
            [
                fields.needed(reader, "granted", granted),
                fields.scalar(reader, "overdraft", |text| match overage {
                    Overage::Overdraft => granted(text),
                    _ => Err("is only with overage: overdraft".to_owned()),
                }),
                fields.scalar(reader, "rollover_cap", |text| match window {
                    Window::Unspecified => Err("is only with a window".to_owned()),
                    _ => granted(text),
                }),
            ]
        });
        set.granted.push(of(total.unwrap_or_default()));
        set.overdraft.extend(overdraft.filter(|amount| *amount > 0).map(of));
        set.rollover_cap.extend(rollover.filter(|amount| *amount > 0).map(of));
    }

    fn thresholds(&mut self, fields: &mut Fields<'_>, set: &mut v1::SetBudgetRequest) {
        let Some((list, path)) = fields.optional("thresholds") else { return };
        let window = set.window();
        for (node, path) in self.list(Some((list, path.clone()))) {
            let threshold = self.scalar(node, &path, |text| match words::threshold(text)? {
                v1::Threshold { at: Some(At::ForecastPercent(_)) } if window == Window::Unspecified => {
                    Err("a forecast is only with a window".to_owned())
                }
                threshold if set.thresholds.contains(&threshold) => Err("is given twice".to_owned()),
                threshold => Ok(threshold),
            });
            set.thresholds.extend(threshold);
        }
        if set.thresholds.len() > MAX_THRESHOLDS {
            self.fault(list.line, &path, format!("must be at most {MAX_THRESHOLDS}"));
        }
    }

    fn grant(&mut self, fields: &mut Fields<'_>, set: &v1::SetBudgetRequest) -> v1::GrantAdded {
        let window = set.window();
        let line = fields.line;
        let recurring = fields.scalar(self, "recurring", |text| match (yes_or_no(text)?, window) {
            (true, Window::Unspecified) => Err("is only with a window".to_owned()),
            (recurring, _) => Ok(recurring),
        });
        let grant = v1::GrantAdded {
            grant_id: fields.needed(self, "id", grant_id).unwrap_or_default(),
            scope: set.scope.clone(),
            window: set.window,
            meter: fields
                .needed(self, "meter", |name| {
                    let is_one = set.granted.iter().any(|granted| granted.meter == name);
                    is_one.then(|| name.to_owned()).ok_or_else(|| "is none of this budget's".to_owned())
                })
                .unwrap_or_default(),
            amount: fields
                .needed(self, "amount", |text| above_zero(text).and_then(|_| grant_amount(text)))
                .unwrap_or_default(),
            priority: fields
                .scalar(self, "priority", |text| {
                    u32::try_from(words::number(text)?).map_err(|_| "is too large".to_owned())
                })
                .unwrap_or_default(),
            effective_unix_ms: fields.scalar(self, "effective", time).unwrap_or_default(),
            expires_unix_ms: fields.scalar(self, "expires", time).unwrap_or_default(),
            recurring: recurring.unwrap_or_default(),
            rollover_cap: fields
                .scalar(self, "rollover_cap", |text| match recurring {
                    Some(true) => grant_amount(text),
                    _ => Err("is only with recurring: true".to_owned()),
                })
                .unwrap_or_default(),
        };
        if grant.expires_unix_ms > 0 && grant.expires_unix_ms <= grant.effective_unix_ms {
            self.fault(line, &join(&fields.path, "expires"), "must be after effective");
        }
        grant
    }
}

fn rate_limit(
    reader: &mut Reader,
    fields: &mut Fields<'_>,
    scope: &dyn Fn(&str) -> Result<String, String>,
) -> v1::RateLimitSet {
    let amount = fields.needed(reader, "amount", above_zero).unwrap_or_default();
    v1::RateLimitSet {
        scope: fields.needed(reader, "scope", scope).unwrap_or_default(),
        meter: fields.needed(reader, "meter", meter).unwrap_or_default(),
        amount,
        period_ms: fields
            .needed(reader, "period", |text| match words::period(text)? {
                ms if (1..=MAX_PERIOD_MS).contains(&ms) => Ok(ms),
                _ => Err("must be 1ms to 24h".to_owned()),
            })
            .unwrap_or_default(),
        burst: fields.scalar(reader, "burst", above_zero).unwrap_or(amount),
    }
}

#[cfg(test)]
mod tests;
