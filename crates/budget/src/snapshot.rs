//! The state as canonical bytes, and their digest: equal states have equal bytes, and only a state's own bytes are decoded.
//!
//! Layout, all numbers LEB128, all text and messages with their length before them, all tables in ascending order unless told
//! otherwise: a magic line; `now`, the number of decisions, the last notification; scopes (path, usage, limits, prices, budgets with
//! their grants); tenants (meters, webhook); holders; holds; notifications and answers as encoded events; and what waits to be
//! retired, in the order in which it was recorded. Indexes and counts are derived. Where a snapshot is stored, and what stream
//! sequence it belongs to, is the writer's business.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use exchequer_proto::v1;
use prost::Message;
use thiserror::Error;

use crate::{
    event::Event,
    fault::{Fault, Invalid},
    id::{GrantId, HoldId, Label, Subject, TenantId, WebhookUrl},
    meter::Meter,
    past::{Past, PastId},
    scope::ScopePath,
    state::{Broken, Hold, HoldStatus, Place, Recent, Retiring, State, Tenant, Timer},
};

mod bytes;
mod scopes;

use bytes::{Input, put, put_amounts, put_bytes, put_flag, put_len, put_meter, put_text};

/// BLAKE3 `derive_key` context of [`State::digest`].
pub const STATE_CONTEXT: &str = "exchequer.v1 budget state";

const MAGIC: &[u8] = b"exchequer.v1 budget state 2\n";

const OPEN: u8 = 0;
const SETTLED: u8 = 1;
const SETTLED_LATE: u8 = 2;
const VOIDED: u8 = 3;
const EXPIRED: u8 = 4;

const ANSWER: u8 = 0;
const GRANTED: u8 = 1;
const CLOSED: u8 = 2;
const GRANT: u8 = 3;

/// Why bytes are not a state. Discard them and replay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Not a snapshot, or of another version.
    #[error("not a budget state of this version")]
    Magic,
    /// They end too early.
    #[error("the state ends too early")]
    Truncated,
    /// A field is invalid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// They decode, but encoding the result gives other bytes.
    #[error("the state is not encoded canonically")]
    NotCanonical,
    /// The state contradicts itself.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl State {
    /// The canonical bytes of what is live.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + 128 * self.nodes.len() + 96 * self.holds.len());
        out.extend_from_slice(MAGIC);
        put(&mut out, self.now_ms);
        put(&mut out, self.decisions);
        put(&mut out, self.last_notification);
        let scopes = self.put_scopes(&mut out);

        put_len(&mut out, self.tenants.len());
        for (tenant, kept) in &self.tenants {
            put_text(&mut out, tenant.as_str());
            put_text(&mut out, kept.webhook.as_ref().map_or("", WebhookUrl::as_str));
            put_len(&mut out, kept.meters.len());
            for (meter, description) in &kept.meters {
                put_meter(&mut out, *meter);
                put_text(&mut out, description.as_ref().map_or("", Label::as_str));
            }
        }
        self.put_holds(&mut out, &scopes);

        put_len(&mut out, self.notifications.len());
        for reached in self.notifications.values() {
            put_event(&mut out, &Event::ThresholdReached(Arc::clone(reached)));
        }
        let recent: BTreeMap<_, _> = self.recent.iter().collect();
        put_len(&mut out, recent.len());
        for (id, recent) in recent {
            out.extend_from_slice(id);
            out.extend_from_slice(&recent.request_hash);
            put_event(&mut out, &recent.reply);
        }
        put_len(&mut out, self.retiring.len());
        for (number, retiring) in &self.retiring {
            put(&mut out, *number);
            match retiring {
                Retiring::Answer(id) => {
                    out.push(ANSWER);
                    out.extend_from_slice(id);
                }
                Retiring::Granted(hold_id) => {
                    out.push(GRANTED);
                    put_text(&mut out, hold_id.as_str());
                }
                Retiring::Closed(hold_id) => {
                    out.push(CLOSED);
                    put_text(&mut out, hold_id.as_str());
                }
                Retiring::Grant(tenant, grant_id) => {
                    out.push(GRANT);
                    put_text(&mut out, tenant.as_str());
                    put_text(&mut out, grant_id.as_str());
                }
            }
        }
        out
    }

    fn put_holds(&self, out: &mut Vec<u8>, scopes: &BTreeMap<&str, usize>) {
        let holders: BTreeSet<&Subject> = self.holds.values().map(|hold| &hold.holder).collect();
        put_len(out, holders.len());
        for holder in &holders {
            put_text(out, holder.as_str());
        }
        let holders: BTreeMap<&Subject, usize> = holders.into_iter().zip(0..).collect();
        let mut holds: Vec<_> = self.holds.iter().collect();
        holds.sort_unstable_by_key(|(hold_id, _)| *hold_id);
        put_len(out, holds.len());
        for (hold_id, hold) in holds {
            put_text(out, hold_id.as_str());
            // The scope of a hold is always known; one that is not would not decode.
            put_len(out, scopes.get(hold.scope.as_str()).copied().unwrap_or(scopes.len()));
            put_len(out, holders[&hold.holder]);
            put_amounts(out, &hold.amounts);
            put_amounts(out, &hold.used);
            put(out, hold.expires_ms);
            put(out, hold.granted_seq);
            put_flag(out, hold.lease);
            put_flag(out, hold.revoked);
            out.push(match hold.status {
                HoldStatus::Open => OPEN,
                HoldStatus::Settled { late: false } => SETTLED,
                HoldStatus::Settled { late: true } => SETTLED_LATE,
                HoldStatus::Voided => VOIDED,
                HoldStatus::Expired => EXPIRED,
            });
        }
    }

    /// Decodes what [`Self::encode`] made, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut input = Input(bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?);
        let mut state = Self {
            now_ms: input.u64("now")?,
            decisions: input.u64("decisions")?,
            last_notification: input.u64("last_notification")?,
            ..Self::default()
        };
        let scopes = state.take_scopes(&mut input)?;
        for _ in 0..input.u64("tenants")? {
            let tenant = input.text("tenants", TenantId::parse)?;
            let kept = state.tenants.entry(tenant).or_default();
            kept.webhook = input.optional("tenants.webhook", WebhookUrl::parse)?;
            for _ in 0..input.u64("tenants.meters")? {
                let meter = input.meter("tenants.meters")?;
                kept.meters.insert(meter, input.optional("tenants.meters", Label::parse)?);
            }
        }
        state.take_holds(&mut input, &scopes)?;
        for _ in 0..input.u64("notifications")? {
            let Event::ThresholdReached(reached) = input.event("notifications")? else {
                return Err(Fault::Missing.at("notifications").into());
            };
            let tenant = state.tenants.entry(reached.scope.tenant_id()).or_default();
            tenant.waiting += 1;
            state.notifications.insert(reached.notification, reached);
        }
        for _ in 0..input.u64("answers")? {
            let id: PastId = input.array()?;
            let recent = Recent { request_hash: input.array()?, reply: input.event("answers")? };
            state.recent.insert(id, recent);
        }
        for _ in 0..input.u64("retiring")? {
            let number = input.u64("retiring")?;
            let retiring = match input.byte()? {
                ANSWER => Retiring::Answer(input.array()?),
                GRANTED => Retiring::Granted(input.text("retiring", HoldId::parse)?),
                CLOSED => Retiring::Closed(input.text("retiring", HoldId::parse)?),
                GRANT => {
                    let tenant = input.text("retiring", TenantId::parse)?;
                    let grant_id = input.text("retiring", GrantId::parse)?;
                    let kept = state.tenants.entry(tenant.clone()).or_default();
                    if kept.grants.insert(grant_id.clone(), None).is_some() {
                        return Err(Fault::Repeated.at("retiring").into());
                    }
                    Retiring::Grant(tenant, grant_id)
                }
                _ => return Err(Fault::Missing.at("retiring").into()),
            };
            state.retiring.push_back((number, retiring));
        }
        // Covers order, repeats, padded numbers, unused table entries and what follows the end, whatever the field.
        if state.encode() != bytes {
            return Err(SnapshotError::NotCanonical);
        }
        state.check()?;
        Ok(state)
    }

    fn take_holds(&mut self, input: &mut Input<'_>, scopes: &[ScopePath]) -> Result<(), SnapshotError> {
        let mut holders = Vec::new();
        for _ in 0..input.u64("holders")? {
            holders.push(input.text("holders", Subject::parse)?);
        }
        for _ in 0..input.u64("holds")? {
            let hold_id = input.text("holds.id", HoldId::parse)?;
            let hold = Hold {
                scope: input.one_of("holds.scope", scopes)?,
                holder: input.one_of("holds.holder", &holders)?,
                amounts: input.amounts("holds.amounts")?,
                used: input.amounts("holds.used")?,
                expires_ms: input.u64("holds.expires")?,
                granted_seq: input.u64("holds.granted_seq")?,
                lease: input.flag("holds.lease")?,
                revoked: input.flag("holds.revoked")?,
                status: match input.byte()? {
                    OPEN => HoldStatus::Open,
                    SETTLED => HoldStatus::Settled { late: false },
                    SETTLED_LATE => HoldStatus::Settled { late: true },
                    VOIDED => HoldStatus::Voided,
                    EXPIRED => HoldStatus::Expired,
                    _ => return Err(Fault::Missing.at("holds.status").into()),
                },
            };
            if let Some(outermost) = self.outermost_mut(&hold.scope).filter(|_| hold.status.is_live()) {
                outermost.live_holds += 1;
            }
            if hold.status == HoldStatus::Open {
                self.index_open(&hold_id, &hold.scope, hold.expires_ms);
            }
            self.holds.insert(hold_id, hold);
        }
        Ok(())
    }

    /// BLAKE3 of the canonical bytes, then the past's chain and count, with `derive_key` and [`STATE_CONTEXT`].
    pub fn digest(&self, past: &Past) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(STATE_CONTEXT);
        hasher.update(&self.encode());
        hasher.update(&past.chain());
        hasher.update(&past.count().to_be_bytes());
        hasher.finalize().into()
    }
}

/// A grant's timers and place, which are derived from its terms.
fn index_grant(state: &mut State, place: Place, terms: &crate::GrantTerms, effective: bool) {
    let tenant = terms.scope.tenant_id();
    let mut due = Vec::with_capacity(2);
    if !effective {
        due.push((terms.effective_ms, Timer::GrantBegins(tenant.clone(), terms.grant_id.clone())));
    }
    if terms.expires_ms > 0 {
        due.push((terms.expires_ms, Timer::GrantEnds(tenant.clone(), terms.grant_id.clone())));
    }
    state.timers.extend(due);
    let kept: &mut Tenant = state.tenants.entry(tenant).or_default();
    kept.grants.insert(terms.grant_id.clone(), Some(place));
    kept.live_grants += 1;
}

fn put_event(out: &mut Vec<u8>, event: &Event) {
    put_bytes(out, &v1::BudgetEvent::from(event).encode_to_vec());
}

impl Input<'_> {
    fn event(&mut self, field: &str) -> Result<Event, SnapshotError> {
        let message =
            v1::BudgetEvent::decode(self.bytes(field)?).map_err(|_| Fault::Undecodable.at(field))?;
        Ok(Event::try_from(&message).map_err(|invalid| invalid.within(field))?)
    }

    fn meter(&mut self, field: &str) -> Result<Meter, SnapshotError> {
        match self.byte()? {
            bytes::CUSTOM => self.text(field, Meter::parse),
            index => Meter::BUILT_IN
                .get(usize::from(index))
                .copied()
                .ok_or_else(|| Fault::UnknownMeter.at(field).into()),
        }
    }
}
