//! The issuer's own mind: what it knows, and the truthful answer to each call.

use std::time::SystemTime;

use form_urlencoded::parse;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use serde_json::{Map, Value, json};

use super::calls::Outcome;
use super::endpoint::Endpoint;
use super::keys::{KeyKind, KeySpec, KeyStatus, Keys};
use super::replies::{RejectedAs, full, listed, rejected, verified};
use super::tokens::{Application, Standing, essence};
use super::wire::Answer;

/// What verify asks of its caller. Kinde's sources disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifyAccess {
    /// A token with the scope `read:api_keys`.
    #[default]
    TokenWithScope,
    /// A token, whatever its scopes.
    Token,
    /// Nothing: the endpoint is public, and a token is not looked at.
    Public,
}

/// What an emulator knows, and how it was told to behave.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) keys: Keys,
    pub(super) application: Application,
    pub(super) rejected_as: RejectedAs,
    pub(super) verify_access: VerifyAccess,
    /// The status for a refused token, if not the one that the contract declares.
    pub(super) refusal_status: Option<StatusCode>,
}

/// A call as the issuer sees it.
pub(super) struct Call<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) key_id: Option<&'a str>,
    pub(super) parts: &'a Parts,
    pub(super) body: &'a [u8],
    /// Whose address goes into `last_verified_ip`.
    pub(super) peer: String,
}

type Reply = (Answer, Outcome);

impl Issuer {
    /// The truthful answer.
    pub(super) fn answer(&mut self, call: &Call<'_>) -> Reply {
        if call.endpoint == Endpoint::Token {
            return self.token(call);
        }
        let scope = match (call.endpoint, self.verify_access) {
            (Endpoint::Verify, VerifyAccess::Public) => return self.verify(call),
            (Endpoint::Verify, VerifyAccess::Token) => None,
            (endpoint, _) => endpoint.scope(),
        };
        match self.application.standing(bearer(call.parts), scope) {
            Standing::Good => {}
            Standing::Refused => return self.refuse_token(call.endpoint),
            Standing::ScopeMissing => return self.refuse(call.endpoint, "Scope missing"),
        }
        let id = call.key_id.unwrap_or_default();
        match call.endpoint {
            Endpoint::Token => self.token(call),
            Endpoint::Verify => self.verify(call),
            Endpoint::ListKeys => self.list(call.parts.uri.query().unwrap_or_default()),
            Endpoint::CreateKey => self.create(call),
            Endpoint::GetKey => match self.keys.by_id(id) {
                Some(key) => ok(
                    200,
                    &json!({ "code": "OK", "message": "Success", "api_key": full(key) }),
                ),
                None => unknown_id(),
            },
            Endpoint::RotateKey => match self.keys.rotate(id) {
                Some(key) => ok(
                    201,
                    &json!({
                        "code": "API_KEY_ROTATED",
                        "message": "API key rotated",
                        "api_key": { "id": key.id(), "key": key.secret() },
                    }),
                ),
                None => unknown_id(),
            },
            Endpoint::DeleteKey => {
                if self.keys.delete(id) {
                    ok(200, &json!({ "message": "Success", "code": "OK" }))
                } else {
                    unknown_id()
                }
            }
        }
    }

    /// A token that is refused, for whatever reason.
    pub(super) fn refuse_token(&self, endpoint: Endpoint) -> Reply {
        if endpoint == Endpoint::Token {
            let answer = Answer::oauth_error(401, "invalid_client", "Client authentication failed");
            return (answer, Outcome::TokenRefused);
        }
        self.refuse(endpoint, "Unauthorized - invalid credentials.")
    }

    /// Verify declares 401 and no 403, its siblings 403 and no 401.
    fn refuse(&self, endpoint: Endpoint, message: &str) -> Reply {
        let declared = if endpoint == Endpoint::Verify {
            401
        } else {
            403
        };
        let status = self
            .refusal_status
            .map_or(declared, |status| status.as_u16());
        let code = if status == 403 {
            "FORBIDDEN"
        } else {
            "UNAUTHORIZED"
        };
        (Answer::error(status, code, message), Outcome::TokenRefused)
    }

    fn token(&mut self, call: &Call<'_>) -> Reply {
        let answer = self
            .application
            .grant(header(call.parts, CONTENT_TYPE), call.body);
        let outcome = match answer.status {
            200 => Outcome::Ok,
            401 => Outcome::TokenRefused,
            _ => Outcome::BadRequest,
        };
        (answer, outcome)
    }

    fn verify(&mut self, call: &Call<'_>) -> Reply {
        let Some(body) = json_object(call) else {
            return bad_request("The request must be a JSON object");
        };
        let Some(Value::String(secret)) = body.get("api_key") else {
            return bad_request("api_key is required");
        };
        match self.keys.by_secret(secret) {
            Some(key) if key.status == KeyStatus::Active => {
                // What the caller is told is when the key was verified before.
                let mut facts = verified(key);
                key.verification_count += 1;
                key.last_verified_on = Some(SystemTime::now());
                key.last_verified_ip = Some(call.peer.clone());
                facts["verification_count"] = key.verification_count.into();
                ok(200, &facts)
            }
            key => {
                let answer = rejected(self.rejected_as, key.as_deref());
                (answer, Outcome::KeyRejected)
            }
        }
    }

    fn list(&self, query: &str) -> Reply {
        let mut page_size = 50;
        let mut starting_after = None;
        let mut key_type = None;
        let mut status = None;
        let mut user_id = None;
        let mut org_code = None;
        for (name, value) in parse(query.as_bytes()) {
            match &*name {
                "page_size" => match value.parse() {
                    Ok(size @ 1..=500) => page_size = size,
                    _ => return bad_request("page_size must be between 1 and 500"),
                },
                "starting_after" => starting_after = Some(value.into_owned()),
                "key_type" => match KeyKind::parse(&value) {
                    Some(kind @ (KeyKind::Organization | KeyKind::User)) => key_type = Some(kind),
                    _ => return bad_request("key_type must be organization or user"),
                },
                "status" => match KeyStatus::parse(&value) {
                    Some(value) => status = Some(value),
                    None => return bad_request("status must be active, inactive or revoked"),
                },
                "user_id" => user_id = Some(value.into_owned()),
                "org_code" => org_code = Some(value.into_owned()),
                _ => {}
            }
        }
        let Some(keys) = self.keys.after(starting_after.as_deref()) else {
            return bad_request("starting_after names no key");
        };
        let mut keys = keys
            .filter(|key| key_type.is_none_or(|kind| key.spec.kind == kind))
            .filter(|key| status.is_none_or(|status| key.status == status))
            .filter(|key| user_id.is_none() || key.spec.user_id == user_id)
            .filter(|key| org_code.is_none() || key.spec.org_code == org_code);
        let page: Vec<Value> = keys.by_ref().take(page_size).map(listed).collect();
        ok(
            200,
            &json!({
                "code": "OK",
                "message": "Success",
                "has_more": keys.next().is_some(),
                "api_keys": page,
            }),
        )
    }

    fn create(&mut self, call: &Call<'_>) -> Reply {
        let Some(body) = json_object(call) else {
            return bad_request("The request must be a JSON object");
        };
        let spec = match spec(&body) {
            Ok(spec) => spec,
            Err(why) => return bad_request(why),
        };
        let Some(key) = self.keys.issue(spec) else {
            unreachable!("only a `KeySpec` of the user's own can name a secret that is in use")
        };
        ok(
            201,
            &json!({
                "code": "API_KEY_CREATED",
                "message": "API key created",
                "api_key": { "id": key.id(), "key": key.secret() },
            }),
        )
    }
}

fn ok(status: u16, body: &Value) -> Reply {
    (Answer::json(status, body), Outcome::Ok)
}

fn bad_request(why: &str) -> Reply {
    (Answer::error(400, "BAD_REQUEST", why), Outcome::BadRequest)
}

fn unknown_id() -> Reply {
    (Answer::route_not_found(), Outcome::NotFound)
}

fn header(parts: &Parts, name: http::HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}

fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, token) = header(parts, AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn json_object(call: &Call<'_>) -> Option<Map<String, Value>> {
    let media_type = header(call.parts, CONTENT_TYPE).map(essence)?;
    (media_type == "application/json")
        .then(|| serde_json::from_slice(call.body).ok())
        .flatten()
}

/// A key to be created, by the body of the request.
fn spec(body: &Map<String, Value>) -> Result<KeySpec, &'static str> {
    let text = |name: &str| match body.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    let name = text("name").ok_or("name is required")?;
    let api_id = text("api_id").ok_or("api_id is required")?;
    let kind = text("type")
        .and_then(|kind| KeyKind::parse(&kind))
        .ok_or("type must be user, organization or environment")?;
    let spec = match kind {
        KeyKind::Organization => {
            KeySpec::organization(text("org_code").ok_or("org_code is required")?)
        }
        KeyKind::User => KeySpec::user(text("user_id").ok_or("user_id is required")?),
        KeyKind::Environment => KeySpec::environment(),
    };
    // The contract says ids of scopes, the samples have names. Here an id is its scope's name.
    let scopes = match body.get("scope_ids") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids
            .iter()
            .map(|id| id.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or("scope_ids must be strings")?,
        Some(_) => return Err("scope_ids must be an array"),
    };
    Ok(spec.name(name).api_id(api_id).scopes(scopes))
}
