//! Kinde as the issuer: [`KindeVerifier`].
//!
//! ```
//! use tower_orgkey::{ApiKeyLayer, kinde::KindeVerifier};
//!
//! # fn layer(client_id: String, client_secret: String) -> Result<ApiKeyLayer, tower_orgkey::ConfigError> {
//! let kinde = KindeVerifier::builder("https://acme.kinde.com")
//!     .client_credentials(client_id, client_secret)
//!     .api_id("7ccd126599aa422a771abcb341596881") // keys of this API alone
//!     .build()?;
//! let auth = ApiKeyLayer::new(kinde);
//! # Ok(auth)
//! # }
//! ```
//!
//! The credentials are those of a machine-to-machine application, authorized for the Kinde management API with the scope
//! `read:api_keys`.
//!
//! # What a reply means
//!
//! The first row that applies decides:
//!
//! | verify answers | means |
//! |---|---|
//! | 200, `is_valid` is `false`, or `status` is a string other than `active` | invalid, whatever else is in the reply |
//! | 200, `is_valid` is `true`; `status` is absent, null or `active` | valid |
//! | 200, `is_valid` is absent or null, and `code` is exactly `API_KEY_VERIFIED`; `status` is absent, null or `active` | valid |
//! | 200, anything else: neither `is_valid` nor that code, a field of another type, not JSON, longer than 64 KiB | cannot tell; concerns this key alone |
//! | 400; 404 with a code other than `ROUTE_NOT_FOUND` | an unknown key is invalid; a known one once verify answers a later call |
//! | 401, 403 | see below |
//! | 429, 5xx, 3xx, any other status, no reply | cannot tell; concerns the issuer |
//!
//! Of a valid reply, `scopes` is an array of strings, null or absent (no scopes), and `org_code`, `key_id` and `user_id` are
//! within their grammars, blank, null or absent; otherwise the layer cannot tell. No `org_code`, or a `user_id`, makes the
//! key no organization's. All other fields are skipped.
//!
//! # Keys of other APIs
//!
//! Verify names no API: without [`api_id`](KindeVerifierBuilder::api_id), keys of every API of the Kinde environment are valid.
//! With it, each key's record is looked up by the reply's `key_id`. A reply without `key_id`, such as the example in Kinde's
//! own guide, then cannot be checked: the layer returns 503, and the log names the cause. If Kinde sends none, leave `api_id`
//! unset and give scopes names that only one API uses.
//!
//! # 401 and 403 are ambiguous
//!
//! Verify is the one endpoint of Kinde's that takes two credentials, the key and our token, and its contract does not say
//! which of them a 401 or 403 is about. So evidence decides: a probe with the same token (`GET
//! /api/v1/api_keys?page_size=1`). If the probe is accepted, the key is bad. If it is refused, our token is: then a new one
//! is fetched, as rarely as can be, and verify is asked once more. With nothing proven, callers with unknown keys get 503
//! (`verifier-misconfigured`), and known keys go on being served.
//!
//! * A flood of bad keys costs one probe in 5 s, and no token. A known key is given up only on a probe that was sent after
//!   its refusal.
//! * If the probe is refused with 403 and verify goes on accepting the same token, it is the probe that lacks the scope: it
//!   is logged once, there is no probe for 15 minutes, and a refusal is read as the key's. A known key is then given up when
//!   verify has accepted another key after its refusal. Until verify has accepted the token once more, a bad key gets 503:
//!   a revoked token looks just the same. For the same reason another token is tried, at most once in that time for junk,
//!   where verify has accepted none for a minute.
//! * Without credentials there is nothing to probe with: once verify has answered 200, a refusal is read as the key's in the
//!   same manner.
//! * [`unauthorized_means`](KindeVerifierBuilder::unauthorized_means) pins either reading.
//!
//! # Our token
//!
//! It is fetched when it is first needed, and renewed at 75 to 85 % of its life while the old one is still in use. A reply
//! without `expires_in` gives it 5 minutes; none is used for longer than a day. A fetch that fails is tried again after
//! 1 s, doubling to 60 s; where Kinde refuses the credentials (`invalid_client` and its kin), after 5 s, doubling to 15
//! minutes. A token that is refused before its time is replaced at once, then not for 5 s, doubling to 15 minutes while that
//! changes nothing, and never while verify accepted it in the last minute.
//!
//! # The HTTP client
//!
//! It reads no proxy from the environment, follows no redirect, retries nothing, decodes no encoding, keeps no cookie, and
//! speaks TLS 1.2 or later by the library that the features name (`rustls` before `native-tls`). [`http` is for loopback
//! alone](KindeVerifierBuilder::dangerously_allow_http). The deadline of a verification is the layer's.

mod builder;
mod evidence;
mod http;
mod own_api;
mod poller;
mod token;
mod verifier;
pub(crate) mod wire;

pub use self::builder::KindeVerifierBuilder;
pub use self::poller::{KeyPoller, KeyPollerBuilder, WalkError, WalkReport};
pub use self::verifier::{KindeVerifier, UnauthorizedMeans};
