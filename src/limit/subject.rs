//! The subject of a limit: an organization or a key.

use papaya::Equivalent;

use crate::context::OrgContext;
use crate::identifier::{KeyId, OrgCode};
use crate::key::KeyDigest;

/// The kind of subject of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Per {
    Organization,
    Key,
}

/// An organization, or one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject<Org = OrgCode, Id = KeyId> {
    pub(super) org: Org,
    key: Option<Key<Id>>,
}

/// A key by its id, which a rotation does not change, or by its digest if the issuer provides no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key<Id> {
    Id(Id),
    Digest(KeyDigest),
}

/// A borrowed [`Subject`]. It costs no reference count, and has the same hash.
pub(super) type SubjectRef<'a> = Subject<&'a OrgCode, &'a KeyId>;

impl<'a> SubjectRef<'a> {
    pub(super) fn new(context: &'a OrgContext, per: Per) -> Self {
        let key = match per {
            Per::Organization => None,
            Per::Key => Some(match context.key_id() {
                Some(id) => Key::Id(id),
                None => Key::Digest(context.key_digest()),
            }),
        };
        Self {
            org: context.org_code(),
            key,
        }
    }

    pub(super) fn to_subject(self) -> Subject {
        let key = self.key.map(|key| match key {
            Key::Id(id) => Key::Id(id.clone()),
            Key::Digest(digest) => Key::Digest(digest),
        });
        Subject {
            org: self.org.clone(),
            key,
        }
    }
}

impl Equivalent<Subject> for SubjectRef<'_> {
    fn equivalent(&self, other: &Subject) -> bool {
        let key = other.key.as_ref().map(|key| match key {
            Key::Id(id) => Key::Id(id),
            Key::Digest(digest) => Key::Digest(*digest),
        });
        *self.org == other.org && self.key == key
    }
}
