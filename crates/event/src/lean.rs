//! Events and decision runs read where they lie, without an allocation: nearly every entry of a log is one, and most of decoding it
//! is making strings that nobody keeps.
//!
//! Left out: everything unusual. A field that the tables don't know, another wire type, anything broken: the answer is `None`, and the
//! generated decoder has the word. Invariant: whatever is read here, the generated decoder accepts and reads as the same.

use exchequer_proto::shape::{self, Field, Shape};
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::{name, payload};

/// What an event says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) agent_id: &'a [u8],
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) prev_hash: &'a [u8],
}

/// Reads an event that [`decode_event`](crate::seal::decode_event) accepts.
pub(crate) fn event(bytes: &[u8]) -> Option<Event<'_>> {
    let mut event = Event { agent_id: &[], epoch: 0, seq: 0, prev_hash: &[] };
    let (mut tenant, mut execution_id, mut skill, mut has_kind): (&[u8], &[u8], &[u8], _) =
        (&[], &[], &[], false);
    let (mut confidential, mut is_usual) = (None, true);
    walk(&shape::EVENT, bytes, |number, value| match (number, value) {
        (1, Value::Bytes(bytes)) => event.agent_id = bytes,
        (2, Value::Number(number)) => event.epoch = number,
        (3, Value::Number(number)) => event.seq = number,
        (4, Value::Bytes(bytes)) => event.prev_hash = bytes,
        (6, Value::Bytes(bytes)) => tenant = bytes,
        (7, Value::Bytes(bytes)) => execution_id = bytes,
        (8, Value::Bytes(bytes)) => skill = bytes,
        // A second one is merged with the first by the decoder.
        (9, Value::Bytes(bytes)) => is_usual &= confidential.replace(bytes).is_none(),
        (16.., _) => has_kind = true,
        _ => {}
    })?;
    let named = |bytes, is_name: fn(&str) -> bool| -> Option<bool> {
        let text = std::str::from_utf8(bytes).ok()?;
        Some(text.is_empty() || is_name(text))
    };
    let is_sound = has_kind
        && is_usual
        && confidential.is_none_or(is_confidential)
        && named(tenant, name::is_tenant)?
        && named(execution_id, name::is_uuid)?
        && named(skill, name::is_skill)?;
    is_sound.then_some(event)
}

/// Whether the lengths of an encrypted payload are what they have to be.
fn is_confidential(bytes: &[u8]) -> bool {
    let mut fields: [&[u8]; 5] = [&[]; 5];
    let walked = walk(&shape::CONFIDENTIAL, bytes, |number, value| {
        if let (1..=4, Value::Bytes(bytes)) = (number, value) {
            fields[number as usize] = bytes;
        }
    });
    let [_, key_id, nonce, ciphertext, commitment] = fields;
    walked.is_some() && payload::check_lengths(key_id, nonce, ciphertext, commitment).is_ok()
}

/// Whether this is a decision run that [`decode_run`](crate::seal::decode_run) accepts. False says nothing.
pub(crate) fn is_run(bytes: &[u8]) -> bool {
    let mut tenant: &[u8] = &[];
    let walked = walk(&shape::DECISION_RUN, bytes, |number, value| {
        if let (1, Value::Bytes(bytes)) = (number, value) {
            tenant = bytes;
        }
    });
    walked.is_some() && std::str::from_utf8(tenant).is_ok_and(name::is_tenant)
}

/// The stream sequence of an entry that holds nothing else but one record of this field number, and that record.
pub(crate) fn record(bytes: &[u8], wanted: u32) -> Option<(u64, &[u8])> {
    let (mut stream_seq, mut record, mut rest) = (0, None, bytes);
    while !rest.is_empty() {
        match key(&mut rest)? {
            (1, WireType::Varint) => stream_seq = varint(&mut rest)?,
            (number, WireType::LengthDelimited) if number == wanted => record = Some(delimited(&mut rest)?),
            _ => return None,
        }
    }
    Some((stream_seq, record?))
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Hands each field of a message to `take`, in the order of the bytes. `None` if any of it, at any depth, is not as the shape says.
fn walk<'a>(shape: &Shape, mut bytes: &'a [u8], mut take: impl FnMut(u32, Value<'a>)) -> Option<()> {
    while !bytes.is_empty() {
        let (number, wire_type) = key(&mut bytes)?;
        let value = match (shape.0.get(usize::try_from(number).ok()?)?, wire_type) {
            (Field::Number, WireType::Varint) => Value::Number(varint(&mut bytes)?),
            (Field::Bytes, WireType::LengthDelimited) => Value::Bytes(delimited(&mut bytes)?),
            (Field::Text, WireType::LengthDelimited) => {
                let text = delimited(&mut bytes)?;
                if !text.is_ascii() {
                    std::str::from_utf8(text).ok()?;
                }
                Value::Bytes(text)
            }
            (Field::Message(inner), WireType::LengthDelimited) => {
                let message = delimited(&mut bytes)?;
                // As deep as the shapes nest, which none does in itself.
                check(inner, message)?;
                Value::Bytes(message)
            }
            _ => return None,
        };
        take(number, value);
    }
    Some(())
}

fn check(shape: &Shape, bytes: &[u8]) -> Option<()> {
    walk(shape, bytes, |_, _| {})
}

/// A field's number and wire type; those of few fields are longer than two bytes.
#[inline]
fn key(bytes: &mut &[u8]) -> Option<(u32, WireType)> {
    let (key, rest) = match **bytes {
        [key, ref rest @ ..] if key < 0x80 => (u32::from(key), rest),
        [low, high, ref rest @ ..] if high < 0x80 => (u32::from(low & 0x7F) | u32::from(high) << 7, rest),
        _ => return decode_key(bytes).ok(),
    };
    let wire_type = match key & 7 {
        0 => WireType::Varint,
        2 => WireType::LengthDelimited,
        _ => return None,
    };
    *bytes = rest;
    (key >= 8).then_some((key >> 3, wire_type))
}

#[inline]
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    match **bytes {
        [small, ref rest @ ..] if small < 0x80 => {
            *bytes = rest;
            Some(u64::from(small))
        }
        [low, high, ref rest @ ..] if high < 0x80 => {
            *bytes = rest;
            Some(u64::from(low & 0x7F) | u64::from(high) << 7)
        }
        _ => decode_varint(bytes).ok(),
    }
}

#[inline]
fn delimited<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

#[cfg(test)]
mod tests;
