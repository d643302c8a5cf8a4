//! What a reply says about a token.

use orgkey_http::Unique;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tower_orgkey::{Verification, VerifyError};

use super::builder::{Audience, Rules};
use crate::endpoint::Reply;
use crate::fields;

pub(super) enum Reading {
    /// `active` is false, which may also mean that the server has a problem.
    Inactive,
    /// The server works: it knows the token.
    Active(Verification),
}

#[derive(Deserialize)]
struct Activity {
    active: bool,
}

#[derive(Deserialize)]
struct Description {
    token_type: Option<String>,
    token_use: Option<String>,
    typ: Option<String>,
    scope: Option<String>,
    exp: Option<u64>,
    jti: Option<String>,
    sub: Option<String>,
    username: Option<Unique>,
    client_id: Option<String>,
    aud: Option<Audiences>,
    cnf: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Audiences {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// Reads the reply about this token.
pub(super) fn read(reply: &Reply, token: &str, rules: &Rules) -> Result<Reading, VerifyError> {
    match reply.status() {
        200 => {}
        400 => return Err(bad_request(reply)),
        _ => return Err(reply.cannot_tell()),
    }
    if !reply.json::<Activity>()?.active {
        return Ok(Reading::Inactive);
    }
    let described: Description = reply.json()?;
    if !described.is_for_us(rules) {
        return Ok(Reading::Active(Verification::invalid()));
    }
    let organization = (rules.organization)(&reply.json()?)?;
    let mut verification = fields::verification(organization.as_deref())?;
    if let Some(user) = described.user().filter(|_| !rules.service_accounts) {
        verification = verification.with_user_id(user);
    }
    if let Some(scope) = &described.scope {
        let names = scope.split(' ').filter(|name| !name.is_empty());
        verification = verification.with_scopes(fields::scopes(names)?);
    }
    if let Some(exp) = described.exp {
        verification = verification.with_expires_at(fields::expires_at_seconds(exp)?);
    }
    if let Some(jti) = described.jti.filter(|jti| jti != token) {
        verification = verification.with_key_id(fields::key_id(&jti)?);
    }
    Ok(Reading::Active(verification))
}

/// RFC 6749 §5.2 lets a server reject the credentials of this service with 400 too.
fn bad_request(reply: &Reply) -> VerifyError {
    #[derive(Deserialize)]
    struct Body {
        error: String,
    }

    match reply.json::<Body>() {
        Ok(Body { error }) if matches!(&*error, "invalid_client" | "unauthorized_client") => {
            VerifyError::misconfigured("the introspection endpoint rejects this client")
        }
        _ => VerifyError::invalid_response("the introspection endpoint answers 400"),
    }
}

impl Description {
    /// Returns the user that the token acts for. The subject of a client's own token is the client (RFC 9068 §2.2). A server may
    /// leave the subject out, and name the user alone (RFC 7662 §2.2).
    fn user(&self) -> Option<String> {
        let name = || {
            let Unique(name) = self.username.as_ref()?;
            name.as_str().filter(|name| !name.trim().is_empty())
        };
        let subject = match &self.sub {
            Some(subject) => subject,
            None => name()?,
        };
        (self.client_id.as_deref() != Some(subject)).then(|| subject.to_owned())
    }

    /// Returns whether it is a bearer access token for this audience.
    fn is_for_us(&self, rules: &Rules) -> bool {
        let is_bearer = match &self.token_type {
            Some(kind) => kind.eq_ignore_ascii_case("bearer"),
            None => rules.allow_missing_token_type,
        };
        let is_access_token = self
            .token_use
            .as_ref()
            .is_none_or(|token_use| token_use == "access_token");
        let is_other = self.typ.as_ref().is_some_and(|typ| {
            ["refresh", "offline", "id"]
                .iter()
                .any(|other| typ.eq_ignore_ascii_case(other))
        });
        let is_audience = match (&rules.audience, &self.aud) {
            (Audience::Any, _) => true,
            (Audience::Required(audience), Some(all)) => all.contains(audience),
            (Audience::Required(_), None) => false,
        };
        is_bearer && is_access_token && !is_other && is_audience && self.cnf.is_none()
    }
}
