//! The encoding of what is sealed. It is decoded only after it was opened, and rejected as a whole if a part is out of bounds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tower_orgkey::fleet::{Facts, KeyDigest, Position, Subject};
use tower_orgkey::scope::Scope;
use tower_orgkey::{KeyId, OrgCode, Scopes};

/// The longest user id that is shared, in bytes.
const MAX_USER_LEN: usize = 1024;
/// The maximum number of scopes of a key.
const MAX_SCOPES: usize = 1_000;
/// The maximum number of blocks that one update ends.
pub(crate) const MAX_UNBLOCKED: usize = 256;
/// The longest name of a node, in bytes.
pub(crate) const MAX_NODE_NAME_LEN: usize = 64;

/// 128 random bits: an epoch, an update, or a node from its start to its end.
pub(crate) type Id = [u8; 16];

/// A verification result, and when and after which updates the issuer was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredResult {
    pub(crate) began: Position,
    /// When the call was sent, by the wall clock of the node that sent it, in milliseconds after 1970.
    pub(crate) sent_at: u64,
    pub(crate) result: Facts,
}

/// An update in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    /// Also the id of the block, if it is one.
    pub(crate) id: Id,
    /// The node that sent it.
    pub(crate) origin: Id,
    /// Whether the node waits for acknowledgements.
    pub(crate) wants_acks: bool,
    pub(crate) change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Invalidate(Subject),
    InvalidateAll,
    Block(Subject),
    /// Ends these blocks of the subject, and no later ones.
    Unblock(Subject, Vec<Id>),
}

/// What a node says about itself every second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub(crate) incarnation: Id,
    pub(crate) name: String,
    /// Grows with each record of the node, whatever its clock does.
    pub(crate) count: u64,
    /// The wall clock, in milliseconds after 1970.
    pub(crate) wall: u64,
    /// How many updates it has applied.
    pub(crate) applied: Position,
    /// Whether it leaves.
    pub(crate) leaves: bool,
}

/// A node has applied an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    pub(crate) update: Id,
    pub(crate) incarnation: Id,
    pub(crate) name: String,
}

/// A value with an encoding.
pub(crate) trait Wire: Sized {
    fn write(&self, to: &mut Writer);

    fn read(from: &mut Reader<'_>) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(128));
        self.write(&mut writer);
        writer.0
    }

    /// `None` if a part is out of bounds or something follows.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let value = Self::read(&mut reader)?;
        reader.0.is_empty().then_some(value)
    }
}

#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn len(&mut self, len: usize) {
        // Whatever is longer is too long to be sealed.
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        self.0.extend(len.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.len(text.len());
        self.0.extend(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn position(&mut self, position: Position) {
        self.0.extend(position.epoch);
        self.u64(position.number);
    }
}

#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn len(&mut self, max: usize) -> Option<usize> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        (len <= max).then_some(len)
    }

    fn text(&mut self, max: usize) -> Option<&'a str> {
        let len = self.len(max)?;
        std::str::from_utf8(self.take(len)?).ok()
    }

    #[expect(clippy::option_option, reason = "the outer one is an error")]
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.bool()? {
            Some(Some(read(self)?))
        } else {
            Some(None)
        }
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position {
            epoch: self.array()?,
            number: self.u64()?,
        })
    }

    fn org(&mut self) -> Option<OrgCode> {
        OrgCode::new(self.text(255)?).ok()
    }

    fn key_id(&mut self) -> Option<KeyId> {
        KeyId::new(self.text(255)?).ok()
    }
}

impl Wire for StoredResult {
    fn write(&self, to: &mut Writer) {
        let result = &self.result;
        to.position(self.began);
        to.u64(self.sent_at);
        to.option(result.org.as_ref(), |to, org| to.text(org.as_str()));
        to.option(result.user(), Writer::text);
        to.option(result.key_id.as_ref(), |to, id| to.text(id.as_str()));
        to.len(result.scopes.len());
        for scope in &result.scopes {
            to.text(scope.as_str());
        }
        to.option(result.expires_at.as_deref(), |to, at| {
            // An expiry before 1970 is as much past as one in 1970.
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            to.u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        });
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let (began, sent_at) = (from.position()?, from.u64()?);
        let org = from.option(Reader::org)?;
        let user = from.option(|from| from.text(MAX_USER_LEN).map(Box::from))?;
        let key_id = from.option(Reader::key_id)?;
        let scopes = from.len(MAX_SCOPES)?;
        let scopes = (0..scopes)
            .map(|_| Scope::new(from.text(256)?).ok())
            .collect::<Option<Scopes>>()?;
        let expires_at = from.option(|from| {
            let since = Duration::from_millis(from.u64()?);
            SystemTime::checked_add(&UNIX_EPOCH, since)
        })?;
        Some(Self {
            began,
            sent_at,
            result: Facts {
                org,
                user: user.map(Box::new),
                key_id,
                scopes,
                expires_at: expires_at.map(Box::new),
            },
        })
    }
}

impl Wire for Subject {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Key(key) => {
                to.u8(0);
                to.0.extend(key.to_bytes());
            }
            Self::KeyId(id) => {
                to.u8(1);
                to.text(id.as_str());
            }
            Self::Org(org) => {
                to.u8(2);
                to.text(org.as_str());
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(match from.u8()? {
            0 => Self::Key(KeyDigest::from_bytes(from.array()?)),
            1 => Self::KeyId(from.key_id()?),
            2 => Self::Org(from.org()?),
            _ => return None,
        })
    }
}

impl Wire for LogEntry {
    fn write(&self, to: &mut Writer) {
        to.0.extend(self.id);
        to.0.extend(self.origin);
        to.u8(u8::from(self.wants_acks));
        match &self.change {
            Change::Invalidate(subject) => {
                to.u8(0);
                subject.write(to);
            }
            Change::InvalidateAll => to.u8(1),
            Change::Block(subject) => {
                to.u8(2);
                subject.write(to);
            }
            Change::Unblock(subject, ids) => {
                to.u8(3);
                subject.write(to);
                to.len(ids.len());
                for id in ids {
                    to.0.extend(id);
                }
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            id: from.array()?,
            origin: from.array()?,
            wants_acks: from.bool()?,
            change: match from.u8()? {
                0 => Change::Invalidate(Subject::read(from)?),
                1 => Change::InvalidateAll,
                2 => Change::Block(Subject::read(from)?),
                3 => {
                    let subject = Subject::read(from)?;
                    let ids = from.len(MAX_UNBLOCKED)?;
                    let ids = (0..ids).map(|_| from.array()).collect::<Option<_>>()?;
                    Change::Unblock(subject, ids)
                }
                _ => return None,
            },
        })
    }
}

impl Wire for NodeRecord {
    fn write(&self, to: &mut Writer) {
        to.0.extend(self.incarnation);
        to.text(&self.name);
        to.u64(self.count);
        to.u64(self.wall);
        to.position(self.applied);
        to.u8(u8::from(self.leaves));
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            incarnation: from.array()?,
            name: from.text(MAX_NODE_NAME_LEN)?.to_owned(),
            count: from.u64()?,
            wall: from.u64()?,
            applied: from.position()?,
            leaves: from.bool()?,
        })
    }
}

impl Wire for Acknowledgement {
    fn write(&self, to: &mut Writer) {
        to.0.extend(self.update);
        to.0.extend(self.incarnation);
        to.text(&self.name);
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            update: from.array()?,
            incarnation: from.array()?,
            name: from.text(MAX_NODE_NAME_LEN)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POSITION: Position = Position {
        epoch: [3; 16],
        number: 7,
    };

    fn stored() -> StoredResult {
        StoredResult {
            began: POSITION,
            sent_at: 1_800_000_000_000,
            result: Facts {
                org: Some(OrgCode::from_static("org_1")),
                user: Some(Box::new("kp_1".into())),
                key_id: Some(KeyId::from_static("id_1")),
                scopes: Scopes::from_names(["read:a", "write:a"]),
                expires_at: Some(Box::new(UNIX_EPOCH + Duration::from_secs(1_900_000_000))),
            },
        }
    }

    /// Encodes and decodes a value, and checks that no part of the encoding and no longer one decodes.
    fn returns<T: Wire + PartialEq + std::fmt::Debug>(value: &T) {
        let bytes = value.encode();
        assert_eq!(T::decode(&bytes).as_ref(), Some(value));
        for len in 0..bytes.len() {
            assert_eq!(T::decode(&bytes[..len]), None, "{len} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(T::decode(&longer), None);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        returns(&stored());
        let bare = StoredResult {
            result: Facts::default(),
            ..stored()
        };
        returns(&bare);
        let subjects = [
            Subject::Key(KeyDigest::from_bytes([1; 16])),
            Subject::KeyId(KeyId::from_static("id_1")),
            Subject::Org(OrgCode::from_static("org_1")),
        ];
        let mut changes = vec![Change::InvalidateAll];
        for subject in subjects {
            changes.push(Change::Invalidate(subject.clone()));
            changes.push(Change::Block(subject.clone()));
            changes.push(Change::Unblock(subject, vec![[4; 16], [5; 16]]));
        }
        for change in changes {
            returns(&LogEntry {
                id: [1; 16],
                origin: [2; 16],
                wants_acks: true,
                change,
            });
        }
        returns(&NodeRecord {
            incarnation: [1; 16],
            name: "node".to_owned(),
            count: 4,
            wall: 3,
            applied: POSITION,
            leaves: false,
        });
        returns(&Acknowledgement {
            update: [1; 16],
            incarnation: [2; 16],
            name: "node".to_owned(),
        });
    }

    #[test]
    fn too_long_parts_are_rejected() {
        let long = StoredResult {
            result: Facts {
                user: Some(Box::new("u".repeat(MAX_USER_LEN + 1).into())),
                ..Facts::default()
            },
            ..stored()
        };
        assert_eq!(StoredResult::decode(&long.encode()), None);
        let change = Change::Unblock(
            Subject::Org(OrgCode::from_static("org_1")),
            vec![[0; 16]; MAX_UNBLOCKED + 1],
        );
        let entry = LogEntry {
            id: [1; 16],
            origin: [2; 16],
            wants_acks: false,
            change,
        };
        assert_eq!(LogEntry::decode(&entry.encode()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzzing::decode(&bytes);
        }
    }
}
