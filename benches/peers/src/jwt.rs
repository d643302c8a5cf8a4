//! JWT verification on every request.

use std::sync::Arc;

use aliri::{Jwk, Jwks, jwa, jwk, jwt};
use aliri_base64::Base64UrlRef;
use aliri_oauth2::scope::BasicClaimsWithScope;
use aliri_oauth2::{Authority, ScopePolicy};
use aliri_tower::Oauth2Authorizer;
use axum::Router;
use axum::body::Body;
use axum::extract::FromRef;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum_jwt_auth::{Claims, Decoder, LocalDecoder};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, encode};
use jwt_authorizer::{AuthError, IntoLayer, JwtAuthorizer};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256};
use serde::{Deserialize, Serialize};
use tower::util::MapResponseLayer;
use tower_orgkey_benches::rows::{Call, REPORTS, SCOPE, api, through};

const SECRET: &[u8] = b"a secret of two hundred and fifty-six bits, at least";
const AUDIENCE: &str = "api";
const ISSUER: &str = "http://issuer.example.com";
const KEY_ID: &str = "one";

/// The claims of a token, with the same content as a verification result.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Said {
    iss: String,
    aud: String,
    sub: String,
    exp: i64,
    scope: String,
    org_code: String,
}

/// A token signed with this key, as a header value.
fn bearer(algorithm: Algorithm, key: &EncodingKey) -> &'static str {
    let header = Header {
        kid: Some(KEY_ID.to_owned()),
        ..Header::new(algorithm)
    };
    let said = Said {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: "api_key_0195ac80a14e8d71f42b98e75d3c61ad".to_owned(),
        exp: 4_102_444_800,
        scope: "read:reports read:users write:reports write:users".to_owned(),
        org_code: "org_1234567890".to_owned(),
    };
    let token = encode(&header, &said, key).expect("a token");
    format!("Bearer {token}").leak()
}

fn by_secret() -> &'static str {
    bearer(Algorithm::HS256, &EncodingKey::from_secret(SECRET))
}

fn passes(authorization: &'static str, router: Router) -> Call {
    through(REPORTS, authorization, StatusCode::OK, router)
}

#[derive(Clone)]
struct WithDecoder(Decoder<Said>);

impl FromRef<WithDecoder> for Decoder<Said> {
    fn from_ref(state: &WithDecoder) -> Self {
        Arc::clone(&state.0)
    }
}

pub(crate) fn axum_jwt_auth() -> Call {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    let decoder = LocalDecoder::builder()
        .keys(vec![DecodingKey::from_secret(SECRET)])
        .validation(validation)
        .build()
        .expect("a decoder");
    let router = Router::new()
        .route(REPORTS, get(async |_: Claims<Said>| "ok"))
        .with_state(WithDecoder(Arc::new(decoder)));
    passes(by_secret(), router)
}

pub(crate) fn aliri() -> Call {
    let key = Jwk::from(jwa::Hmac::new(Base64UrlRef::from_slice(SECRET).to_owned()))
        .with_algorithm(jwa::Algorithm::HS256)
        .with_key_id(jwk::KeyId::from_static(KEY_ID));
    let mut keys = Jwks::default();
    keys.add_key(key);
    let validator = jwt::CoreValidator::default()
        .add_approved_algorithm(jwa::Algorithm::HS256)
        .add_allowed_audience(jwt::Audience::from_static(AUDIENCE))
        .require_issuer(jwt::Issuer::from_static(ISSUER));
    let authorizer = Oauth2Authorizer::new()
        .with_claims::<BasicClaimsWithScope>()
        .with_terse_error_handler::<Body>();
    let router = api().layer((
        authorizer.jwt_layer(Authority::new(keys, validator)),
        authorizer.scope_layer(ScopePolicy::allow_one_from_static(SCOPE)),
    ));
    passes(by_secret(), router)
}

pub(crate) fn authorizer_hs256() -> Call {
    let secret = std::str::from_utf8(SECRET).expect("a text");
    authorizer(by_secret(), JwtAuthorizer::from_secret(secret))
}

pub(crate) fn authorizer_rs256() -> Call {
    let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a pair of keys");
    let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).expect("a key");
    authorizer(
        bearer(Algorithm::RS256, &key),
        JwtAuthorizer::from_rsa_pem_text(&pair.public_key_pem()),
    )
}

pub(crate) fn authorizer_eddsa() -> Call {
    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a pair of keys");
    let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).expect("a key");
    authorizer(
        bearer(Algorithm::EdDSA, &key),
        JwtAuthorizer::from_ed_pem_text(&pair.public_key_pem()),
    )
}

/// Converts this layer's error, which has the type of an older axum.
struct Answer(Response);

impl From<AuthError> for Answer {
    fn from(_: AuthError) -> Self {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Self(response)
    }
}

fn authorizer(authorization: &'static str, authorizer: JwtAuthorizer<Said>) -> Call {
    let validation = jwt_authorizer::Validation::new()
        .aud(&[AUDIENCE])
        .iss(&[ISSUER]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let authorizer = runtime
        .block_on(authorizer.validation(validation).build())
        .expect("an authorizer");
    let router = api().layer((
        MapResponseLayer::new(|answer: Answer| answer.0),
        authorizer.into_layer(),
        MapResponseLayer::new(Answer),
    ));
    passes(authorization, router)
}
