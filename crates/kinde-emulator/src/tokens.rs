//! The M2M application of an emulator, and the tokens that it was given.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::time::Instant;

use super::wire::{Answer, HEX, LOWER, base64url, random};

/// The one application that an emulator knows.
pub(super) struct Application {
    pub(super) client_id: String,
    pub(super) client_secret: String,
    /// What it may ask for: each token holds these unless it asks for fewer.
    pub(super) scopes: Vec<String>,
    pub(super) audience: String,
    pub(super) issuer: String,
    pub(super) lifetime: Duration,
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
    expires_at: Option<Instant>,
    scopes: Vec<String>,
}

/// What a bearer token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    /// Known and alive, but without the scope.
    ScopeMissing,
    /// Absent, expired, revoked, or another issuer's.
    Refused,
}

pub(super) const ALL_SCOPES: [&str; 4] = [
    "read:api_keys",
    "create:api_keys",
    "update:api_keys",
    "delete:api_keys",
];

impl Application {
    pub(super) fn new(issuer: String, audience: String) -> Self {
        Self {
            client_id: random(HEX, 32),
            client_secret: random(LOWER, 48),
            scopes: ALL_SCOPES.map(str::to_owned).to_vec(),
            audience,
            issuer,
            // Kinde's default; its pages say 1 h in other places.
            lifetime: Duration::from_secs(86_400),
            tokens: HashMap::new(),
        }
    }

    /// The client credentials grant (RFC 6749 §4.4), with the credentials in the form.
    pub(super) fn grant(&mut self, content_type: Option<&str>, form: &[u8]) -> Answer {
        match self.try_grant(content_type, form) {
            Ok(answer) | Err(answer) => answer,
        }
    }

    fn try_grant(&mut self, content_type: Option<&str>, form: &[u8]) -> Result<Answer, Answer> {
        let invalid = |why: &str| Answer::oauth_error(400, "invalid_request", why);
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
                return Err(Answer::oauth_error(
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
            return Err(Answer::oauth_error(
                401,
                "invalid_client",
                "Client authentication failed",
            ));
        }
        match field("audience") {
            Some(audience) if audience == self.audience => {}
            Some(_) => {
                return Err(Answer::oauth_error(
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
                            Answer::oauth_error(
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
        Ok(Answer {
            no_store: true,
            ..Answer::json(
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

    /// A new token, shaped like Kinde's JWT. Its signature is noise: the emulator knows its tokens by heart.
    pub(super) fn issue(&mut self, scopes: Vec<String>) -> String {
        let now = Instant::now();
        self.tokens.retain(|_, token| token.is_alive(now));
        let issued_at = SystemTime::now()
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
                // A lifetime beyond the clock's end has none.
                expires_at: now.checked_add(self.lifetime),
                scopes,
            },
        );
        token
    }

    pub(super) fn standing(&self, bearer: Option<&str>, scope: Option<&str>) -> Standing {
        let token = bearer.and_then(|bearer| self.tokens.get(bearer));
        match (token, scope) {
            (Some(token), _) if !token.is_alive(Instant::now()) => Standing::Refused,
            (Some(token), Some(scope)) if !token.scopes.iter().any(|held| held == scope) => {
                Standing::ScopeMissing
            }
            (Some(_), _) => Standing::Good,
            (None, _) => Standing::Refused,
        }
    }

    pub(super) fn revoke_all(&mut self) {
        self.tokens.clear();
    }
}

impl Token {
    fn is_alive(&self, now: Instant) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// The media type without its parameters, in lower case.
pub(super) fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}
