//! The subject of a limit: an organization or a key.

use std::hash::{Hash, Hasher};

use http::Extensions;
use papaya::Equivalent;

use crate::context::OrgContext;
use crate::identifier::{KeyId, OrgCode};
use crate::key::KeyDigest;
use crate::rejection::Rejection;

/// The kind of subject of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Per {
    Organization,
    Key,
}

/// An organization, or one of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) org: OrgCode,
    key: Option<Key>,
}

/// A key by its id, which a rotation does not change, or by its digest if the issuer provides no id.
#[derive(Clone, PartialEq, Eq)]
enum Key {
    Id(KeyId),
    Digest(KeyDigest),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => f.debug_tuple("Id").field(id).finish(),
            // A digest is never shown.
            Self::Digest(_) => f.debug_tuple("Digest").finish(),
        }
    }
}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.key {
            None => hash(&self.org, None, state),
            Some(Key::Id(id)) => hash(&self.org, Some(&KeyRef::Id(id)), state),
            Some(Key::Digest(digest)) => hash(&self.org, Some(&KeyRef::Digest(*digest)), state),
        }
    }
}

/// [`Subject`] and [`SubjectRef`] must have the same hash.
#[inline]
fn hash<H: Hasher>(org: &OrgCode, key: Option<&KeyRef<'_>>, state: &mut H) {
    org.hash(state);
    match key {
        None => {}
        Some(KeyRef::Id(id)) => id.hash(state),
        Some(KeyRef::Digest(digest)) => digest.low().hash(state),
    }
}

/// A borrowed [`Subject`]. It costs no reference count.
#[derive(Clone, Copy)]
pub(super) struct SubjectRef<'a> {
    pub(super) org: &'a OrgCode,
    key: Option<KeyRef<'a>>,
}

#[derive(Clone, Copy)]
enum KeyRef<'a> {
    Id(&'a KeyId),
    Digest(KeyDigest),
}

impl<'a> SubjectRef<'a> {
    pub(super) fn new(context: &'a OrgContext, per: Per) -> Self {
        let key = match per {
            Per::Organization => None,
            Per::Key => Some(match context.key_id() {
                Some(id) => KeyRef::Id(id),
                None => KeyRef::Digest(context.key_digest()),
            }),
        };
        Self {
            org: context.org_code(),
            key,
        }
    }

    pub(super) fn to_subject(self) -> Subject {
        let key = self.key.map(|key| match key {
            KeyRef::Id(id) => Key::Id(id.clone()),
            KeyRef::Digest(digest) => Key::Digest(digest),
        });
        Subject {
            org: self.org.clone(),
            key,
        }
    }
}

impl Hash for SubjectRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.org, self.key.as_ref(), state);
    }
}

impl Equivalent<Subject> for SubjectRef<'_> {
    fn equivalent(&self, other: &Subject) -> bool {
        let is_same_key = match (&self.key, &other.key) {
            (None, None) => true,
            (Some(KeyRef::Id(id)), Some(Key::Id(other))) => *id == other,
            (Some(KeyRef::Digest(digest)), Some(Key::Digest(other))) => digest == other,
            _ => false,
        };
        is_same_key && *self.org == other.org
    }
}

/// Returns the context of a request, or `None` if `ApiKeyLayer` let it pass without a key. Without the layer, the request is
/// rejected.
#[inline]
pub(super) fn caller<'a>(
    extensions: &'a Extensions,
    layer: &'static str,
) -> Result<Option<&'a OrgContext>, Rejection> {
    OrgContext::optional_in_layer(extensions, layer)
}
