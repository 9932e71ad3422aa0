//! From the events of accepted blocks to records of usage.
//!
//! Left out: events that use nothing. Pure. Invariant: what a block records is never refused; what no version of this can count (a scope
//! of another tenant, a name beyond its bounds) is passed over, in the same way each time.

use exchequer_event::v1::{self, budget_event::Kind};

use super::calendar::minute_of;

/// BLAKE3 `derive_key` context of a subject's digest.
const SUBJECT_CONTEXT: &str = "exchequer.v1 usage subject";
/// Longest name of an agent or a skill, bytes.
const MAX_NAME_BYTES: usize = 128;
/// Longest scope, bytes: six segments of 64.
const MAX_SCOPE_BYTES: usize = 389;
/// Longest name of a meter, bytes.
const MAX_METER_BYTES: usize = 32;

/// What usage is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Dimension {
    Scope = 0,
    Skill = 1,
    Agent = 2,
}

/// Half the BLAKE3 digest of a subject: what distinct ones are told apart by.
pub(super) type SubjectDigest = [u8; 16];

/// One record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage<'a> {
    pub(super) scope: &'a str,
    pub(super) agent: &'a str,
    pub(super) skill: &'a str,
    pub(super) subject: Option<SubjectDigest>,
    pub(super) minute: u32,
    pub(super) amounts: &'a [v1::MeterAmount],
    /// Of a correction, whether it is added.
    pub(super) correction: Option<bool>,
}

impl<'a> Usage<'a> {
    /// What an event of a tenant's run records, in a block of this time.
    pub(super) fn of(tenant: &str, event: &'a v1::BudgetEvent, block_unix_ms: u64) -> Option<Self> {
        let (scope, amounts, source, subject, correction) = match event.kind.as_ref()? {
            Kind::HoldSettled(it) => (&it.scope, &it.used, &it.source, "", None),
            Kind::LeaseDrawn(it) => (&it.scope, &it.used, &it.source, "", None),
            Kind::UsageReported(it) => (&it.scope, &it.used, &it.source, &*it.subject, None),
            Kind::UsageCorrected(it) => (&it.scope, &it.amounts, &it.source, "", Some(it.added)),
            _ => return None,
        };
        let rest = scope.strip_prefix(tenant)?;
        if !(rest.is_empty() || rest.starts_with('/')) || scope.len() > MAX_SCOPE_BYTES {
            return None;
        }
        let (agent, skill, used_unix_ms) = source
            .as_ref()
            .map_or(("", "", 0), |source| (&*source.agent_id, &*source.skill, source.used_unix_ms));
        Some(Self {
            scope,
            agent: bounded(agent),
            skill: bounded(skill),
            subject: (!subject.is_empty()).then(|| subject_digest(subject)),
            minute: minute_of(if used_unix_ms == 0 { block_unix_ms } else { used_unix_ms }),
            amounts,
            correction,
        })
    }

    /// Every name that it counts for.
    pub(super) fn names(&self) -> impl Iterator<Item = (Dimension, &'a str)> {
        let scope = self.scope;
        let enclosing = scope.match_indices('/').map(move |(at, _)| &scope[..at]).chain([scope]);
        let others = [(Dimension::Skill, self.skill), (Dimension::Agent, self.agent)];
        let others = others.into_iter().filter(|(_, name)| !name.is_empty());
        enclosing.map(|scope| (Dimension::Scope, scope)).chain(others)
    }

    /// Its meters with amounts above zero.
    pub(super) fn meters(&self) -> impl Iterator<Item = (&'a str, u64)> {
        let used = self.amounts.iter().filter(|used| used.amount > 0 && is_meter(&used.meter));
        used.map(|used| (&*used.meter, used.amount))
    }
}

/// Whether this can name a meter: `^[a-z][a-z0-9_]{0,31}$`.
pub(super) fn is_meter(name: &str) -> bool {
    name.len() <= MAX_METER_BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

pub(super) fn subject_digest(subject: &str) -> SubjectDigest {
    let mut half = SubjectDigest::default();
    half.copy_from_slice(&blake3::derive_key(SUBJECT_CONTEXT, subject.as_bytes())[..16]);
    half
}

/// The name, or none if it is longer than any.
fn bounded(name: &str) -> &str {
    if name.len() <= MAX_NAME_BYTES { name } else { "" }
}
