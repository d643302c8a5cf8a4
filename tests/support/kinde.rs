//! A stub that behaves like Kinde by default, a verifier that calls it, and a layer with this verifier.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_orgkey::kinde::{KindeVerifier, KindeVerifierBuilder};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, Attempt, KeyId, OrgContext, Verification, Verifier, VerifyError,
};

use super::stub::{Answer, Endpoint, Stub};

pub(crate) const GOOD: &str = "k_live_good_0001";
pub(crate) const BAD: &str = "k_live_bad_00001";
pub(crate) const SECRET: &str = "the+client/secret&=%";

pub(crate) struct Stage {
    pub(crate) stub: Stub,
    pub(crate) clock: TestClock,
    pub(crate) kinde: KindeVerifier,
    pub(crate) layer: ApiKeyLayer,
    /// Tokens that verify rejects.
    pub(crate) rejected_tokens: Arc<Mutex<HashSet<String>>>,
}

/// The reply for a valid key of `org_1`.
pub(crate) fn valid_reply() -> Answer {
    Answer::json(200, VALID_REPLY)
}

pub(crate) const VALID_REPLY: &str = r#"{"code":"API_KEY_VERIFIED","message":"API key verified","is_valid":true,"key_id":"api_key_0001","status":"active","scopes":["read:reports"],"org_code":"org_1","user_id":null,"last_verified_on":"2026-01-02T03:04:05+11","verification_count":7}"#;

pub(crate) fn invalid_reply() -> Answer {
    Answer::json(200, r#"{"is_valid":false}"#)
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub(crate) async fn with(
        configure: impl FnOnce(KindeVerifierBuilder) -> KindeVerifierBuilder,
    ) -> Self {
        let stub = Stub::start().await;
        let rejected_tokens = behave_like_kinde(&stub);
        let clock = TestClock::new();
        let builder = KindeVerifier::builder(stub.url())
            .client_credentials("the client", SECRET)
            // Machines that run many tests are slow.
            .connect_timeout(Duration::from_secs(5))
            .test_clock(clock.clone());
        let kinde = configure(builder).build().unwrap();
        let layer = layer_over(kinde.clone(), &clock);
        Self {
            stub,
            clock,
            kinde,
            layer,
            rejected_tokens,
        }
    }

    pub(crate) fn jump(&self, seconds: u64) {
        self.clock.jump(Duration::from_secs(seconds));
    }

    pub(crate) fn count(&self, endpoint: Endpoint) -> usize {
        self.stub.count(endpoint)
    }

    /// Makes verify and the probe reject a token with 401.
    pub(crate) fn reject_token(&self, token: &str) {
        self.rejected_tokens.lock().unwrap().insert(token.into());
    }

    /// The layer's response to a request with this key: the status, and the organization or the code of the problem.
    pub(crate) async fn get(&self, key: &str) -> (u16, String) {
        get(&self.layer, key).await
    }

    pub(crate) async fn verify(&self, key: &str) -> Result<Verification, VerifyError> {
        self.kinde.verify(&ApiKey::parse(key).unwrap()).await
    }

    /// Makes one attempt as the layer does, with a long deadline.
    pub(crate) async fn attempt(&self, key: &str, attempt: Attempt) -> Verdict {
        let key = ApiKey::parse(key).unwrap();
        let verified = self.kinde.verify_attempt(&key, attempt).await;
        Verdict::read(&verified.unwrap()).0
    }

    /// The verifier's answer about an unknown key, and its credential.
    pub(crate) async fn unknown(&self, key: &str) -> (Verdict, u64) {
        Verdict::read(&self.verify(key).await.unwrap())
    }

    /// The verifier's answer about a known key, and its credential.
    pub(crate) async fn known(&self, key: &str) -> (Verdict, u64) {
        let verified = self.kinde.reverify(&ApiKey::parse(key).unwrap()).await;
        Verdict::read(&verified.unwrap())
    }

    /// The verifier's answer about a known key with this identifier.
    pub(crate) async fn known_by_id(&self, key: &str, key_id: &str) -> Verdict {
        let key_id = KeyId::new(key_id).unwrap();
        let attempt = Attempt::new(Duration::from_secs(5)).known(Some(key_id));
        self.attempt(key, attempt).await
    }
}

/// The answer of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    Definitive,
    Concluded,
    Unconfirmed,
    Undecided,
    /// Undecided because the issuer rejects the token.
    TokenRejected,
}

impl Verdict {
    /// Reads a verification and its credential from the `Debug` output, because the certainty of an answer is private.
    pub(crate) fn read(verification: &Verification) -> (Self, u64) {
        let debug = format!("{verification:?}");
        let (answer, credential) = debug.rsplit_once(", credential: ").unwrap();
        let credential = credential.trim_end_matches([' ', '}']).parse().unwrap();
        let answer = answer.strip_prefix("Verification { answer: ").unwrap();
        let said = match answer {
            _ if answer.starts_with("Valid(") => Self::Valid,
            "Invalid(Definitive)" => Self::Definitive,
            "Invalid(Concluded)" => Self::Concluded,
            "Invalid(Unconfirmed)" => Self::Unconfirmed,
            "Invalid(Undecided { is_misconfigured: false })" => Self::Undecided,
            "Invalid(Undecided { is_misconfigured: true })" => Self::TokenRejected,
            _ => panic!("another answer: {debug}"),
        };
        (said, credential)
    }
}

/// Keys that were not issued.
pub(crate) fn invalid_key(n: usize) -> String {
    format!("k_live_none_{n:06}")
}

/// Keys that were issued, like [`GOOD`].
pub(crate) fn valid_key(n: usize) -> String {
    format!("k_live_good_{n:06}")
}

/// The response to a valid key.
pub(crate) fn served() -> (u16, String) {
    (200, "org_1".into())
}

/// The response to an invalid key.
pub(crate) fn rejected() -> (u16, String) {
    (401, "invalid-token".into())
}

/// The response while the issuer rejects the token.
pub(crate) fn misconfigured() -> (u16, String) {
    (503, "verifier-misconfigured".into())
}

/// The response while the verifier cannot tell about an unknown key.
pub(crate) fn unavailable() -> (u16, String) {
    (503, "verifier-unavailable".into())
}

/// A layer with the default deadlines.
pub(crate) fn default_layer(stage: &Stage) -> ApiKeyLayer {
    ApiKeyLayer::builder(stage.kinde.clone())
        .test_clock(stage.clock.clone())
        .build()
        .unwrap()
}

/// Deadlines so long that only faults reach them.
pub(crate) fn layer_over(kinde: KindeVerifier, clock: &TestClock) -> ApiKeyLayer {
    ApiKeyLayer::builder(kinde)
        .test_clock(clock.clone())
        .attempt_deadline(Duration::from_secs(5))
        .caller_deadline(Duration::from_secs(12))
        .lookup_deadline(Duration::from_secs(30))
        .build()
        .unwrap()
}

pub(crate) async fn get(layer: &ApiKeyLayer, key: &str) -> (u16, String) {
    let service = layer.layer(service_fn(|request: Request<()>| async move {
        let org = request.extensions().get::<OrgContext>().unwrap();
        let org = org.org_code().to_string();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(org))))
    }));
    let request = Request::get("/")
        .header("authorization", format!("Bearer {key}"))
        .body(())
        .unwrap();
    let response = service.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    if status == 503 {
        assert!(response.headers().contains_key("retry-after"));
        assert!(!response.headers().contains_key("www-authenticate"));
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let said = match serde_json::from_str::<serde_json::Value>(&body) {
        Ok(problem) => problem["code"].as_str().unwrap().to_owned(),
        Err(_) => body,
    };
    (status, said)
}

/// Makes a stub behave like Kinde: numbered tokens, 401 for invalid keys, an accepted probe.
fn behave_like_kinde(stub: &Stub) -> Arc<Mutex<HashSet<String>>> {
    let rejected_tokens = Arc::<Mutex<HashSet<String>>>::default();
    let issued = Mutex::new(0);
    stub.on(Endpoint::Token, move |_| {
        let mut issued = issued.lock().unwrap();
        *issued += 1;
        token(&format!("token-{issued}"), "3600")
    });
    let dead = Arc::clone(&rejected_tokens);
    let is_dead =
        move |token: Option<&str>| token.is_some_and(|token| dead.lock().unwrap().contains(token));
    let is_dead_too = is_dead.clone();
    stub.on(Endpoint::Verify, move |request| {
        if is_dead(request.token()) || !request.key().contains("good") {
            Answer::status(401)
        } else {
            valid_reply()
        }
    });
    stub.on(Endpoint::Probe, move |request| {
        if is_dead_too(request.token()) {
            Answer::status(401)
        } else {
            Answer::json(200, r#"{"code":"OK","api_keys":[],"has_more":false}"#)
        }
    });
    rejected_tokens
}

pub(crate) fn token(token: &str, expires_in: &str) -> Answer {
    Answer::json(
        200,
        &format!(
            r#"{{"access_token":"{token}","expires_in":{expires_in},"scope":"","token_type":"bearer"}}"#
        ),
    )
}
