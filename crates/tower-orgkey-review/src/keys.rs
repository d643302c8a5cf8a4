//! The issuer's list of keys.

use std::fmt;
use std::hash::{BuildHasher as _, Hash};
use std::io::Read;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;

use crate::segment::index;
use crate::time::UnixMillis;

/// The issuer's list of keys at a time.
///
/// It is read from JSON: an object with `listed_at` (RFC 3339) and `api_keys`, or the array alone. The keys are the objects of
/// Kinde's `GET /api/v1/api_keys`, with the members `id`, `name`, `type`, `status`, `key_suffix`, `created_on`,
/// `last_verified_on` and `scopes`; and `organization_id` or `org_code`, which only the record of a single key has there. Other
/// members are ignored. If a list was read while keys were created, a key may be there twice: the last one counts.
///
/// ```
/// use tower_orgkey_review::{KeyList, UnixMillis};
///
/// let json = r#"{ "listed_at": "2026-04-01T00:00:00Z", "api_keys": [
///     { "id": "key_1", "name": "acme-prod-billing", "type": "organization", "status": "active", "key_suffix": "9x2f",
///       "created_on": "2025-11-18T13:32:03+11", "scopes": ["read:reports"], "organization_id": "org_1" } ] }"#;
/// let list = KeyList::from_json(json, UnixMillis::now()).unwrap();
/// assert_eq!(list.get(0).org.as_deref(), Some("org_1"));
/// ```
#[derive(Clone, Default)]
pub struct KeyList {
    /// When the list was read. It is the time of the review.
    pub listed_at: UnixMillis,
    keys: Vec<Packed>,
    /// The id, the name and the suffix of each key.
    texts: String,
    common: Interner<Common>,
    orgs: Interner<String>,
}

/// A key in little memory, for lists of millions.
#[derive(Clone, Copy)]
struct Packed {
    /// Where its texts begin.
    text: usize,
    id: u32,
    name: u32,
    /// Or [`NONE`].
    suffix: u32,
    common: u32,
    /// Or [`NONE`].
    org: u32,
    created_at: Option<Millis>,
    last_verified_at: Option<Millis>,
}

/// Milliseconds since 1970, and one more, so that an option needs no place.
type Millis = std::num::NonZeroU64;

const NONE: u32 = u32::MAX;

/// What many keys have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Common {
    kind: String,
    status: String,
    scopes: Vec<String>,
}

/// What the issuer says about a key. The [list](KeyList) is read from JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// The id, as in the audit trail.
    pub id: String,
    /// The name, which a tenant may have chosen.
    pub name: String,
    /// Whose key it is: `organization`, `user` or `environment`.
    pub kind: String,
    /// `active`, or another word.
    pub status: String,
    /// The last characters of the secret, which the issuer shows. They tell whether the secret was rotated.
    pub suffix: Option<String>,
    /// When the key was created.
    pub created_at: Option<UnixMillis>,
    /// When the issuer last verified the key, for any service. A cache makes it late.
    pub last_verified_at: Option<UnixMillis>,
    /// The scopes that the key has.
    pub scopes: Vec<String>,
    /// The organization, if the issuer says it. Otherwise it is known from the audit trail.
    pub org: Option<String>,
}

/// A list of keys cannot be read. Returned by [`KeyList::from_json`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyListError(String);

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    key_suffix: Option<String>,
    #[serde(default)]
    created_on: Option<String>,
    #[serde(default)]
    last_verified_on: Option<String>,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    organization_id: Option<String>,
    #[serde(default)]
    org_code: Option<String>,
}

impl KeyList {
    /// Returns a list without keys.
    pub fn new(listed_at: UnixMillis) -> Self {
        Self {
            listed_at,
            ..Self::default()
        }
    }

    /// Reads a list. `now` is its time, if it has none.
    ///
    /// A time of the issuer that is not a timestamp counts as missing.
    ///
    /// # Errors
    ///
    /// The text is not JSON, or a key has no id or a mistyped member. The message names the number of the key.
    pub fn from_json(text: &str, now: UnixMillis) -> Result<Self, KeyListError> {
        Self::read(text.as_bytes(), now)
    }

    /// Reads a list as [`from_json`](Self::from_json), without holding its text in memory. The reader should be buffered.
    ///
    /// # Errors
    ///
    /// Those of `from_json`, and what the reader returned.
    pub fn read(input: impl Read, now: UnixMillis) -> Result<Self, KeyListError> {
        let mut list = Self::new(now);
        let mut deserializer = serde_json::Deserializer::from_reader(input);
        let read = Whole(&mut list).deserialize(&mut deserializer);
        match read.and_then(|()| deserializer.end()) {
            Ok(()) => Ok(list),
            Err(error) => Err(KeyListError(match error.classify() {
                Category::Io => error.to_string(),
                Category::Syntax | Category::Eof => format!("line {}: not JSON", error.line()),
                // Without the place and the value.
                Category::Data => list.problem(&error.to_string()),
            })),
        }
    }

    /// Reads a list as [`from_json`](Self::from_json) from what is parsed already, such as a JSON value.
    ///
    /// ```
    /// use serde_json::json;
    /// use tower_orgkey_review::{KeyList, UnixMillis};
    ///
    /// let list = KeyList::from_deserializer(json!([{ "id": "key_1" }]), UnixMillis::now()).unwrap();
    /// assert_eq!(list.get(0).id, "key_1");
    /// ```
    ///
    /// # Errors
    ///
    /// A key has no id or a mistyped member. The message names the number of the key.
    pub fn from_deserializer<'de, D: Deserializer<'de>>(
        keys: D,
        now: UnixMillis,
    ) -> Result<Self, KeyListError> {
        let mut list = Self::new(now);
        match Whole(&mut list).deserialize(keys) {
            Ok(()) => Ok(list),
            Err(error) => Err(KeyListError(list.problem(&error.to_string()))),
        }
    }

    fn problem(&self, error: &str) -> String {
        let known = [LISTED_AT, API_KEYS, NO_LIST, TOO_MANY];
        let known = known.iter().find(|known| error.contains(**known));
        known.map_or_else(
            || {
                let at = self.len() + 1;
                format!("key {at} of the list has no id, or a mistyped member")
            },
            |known| (*known).to_owned(),
        )
    }

    /// Adds a key. Of several with the same id, the last one counts.
    ///
    /// # Panics
    ///
    /// If there are 4,294,967,295 keys already. A list that is read has an error instead.
    pub fn push(&mut self, key: KeyFacts) {
        assert!(has_room(self.len()), "{TOO_MANY}");
        let text = self.texts.len();
        let suffix = key.suffix.as_deref();
        for text in [&*key.id, &*key.name, suffix.unwrap_or_default()] {
            self.texts.push_str(text);
        }
        let millis = |time: UnixMillis| Millis::MIN.saturating_add(time.0);
        self.keys.push(Packed {
            text,
            id: index(key.id.len()),
            name: index(key.name.len()),
            suffix: suffix.map_or(NONE, |suffix| index(suffix.len())),
            common: self.common.intern(Common {
                kind: key.kind,
                status: key.status,
                scopes: key.scopes,
            }),
            org: key.org.map_or(NONE, |org| self.orgs.intern(org)),
            created_at: key.created_at.map(millis),
            last_verified_at: key.last_verified_at.map(millis),
        });
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns a key by its place, from 0.
    ///
    /// # Panics
    ///
    /// If there are no more keys than that.
    pub fn get(&self, at: usize) -> KeyFacts {
        let key = self.keys[at];
        let common = self.common(at);
        let rest = &self.texts[key.text + key.id as usize..];
        let (name, rest) = rest.split_at(key.name as usize);
        let time = |millis: Millis| UnixMillis(millis.get() - 1);
        KeyFacts {
            id: self.id(at).to_owned(),
            name: name.to_owned(),
            kind: common.kind.clone(),
            status: common.status.clone(),
            suffix: (key.suffix != NONE).then(|| rest[..key.suffix as usize].to_owned()),
            created_at: key.created_at.map(time),
            last_verified_at: key.last_verified_at.map(time),
            scopes: common.scopes.clone(),
            org: self.org(at).map(str::to_owned),
        }
    }

    /// Sets the organization of a key.
    ///
    /// # Panics
    ///
    /// If there is no such place.
    pub fn set_org(&mut self, at: usize, org: impl Into<String>) {
        self.keys[at].org = self.orgs.intern(org.into());
    }

    /// Returns all keys.
    ///
    /// ```
    /// use tower_orgkey_review::{KeyFacts, KeyList, UnixMillis};
    ///
    /// let mut list = KeyList::new(UnixMillis::now());
    /// list.push(KeyFacts { id: "key_1".to_owned(), ..KeyFacts::default() });
    /// assert_eq!(list.iter().next().unwrap().id, "key_1");
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = KeyFacts> {
        (0..self.keys.len()).map(|at| self.get(at))
    }

    pub(crate) fn id(&self, at: usize) -> &str {
        let key = self.keys[at];
        &self.texts[key.text..][..key.id as usize]
    }

    pub(crate) fn org(&self, at: usize) -> Option<&str> {
        let org = self.orgs.values.get(self.keys[at].org as usize)?;
        Some(org)
    }

    pub(crate) fn is_active(&self, at: usize) -> bool {
        self.status(at) == "active"
    }

    pub(crate) fn status(&self, at: usize) -> &str {
        &self.common(at).status
    }

    fn common(&self, at: usize) -> &Common {
        &self.common.values[self.keys[at].common as usize]
    }

    /// Returns the places of the keys in the order of their ids, each id once.
    pub(crate) fn by_id(&self) -> Vec<u32> {
        let mut places: Vec<u32> = (0..index(self.len())).collect();
        let id = |place: &u32| self.id(*place as usize);
        places.sort_unstable_by(|a, b| id(a).cmp(id(b)).then(b.cmp(a)));
        places.dedup_by(|earlier, later| id(earlier) == id(later));
        places
    }
}

impl PartialEq for KeyList {
    fn eq(&self, other: &Self) -> bool {
        self.listed_at == other.listed_at && self.iter().eq(other.iter())
    }
}

impl Eq for KeyList {}

impl fmt::Debug for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyList")
            .field("listed_at", &self.listed_at)
            .field("keys", &self.len())
            .finish_non_exhaustive()
    }
}

impl Extend<KeyFacts> for KeyList {
    fn extend<I: IntoIterator<Item = KeyFacts>>(&mut self, keys: I) {
        for key in keys {
            self.push(key);
        }
    }
}

/// Numbers values, each once.
#[derive(Clone)]
struct Interner<T> {
    values: Vec<T>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::default(),
        }
    }
}

impl<T: Hash + Eq> Interner<T> {
    fn intern(&mut self, value: T) -> u32 {
        let hash = self.hasher.hash_one(&value);
        let held = self
            .table
            .find(hash, |at| self.values[*at as usize] == value);
        held.copied().unwrap_or_else(|| {
            let at = index(self.values.len());
            self.values.push(value);
            let rehash = |at: &u32| self.hasher.hash_one(&self.values[*at as usize]);
            self.table.insert_unique(hash, at, rehash);
            at
        })
    }
}

/// Whether there can be another key: places are numbers of 32 bits, and one of them stands for none.
fn has_room(keys: usize) -> bool {
    index(keys) < NONE
}

const TOO_MANY: &str = "more than 4,294,967,295 keys";
const LISTED_AT: &str = "listed_at is no timestamp";
const API_KEYS: &str = "api_keys is missing or no array";
const NO_LIST: &str = "neither an object nor an array";

/// A time, or another JSON value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Text(String),
    Other(IgnoredAny),
}

/// A list with or without its time.
struct Whole<'a>(&'a mut KeyList);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NO_LIST)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, keys: A) -> Result<(), A::Error> {
        Keys(self.0).visit_seq(keys)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut has_keys = false;
        while let Some(name) = object.next_key::<String>()? {
            match name.as_str() {
                "listed_at" => {
                    let time = match object.next_value()? {
                        Time::Text(time) => time.parse().ok(),
                        Time::Other(_) => None,
                    };
                    self.0.listed_at = time.ok_or_else(|| A::Error::custom(LISTED_AT))?;
                }
                "api_keys" => {
                    has_keys = true;
                    object.next_value_seed(Keys(self.0))?;
                }
                _ => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        if has_keys {
            Ok(())
        } else {
            Err(A::Error::custom(API_KEYS))
        }
    }
}

/// The keys of a list.
struct Keys<'a>(&'a mut KeyList);

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(API_KEYS)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<(), A::Error> {
        while let Some(key) = keys.next_element::<Listed>()? {
            if key.id.is_empty() {
                return Err(A::Error::custom("no id"));
            }
            if !has_room(self.0.len()) {
                return Err(A::Error::custom(TOO_MANY));
            }
            self.0.push(key.into());
        }
        Ok(())
    }
}

impl From<Listed> for KeyFacts {
    fn from(key: Listed) -> Self {
        let time = |text: Option<String>| text?.parse().ok();
        let mut scopes = key.scopes.unwrap_or_default();
        scopes.sort_unstable();
        scopes.dedup();
        let org = key.organization_id.or(key.org_code);
        Self {
            id: key.id,
            name: key.name.unwrap_or_default(),
            kind: key.kind.unwrap_or_else(|| "organization".to_owned()),
            status: key.status.unwrap_or_else(|| "active".to_owned()),
            suffix: key.key_suffix,
            created_at: time(key.created_on),
            last_verified_at: time(key.last_verified_on),
            scopes,
            org: org.filter(|org| !org.trim().is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_keys_than_there_are_places_are_refused() {
        for (keys, expected) in [
            (0, true),
            (u32::MAX as usize - 1, true),
            (u32::MAX as usize, false),
            (u32::MAX as usize + 1, false),
        ] {
            assert_eq!(has_room(keys), expected, "{keys}");
        }
        let error = KeyList::default().problem(TOO_MANY);
        assert_eq!(error, "more than 4,294,967,295 keys");
    }
}
