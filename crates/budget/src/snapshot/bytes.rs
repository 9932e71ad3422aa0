//! Numbers, text and amounts of the canonical encoding.

use super::SnapshotError;
use crate::{
    fault::Fault,
    meter::{Amounts, Meter, Totals},
};

/// In the place of the index of one of the product's own meters.
pub(super) const CUSTOM: u8 = u8::MAX;

pub(super) fn put(out: &mut Vec<u8>, value: impl Into<u128>) {
    let mut value = value.into();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

pub(super) fn put_len(out: &mut Vec<u8>, len: usize) {
    put(out, len as u128);
}

pub(super) fn put_flag(out: &mut Vec<u8>, flag: bool) {
    out.push(u8::from(flag));
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_meter(out: &mut Vec<u8>, meter: Meter) {
    if let Some(index) = meter.index().and_then(|index| u8::try_from(index).ok()) {
        out.push(index);
    } else {
        out.push(CUSTOM);
        put_text(out, meter.name());
    }
}

pub(super) fn put_amounts(out: &mut Vec<u8>, amounts: &Amounts) {
    put_len(out, amounts.iter().count());
    for (meter, amount) in amounts.iter() {
        put_meter(out, meter);
        put(out, amount);
    }
}

pub(super) fn put_totals(out: &mut Vec<u8>, totals: &Totals) {
    put_len(out, totals.iter().count());
    for (meter, sum) in totals.iter() {
        put_meter(out, meter);
        put(out, sum);
    }
}

pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(SnapshotError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SnapshotError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, SnapshotError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn flag(&mut self, field: &str) -> Result<bool, SnapshotError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Fault::OutOfRange { min: 0, max: 1 }.at(field).into()),
        }
    }

    pub(super) fn u128(&mut self, field: &str) -> Result<u128, SnapshotError> {
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
        Err(too_large(field, u64::MAX))
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, SnapshotError> {
        u64::try_from(self.u128(field)?).map_err(|_| too_large(field, u64::MAX))
    }

    pub(super) fn at_most(&mut self, field: &str, max: u64) -> Result<u64, SnapshotError> {
        let value = self.u64(field)?;
        if value <= max { Ok(value) } else { Err(too_large(field, max)) }
    }

    pub(super) fn bytes(&mut self, field: &str) -> Result<&'a [u8], SnapshotError> {
        let len = self.u64(field)?;
        self.take(usize::try_from(len).map_err(|_| SnapshotError::Truncated)?)
    }

    pub(super) fn text<T>(
        &mut self,
        field: &str,
        parse: fn(&str) -> Result<T, Fault>,
    ) -> Result<T, SnapshotError> {
        let parsed = str::from_utf8(self.bytes(field)?).map_err(|_| Fault::Undecodable).and_then(parse);
        Ok(parsed.map_err(|fault| fault.at(field))?)
    }

    pub(super) fn optional<T>(
        &mut self,
        field: &str,
        parse: fn(&str) -> Result<T, Fault>,
    ) -> Result<Option<T>, SnapshotError> {
        let text = str::from_utf8(self.bytes(field)?).map_err(|_| Fault::Undecodable.at(field))?;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(parse(text).map_err(|fault| fault.at(field))?))
    }

    pub(super) fn one_of<T: Clone>(&mut self, field: &str, table: &[T]) -> Result<T, SnapshotError> {
        let index = self.u64(field)?;
        let found = usize::try_from(index).ok().and_then(|index| table.get(index));
        Ok(found.cloned().ok_or_else(|| Fault::Missing.at(field))?)
    }

    pub(super) fn amounts(&mut self, field: &str) -> Result<Amounts, SnapshotError> {
        let mut amounts = Vec::new();
        for _ in 0..self.u64(field)? {
            amounts.push((self.meter(field)?, self.u64(field)?));
        }
        Ok(Amounts::new(amounts).map_err(|fault| fault.at(field))?)
    }

    pub(super) fn totals(&mut self, field: &str) -> Result<Totals, SnapshotError> {
        let mut totals = Totals::default();
        for _ in 0..self.u64(field)? {
            let meter = self.meter(field)?;
            totals.set(meter, self.u128(field)?);
        }
        Ok(totals)
    }
}

fn too_large(field: &str, max: u64) -> SnapshotError {
    Fault::OutOfRange { min: 0, max }.at(field).into()
}
