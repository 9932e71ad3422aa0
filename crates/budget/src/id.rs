//! Names that are text: tenants, holds, subjects, idempotency keys. Each is valid once it exists, and cheap to clone.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::{fault::Fault, scope};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses it.
            pub fn parse(text: &str) -> Result<Self, Fault> {
                let check: fn(&str) -> Result<(), Fault> = $check;
                check(text)?;
                Ok(Self(text.into()))
            }

            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

text!(
    /// A tenant: the first segment of its scopes, 1 to 64 characters of `[A-Za-z0-9._-]`.
    TenantId,
    scope::check_segment
);

text!(
    /// A hold, 1 to 64 characters of `[A-Za-z0-9_-]`; drawn at random by the writer.
    HoldId,
    |text| check(text, 64, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
);

text!(
    /// Who acts or holds: an agent by its id, another caller as `<role>:<subject of its token>`. 1 to 256 characters without control
    /// characters.
    Subject,
    |text| check(text, 256, |c| !c.is_control())
);

text!(
    /// A caller's idempotency key, 1 to 128 characters without control characters.
    IdempotencyKey,
    |text| check(text, 128, |c| !c.is_control())
);

text!(
    /// A grant, unique within its tenant: 1 to 64 characters of `[A-Za-z0-9._-]`.
    GrantId,
    scope::check_segment
);

text!(
    /// An IANA time zone by its name, such as `Europe/Vienna`: 1 to 64 characters of `[A-Za-z0-9._+/-]`. Whether it exists is for
    /// [`crate::Zone::known`] to say.
    Zone,
    |text| check(text, 64, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '/' | '-'))
);

text!(
    /// Words about something, such as a reason, or another's name for it: 1 to 256 characters without control characters.
    Label,
    |text| check(text, 256, |c| !c.is_control())
);

text!(
    /// Where thresholds are reported: an http or https URL of up to 2048 characters.
    WebhookUrl,
    |text| {
        check(text, 2048, |c| c.is_ascii_graphic())?;
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        if rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')) {
            Ok(())
        } else {
            Err(Fault::NotAUrl)
        }
    }
);

impl Label {
    /// Nothing for no text.
    pub fn optional(text: &str) -> Result<Option<Self>, Fault> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }
}

impl Subject {
    /// The writer itself, as the actor of what no caller asked for.
    pub fn metering() -> Self {
        Self("metering".into())
    }
}

fn check(text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    // Bytes first, so that counting characters is bounded.
    if text.len() > max * 4 || text.chars().count() > max {
        return Err(Fault::TooLong { max });
    }
    if !text.chars().all(allowed) {
        return Err(Fault::Character);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_length_and_alphabet() {
        let long = "x".repeat(65);
        for (text, want) in [
            ("", Some(Fault::Empty)),
            ("0198-ab_Z", None),
            (&long[..64], None),
            (&long, Some(Fault::TooLong { max: 64 })),
            ("a/b", Some(Fault::Character)),
            ("é", Some(Fault::Character)),
        ] {
            assert_eq!(HoldId::parse(text).err(), want, "{text:?}");
        }
        assert_eq!(IdempotencyKey::parse(&"é".repeat(128)).err(), None);
        assert_eq!(IdempotencyKey::parse(&"é".repeat(129)).err(), Some(Fault::TooLong { max: 128 }));
        assert_eq!(IdempotencyKey::parse("a\nb").err(), Some(Fault::Character));
        assert_eq!(Subject::parse(Subject::metering().as_str()), Ok(Subject::metering()));
        assert_eq!(TenantId::parse("a/b").err(), Some(Fault::Character));
        for (url, want) in [
            ("https://hooks.example/x?y=z", None),
            ("http://[::1]:8080/", None),
            ("ftp://x", Some(Fault::NotAUrl)),
            ("https://", Some(Fault::NotAUrl)),
            ("https:///x", Some(Fault::NotAUrl)),
            ("https://x\r\ny", Some(Fault::Character)),
        ] {
            assert_eq!(WebhookUrl::parse(url).err(), want, "{url:?}");
        }
    }
}
