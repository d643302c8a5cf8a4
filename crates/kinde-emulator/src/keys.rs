//! The keys that an emulator holds.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::SystemTime;

use super::wire::{HEX, LOWER, random};

/// What a key is to be: whose, for which API, with which scopes.
///
/// ```
/// use tower_orgkey::emulator::KeySpec;
///
/// let spec = KeySpec::organization("org_1")
///     .name("nightly export")
///     .scopes(["read:reports"])
///     .api_id("7ccd126599aa422a771abcb341596881");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeySpec {
    pub(super) kind: KeyKind,
    pub(super) name: String,
    pub(super) org_code: Option<String>,
    pub(super) user_id: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) api_id: String,
    pub(super) secret: Option<Secret>,
}

/// A secret that is given out by nobody's `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Organization,
    User,
    Environment,
}

impl KeyKind {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "organization" => Some(Self::Organization),
            "user" => Some(Self::User),
            "environment" => Some(Self::Environment),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::User => "user",
            Self::Environment => "environment",
        }
    }
}

/// The API that a key is for unless its [`KeySpec`] names another.
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

    /// A key of this organization. The code is put on the wire as it is, be it blank or malformed.
    pub fn organization(org_code: impl Into<String>) -> Self {
        Self {
            org_code: Some(org_code.into()),
            ..Self::new(KeyKind::Organization)
        }
    }

    /// A key of this user, in no organization.
    pub fn user(user_id: impl Into<String>) -> Self {
        Self {
            user_id: Some(user_id.into()),
            ..Self::new(KeyKind::User)
        }
    }

    /// A key of the environment: neither organization nor user.
    pub fn environment() -> Self {
        Self::new(KeyKind::Environment)
    }

    /// Names an organization as well: Kinde's pages show a user's key that does.
    pub fn in_organization(mut self, org_code: impl Into<String>) -> Self {
        self.org_code = Some(org_code.into());
        self
    }

    /// The key's name on the management API.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The names of the key's scopes; none unless set. They are put on the wire as they are.
    pub fn scopes<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.scopes = names.into_iter().map(Into::into).collect();
        self
    }

    /// The API that the key is issued for; [`DEFAULT_API_ID`] unless set.
    pub fn api_id(mut self, api_id: impl Into<String>) -> Self {
        self.api_id = api_id.into();
        self
    }

    /// A secret of your own choice, for a key that must be the same in every run; random unless set.
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = Some(Secret(secret.into()));
        self
    }
}

/// A key that was just issued or rotated: the only time that its secret is seen.
///
/// `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedKey {
    id: String,
    secret: Secret,
}

impl IssuedKey {
    /// `api_key_` and 32 hexadecimal digits. Stays the same over a rotation.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What a caller presents: `k_live_` and 32 characters, unless the [`KeySpec`] said otherwise.
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

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStatus {
    Active,
    Inactive,
    Revoked,
}

impl KeyStatus {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "active" => Some(Self::Active),
            "inactive" => Some(Self::Inactive),
            "revoked" => Some(Self::Revoked),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Revoked => "revoked",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) spec: KeySpec,
    pub(super) secret: Secret,
    pub(super) status: KeyStatus,
    pub(super) created_on: SystemTime,
    pub(super) last_verified_on: Option<SystemTime>,
    pub(super) last_verified_ip: Option<String>,
    pub(super) verification_count: u64,
}

/// All keys, in the order in which they were issued.
#[derive(Debug, Default)]
pub(super) struct Keys {
    by_number: BTreeMap<u64, Key>,
    by_id: HashMap<String, u64>,
    by_secret: HashMap<Secret, u64>,
    issued: u64,
}

impl Keys {
    /// Issues a key. `None` if its secret is in use already.
    pub(super) fn issue(&mut self, mut spec: KeySpec) -> Option<IssuedKey> {
        let secret = spec.secret.take().unwrap_or_else(draw_secret);
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
            created_on: SystemTime::now(),
            last_verified_on: None,
            last_verified_ip: None,
            verification_count: 0,
        };
        self.by_number.insert(number, key);
        Some(IssuedKey { id, secret })
    }

    pub(super) fn by_id(&mut self, id: &str) -> Option<&mut Key> {
        self.by_number.get_mut(self.by_id.get(id)?)
    }

    pub(super) fn by_secret(&mut self, secret: &str) -> Option<&mut Key> {
        self.by_number
            .get_mut(self.by_secret.get(&Secret(secret.to_owned()))?)
    }

    /// A new secret for the same id; the old one is unknown from now on.
    pub(super) fn rotate(&mut self, id: &str) -> Option<IssuedKey> {
        let number = *self.by_id.get(id)?;
        let key = self.by_number.get_mut(&number)?;
        let secret = draw_secret();
        self.by_secret.remove(&key.secret);
        self.by_secret.insert(secret.clone(), number);
        key.secret = secret.clone();
        Some(IssuedKey {
            id: id.to_owned(),
            secret,
        })
    }

    pub(super) fn delete(&mut self, id: &str) -> bool {
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

    /// The keys after this one, or all. `None` if there is no such key.
    pub(super) fn after(&self, id: Option<&str>) -> Option<impl Iterator<Item = &Key>> {
        let from = match id {
            Some(id) => self.by_id.get(id)? + 1,
            None => 0,
        };
        Some(self.by_number.range(from..).map(|(_, key)| key))
    }
}

fn draw_secret() -> Secret {
    Secret(format!("k_live_{}", random(LOWER, 32)))
}
