use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::encoding::{HEX, LOWER, random};

/// Describes a key to be issued by [`KindeEmulator::issue_key`](crate::KindeEmulator::issue_key).
///
/// ```
/// use kinde_emulator::KeySpec;
///
/// let spec = KeySpec::organization("org_1")
///     .name("nightly export")
///     .scopes(["read:reports"])
///     .api_id("7ccd126599aa422a771abcb341596881");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeySpec {
    pub(crate) kind: KeyKind,
    pub(crate) name: String,
    pub(crate) org_code: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) api_id: String,
    pub(crate) secret: Option<Secret>,
}

/// A secret that `Debug` redacts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Organization,
    User,
    Environment,
}

impl KeyKind {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "organization" => Some(Self::Organization),
            "user" => Some(Self::User),
            "environment" => Some(Self::Environment),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::User => "user",
            Self::Environment => "environment",
        }
    }
}

/// The API of a key whose [`KeySpec`] sets none.
pub const DEFAULT_API_ID: &str = "00000000000000000000000000000001";

impl KeySpec {
    fn new(kind: KeyKind) -> Self {
        Self {
            kind,
            name: format!("{} key", kind.as_str()),
            org_code: None,
            user_id: None,
            scopes: Vec::new(),
            api_id: DEFAULT_API_ID.to_owned(),
            secret: None,
        }
    }

    /// Describes a key of this organization. The code is sent as given, even if it is blank or malformed.
    pub fn organization(org_code: impl Into<String>) -> Self {
        Self {
            org_code: Some(org_code.into()),
            ..Self::new(KeyKind::Organization)
        }
    }

    /// Describes a key of this user, without an organization.
    pub fn user(user_id: impl Into<String>) -> Self {
        Self {
            user_id: Some(user_id.into()),
            ..Self::new(KeyKind::User)
        }
    }

    /// Describes a key of the environment, without an organization or user.
    pub fn environment() -> Self {
        Self::new(KeyKind::Environment)
    }

    /// Sets the organization of a user's key. Kinde's documentation shows a user's key with one.
    pub fn in_organization(mut self, org_code: impl Into<String>) -> Self {
        self.org_code = Some(org_code.into());
        self
    }

    /// Sets the name, which only the management API shows.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the names of the scopes; none by default. They are sent as given.
    pub fn scopes<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.scopes = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the API that the key is issued for; [`DEFAULT_API_ID`] by default.
    pub fn api_id(mut self, api_id: impl Into<String>) -> Self {
        self.api_id = api_id.into();
        self
    }

    /// Sets the secret; random by default.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(Secret(secret.into()));
        self
    }
}

/// The id and secret of an issued or rotated key. `Debug` redacts the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedKey {
    id: String,
    secret: Secret,
}

impl IssuedKey {
    /// Returns the id: `api_key_` and 32 hexadecimal digits. A rotation keeps it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the secret that callers present: `k_live_` and 32 characters, unless the [`KeySpec`] sets another.
    pub fn secret(&self) -> &str {
        &self.secret.0
    }
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyStatus {
    Active,
    Inactive,
    Revoked,
}

impl KeyStatus {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "active" => Some(Self::Active),
            "inactive" => Some(Self::Inactive),
            "revoked" => Some(Self::Revoked),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Revoked => "revoked",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) spec: KeySpec,
    pub(crate) secret: Secret,
    pub(crate) status: KeyStatus,
    pub(crate) created_on: SystemTime,
    pub(crate) last_verified_on: Option<SystemTime>,
    pub(crate) last_verified_ip: Option<String>,
    pub(crate) verification_count: u64,
}

/// All keys, in the order they were issued.
#[derive(Debug)]
pub(crate) struct Keys {
    clock: Clock,
    by_number: BTreeMap<u64, Key>,
    by_id: HashMap<String, u64>,
    by_secret: HashMap<Secret, u64>,
    issued: u64,
}

impl Keys {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            by_number: BTreeMap::new(),
            by_id: HashMap::new(),
            by_secret: HashMap::new(),
            issued: 0,
        }
    }

    /// Issues a key. Returns `None` if another key has its secret.
    pub(crate) fn issue(&mut self, mut spec: KeySpec) -> Option<IssuedKey> {
        let secret = spec.secret.take().unwrap_or_else(random_secret);
        if self.by_secret.contains_key(&secret) {
            return None;
        }
        let number = self.issued;
        self.issued += 1;
        let id = format!("api_key_{}", random(HEX, 32));
        self.by_id.insert(id.clone(), number);
        self.by_secret.insert(secret.clone(), number);
        let key = Key {
            id: id.clone(),
            spec,
            secret: secret.clone(),
            status: KeyStatus::Active,
            created_on: self.clock.now(),
            last_verified_on: None,
            last_verified_ip: None,
            verification_count: 0,
        };
        self.by_number.insert(number, key);
        Some(IssuedKey { id, secret })
    }

    pub(crate) fn by_id(&mut self, id: &str) -> Option<&mut Key> {
        self.by_number.get_mut(self.by_id.get(id)?)
    }

    pub(crate) fn by_secret(&mut self, secret: &str) -> Option<&mut Key> {
        self.by_number
            .get_mut(self.by_secret.get(&Secret(secret.to_owned()))?)
    }

    /// Replaces the secret of a key. The previous secret becomes unknown.
    pub(crate) fn rotate(&mut self, id: &str) -> Option<IssuedKey> {
        let number = *self.by_id.get(id)?;
        let key = self.by_number.get_mut(&number)?;
        let secret = random_secret();
        self.by_secret.remove(&key.secret);
        self.by_secret.insert(secret.clone(), number);
        key.secret = secret.clone();
        Some(IssuedKey {
            id: id.to_owned(),
            secret,
        })
    }

    pub(crate) fn delete(&mut self, id: &str) -> bool {
        let Some(key) = self
            .by_id
            .remove(id)
            .and_then(|number| self.by_number.remove(&number))
        else {
            return false;
        };
        self.by_secret.remove(&key.secret);
        true
    }

    /// Returns the keys issued after this one, or all keys. Returns `None` if the id is unknown.
    pub(crate) fn after(&self, id: Option<&str>) -> Option<impl Iterator<Item = &Key>> {
        let from = match id {
            Some(id) => self.by_id.get(id)? + 1,
            None => 0,
        };
        Some(self.by_number.range(from..).map(|(_, key)| key))
    }
}

fn random_secret() -> Secret {
    Secret(format!("k_live_{}", random(LOWER, 32)))
}
