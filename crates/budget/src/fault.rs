//! What can be wrong with a value that came from outside, and where it was.
//!
//! Leaves the mapping to statuses to the callers. Faults never repeat the value itself: it may be long or secret.

use thiserror::Error;

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// A required message or enum value is missing or unknown.
    #[error("is missing or unknown")]
    Missing,
    /// Given where it has no meaning.
    #[error("must be empty here")]
    Unexpected,
    /// More characters, items or bytes than allowed.
    #[error("is longer than {max}")]
    TooLong {
        /// The most allowed.
        max: usize,
    },
    /// A character that is not allowed.
    #[error("contains a character that is not allowed")]
    Character,
    /// A scope of too many segments.
    #[error("has more than {max} segments")]
    TooDeep {
        /// The most allowed.
        max: usize,
    },
    /// A number outside its bounds.
    #[error("must be {min} to {max}")]
    OutOfRange {
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// Not the name of a meter.
    #[error("is not a meter")]
    UnknownMeter,
    /// A meter that was named before.
    #[error("names a meter twice")]
    RepeatedMeter,
    /// Recorded amounts are in the order of the meters.
    #[error("is out of order")]
    OutOfOrder,
    /// A scope of another tenant.
    #[error("lies outside the tenant")]
    OutsideTenant,
    /// Not the name of a time zone that is known.
    #[error("is not a known IANA time zone")]
    UnknownZone,
    /// Not an http or https URL.
    #[error("is not an http or https URL")]
    NotAUrl,
    /// Not above what it has to be above.
    #[error("must be later")]
    NotLater,
    /// Given twice.
    #[error("is given twice")]
    Repeated,
    /// A digest of another length.
    #[error("must be {expected} bytes long")]
    Length {
        /// Bytes wanted.
        expected: usize,
    },
    /// Not a message of this kind.
    #[error("can't be decoded")]
    Undecodable,
}

impl Fault {
    /// This fault, at `field`.
    pub fn at(self, field: impl Into<String>) -> Invalid {
        Invalid { field: field.into(), fault: self }
    }
}

/// A fault and the field that has it, such as `amounts[1].meter`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} {fault}")]
pub struct Invalid {
    /// Path of the field, in the terms of the message.
    pub field: String,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

impl Invalid {
    /// The same fault, seen from the message that contains this one.
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}
