//! `POST /v1/invalidate`, `/v1/block` and `/v1/unblock`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tower_orgkey::{ApiKey, ApiKeyHandle, BlockListFull, KeyId, OrgCode};

use super::Admin;

/// What a revocation is about: exactly one of these.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    KeyId(String),
    OrgCode(String),
    Key(String),
    All(bool),
}

/// A body after its value was checked.
enum Target {
    KeyId(KeyId),
    Org(OrgCode),
    Key(ApiKey),
    All,
}

impl Target {
    /// The errors do not name the value, which may be a key.
    fn read(body: &[u8]) -> Result<Self, &'static str> {
        let expected =
            r#"expected one of {"key_id": …}, {"org_code": …}, {"key": …}, {"all": true}"#;
        let body = serde_json::from_slice(body).map_err(|_| expected)?;
        match body {
            Body::KeyId(id) => KeyId::new(id).map(Self::KeyId).map_err(|_| "not a key id"),
            Body::OrgCode(code) => OrgCode::new(code)
                .map(Self::Org)
                .map_err(|_| "not an org code"),
            Body::Key(key) => ApiKey::parse(&key).map(Self::Key).map_err(|_| "not a key"),
            Body::All(true) => Ok(Self::All),
            Body::All(false) => Err(expected),
        }
    }

    /// Returns what is recorded. A key is not named.
    fn recorded(&self) -> String {
        match self {
            Self::KeyId(id) => format!("key_id={id}"),
            Self::Org(code) => format!("org_code={code}"),
            Self::Key(_) => "key".to_owned(),
            Self::All => "all".to_owned(),
        }
    }

    fn invalidate(&self, keys: &ApiKeyHandle) {
        match self {
            Self::KeyId(id) => keys.invalidate_key_id(id),
            Self::Org(code) => keys.invalidate_org(code),
            Self::Key(key) => keys.invalidate_key(key),
            Self::All => keys.invalidate_all(),
        }
    }

    /// Returns `None` for all keys, which cannot be blocked.
    fn block(&self, keys: &ApiKeyHandle) -> Option<Result<(), BlockListFull>> {
        match self {
            Self::KeyId(id) => Some(keys.block_key_id(id)),
            Self::Org(code) => Some(keys.block_org(code)),
            Self::Key(key) => Some(keys.block_key(key)),
            Self::All => None,
        }
    }

    fn unblock(&self, keys: &ApiKeyHandle) -> Option<bool> {
        match self {
            Self::KeyId(id) => Some(keys.unblock_key_id(id)),
            Self::Org(code) => Some(keys.unblock_org(code)),
            Self::Key(key) => Some(keys.unblock_key(key)),
            Self::All => None,
        }
    }
}

pub(super) async fn revoke(
    State(admin): State<Arc<Admin>>,
    Path(action): Path<String>,
    body: Bytes,
) -> Response {
    if !matches!(action.as_str(), "invalidate" | "block" | "unblock") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let target = match Target::read(&body) {
        Ok(target) => target,
        Err(problem) => return bad(problem),
    };
    let keys = &admin.checks.decisions().keys();
    let only_invalidate = "`all` can only be invalidated";
    let recorded = target.recorded();
    let response = match action.as_str() {
        "invalidate" => {
            target.invalidate(keys);
            Json(json!({ "invalidated": true })).into_response()
        }
        "block" => match target.block(keys) {
            None => bad(only_invalidate),
            Some(Ok(())) => Json(json!({
                "blocked": true,
                "note": "the block does not survive a restart, and other gateways do not know it",
            }))
            .into_response(),
            Some(Err(full)) => (
                StatusCode::INSUFFICIENT_STORAGE,
                Json(json!({ "error": full.to_string() })),
            )
                .into_response(),
        },
        _ => match target.unblock(keys) {
            None => bad(only_invalidate),
            Some(was_blocked) => Json(json!({ "was_blocked": was_blocked })).into_response(),
        },
    };
    if let (Some(trail), true) = (&admin.trail, response.status().is_success()) {
        trail.record_operator_action(&format!("/v1/{action}"), &recorded);
    }
    response
}

fn bad(problem: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": problem }))).into_response()
}
