//! The state as canonical bytes, and their digest: equal states have equal bytes, and only a state's own bytes are decoded.
//!
//! Layout, all numbers LEB128, all text and messages with their length before them, all tables in ascending order:
//! a magic line; `now`; scopes (path, open and settled holds, then per meter in canonical order granted + 1 or 0, held, spent);
//! holders; holds (id, index of scope, index of holder, amounts, expiry, status, used amounts if settled); tenants (name, keys
//! (key, 32-byte request hash, reply as an encoded `BudgetEvent`)). Per-meter values are preceded by a bit mask of the meters
//! that have any. Where a snapshot is stored, and what stream sequence it belongs to, is the writer's business.

use std::collections::{BTreeMap, BTreeSet};

use exchequer_proto::v1;
use prost::Message;
use thiserror::Error;

use crate::{
    event::Event,
    fault::{Fault, Invalid},
    id::{HoldId, IdempotencyKey, Subject, TenantId},
    meter::{Amounts, MAX_GRANTED, Meter},
    scope::ScopePath,
    state::{Account, Broken, Hold, HoldStatus, Recorded, State},
};

/// BLAKE3 `derive_key` context of [`State::digest`].
pub const STATE_CONTEXT: &str = "exchequer.v1 budget state";

const MAGIC: &[u8] = b"exchequer.v1 budget state\n";

const OPEN: u8 = 0;
const SETTLED: u8 = 1;
const SETTLED_LATE: u8 = 2;
const VOIDED: u8 = 3;
const EXPIRED: u8 = 4;

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
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 96 * self.holds.len());
        out.extend_from_slice(MAGIC);
        put(&mut out, self.now_ms);

        put_len(&mut out, self.accounts.len());
        for (scope, account) in &self.accounts {
            put_text(&mut out, scope.as_str());
            put_account(&mut out, account);
        }
        let scopes: BTreeMap<&str, usize> = self.accounts.keys().map(ScopePath::as_str).zip(0..).collect();

        let holders: BTreeSet<&Subject> = self.holds.values().map(|hold| &hold.holder).collect();
        put_len(&mut out, holders.len());
        for holder in &holders {
            put_text(&mut out, holder.as_str());
        }
        let holders: BTreeMap<&Subject, usize> = holders.into_iter().zip(0..).collect();

        put_len(&mut out, self.holds.len());
        for (hold_id, hold) in &self.holds {
            put_text(&mut out, hold_id.as_str());
            put_len(&mut out, scopes[hold.scope.as_str()]);
            put_len(&mut out, holders[&hold.holder]);
            put_amounts(&mut out, &hold.amounts);
            put(&mut out, hold.expires_ms);
            match &hold.status {
                HoldStatus::Open => out.push(OPEN),
                HoldStatus::Settled { used, late } => {
                    out.push(if *late { SETTLED_LATE } else { SETTLED });
                    put_amounts(&mut out, used);
                }
                HoldStatus::Voided => out.push(VOIDED),
                HoldStatus::Expired => out.push(EXPIRED),
            }
        }

        put_len(&mut out, self.keys.len());
        for (tenant, keys) in &self.keys {
            put_text(&mut out, tenant.as_str());
            put_len(&mut out, keys.len());
            for (key, recorded) in keys {
                put_text(&mut out, key.as_str());
                out.extend_from_slice(&recorded.request_hash);
                put_bytes(&mut out, &v1::BudgetEvent::from(&recorded.reply).encode_to_vec());
            }
        }
        out
    }

    /// Decodes what [`Self::encode`] made, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut input = Input(bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?);
        let mut state = Self { now_ms: input.u64("now")?, ..Self::default() };

        let mut scopes = Vec::new();
        for _ in 0..input.u64("scopes")? {
            let scope = input.text("scopes", ScopePath::parse)?;
            state.accounts.insert(scope.clone(), input.account()?);
            scopes.push(scope);
        }
        let mut holders = Vec::new();
        for _ in 0..input.u64("holders")? {
            holders.push(input.text("holders", Subject::parse)?);
        }
        for _ in 0..input.u64("holds")? {
            let hold_id = input.text("holds.id", HoldId::parse)?;
            let hold = Hold {
                scope: input.one_of("holds.scope", &scopes)?,
                holder: input.one_of("holds.holder", &holders)?,
                amounts: input.amounts("holds.amounts")?,
                expires_ms: input.u64("holds.expires")?,
                status: input.status()?,
            };
            if hold.status == HoldStatus::Open {
                state.expiry.insert((hold.expires_ms, hold_id.clone()));
            }
            state.holds.insert(hold_id, hold);
        }
        for _ in 0..input.u64("tenants")? {
            let tenant = input.text("tenants", TenantId::parse)?;
            let mut keys = BTreeMap::new();
            for _ in 0..input.u64("keys")? {
                let key = input.text("keys.key", IdempotencyKey::parse)?;
                keys.insert(key, Recorded { request_hash: input.array()?, reply: input.reply()? });
            }
            state.keys.insert(tenant, keys);
        }

        // Covers order, repeats, padded numbers, unused table entries and what follows the end, whatever the field.
        if state.encode() != bytes {
            return Err(SnapshotError::NotCanonical);
        }
        state.check()?;
        Ok(state)
    }

    /// BLAKE3 of the canonical bytes, with `derive_key` and [`STATE_CONTEXT`].
    pub fn digest(&self) -> [u8; 32] {
        blake3::derive_key(STATE_CONTEXT, &self.encode())
    }
}

fn put(out: &mut Vec<u8>, value: impl Into<u128>) {
    let mut value = value.into();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    put(out, len as u128);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_amounts(out: &mut Vec<u8>, amounts: &Amounts) {
    put_mask(out, |meter| amounts.get(meter) > 0);
    for (_, amount) in amounts.iter() {
        put(out, amount);
    }
}

fn put_account(out: &mut Vec<u8>, account: &Account) {
    put(out, account.usage.open_holds);
    put(out, account.usage.settled_holds);
    let row = |meter: Meter| {
        let granted = account.granted[meter.index()].map_or(0, |granted| granted + 1);
        [u128::from(granted), account.usage.held.get(meter), account.usage.spent.get(meter)]
    };
    put_mask(out, |meter| row(meter) != [0; 3]);
    for value in Meter::ALL.into_iter().map(row).filter(|row| *row != [0; 3]).flatten() {
        put(out, value);
    }
}

fn put_mask(out: &mut Vec<u8>, has: impl Fn(Meter) -> bool) {
    out.push(Meter::ALL.into_iter().fold(0, |mask, meter| mask | (u8::from(has(meter)) << meter.index())));
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(SnapshotError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SnapshotError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, SnapshotError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn u128(&mut self, field: &str) -> Result<u128, SnapshotError> {
        let mut value = 0;
        for shift in (0..u128::BITS).step_by(7) {
            let byte = self.byte()?;
            let low = u128::from(byte & 0x7f);
            if low << shift >> shift != low {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(too_large(field))
    }

    fn u64(&mut self, field: &str) -> Result<u64, SnapshotError> {
        u64::try_from(self.u128(field)?).map_err(|_| too_large(field))
    }

    fn bytes(&mut self, field: &str) -> Result<&'a [u8], SnapshotError> {
        let len = self.u64(field)?;
        self.take(usize::try_from(len).map_err(|_| SnapshotError::Truncated)?)
    }

    fn text<T>(&mut self, field: &str, parse: fn(&str) -> Result<T, Fault>) -> Result<T, SnapshotError> {
        let parsed = str::from_utf8(self.bytes(field)?).map_err(|_| Fault::Undecodable).and_then(parse);
        Ok(parsed.map_err(|fault| fault.at(field))?)
    }

    fn one_of<T: Clone>(&mut self, field: &str, table: &[T]) -> Result<T, SnapshotError> {
        let index = self.u64(field)?;
        let found = usize::try_from(index).ok().and_then(|index| table.get(index));
        Ok(found.cloned().ok_or_else(|| Fault::Missing.at(field))?)
    }

    fn meters(&mut self) -> Result<impl Iterator<Item = Meter> + use<>, SnapshotError> {
        let mask = self.byte()?;
        Ok(Meter::ALL.into_iter().filter(move |meter| mask >> meter.index() & 1 == 1))
    }

    fn amounts(&mut self, field: &str) -> Result<Amounts, SnapshotError> {
        let mut amounts = Vec::with_capacity(Meter::COUNT);
        for meter in self.meters()? {
            amounts.push((meter, self.u64(field)?));
        }
        Ok(Amounts::new(amounts).map_err(|fault| fault.at(field))?)
    }

    fn account(&mut self) -> Result<Account, SnapshotError> {
        let mut account = Account::default();
        account.usage.open_holds = self.u64("scopes.open_holds")?;
        account.usage.settled_holds = self.u64("scopes.settled_holds")?;
        for meter in self.meters()? {
            let granted = self.u64("scopes.granted")?;
            if granted > MAX_GRANTED + 1 {
                return Err(Fault::OutOfRange { min: 0, max: MAX_GRANTED }.at("scopes.granted").into());
            }
            account.granted[meter.index()] = granted.checked_sub(1);
            account.usage.held.0[meter.index()] = self.u128("scopes.held")?;
            account.usage.spent.0[meter.index()] = self.u128("scopes.spent")?;
        }
        Ok(account)
    }

    fn status(&mut self) -> Result<HoldStatus, SnapshotError> {
        Ok(match self.byte()? {
            OPEN => HoldStatus::Open,
            tag @ (SETTLED | SETTLED_LATE) => {
                HoldStatus::Settled { used: self.amounts("holds.used")?, late: tag == SETTLED_LATE }
            }
            VOIDED => HoldStatus::Voided,
            EXPIRED => HoldStatus::Expired,
            _ => return Err(Fault::Missing.at("holds.status").into()),
        })
    }

    fn reply(&mut self) -> Result<Event, SnapshotError> {
        let reply = v1::BudgetEvent::decode(self.bytes("keys.reply")?)
            .map_err(|_| Fault::Undecodable.at("keys.reply"))?;
        Ok(Event::try_from(&reply).map_err(|invalid| invalid.within("keys.reply"))?)
    }
}

fn too_large(field: &str) -> SnapshotError {
    Fault::OutOfRange { min: 0, max: u64::MAX }.at(field).into()
}
