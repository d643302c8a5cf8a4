use serde_json::{Value, json};

use crate::encoding::{HEX, random, timestamp};
use crate::keys::{Key, KeyStatus};
use crate::reply::Reply;

/// The reply to verify for an invalid key. Kinde does not publish it, so a client must handle all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidKeyReply {
    /// 200 with `"is_valid": false` and no other member.
    #[default]
    IsValidFalse,
    /// 200 with `"is_valid": false` and all other members null.
    IsValidFalseWithNulls,
    /// 200 with `"is_valid": true`, all members set, and a `status` other than `active`.
    NotActive,
    /// 400 with `errors` as an array.
    BadRequest,
    /// 401 with `errors` as an array: the same status as for a rejected token.
    Unauthorized,
    /// 404 with `errors` as an object and the code `ROUTE_NOT_FOUND`: the same as for an unknown path.
    RouteNotFound,
    /// 404 with `errors` as an object and another code.
    KeyNotFound,
}

impl InvalidKeyReply {
    /// All replies.
    pub const ALL: [Self; 7] = [
        Self::IsValidFalse,
        Self::IsValidFalseWithNulls,
        Self::NotActive,
        Self::BadRequest,
        Self::Unauthorized,
        Self::RouteNotFound,
        Self::KeyNotFound,
    ];
}

/// The body of the reply to verify for a valid key.
pub(crate) fn verified(key: &Key) -> Value {
    json!({
        "code": "API_KEY_VERIFIED",
        "message": "API key verified",
        "is_valid": true,
        "key_id": key.id,
        "status": key.status.as_str(),
        "scopes": key.spec.scopes,
        "org_code": key.spec.org_code,
        "user_id": key.spec.user_id,
        "last_verified_on": key.last_verified_on.map(timestamp),
        "verification_count": key.verification_count,
    })
}

/// The reply to verify for a valid key. Kinde's contract lists ten fields, all of them optional; the example in its guide has
/// five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ValidKeyReply {
    /// 200 with every field of the contract.
    #[default]
    AllFields,
    /// 200 as the example in Kinde's guide: `code`, `message`, `scopes`, `org_code` and the example's `last_verified_on`. For a
    /// key of `org_abc123` with the scopes `read:users` and `write:users`, it is the example byte for byte.
    GuideExample,
}

/// Returns the example in Kinde's guide, with the scopes and the organization of this key.
pub(crate) fn guide_example(key: &Key) -> Reply {
    let scopes = key.spec.scopes.iter();
    let scopes: Vec<_> = scopes.map(|name| json!(name).to_string()).collect();
    let body = format!(
        r#"{{ "code": "API_KEY_VERIFIED", "message": "API key verified", "scopes": [{}],
  "org_code": {}, "last_verified_on": "2024-11-18T13:32:03+11" }}"#,
        scopes.join(", "),
        json!(key.spec.org_code)
    );
    Reply {
        status: 200,
        body,
        no_store: false,
    }
}

/// Returns the reply to verify for an invalid key, known or not.
pub(crate) fn invalid(how: InvalidKeyReply, key: Option<&Key>) -> Reply {
    match how {
        InvalidKeyReply::IsValidFalse => Reply::json(200, &json!({ "is_valid": false })),
        InvalidKeyReply::IsValidFalseWithNulls => Reply::json(
            200,
            &json!({
                "code": null,
                "message": null,
                "is_valid": false,
                "key_id": null,
                "status": null,
                "scopes": null,
                "org_code": null,
                "user_id": null,
                "last_verified_on": null,
                "verification_count": null,
            }),
        ),
        InvalidKeyReply::NotActive => Reply::json(
            200,
            &key.map_or_else(
                || {
                    json!({
                        "code": "API_KEY_VERIFIED",
                        "message": "API key verified",
                        "is_valid": true,
                        "key_id": format!("api_key_{}", random(HEX, 32)),
                        "status": KeyStatus::Revoked.as_str(),
                        "scopes": [],
                        "org_code": "org_of_a_revoked_key",
                        "user_id": null,
                        "last_verified_on": null,
                        "verification_count": 0,
                    })
                },
                verified,
            ),
        ),
        InvalidKeyReply::BadRequest => {
            Reply::error(400, "BAD_REQUEST", "The API key could not be verified")
        }
        InvalidKeyReply::Unauthorized => {
            Reply::error(401, "UNAUTHORIZED", "Unauthorized - invalid credentials.")
        }
        InvalidKeyReply::RouteNotFound => Reply::route_not_found(),
        InvalidKeyReply::KeyNotFound => {
            Reply::not_found("API_KEY_NOT_FOUND", "The API key does not exist")
        }
    }
}

/// A key as the list shows it.
pub(crate) fn summary(key: &Key) -> Value {
    let secret = &key.secret.0;
    let tail: String = secret.chars().rev().take(4).collect();
    json!({
        "id": key.id,
        "name": key.spec.name,
        "type": key.spec.kind.as_str(),
        "status": key.status.as_str(),
        "key_prefix": secret.chars().take(6).collect::<String>(),
        "key_suffix": tail.chars().rev().collect::<String>(),
        "created_on": timestamp(key.created_on),
        "last_verified_on": key.last_verified_on.map(timestamp),
        "last_verified_ip": key.last_verified_ip,
        "created_by": "Emulator",
        "api_ids": [key.spec.api_id],
        "scopes": key.spec.scopes,
    })
}

/// The reply to `GET /api/v1/api_keys/{key_id}`. Kinde publishes no example of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyRecordReply {
    /// 200 with the record as the member `api_key`.
    #[default]
    Wrapped,
    /// 200 with the members of the record at the top.
    Unwrapped,
}

/// Returns the record of a key. The organization has another name there than in verify.
pub(crate) fn record(how: KeyRecordReply, key: &Key) -> Value {
    let mut value = summary(key);
    value["verification_count"] = key.verification_count.into();
    value["organization_id"] = key.spec.org_code.clone().into();
    value["user_id"] = key.spec.user_id.clone().into();
    match how {
        KeyRecordReply::Wrapped => json!({ "code": "OK", "message": "Success", "api_key": value }),
        KeyRecordReply::Unwrapped => value,
    }
}
