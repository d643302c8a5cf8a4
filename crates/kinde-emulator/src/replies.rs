//! What is said of a key, by verify and by the management of keys.

use serde_json::{Value, json};

use super::keys::{Key, KeyStatus};
use super::wire::{Answer, HEX, random, timestamp};

/// How verify answers for a key that is not good. What Kinde does is not published, so a client has to bear all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectedAs {
    /// 200 with `"is_valid": false` and nothing else.
    #[default]
    Invalid,
    /// 200 with `"is_valid": false` and every other field null.
    InvalidWithNulls,
    /// 200 with `"is_valid": true`, all fields set, and a `status` that is not `active`.
    NotActive,
    /// 400 with `errors` as an array.
    BadRequest,
    /// 401 with `errors` as an array: the same status as for a token that is refused.
    Unauthorized,
    /// 404 with `errors` as an object, its code `ROUTE_NOT_FOUND`: the same as for an address that does not exist.
    RouteNotFound,
    /// 404 with `errors` as an object and another code.
    KeyNotFound,
}

impl RejectedAs {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Invalid,
        Self::InvalidWithNulls,
        Self::NotActive,
        Self::BadRequest,
        Self::Unauthorized,
        Self::RouteNotFound,
        Self::KeyNotFound,
    ];
}

/// What verify says of a key that is good.
pub(super) fn verified(key: &Key) -> Value {
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

/// What verify says of a key that is not good, known or not.
pub(super) fn rejected(how: RejectedAs, key: Option<&Key>) -> Answer {
    match how {
        RejectedAs::Invalid => Answer::json(200, &json!({ "is_valid": false })),
        RejectedAs::InvalidWithNulls => Answer::json(
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
        RejectedAs::NotActive => Answer::json(
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
        RejectedAs::BadRequest => {
            Answer::error(400, "BAD_REQUEST", "The API key could not be verified")
        }
        RejectedAs::Unauthorized => {
            Answer::error(401, "UNAUTHORIZED", "Unauthorized - invalid credentials.")
        }
        RejectedAs::RouteNotFound => Answer::route_not_found(),
        RejectedAs::KeyNotFound => {
            Answer::not_found("API_KEY_NOT_FOUND", "The API key does not exist")
        }
    }
}

/// A key as the list has it.
pub(super) fn listed(key: &Key) -> Value {
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

/// A key as the look-up of one has it: with its organization, which is called otherwise here, and its count.
pub(super) fn full(key: &Key) -> Value {
    let mut value = listed(key);
    value["verification_count"] = key.verification_count.into();
    value["organization_id"] = key.spec.org_code.clone().into();
    value["user_id"] = key.spec.user_id.clone().into();
    value
}
