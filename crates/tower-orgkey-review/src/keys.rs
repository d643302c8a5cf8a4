//! The issuer's list of keys.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
/// assert_eq!(list.keys[0].org.as_deref(), Some("org_1"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyList {
    /// When the list was read. It is the time of the review.
    pub listed_at: UnixMillis,
    /// The keys.
    pub keys: Vec<KeyFacts>,
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

impl KeyFacts {
    pub(crate) fn is_active(&self) -> bool {
        self.status == "active"
    }
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
    /// Reads a list. `now` is its time, if it has none.
    ///
    /// A time of the issuer that is not a timestamp counts as missing.
    ///
    /// # Errors
    ///
    /// The text is not JSON, or a key has no id or a mistyped member. The message names the number of the key.
    pub fn from_json(text: &str, now: UnixMillis) -> Result<Self, KeyListError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| KeyListError(format!("line {}: not JSON", error.line())))?;
        let (listed_at, keys) = match value {
            Value::Array(keys) => (now, keys),
            Value::Object(mut object) => {
                let listed_at = match object.get("listed_at") {
                    None => now,
                    Some(time) => time
                        .as_str()
                        .and_then(|time| time.parse().ok())
                        .ok_or_else(|| KeyListError("listed_at is no timestamp".to_owned()))?,
                };
                match object.remove("api_keys") {
                    Some(Value::Array(keys)) => (listed_at, keys),
                    _ => return Err(KeyListError("api_keys is missing or no array".to_owned())),
                }
            }
            _ => return Err(KeyListError("neither an object nor an array".to_owned())),
        };
        let keys = keys.into_iter().enumerate().map(|(at, key)| {
            Self::key(key).ok_or_else(|| {
                let at = at + 1;
                KeyListError(format!(
                    "key {at} of the list has no id, or a mistyped member"
                ))
            })
        });
        let mut keys: Vec<KeyFacts> = keys.collect::<Result<_, _>>()?;
        // The last of several that are equal.
        keys.reverse();
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        keys.dedup_by(|later, earlier| later.id == earlier.id);
        Ok(Self { listed_at, keys })
    }

    fn key(value: Value) -> Option<KeyFacts> {
        let key: Listed = serde_json::from_value(value).ok()?;
        let time = |text: Option<String>| text?.parse().ok();
        let mut scopes = key.scopes.unwrap_or_default();
        scopes.sort_unstable();
        scopes.dedup();
        let org = key.organization_id.or(key.org_code);
        (!key.id.is_empty()).then(|| KeyFacts {
            id: key.id,
            name: key.name.unwrap_or_default(),
            kind: key.kind.unwrap_or_else(|| "organization".to_owned()),
            status: key.status.unwrap_or_else(|| "active".to_owned()),
            suffix: key.key_suffix,
            created_at: time(key.created_on),
            last_verified_at: time(key.last_verified_on),
            scopes,
            org: org.filter(|org| !org.trim().is_empty()),
        })
    }
}
