//! `POST /v1/invalidate`, `/v1/block` and `/v1/unblock`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_orgkey::{ApiKey, ApiKeyHandle, BlockListFull, KeyId, NotSpread, OrgCode, Reach, Spread};

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

    /// Carries out an action in this gateway, and returns what is answered. `None` for all keys, which can only be invalidated.
    fn apply(&self, action: Action, keys: &ApiKeyHandle) -> Option<Result<Value, BlockListFull>> {
        Some(match action {
            Action::Invalidate => {
                match self {
                    Self::KeyId(id) => keys.invalidate_key_id(id),
                    Self::Org(code) => keys.invalidate_org(code),
                    Self::Key(key) => keys.invalidate_key(key),
                    Self::All => keys.invalidate_all(),
                }
                Ok(json!({ "invalidated": true }))
            }
            Action::Block => {
                let blocked = match self {
                    Self::KeyId(id) => keys.block_key_id(id),
                    Self::Org(code) => keys.block_org(code),
                    Self::Key(key) => keys.block_key(key),
                    Self::All => return None,
                };
                blocked.map(|()| {
                    json!({
                        "blocked": true,
                        "note": "the block does not survive a restart, and other gateways do not know it",
                    })
                })
            }
            Action::Unblock => {
                let was_blocked = match self {
                    Self::KeyId(id) => keys.unblock_key_id(id),
                    Self::Org(code) => keys.unblock_org(code),
                    Self::Key(key) => keys.unblock_key(key),
                    Self::All => return None,
                };
                Ok(json!({ "was_blocked": was_blocked }))
            }
        })
    }

    /// Carries out an action in all gateways of the fleet. `None` for all keys, which can only be invalidated.
    async fn spread(&self, action: Action, spread: &Spread) -> Option<Result<Reach, NotSpread>> {
        Some(match (action, self) {
            (Action::Invalidate, Self::KeyId(id)) => spread.invalidate_key_id(id).await,
            (Action::Invalidate, Self::Org(code)) => spread.invalidate_org(code).await,
            (Action::Invalidate, Self::Key(key)) => spread.invalidate_key(key).await,
            (Action::Invalidate, Self::All) => spread.invalidate_all().await,
            (Action::Block, Self::KeyId(id)) => spread.block_key_id(id).await,
            (Action::Block, Self::Org(code)) => spread.block_org(code).await,
            (Action::Block, Self::Key(key)) => spread.block_key(key).await,
            (Action::Unblock, Self::KeyId(id)) => spread.unblock_key_id(id).await,
            (Action::Unblock, Self::Org(code)) => spread.unblock_org(code).await,
            (Action::Unblock, Self::Key(key)) => spread.unblock_key(key).await,
            (Action::Block | Action::Unblock, Self::All) => return None,
        })
    }
}

/// What is done with a target.
#[derive(Clone, Copy)]
enum Action {
    Invalidate,
    Block,
    Unblock,
}

impl Action {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "invalidate" => Self::Invalidate,
            "block" => Self::Block,
            "unblock" => Self::Unblock,
            _ => return None,
        })
    }
}

pub(super) async fn revoke(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    let Some(action) = Action::of(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let target = match Target::read(&body) {
        Ok(target) => target,
        Err(problem) => return bad(problem),
    };
    // A client that hangs up does not end it: what is in force is recorded.
    let revocations = admin.revocations.clone();
    let carried_out = revocations.spawn(carry_out(admin, name, action, target));
    carried_out
        .await
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn carry_out(admin: Arc<Admin>, name: String, action: Action, target: Target) -> Response {
    let keys = &admin.checks.decisions().keys();
    let done = if admin.fleet.is_some() {
        let spread = keys.spread().expected_nodes(admin.expected_nodes);
        target.spread(action, &spread).await.map(spread_response)
    } else {
        target.apply(action, keys).map(local_response)
    };
    let Some((response, is_in_force)) = done else {
        return bad("`all` can only be invalidated");
    };
    if let (Some(trail), true) = (&admin.trail, is_in_force) {
        trail.record_operator_action(&format!("/v1/{name}"), &target.recorded());
    }
    response
}

/// Returns the response, and whether the action is in force here.
fn local_response(applied: Result<Value, BlockListFull>) -> (Response, bool) {
    match applied {
        Ok(answer) => (Json(answer).into_response(), true),
        Err(full) => (storage_full(&full.to_string()), false),
    }
}

/// The same, for a gateway in a fleet.
fn spread_response(spread: Result<Reach, NotSpread>) -> (Response, bool) {
    match spread {
        Ok(reach) => {
            let answer = json!({
                "applied": reach.applied,
                "missing": reach.missing,
                "hidden": reach.hidden,
            });
            (Json(answer).into_response(), true)
        }
        Err(full @ NotSpread::BlockListFull) => (storage_full(&full.to_string()), false),
        Err(error) => {
            let answer = Json(json!({ "error": error.to_string() }));
            (
                (StatusCode::SERVICE_UNAVAILABLE, answer).into_response(),
                true,
            )
        }
    }
}

fn storage_full(error: &str) -> Response {
    (
        StatusCode::INSUFFICIENT_STORAGE,
        Json(json!({ "error": error })),
    )
        .into_response()
}

fn bad(problem: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": problem }))).into_response()
}
