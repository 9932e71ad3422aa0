//! Scope paths, from the tenant down: `acme/skills/python`. A path encloses itself and all that begin with it and a slash.

use std::{borrow::Borrow, fmt, iter, sync::Arc};

use crate::{fault::Fault, id::TenantId};

/// Segments that a path has at most.
pub const MAX_SEGMENTS: usize = 6;
const MAX_SEGMENT_LEN: usize = 64;

/// A scope: 1 to 6 segments of `[A-Za-z0-9._-]{1,64}`, joined by `/`. Ordered as text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopePath(Arc<str>);

impl ScopePath {
    /// Parses a path.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Err(Fault::Empty);
        }
        let max = MAX_SEGMENTS * (MAX_SEGMENT_LEN + 1) - 1;
        if text.len() > max {
            return Err(Fault::TooLong { max });
        }
        if text.split('/').count() > MAX_SEGMENTS {
            return Err(Fault::TooDeep { max: MAX_SEGMENTS });
        }
        text.split('/').try_for_each(check_segment)?;
        Ok(Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment.
    pub fn tenant(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The first segment, as a tenant.
    pub fn tenant_id(&self) -> TenantId {
        TenantId::parse(self.tenant()).expect("a segment names a tenant")
    }

    /// Every scope that encloses this one, from the tenant's to itself.
    pub fn enclosing(&self) -> impl Iterator<Item = &str> {
        let text = &*self.0;
        text.match_indices('/').map(move |(at, _)| &text[..at]).chain(iter::once(text))
    }

    /// Whether `other` is this scope or lies below it.
    pub fn encloses(&self, other: &Self) -> bool {
        let rest = other.0.strip_prefix(&*self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// A path that [`Self::enclosing`] named, which is valid because the whole is.
    pub(crate) fn of_enclosing(&self, name: &str) -> Self {
        if name.len() == self.0.len() { self.clone() } else { Self(name.into()) }
    }
}

impl Borrow<str> for ScopePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ScopePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ScopePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

pub(crate) fn check_segment(segment: &str) -> Result<(), Fault> {
    if segment.is_empty() {
        return Err(Fault::Empty);
    }
    if segment.len() > MAX_SEGMENT_LEN {
        return Err(Fault::TooLong { max: MAX_SEGMENT_LEN });
    }
    if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err(Fault::Character);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_to_six_plain_segments() {
        let longest = vec!["s".repeat(64); 6].join("/");
        let segment = "s".repeat(65);
        for (text, want) in [
            ("acme", None),
            ("acme/skills/py-3.12_x", None),
            ("a/b/c/d/e/f", None),
            (longest.as_str(), None),
            ("", Some(Fault::Empty)),
            ("/a", Some(Fault::Empty)),
            ("a/", Some(Fault::Empty)),
            ("a//b", Some(Fault::Empty)),
            ("a/b/c/d/e/f/g", Some(Fault::TooDeep { max: 6 })),
            (segment.as_str(), Some(Fault::TooLong { max: 64 })),
            ("a b", Some(Fault::Character)),
            ("a/é", Some(Fault::Character)),
        ] {
            assert_eq!(ScopePath::parse(text).err(), want, "{text:?}");
        }
        assert_eq!(ScopePath::parse(&"a".repeat(390)).err(), Some(Fault::TooLong { max: 389 }));
    }

    #[test]
    fn a_path_is_enclosed_from_its_tenant_to_itself() {
        let path = ScopePath::parse("acme/skills/python").unwrap();
        assert_eq!(path.tenant(), "acme");
        assert_eq!(path.enclosing().collect::<Vec<_>>(), ["acme", "acme/skills", "acme/skills/python"]);
        let root = ScopePath::parse("acme").unwrap();
        let beside = ScopePath::parse("acme/skills-x").unwrap();
        assert!(root.encloses(&path) && path.encloses(&path) && !path.encloses(&root));
        assert!(!ScopePath::parse("acme/skills").unwrap().encloses(&beside));
        assert_eq!(root.enclosing().collect::<Vec<_>>(), ["acme"]);
    }
}
