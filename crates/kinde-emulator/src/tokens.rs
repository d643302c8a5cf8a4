//! The M2M application and its access tokens.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use crate::clock::{Clock, nanos};
use crate::encoding::{HEX, LOWER, base64url, random};
use crate::reply::Reply;

/// The only M2M application of an emulator.
pub(crate) struct Application {
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
    /// The scopes of each token, unless the request asks for fewer.
    pub(crate) scopes: Vec<String>,
    pub(crate) audience: String,
    pub(crate) issuer: String,
    pub(crate) lifetime: Duration,
    clock: Clock,
    tokens: HashMap<String, Token>,
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application")
            .field("client_id", &self.client_id)
            .field("scopes", &self.scopes)
            .field("lifetime", &self.lifetime)
            .field("tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

struct Token {
    /// In the emulator's uptime.
    expires_at: i128,
    scopes: Vec<String>,
}

/// The result of checking a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenCheck {
    Valid,
    /// Valid, but without the scope.
    ScopeMissing,
    /// Absent, expired, revoked or unknown.
    Invalid,
}

pub(crate) const ALL_SCOPES: [&str; 7] = [
    "read:api_keys",
    "create:api_keys",
    "update:api_keys",
    "delete:api_keys",
    "read:organizations",
    "read:billing_agreements",
    "create:meter_usage",
];

impl Application {
    pub(crate) fn new(issuer: String, audience: String, clock: Clock) -> Self {
        Self {
            client_id: random(HEX, 32),
            client_secret: random(LOWER, 48),
            scopes: ALL_SCOPES.map(str::to_owned).to_vec(),
            audience,
            issuer,
            // Kinde's default. Some of its documentation says 1 h.
            lifetime: Duration::from_secs(86_400),
            clock,
            tokens: HashMap::new(),
        }
    }

    /// Handles the client credentials grant (RFC 6749 §4.4) with the credentials in the form.
    pub(crate) fn grant(&mut self, content_type: Option<&str>, form: &[u8]) -> Reply {
        match self.try_grant(content_type, form) {
            Ok(reply) | Err(reply) => reply,
        }
    }

    fn try_grant(&mut self, content_type: Option<&str>, form: &[u8]) -> Result<Reply, Reply> {
        let invalid = |why: &str| Reply::oauth_error(400, "invalid_request", why);
        if content_type.map(essence).as_deref() != Some("application/x-www-form-urlencoded") {
            return Err(invalid(
                "The request must be application/x-www-form-urlencoded",
            ));
        }
        let mut fields = HashMap::new();
        for (name, value) in form_urlencoded::parse(form) {
            if fields.insert(name, value).is_some() {
                return Err(invalid("A parameter is repeated"));
            }
        }
        let mut field = |name: &str| fields.remove(name).filter(|value| !value.is_empty());

        match field("grant_type").as_deref() {
            Some("client_credentials") => {}
            Some(_) => {
                return Err(Reply::oauth_error(
                    400,
                    "unsupported_grant_type",
                    "The grant type is not supported",
                ));
            }
            None => return Err(invalid("The grant type is missing")),
        }
        let id = field("client_id");
        let secret = field("client_secret");
        if id.as_deref() != Some(&self.client_id) || secret.as_deref() != Some(&self.client_secret)
        {
            return Err(Reply::oauth_error(
                401,
                "invalid_client",
                "Client authentication failed",
            ));
        }
        match field("audience") {
            Some(audience) if audience == self.audience => {}
            Some(_) => {
                return Err(Reply::oauth_error(
                    400,
                    "unauthorized_client",
                    "The application is not authorized for this audience",
                ));
            }
            None => return Err(invalid("The audience is missing")),
        }
        let scopes = match field("scope") {
            None => self.scopes.clone(),
            Some(asked) => asked
                .split_ascii_whitespace()
                .map(|scope| {
                    self.scopes
                        .iter()
                        .find(|enabled| *enabled == scope)
                        .cloned()
                        .ok_or_else(|| {
                            Reply::oauth_error(
                                400,
                                "invalid_scope",
                                "A scope is unknown or not enabled for the application",
                            )
                        })
                })
                .collect::<Result<_, _>>()?,
        };
        let scope = scopes.join(" ");
        let token = self.issue(scopes);
        Ok(Reply {
            no_store: true,
            ..Reply::json(
                200,
                &json!({
                    "access_token": token,
                    "expires_in": self.lifetime.as_secs(),
                    "scope": scope,
                    "token_type": "bearer",
                }),
            )
        })
    }

    /// Issues a token with the claims of Kinde's JWT and a random signature.
    pub(crate) fn issue(&mut self, scopes: Vec<String>) -> String {
        let now = self.clock.uptime();
        self.tokens.retain(|_, token| token.is_valid(now));
        let issued_at = self
            .clock
            .now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": "emulator" });
        let claims = json!({
            "aud": [self.audience],
            "azp": self.client_id,
            "exp": issued_at.saturating_add(self.lifetime.as_secs()),
            "gty": ["client_credentials"],
            "iat": issued_at,
            "iss": self.issuer,
            "jti": random(HEX, 32),
            "scope": scopes.join(" "),
            "scp": scopes,
            "v": "2",
        });
        let token = format!(
            "{}.{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes()),
            base64url(random(LOWER, 256).as_bytes()),
        );
        self.tokens.insert(
            token.clone(),
            Token {
                expires_at: now + nanos(self.lifetime),
                scopes,
            },
        );
        token
    }

    pub(crate) fn check(&self, bearer: Option<&str>, scope: Option<&str>) -> TokenCheck {
        let token = bearer.and_then(|bearer| self.tokens.get(bearer));
        match (token, scope) {
            (Some(token), _) if !token.is_valid(self.clock.uptime()) => TokenCheck::Invalid,
            (Some(token), Some(scope)) if !token.scopes.iter().any(|held| held == scope) => {
                TokenCheck::ScopeMissing
            }
            (Some(_), _) => TokenCheck::Valid,
            (None, _) => TokenCheck::Invalid,
        }
    }

    pub(crate) fn revoke_all(&mut self) {
        self.tokens.clear();
    }
}

impl Token {
    fn is_valid(&self, now: i128) -> bool {
        now < self.expires_at
    }
}

/// Returns the media type in lower case, without its parameters.
pub(crate) fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}
