//! Kinde as the issuer: [`KindeVerifier`].
//!
//! ```
//! use tower_orgkey::{ApiKeyLayer, kinde::KindeVerifier};
//!
//! # fn layer(client_id: String, client_secret: String) -> Result<ApiKeyLayer, tower_orgkey::ConfigError> {
//! let kinde = KindeVerifier::builder("https://acme.kinde.com")
//!     .client_credentials(client_id, client_secret)
//!     .api_id("7ccd126599aa422a771abcb341596881") // accept keys of this API only
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
//! | 200, anything else: neither `is_valid` nor that code, a field of another type, not JSON, longer than 64 KiB | cannot tell; concerns this key only |
//! | 400; 404 with a code other than `ROUTE_NOT_FOUND` | an unknown key is invalid; a known one once verify answers a later call |
//! | 401, 403 | see below |
//! | 429, 5xx, 3xx, any other status, no reply | cannot tell; concerns the issuer |
//!
//! In a valid reply, `scopes` is an array of strings, null or absent (no scopes), and `org_code`, `key_id` and `user_id` are
//! within their grammars, blank, null or absent; otherwise the layer cannot tell. No `org_code`, or a `user_id`, means that the
//! key belongs to no organization. All other fields are skipped.
//!
//! # Keys of other APIs
//!
//! The reply of verify does not name the API: without [`api_id`](KindeVerifierBuilder::api_id), keys of every API of the Kinde
//! environment are valid. With it, each key's record is looked up by the reply's `key_id`. A reply without `key_id`, such as
//! the example in Kinde's own guide, then cannot be checked: the layer returns 503, and the log names the cause. If Kinde sends
//! none, leave `api_id` unset and give scopes names that only one API uses.
//!
//! # Requests per call
//!
//! A call of the verifier, as [`max_calls_per_second`](crate::ApiKeyLayerBuilder::max_calls_per_second) counts it, sends one
//! request to verify. These come in addition, and are not limited by that setting:
//!
//! * With `api_id`, the look-up of the key's record, once per key id and hour. Records that contradict verify, or that do not
//!   exist, are looked up each time. So at most twice as many requests are sent while all keys are new.
//! * After a 401 or 403, or a 400 or 404 about a known key, what the next section describes: at most five probes per second, one
//!   record at a time, and one retry with a renewed token, with its look-up.
//! * Requests for tokens.
//!
//! # 401 and 403 are ambiguous
//!
//! Verify takes two credentials, the caller's key and the access token of this service, and its contract does not say
//! which one a 401 or 403 is about. Evidence decides. One source of evidence is a *probe*, a call with the same token and
//! no key: `GET /api/v1/api_keys?page_size=1`. *Known* keys are those with a cached result. If verify answers 401 or 403
//! under the token *t*, the first row that applies decides:
//!
//! | evidence | unknown key | known key |
//! |---|---|---|
//! | there is a newer token than *t* | one retry with it | one retry with it |
//! | verify answered 200 under *t* to a later call | invalid | invalid |
//! | the probe is unusable, see below | undecided | undecided |
//! | a later probe fails | undecided | undecided |
//! | a later probe rejects *t* with 401 or 403 | one retry with a renewed token, then undecided | the same |
//! | a later probe accepts *t* | invalid, or undecided while a known key's answer is | undecided |
//!
//! * A *later* call or probe is one that was sent after the 401 or 403 had been read. Anything earlier proves nothing,
//!   because the token may have been revoked in between.
//! * *Undecided* is neither "valid" nor "invalid": an unknown key gets 503 (`verifier-misconfigured` if the probe rejects
//!   *t*, else `verifier-unavailable`), and a known key is served from the cache. The next 200 under *t*, about any key,
//!   confirms the answer: from then on the key is invalid. A 200 under another token confirms nothing. So a revoked key
//!   is rejected within two soft TTLs and one verification if verify keeps answering 200 under the same token, and at the
//!   hard TTL otherwise.
//! * In the last row, "while a known key's answer is" means: verify answered 401 or 403 about a known key under *t*, and
//!   has not answered 200 under *t* to a later call. Otherwise a verify endpoint that answers 401 to everything would
//!   reject valid new keys with 401.
//! * The probe is *unusable* once verify has answered 200 under a token that the probe had rejected before: the
//!   application lacks the scope `read:api_keys`, or verify ignores tokens. One more probe is sent at once, and then one
//!   every 15 minutes, until one is accepted. Meanwhile, if verify has not answered 200 under *t* for 60 s, the token is
//!   renewed and verify called once more. The log names the missing scope once.
//! * Probes are shared and sent at most five times per second. A probe that fails, times out or is answered 429 affects
//!   nothing but the answer that it was sent for.
//! * A known key may be the only one in use, so that no other key's 200 confirms an invalid answer about it (400, 401,
//!   403 or 404). If verify has not answered 200 under *t* for 60 s, the record of the key is looked up, `GET
//!   /api/v1/api_keys/{key_id}`. A 404 with a code other than `ROUTE_NOT_FOUND`, or a status other than `active`,
//!   confirms the answer.
//! * Without credentials there is no token to probe with. Once verify has answered 200, a 401 or 403 is read as a 400: an
//!   unknown key is invalid, and a known one after a later 200. Before that, both are undecided.
//! * [`unauthorized_means`](KindeVerifierBuilder::unauthorized_means) replaces the table by a fixed meaning.
//!
//! # The access token
//!
//! The token is fetched when it is first needed, and renewed after 75 to 85 % of its lifetime, chosen at random, while
//! the old one is still in use. A reply without `expires_in` gives it 5 minutes; no token is used for more than a day. A
//! fetch that fails is retried after 1 s, doubling to 60 s; one that Kinde rejects (`invalid_client` and similar codes),
//! after 5 s, doubling to 15 minutes. A 429 from the token endpoint delays the next fetch, and no verification under a
//! token that is still valid.
//!
//! A token that verify and a usable probe reject is renewed early: the first time at once, then at most once in 5 s,
//! doubling to 15 minutes. The waits start over when verify answers 200 to a retry, which shows that the renewed token
//! helped.
//!
//! # Deadlines
//!
//! The layer's [`attempt_deadline`](crate::ApiKeyLayerBuilder::attempt_deadline) applies to each call: the wait for a
//! token, verify, the probe, and the record of a key. Only verify's own failures, and those of the token request without
//! which verify cannot be called, count towards the circuit breaker.
//!
//! # The HTTP client
//!
//! The client reads no proxy from the environment, follows no redirects, retries nothing, decodes no content encoding and
//! stores no cookies. It uses TLS 1.2 or later, by rustls, or by the platform's library if only the feature `native-tls` is
//! on. It sends plain `http` to [loopback only](KindeVerifierBuilder::dangerously_allow_http).

mod builder;
mod evidence;
mod http;
mod management;
mod own_api;
mod reconciler;
mod token;
mod verifier;
pub(crate) mod wire;

pub use self::builder::KindeVerifierBuilder;
pub use self::management::{ManagementApi, ManagementError, ManagementReply};
pub use self::reconciler::{KeyReconciler, KeyReconcilerBuilder, ReconcileError, ReconcileReport};
pub use self::verifier::{KindeVerifier, UnauthorizedMeans};
