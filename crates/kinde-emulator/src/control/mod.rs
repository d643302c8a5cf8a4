//! The control endpoints: what the handle offers, over HTTP.

mod fault;
mod names;
mod requests;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::requests::{
    Application, Behavior, ClearFaults, InjectFault, IssueKey, MoveClock, Nothing, SelectKey,
    SetScopes, StartAgreement,
};
use crate::calls::EndpointCalls;
use crate::endpoint::{Endpoint, Endpoints};
use crate::keys::{IssuedKey, KeyStatus};
use crate::reply::Reply;
use crate::shared::{Shared, State};
use crate::tokens::essence;

const ROOT: &str = "/_emulator";

/// Why a request is not carried out.
enum Problem {
    BadRequest(String),
    UnknownKey,
    NoSuchEndpoint,
    /// Web pages cannot send JSON to another origin without its consent.
    NotJson,
    /// A web page can let its host name resolve to this machine, and then read the replies.
    OtherHost,
}

type Answer = Result<(u16, Value), Problem>;

pub(crate) fn is_control(path: &str) -> bool {
    path.strip_prefix(ROOT)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(crate) fn answer(shared: &Shared, parts: &Parts, body: &[u8], peer: SocketAddr) -> Reply {
    let answer = if peer.ip().to_canonical().is_loopback() && !is_for_loopback(parts) {
        Err(Problem::OtherHost)
    } else {
        route(shared, parts, body)
    };
    let (status, error) = match answer {
        Ok((status, body)) => return Reply::json(status, &body),
        Err(Problem::OtherHost) => (
            403,
            "`Host` must be an IP address or `localhost`".to_owned(),
        ),
        Err(Problem::BadRequest(why)) => (400, why),
        Err(Problem::UnknownKey) => (404, "no such key".to_owned()),
        Err(Problem::NoSuchEndpoint) => (404, "no such control endpoint".to_owned()),
        Err(Problem::NotJson) => (415, "the media type must be application/json".to_owned()),
    };
    Reply::json(status, &json!({ "error": error }))
}

/// Whether a request of this machine names it by an address or as `localhost`, and not by a name that someone else resolves.
fn is_for_loopback(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), ..) => Some(authority.clone()),
        (None, Some(host), None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        _ => None,
    };
    host.is_some_and(|host: Authority| {
        let name = host.host().trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
    })
}

fn route(shared: &Shared, parts: &Parts, body: &[u8]) -> Answer {
    let path = parts.uri.path().strip_prefix(ROOT).unwrap_or_default();
    if parts.method == Method::GET {
        let state = shared.state();
        return match path {
            "" | "/" => Ok(ok(settings(&state))),
            "/calls" => Ok(ok(calls(&state))),
            "/usage" => Ok(ok(usage(&state))),
            _ => Err(Problem::NoSuchEndpoint),
        };
    }
    if parts.method != Method::POST {
        return Err(Problem::NoSuchEndpoint);
    }
    let media_type = parts.headers.get(CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok());
    if media_type.map(essence).as_deref() != Some("application/json") {
        return Err(Problem::NotJson);
    }
    match path {
        "/keys" => issue(shared, read(body)?),
        "/keys/rotate" => rotate(shared, &read(body)?),
        "/keys/revoke" => set_status(shared, &read(body)?, KeyStatus::Revoked),
        "/keys/deactivate" => set_status(shared, &read(body)?, KeyStatus::Inactive),
        "/keys/activate" => set_status(shared, &read(body)?, KeyStatus::Active),
        "/keys/delete" => delete(shared, &read(body)?),
        "/keys/scopes" => set_scopes(shared, read(body)?),
        "/agreements" => start_agreement(shared, read(body)?),
        "/application" => Ok(set_application(shared, read(body)?)),
        "/behavior" => set_behavior(shared, &read(body)?),
        "/faults" => inject(shared, read(body)?),
        "/faults/clear" => clear(shared, &read(body)?),
        "/clock" => move_clock(shared, &read(body)?),
        "/calls/reset" => {
            let Nothing {} = read(body)?;
            shared.state().calls.reset();
            Ok(done())
        }
        _ => Err(Problem::NoSuchEndpoint),
    }
}

fn ok(body: Value) -> (u16, Value) {
    (200, body)
}

fn done() -> (u16, Value) {
    ok(json!({}))
}

fn bad_request(why: impl Into<String>) -> Problem {
    Problem::BadRequest(why.into())
}

/// Reads a JSON object. An empty body is an empty object.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = body.trim_ascii();
    let body = if body.is_empty() { b"{}" } else { body };
    // serde also deserializes a struct from an array.
    if !body.starts_with(b"{") {
        return Err(bad_request("the request must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| bad_request(error.to_string()))
}

fn settings(state: &State) -> Value {
    let application = &state.issuer.application;
    json!({
        "issuer_url": application.issuer,
        "client_id": application.client_id,
        "client_secret": application.client_secret,
        "audience": application.audience,
        "clock_offset_s": state.issuer.clock.offset(),
    })
}

fn calls(state: &State) -> Value {
    let mut body = json!({ "unrouted": state.calls.unrouted });
    for endpoint in Endpoint::ALL {
        let EndpointCalls {
            total,
            ok,
            key_invalid,
            token_rejected,
            bad_request,
            not_found,
            faulted,
            in_flight,
            max_in_flight,
        } = state.calls.of(endpoint);
        body[names::of(endpoint)] = json!({
            "total": total,
            "ok": ok,
            "key_invalid": key_invalid,
            "token_rejected": token_rejected,
            "bad_request": bad_request,
            "not_found": not_found,
            "faulted": faulted,
            "in_flight": in_flight,
            "max_in_flight": max_in_flight,
        });
    }
    body
}

fn issue(shared: &Shared, request: IssueKey) -> Answer {
    match shared.state().issuer.keys.issue(request.spec()) {
        Some(key) => Ok((201, issued(&key))),
        None => Err(bad_request("another key has this secret")),
    }
}

fn start_agreement(shared: &Shared, request: StartAgreement) -> Answer {
    let mut state = shared.state();
    let now = state.issuer.clock.now();
    let starts_at = request.starts_at_s.map_or(now, |seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
    });
    let length = request.period_s.unwrap_or(30 * 86_400);
    if length == 0 {
        return Err(bad_request("period_s must not be 0"));
    }
    let spec = request.spec();
    let spec = spec.periods(starts_at, Duration::from_secs(length.into()));
    let id = state.issuer.billing.start(spec);
    Ok((201, json!({ "agreement_id": id })))
}

fn usage(state: &State) -> Value {
    let usage = state.issuer.billing.usage().into_iter();
    let usage: Vec<Value> = usage
        .map(|period| {
            let starts_at = period.starts_at.duration_since(SystemTime::UNIX_EPOCH);
            json!({
                "agreement_id": period.agreement_id,
                "org_code": period.org_code,
                "feature_code": period.feature_code,
                "period_starts_at_s": starts_at.unwrap_or_default().as_secs(),
                "total": period.total,
                "calls": period.calls,
                "lowered": period.lowered,
            })
        })
        .collect();
    json!({ "usage": usage })
}

fn rotate(shared: &Shared, key: &SelectKey) -> Answer {
    let mut state = shared.state();
    let id = id_of(&mut state, key)?;
    let rotated = state.issuer.keys.rotate(&id);
    rotated.map_or(Err(Problem::UnknownKey), |key| Ok(ok(issued(&key))))
}

fn issued(key: &IssuedKey) -> Value {
    json!({ "key_id": key.id(), "key": key.secret() })
}

fn set_status(shared: &Shared, key: &SelectKey, status: KeyStatus) -> Answer {
    let mut state = shared.state();
    let id = id_of(&mut state, key)?;
    let key = state.issuer.keys.by_id(&id).ok_or(Problem::UnknownKey)?;
    key.status = status;
    Ok(done())
}

fn delete(shared: &Shared, key: &SelectKey) -> Answer {
    let mut state = shared.state();
    let id = id_of(&mut state, key)?;
    if state.issuer.keys.delete(&id) {
        Ok(done())
    } else {
        Err(Problem::UnknownKey)
    }
}

fn set_scopes(shared: &Shared, request: SetScopes) -> Answer {
    let mut state = shared.state();
    let id = id_of(&mut state, &request.key())?;
    let key = state.issuer.keys.by_id(&id).ok_or(Problem::UnknownKey)?;
    key.spec.scopes = request.scopes;
    Ok(done())
}

/// Returns the id of the key that a request names by its id or its secret.
fn id_of(state: &mut State, key: &SelectKey) -> Result<String, Problem> {
    match (&key.key_id, &key.key) {
        (Some(id), None) => Ok(id.clone()),
        (None, Some(secret)) => {
            let key = state.issuer.keys.by_secret(secret);
            key.map(|key| key.id.clone()).ok_or(Problem::UnknownKey)
        }
        _ => Err(bad_request("either key_id or key is required")),
    }
}

fn set_application(shared: &Shared, request: Application) -> (u16, Value) {
    let mut state = shared.state();
    let application = &mut state.issuer.application;
    if let Some(scopes) = request.scopes {
        application.scopes = scopes;
    }
    if let Some(seconds) = request.token_lifetime_s {
        application.lifetime = Duration::from_secs(seconds);
    }
    if let Some(secret) = request.client_secret {
        application.client_secret = secret;
    }
    if request.revoke_tokens {
        application.revoke_all();
    }
    done()
}

fn set_behavior(shared: &Shared, request: &Behavior) -> Answer {
    let rejected_token_status = match request.rejected_token_status {
        None => None,
        Some(status @ 400..=599) => StatusCode::from_u16(status).ok(),
        Some(_) => return Err(bad_request("rejected_token_status must be 400 to 599")),
    };
    let mut state = shared.state();
    let issuer = &mut state.issuer;
    if let Some(reply) = request.invalid_key_reply {
        issuer.invalid_key_reply = reply.into();
    }
    if let Some(reply) = request.valid_key_reply {
        issuer.valid_key_reply = reply.into();
    }
    if let Some(reply) = request.key_record_reply {
        issuer.key_record_reply = reply.into();
    }
    if let Some(access) = request.verify_access {
        issuer.verify_access = access.into();
    }
    if rejected_token_status.is_some() {
        issuer.rejected_token_status = rejected_token_status;
    }
    Ok(done())
}

fn inject(shared: &Shared, request: InjectFault) -> Answer {
    let at = request.at.endpoints().map_err(bad_request)?;
    let fault = fault::read(request).map_err(bad_request)?;
    shared.inject(at, &fault);
    Ok(done())
}

fn clear(shared: &Shared, request: &ClearFaults) -> Answer {
    let at = match &request.at {
        Some(at) => at.endpoints().map_err(bad_request)?,
        None => Endpoints::ALL,
    };
    shared.clear(at);
    Ok(done())
}

fn move_clock(shared: &Shared, request: &MoveClock) -> Answer {
    let state = shared.state();
    let clock = &state.issuer.clock;
    let offset = match (request.offset_s, request.advance_s) {
        (Some(offset), None) => Some(offset),
        (None, Some(seconds)) => clock.offset().checked_add(seconds),
        _ => return Err(bad_request("either offset_s or advance_s is required")),
    };
    let offset = offset.ok_or_else(|| bad_request("the clock cannot be moved this far"))?;
    clock.set_offset(offset);
    Ok(ok(json!({ "clock_offset_s": offset })))
}
