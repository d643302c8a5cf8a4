//! The access token: whether there is one, for how long, and for whom.

use serde_json::Value;

use super::claims::Claims;
use super::client::{Issuer, Reply};
use super::report::{Level, Report};
use super::secret::Secret;
use super::table::IssuerTable;

/// An access token, and what is known about it.
pub(super) struct Token {
    pub(super) secret: Secret,
    pub(super) claims: Option<Claims>,
    /// The scopes that the reply and the claims name.
    pub(super) scopes: Vec<String>,
    pub(super) audience: String,
}

impl Token {
    /// Returns a token that cannot be valid: as long, with another signature.
    pub(super) fn invalid(&self) -> Secret {
        const SIGNATURE: &str = "orgkeydoctor";
        let token = self.secret.expose();
        let kept = token.len().saturating_sub(SIGNATURE.len());
        let kept = token.get(..kept).unwrap_or_default();
        Secret::new(format!("{kept}{SIGNATURE}"))
    }
}

/// Fetches a token: with the configured audience, and if that is rejected with the usual ones.
pub(super) async fn fetch(
    table: &IssuerTable,
    secret: &Secret,
    issuer: &Issuer,
    replies: &mut Vec<Reply>,
    report: &mut Report,
) -> Option<Token> {
    let configured = table.audience();
    let mut audiences = vec![configured.clone()];
    for audience in [
        table.default_audience(),
        format!("{}/v1", table.default_audience()),
    ] {
        if !audiences.contains(&audience) {
            audiences.push(audience);
        }
    }
    let mut first_failure = None;
    for audience in audiences {
        let id = &table.client_id;
        let reply = match issuer.token(id, secret, &audience).await {
            Ok(reply) => reply,
            Err(error) => {
                let means = "no token, so no key can be verified: all callers get 503";
                report.add("token", Level::Failure, error, means);
                return None;
            }
        };
        if reply.status == 200 {
            let token = read_token(&reply, audience, report);
            replies.push(reply);
            let token = token?;
            if token.audience == configured {
                audience_row(&token, table.origin(), report);
            } else {
                let observed = format!("{configured} rejected, {} accepted", token.audience);
                let means = "the configured audience is wrong; the lines below have the other";
                report.add("audience", Level::Change, observed, means);
            }
            return Some(token);
        }
        let rejection = rejection(&reply);
        replies.push(reply);
        let is_about_audience = rejection.is_about_audience;
        first_failure.get_or_insert(rejection);
        if !is_about_audience {
            break;
        }
    }
    if let Some(rejection) = first_failure {
        let observed = format!("{} (audience {configured})", rejection.observed);
        report.add("token", Level::Failure, observed, rejection.means);
    }
    None
}

/// Reads a reply of the token endpoint with the status 200.
fn read_token(reply: &Reply, audience: String, report: &mut Report) -> Option<Token> {
    const CHECK: &str = "token";
    let unusable = |report: &mut Report, why: &str| {
        report.add(
            CHECK,
            Level::Failure,
            why,
            "no key can be verified: all callers get 503",
        );
        None
    };
    let Some(body) = reply.json() else {
        return unusable(report, "200 without a JSON object");
    };
    let Some(token) = body.get("access_token").and_then(Value::as_str) else {
        return unusable(report, "200 without an access_token");
    };
    let secret = Secret::new(token);
    // Before anything else of the reply is shown.
    report.scrubber.add(&secret);
    let kind = body.get("token_type").and_then(Value::as_str);
    if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return unusable(report, "a token_type other than Bearer");
    }
    let claims = Claims::of(token);
    let mut scopes = claims.as_ref().map(Claims::scopes).unwrap_or_default();
    let scope = body.get("scope").and_then(Value::as_str);
    scopes.extend(scope.unwrap_or_default().split_whitespace());
    scopes.sort_unstable();
    scopes.dedup();
    let scopes = scopes.into_iter().map(str::to_owned).collect();

    let expires_in = body.get("expires_in").filter(|value| !value.is_null());
    let (level, observed, means) = match expires_in.map(Value::as_f64) {
        None => (
            Level::Warning,
            "no expires_in".to_owned(),
            "it is used for 5 min, so some 360 tokens a day are fetched, and Kinde bills each",
        ),
        Some(Some(seconds)) if seconds >= 1.0 => {
            let level = if seconds < 300.0 {
                Level::Warning
            } else {
                Level::Ok
            };
            (
                level,
                format!("valid for {seconds} s"),
                "renewed after about 80 % of it; each process fetches its own, and Kinde bills each",
            )
        }
        Some(_) => return unusable(report, "an expires_in that is no positive number"),
    };
    report.add(CHECK, level, observed, means);
    if claims.as_ref().is_some_and(Claims::has_organization) {
        report.add(
            CHECK,
            Level::Warning,
            "it has an org_code",
            "the application belongs to one organization and may not verify keys of others: use a global one",
        );
    }
    Some(Token {
        secret,
        claims,
        scopes,
        audience,
    })
}

/// Reports what the token says about its audience and its issuer.
fn audience_row(token: &Token, origin: &str, report: &mut Report) {
    const CHECK: &str = "audience";
    let Some(claims) = &token.claims else {
        let means = "cannot be told: the token is no JWT";
        report.add(CHECK, Level::Ok, &token.audience, means);
        return;
    };
    let audiences = claims.audiences();
    let issuer = claims.issuer().unwrap_or("none");
    let observed = format!("aud {}, iss {issuer}", audiences.join(" "));
    if audiences.iter().any(|audience| *audience == token.audience) {
        let (level, means) = if issuer.trim_end_matches('/') == origin {
            (Level::Ok, "")
        } else {
            (
                Level::Warning,
                "another issuer than url: use the host of iss as url",
            )
        };
        report.add(CHECK, level, observed, means);
    } else {
        let means = format!(
            "{} was asked for: verify may reject the token",
            token.audience
        );
        report.add(CHECK, Level::Warning, observed, means);
    }
}

/// Why there is no token.
struct Rejection {
    observed: String,
    means: &'static str,
    is_about_audience: bool,
}

fn rejection(reply: &Reply) -> Rejection {
    let body = reply.json().unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let error = text("error");
    let observed = format!("{} {error} {}", reply.status, text("error_description"));
    let (means, is_about_audience) = match (reply.status, error) {
        (_, "invalid_client") => (
            "the client id or secret is wrong, was rotated, or belongs to another environment",
            false,
        ),
        (_, "invalid_scope") => ("a scope is not granted to the application", false),
        (429, _) => ("too many token requests; try again later", false),
        (300..400, _) => (
            "the client follows no redirects: set url to the host that answers itself",
            false,
        ),
        (400..500, _) => (
            "the application is not authorized for this audience, nor for the usual ones: authorize it for the Kinde Management API, or set audience",
            true,
        ),
        _ => ("the issuer has trouble; try again later", false),
    };
    Rejection {
        observed,
        means,
        is_about_audience,
    }
}
