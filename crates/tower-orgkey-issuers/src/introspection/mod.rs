//! OAuth 2.0 token introspection (RFC 7662) as the issuer: [`IntrospectionVerifier`].
//!
//! ```
//! use tower_orgkey::ApiKeyLayer;
//! use tower_orgkey_issuers::Endpoint;
//! use tower_orgkey_issuers::introspection::IntrospectionVerifier;
//!
//! let endpoint = Endpoint::builder("http://127.0.0.1:4000/oauth2/introspect")
//!     .client_credentials("the client's id", "the client's secret")
//!     .build()?;
//! let verifier = IntrospectionVerifier::builder(endpoint)
//!     .audience("https://api.acme.example")
//!     .organization_claim("org_id")
//!     .build()?;
//! let auth = ApiKeyLayer::builder(verifier).max_key_len(8_192).build()?;
//! # Ok::<(), tower_orgkey::ConfigError>(())
//! ```
//!
//! # What a reply means
//!
//! The first row that applies decides:
//!
//! | reply | means |
//! |---|---|
//! | 200, `active` is false | see below |
//! | 200, `active` is true, and `cnf` is present: the token is bound to a key whose proof this layer does not check | invalid |
//! | 200, `active` is true, and `token_use` is not `access_token`, or `typ` is that of a refresh or ID token | invalid |
//! | 200, `active` is true, and `token_type` is not `Bearer`, or absent without [`allow_missing_token_type`](IntrospectionVerifierBuilder::allow_missing_token_type): servers also call refresh tokens active | invalid |
//! | 200, `active` is true, and `aud` does not contain the required audience | invalid |
//! | 200, `active` is true | valid |
//! | 401, 403; 400 with the error `invalid_client` or `unauthorized_client` | cannot tell: the server rejects the credentials of this service |
//! | 200, anything else; any other 400 | cannot tell; concerns this key only |
//! | 429 | cannot tell; calls pause |
//! | any other status, no reply | cannot tell; concerns the server |
//!
//! Scopes are `scope`, separated by spaces. From `exp` on, in seconds, the layer rejects the key, whatever is cached. The key id
//! is `jti`, unless it is the key itself: some servers use an opaque token as its identifier. Without a key id, audit events and
//! blocks know only the organization.
//!
//! A token whose `sub` is not its `client_id` acts for a user, and the layer rejects it unless
//! [`allow_user_keys`](tower_orgkey::ApiKeyLayerBuilder::allow_user_keys) is set. If the subjects of your tokens are service
//! accounts, as those of Zitadel are, say so with
//! [`service_accounts`](IntrospectionVerifierBuilder::service_accounts).
//!
//! Access tokens that are JWTs are often longer than the 512 bytes that a layer accepts by default, which responds with 400 then.
//! The example sets [`max_key_len`](tower_orgkey::ApiKeyLayerBuilder::max_key_len).
//!
//! # "Inactive" is not always an answer
//!
//! Some servers reply `{"active":false}` to every error, such as a lost connection to their database. So the answer is
//! unconfirmed: it rejects a key that the layer does not know, and a known key stays valid until there is evidence that the
//! server is working:
//!
//! * With a [`canary`](IntrospectionVerifierBuilder::canary), a token of your own that never ends: the canary is introspected,
//!   and then the key again. The key is invalid if the canary is active and the key is still not. While the canary is not
//!   active, nothing is known, and no known key is rejected before its hard TTL.
//! * Without one: the next time that the server says of any other key that it is active. After an outage, a valid key can then
//!   be rejected for some seconds, if another key is verified before it. Set a canary where that matters.
//!
//! A revoked key is accepted for at most two soft TTLs and one verification while there is such evidence, and until the hard TTL
//! otherwise. During such an outage, unknown keys are rejected with 401, with a canary too. They are verified again after 5 s, and
//! after repeated answers after at most 60 s.

mod builder;
mod claims;
mod preset;
mod token;
mod verifier;

pub use self::builder::IntrospectionVerifierBuilder;
pub use self::claims::Claims;
pub use self::preset::Preset;
pub use self::verifier::IntrospectionVerifier;
