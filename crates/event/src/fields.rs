//! The fields of an encoded message, read off its bytes without decoding the message: for what is looked at once for every event.
//!
//! Left out: nested messages, which are handed over as their bytes. Invariant: whatever the generated decoder accepts is read here as
//! it reads it: unknown fields are passed over, and of a repeated field the last one counts if the caller lets it.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Bytes(_) => None,
        }
    }

    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Number(_) => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }

    pub(crate) fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// Hands each varint and each length-delimited field to `take`, with its number, in the order of the bytes. `None` if the bytes are no
/// message or `take` says so.
pub(crate) fn each<'a>(
    mut bytes: &'a [u8],
    mut take: impl FnMut(u32, Value<'a>) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        match wire_type {
            WireType::Varint => take(number, Value::Number(decode_varint(&mut bytes).ok()?))?,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                take(number, Value::Bytes(value))?;
            }
            other => skip_field(other, number, &mut bytes, DecodeContext::default()).ok()?,
        }
    }
    Some(())
}

/// The last of the length-delimited fields of this number; empty if there is none.
pub(crate) fn bytes_field(bytes: &[u8], wanted: u32) -> Option<&[u8]> {
    let mut found: &[u8] = &[];
    each(bytes, |number, value| {
        if number == wanted {
            found = value.bytes()?;
        }
        Some(())
    })?;
    Some(found)
}

/// The same for a string.
pub(crate) fn text_field(bytes: &[u8], wanted: u32) -> Option<&str> {
    std::str::from_utf8(bytes_field(bytes, wanted)?).ok()
}

/// The last of the varints of this number; 0 if there is none.
pub(crate) fn number_field(bytes: &[u8], wanted: u32) -> Option<u64> {
    let mut found = 0;
    each(bytes, |number, value| {
        if number == wanted {
            found = value.number()?;
        }
        Some(())
    })?;
    Some(found)
}
