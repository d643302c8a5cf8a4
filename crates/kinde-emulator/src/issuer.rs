//! The regular reply to each call, faults aside.

use form_urlencoded::parse;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use serde_json::{Map, Value, json};

use crate::billing::Billing;
use crate::calls::Outcome;
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::keys::{KeyKind, KeySpec, KeyStatus, Keys};
use crate::replies::{
    InvalidKeyReply, KeyRecordReply, ValidKeyReply, guide_example, invalid, record, summary,
    verified,
};
use crate::reply::Reply;
use crate::tokens::{Application, TokenCheck, essence};

/// The authorization that verify needs. Kinde's documentation contradicts itself here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifyAccess {
    /// A token with the scope `read:api_keys`.
    #[default]
    TokenWithScope,
    /// A token with any scopes.
    Token,
    /// None. A token is ignored.
    Public,
}

/// The keys, the M2M application, and the configured behavior.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub(crate) clock: Clock,
    pub(crate) keys: Keys,
    pub(crate) billing: Billing,
    pub(crate) application: Application,
    pub(crate) valid_key_reply: ValidKeyReply,
    pub(crate) invalid_key_reply: InvalidKeyReply,
    pub(crate) key_record_reply: KeyRecordReply,
    pub(crate) verify_access: VerifyAccess,
    /// The status for a rejected token. `None` is the one that the contract declares.
    pub(crate) rejected_token_status: Option<StatusCode>,
}

pub(crate) struct Call<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) key_id: Option<&'a str>,
    pub(crate) parts: &'a Parts,
    pub(crate) body: &'a [u8],
    /// The value for `last_verified_ip`.
    pub(crate) peer_ip: String,
}

type Answer = (Reply, Outcome);

impl Issuer {
    pub(crate) fn answer(&mut self, call: &Call<'_>) -> Answer {
        if call.endpoint == Endpoint::Token {
            return self.token(call);
        }
        let scope = match (call.endpoint, self.verify_access) {
            (Endpoint::Verify, VerifyAccess::Public) => return self.verify(call),
            (Endpoint::Verify, VerifyAccess::Token) => None,
            (endpoint, _) => endpoint.scope(),
        };
        match self.application.check(bearer(call.parts), scope) {
            TokenCheck::Valid => {}
            TokenCheck::Invalid => return self.reject_token(call.endpoint),
            TokenCheck::ScopeMissing => return self.reject(call.endpoint, "Scope missing"),
        }
        let id = call.key_id.unwrap_or_default();
        match call.endpoint {
            Endpoint::Token => self.token(call),
            Endpoint::Verify => self.verify(call),
            Endpoint::ListKeys => self.list(query(call)),
            Endpoint::CreateKey => self.create(call),
            Endpoint::GetKey => match self.keys.by_id(id) {
                Some(key) => ok(200, &record(self.key_record_reply, key)),
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
            Endpoint::GetOrganization => match self.billing.organization(query(call)) {
                Ok(Some(body)) => ok(200, &body),
                Ok(None) => (
                    Reply::not_found("ORGANIZATION_NOT_FOUND", "The organization does not exist"),
                    Outcome::NotFound,
                ),
                Err(why) => bad_request(why),
            },
            Endpoint::ListAgreements => {
                match self.billing.agreements(query(call), self.clock.now()) {
                    Ok(body) => ok(200, &body),
                    Err(why) => bad_request(why),
                }
            }
            Endpoint::RecordUsage => {
                let Some(body) = json_object(call) else {
                    return bad_request("The request must be a JSON object");
                };
                match self.billing.record(&body, self.clock.now()) {
                    Ok(()) => ok(200, &json!({ "message": "Success", "code": "OK" })),
                    Err(why) => bad_request(why),
                }
            }
        }
    }

    /// Rejects the token, or at the token endpoint the client credentials.
    pub(crate) fn reject_token(&self, endpoint: Endpoint) -> Answer {
        if endpoint == Endpoint::Token {
            let reply = Reply::oauth_error(401, "invalid_client", "Client authentication failed");
            return (reply, Outcome::TokenRejected);
        }
        self.reject(endpoint, "Unauthorized - invalid credentials.")
    }

    /// The contract declares 401 but not 403 for verify, and 403 but not 401 for the other endpoints.
    fn reject(&self, endpoint: Endpoint, message: &str) -> Answer {
        let declared = if endpoint == Endpoint::Verify {
            401
        } else {
            403
        };
        let status = self
            .rejected_token_status
            .map_or(declared, |status| status.as_u16());
        let code = if status == 403 {
            "FORBIDDEN"
        } else {
            "UNAUTHORIZED"
        };
        (Reply::error(status, code, message), Outcome::TokenRejected)
    }

    fn token(&mut self, call: &Call<'_>) -> Answer {
        let reply = self
            .application
            .grant(header(call.parts, CONTENT_TYPE), call.body);
        let outcome = match reply.status {
            200 => Outcome::Ok,
            401 => Outcome::TokenRejected,
            _ => Outcome::BadRequest,
        };
        (reply, outcome)
    }

    fn verify(&mut self, call: &Call<'_>) -> Answer {
        let Some(body) = json_object(call) else {
            return bad_request("The request must be a JSON object");
        };
        let Some(Value::String(secret)) = body.get("api_key") else {
            return bad_request("api_key is required");
        };
        match self.keys.by_secret(secret) {
            Some(key) if key.status == KeyStatus::Active => {
                // `last_verified_on` is the time of the previous verification.
                let mut body = verified(key);
                key.verification_count += 1;
                key.last_verified_on = Some(self.clock.now());
                key.last_verified_ip = Some(call.peer_ip.clone());
                body["verification_count"] = key.verification_count.into();
                match self.valid_key_reply {
                    ValidKeyReply::AllFields => ok(200, &body),
                    ValidKeyReply::GuideExample => (guide_example(key), Outcome::Ok),
                }
            }
            key => {
                let reply = invalid(self.invalid_key_reply, key.as_deref());
                (reply, Outcome::KeyInvalid)
            }
        }
    }

    fn list(&self, query: &str) -> Answer {
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
            return bad_request("starting_after is not the id of a key");
        };
        let mut keys = keys
            .filter(|key| key_type.is_none_or(|kind| key.spec.kind == kind))
            .filter(|key| status.is_none_or(|status| key.status == status))
            .filter(|key| user_id.is_none() || key.spec.user_id == user_id)
            .filter(|key| org_code.is_none() || key.spec.org_code == org_code);
        let page: Vec<Value> = keys.by_ref().take(page_size).map(summary).collect();
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

    fn create(&mut self, call: &Call<'_>) -> Answer {
        let Some(body) = json_object(call) else {
            return bad_request("The request must be a JSON object");
        };
        let spec = match spec(&body) {
            Ok(spec) => spec,
            Err(why) => return bad_request(why),
        };
        let Some(key) = self.keys.issue(spec) else {
            unreachable!("a random secret is not in use")
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

fn ok(status: u16, body: &Value) -> Answer {
    (Reply::json(status, body), Outcome::Ok)
}

fn bad_request(why: &str) -> Answer {
    (Reply::error(400, "BAD_REQUEST", why), Outcome::BadRequest)
}

fn unknown_id() -> Answer {
    (Reply::route_not_found(), Outcome::NotFound)
}

fn query<'a>(call: &Call<'a>) -> &'a str {
    call.parts.uri.query().unwrap_or_default()
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

/// Reads the body of a request to create a key.
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
    // Kinde's contract asks for ids, its samples contain names. Here the id of a scope is its name.
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
