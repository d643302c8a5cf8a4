//! JWTs of users beside API keys of machines, both as `Authorization: Bearer`.
//!
//! ```sh
//! cargo run -p example-jwt
//! ```
//!
//! Two routes show two ways:
//!
//! * `/reports` accepts both through one [`Verifier`]: a user's JWT names an organization and scopes, so guards and handlers
//!   treat it like a key.
//! * `/profile` distinguishes them: [`ApiKeyLayer`] authenticates keys and passes JWTs on, and an extractor verifies them.
//!
//! The JWTs are signed with a shared secret. With an identity provider, decode them with its public keys instead.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{FromRef, FromRequestParts, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use tower_orgkey::{
    ApiKey, ApiKeyLayer, ConfigError, KeyId, OrgCode, OrgContext, Rejection, Scopes, Verification,
    Verifier, VerifyError, require_scope,
};

/// The claims of a user's JWT.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    org_code: String,
    permissions: Vec<String>,
    iss: String,
    aud: String,
    exp: u64,
}

/// The identity provider, and the API that its JWTs are for.
const ISSUER: &str = "https://acme.example";
const AUDIENCE: &str = "https://api.acme.example";

/// Verifies the JWTs of users.
#[derive(Clone)]
struct Jwts {
    key: Arc<DecodingKey>,
    validation: Arc<Validation>,
}

impl Jwts {
    fn new(secret: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // A JWT of the same provider for another API is not for this one.
        validation.set_required_spec_claims(&["exp", "sub", "iss", "aud"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.validate_nbf = true;
        // The layer checks `exp` to the second.
        validation.leeway = 0;
        Self {
            key: Arc::new(DecodingKey::from_secret(secret)),
            validation: Arc::new(validation),
        }
    }

    /// Returns the claims, or `None` if the JWT is invalid or expired.
    fn claims(&self, jwt: &str) -> Option<Claims> {
        Some(decode(jwt, &self.key, &self.validation).ok()?.claims)
    }
}

/// The issuer of keys: a table here, `KindeVerifier` in an application that uses Kinde.
struct Keys;

impl Verifier for Keys {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        Ok(match key.expose_secret() {
            "k_live_0123456789" => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_key_id(KeyId::from_static("key_1"))
                .with_scopes(Scopes::from_names(["read:reports"])),
            _ => Verification::invalid(),
        })
    }
}

/// Verifies JWTs here, and all other credentials with the issuer of keys.
struct KeysAndJwts {
    keys: Keys,
    jwts: Jwts,
}

impl Verifier for KeysAndJwts {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        if key.expose_secret().starts_with("k_live_") {
            return self.keys.verify(key).await;
        }
        // A JWT that is invalid is a result, not an error.
        let Some(claims) = self.jwts.claims(key.expose_secret()) else {
            return Ok(Verification::invalid());
        };
        let Ok(org) = OrgCode::new(claims.org_code) else {
            return Ok(Verification::invalid());
        };
        // No clock shows a time that does not fit.
        let Some(expires_at) = UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp)) else {
            return Ok(Verification::invalid());
        };
        // The cache holds the result until `exp` at most.
        Ok(Verification::of_organization(org)
            .with_user_id(claims.sub)
            .with_scopes(Scopes::from_names(claims.permissions))
            .with_expires_at(expires_at))
    }
}

/// Who makes a request to `/profile`.
enum Caller {
    Machine(OrgContext),
    User(Claims),
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Jwts: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        if let Some(org) = parts.extensions.get::<OrgContext>() {
            return Ok(Self::Machine(org.clone()));
        }
        let claims = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .and_then(|jwt| Jwts::from_ref(state).claims(jwt));
        match claims {
            Some(claims) => Ok(Self::User(claims)),
            // In the format of the layer.
            None => Err(Rejection::invalid_token().into_response()),
        }
    }
}

async fn reports(org: OrgContext) -> String {
    match org.user_id() {
        Some(user) => format!("reports of {} for {user}", org.org_code()),
        None => format!("reports of {}", org.org_code()),
    }
}

async fn profile(State(_): State<Jwts>, caller: Caller) -> String {
    match caller {
        Caller::Machine(org) => format!("a key of {}", org.org_code()),
        Caller::User(claims) => format!("the user {}", claims.sub),
    }
}

fn app(jwts: Jwts) -> Result<Router, ConfigError> {
    // A JWT is longer than a key, and acts for a user.
    let both = ApiKeyLayer::builder(KeysAndJwts {
        keys: Keys,
        jwts: jwts.clone(),
    })
    .max_key_len(8 * 1024)
    .allow_user_keys()
    .build()?;
    let keys = ApiKeyLayer::builder(Keys)
        .only_prefix("k_live_")
        .pass_other_credentials_to_inner_auth()
        .build()?;
    Ok(Router::new()
        .route(
            "/reports",
            get(reports).route_layer(both.require_scope("read:reports")),
        )
        .route("/profile", get(profile).route_layer(keys.clone()))
        // Not for users: guards and extractors reject their JWTs here with 401.
        .route(
            "/export",
            get(reports).route_layer(keys.require_scope("read:reports")),
        )
        .route(
            "/machines",
            get(reports)
                .route_layer(require_scope("read:reports"))
                .route_layer(keys),
        )
        .with_state(jwts))
}

/// Signs a JWT for an API, as an identity provider does.
fn sign(
    secret: &[u8],
    audience: &str,
    permissions: &[&str],
    expires_at: SystemTime,
) -> Result<String, Box<dyn Error>> {
    let exp = expires_at.duration_since(UNIX_EPOCH)?;
    let claims = Claims {
        sub: "kp_1".to_owned(),
        org_code: "org_1".to_owned(),
        permissions: permissions.iter().map(|&name| name.to_owned()).collect(),
        iss: ISSUER.to_owned(),
        aud: audience.to_owned(),
        exp: exp.as_secs(),
    };
    let key = EncodingKey::from_secret(secret);
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let secret = b"a secret of this example, 32 bytes long";
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
    let jwt = sign(secret, AUDIENCE, &["read:reports"], in_an_hour)?;
    for path in ["reports", "profile", "export"] {
        for credential in ["k_live_0123456789", &jwt] {
            println!("curl -i -H 'Authorization: Bearer {credential}' http://{address}/{path}");
        }
    }
    axum::serve(listener, app(Jwts::new(secret))?).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    const SECRET: &[u8] = b"a secret of this test, which is 32 bytes";
    const KEY: &str = "k_live_0123456789";

    async fn get(app: &Router, path: &str, credential: &str) -> (u16, String) {
        let request = Request::get(path)
            .header(AUTHORIZATION, format!("Bearer {credential}"))
            .body(Body::empty())
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn in_a_minute() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    fn jwt(permissions: &[&str]) -> String {
        sign(SECRET, AUDIENCE, permissions, in_a_minute()).unwrap()
    }

    #[tokio::test]
    async fn guards_serve_keys_and_jwts() {
        let app = app(Jwts::new(SECRET)).unwrap();
        let user = jwt(&["read:reports"]);
        assert_eq!(
            get(&app, "/reports", KEY).await,
            (200, "reports of org_1".into())
        );
        let expected = (200, "reports of org_1 for kp_1".into());
        assert_eq!(get(&app, "/reports", &user).await, expected);
        assert_eq!(get(&app, "/reports", &jwt(&[])).await.0, 403);
    }

    #[tokio::test]
    async fn forged_and_expired_jwts_are_401() {
        let app = app(Jwts::new(SECRET)).unwrap();
        let forged = sign(
            b"another secret",
            AUDIENCE,
            &["read:reports"],
            in_a_minute(),
        )
        .unwrap();
        let past = SystemTime::now() - Duration::from_secs(2);
        let expired = sign(SECRET, AUDIENCE, &["read:reports"], past).unwrap();
        let foreign = "https://other.acme.example";
        let foreign = sign(SECRET, foreign, &["read:reports"], in_a_minute()).unwrap();
        for path in ["/reports", "/profile"] {
            for credential in [
                &*forged,
                &*expired,
                &*foreign,
                "k_live_unknown",
                "eyJ.unknown",
            ] {
                assert_eq!(
                    get(&app, path, credential).await.0,
                    401,
                    "{path} {credential}"
                );
            }
        }
    }

    #[tokio::test]
    async fn handler_distinguishes_keys_and_jwts() {
        let app = app(Jwts::new(SECRET)).unwrap();
        assert_eq!(get(&app, "/profile", KEY).await.1, "a key of org_1");
        assert_eq!(get(&app, "/profile", &jwt(&[])).await.1, "the user kp_1");
    }

    #[tokio::test]
    async fn jwts_do_not_pass_guards_for_keys() {
        let app = app(Jwts::new(SECRET)).unwrap();
        for path in ["/export", "/machines"] {
            assert_eq!(get(&app, path, KEY).await.0, 200, "{path}");
            assert_eq!(
                get(&app, path, &jwt(&["read:reports"])).await.0,
                401,
                "{path}"
            );
        }
    }
}
