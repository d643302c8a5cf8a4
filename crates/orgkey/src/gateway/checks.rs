//! The listener that proxies ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, Limited};
use tower_orgkey::{OrgContext, Rejection};

use super::assertion::Signer;
use super::config::{Config, Dialect};
use super::decision::{Check, Decision, Decisions, rendered};
use super::dialect::{Answer, Incomplete, Original, envoy_grpc, envoy_http, forward_auth, nginx};
use super::identity::{Identity, Unusable};
use super::recent::Recent;

/// The counter of answers, by `dialect` and `outcome`: `allowed`, `public`, or the code of the rejection.
pub(super) const CHECKS: &str = "orgkey_gateway_checks_total";

/// The body of an answer: over gRPC, it has trailers.
pub(super) type AnswerBody = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::convert::Infallible>>;

/// Answers the questions of proxies.
pub(super) struct Checks {
    decisions: Decisions,
    dialects: Vec<Dialect>,
    /// The header with the key, if services must not get it.
    removed_key: Option<HeaderName>,
    envoy: envoy_http::Answers,
    signer: Option<Signer>,
    recent: Recent,
    logged: OncePerSecond,
}

impl Checks {
    pub(super) fn new(config: &Config, decisions: Decisions, signer: Option<Signer>) -> Self {
        let removed_key = (!config.keys.pass_to_service).then(|| config.keys.header_name());
        Self {
            decisions,
            dialects: config.listen.dialects.clone(),
            envoy: envoy_http::Answers::new(removed_key.as_ref()),
            removed_key,
            signer,
            recent: Recent::new(),
            logged: OncePerSecond::default(),
        }
    }

    pub(super) fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Returns what was decided in the last hour.
    pub(super) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Answers a question, whose body may take this long to arrive. What is not a question is rejected.
    pub(super) async fn answer<B>(
        self: Arc<Self>,
        request: Request<B>,
        timeout: Duration,
    ) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let speaks = |dialect| self.dialects.contains(&dialect);
        let response = match parts.uri.path() {
            "/v1/nginx" if speaks(Dialect::Nginx) => {
                let original = nginx::original(&parts.headers);
                nginx::answer(self.headers("nginx", original, &parts.headers).await)
            }
            "/v1/forward-auth" if speaks(Dialect::ForwardAuth) => {
                let original = forward_auth::original(&parts.headers);
                forward_auth::answer(self.headers("forward-auth", original, &parts.headers).await)
            }
            envoy_grpc::PATH if speaks(Dialect::Envoy) && parts.version == Version::HTTP_2 => {
                return self.grpc(&parts.headers, body, timeout).await;
            }
            _ => match envoy_http::target(&parts.uri) {
                Some(target) if speaks(Dialect::Envoy) => {
                    let original = envoy_http::original(&parts, target);
                    let answer = self.headers("envoy-http", original, &parts.headers).await;
                    self.envoy.answer(answer)
                }
                _ => unknown(),
            },
        };
        response.map(|body| Either::Left(Full::new(body)))
    }

    /// Answers a question that is in the head of its request.
    async fn headers(
        &self,
        dialect: &'static str,
        original: Result<Original<'_>, Incomplete>,
        headers: &HeaderMap,
    ) -> Answer {
        let decision = match original {
            Ok(original) => {
                let check = Check {
                    method: original.method,
                    target: &original.target,
                    host: original.host.as_deref(),
                    headers,
                    scopes: None,
                    deadline: None,
                };
                self.decisions.decide(check).await
            }
            Err(incomplete) => Decision::Incomplete(incomplete),
        };
        self.answered(dialect, decision)
    }

    async fn grpc<B>(&self, headers: &HeaderMap, body: B, timeout: Duration) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let deadline = envoy_grpc::deadline(headers);
        let read = Limited::new(body, envoy_grpc::MAX_LEN).collect();
        let Ok(Ok(body)) = tokio::time::timeout(timeout, read).await else {
            return trailers_only("8");
        };
        let question = envoy_grpc::question(&body.to_bytes(), |name| self.decisions.reads(name));
        let (decision, about) = match question {
            Ok(question) => {
                let check = Check {
                    method: question.method,
                    target: &question.target,
                    host: Some(&question.host),
                    headers: &question.headers,
                    scopes: question.scopes,
                    deadline,
                };
                (self.decisions.decide(check).await, question.about)
            }
            Err(incomplete) => (
                Decision::Incomplete(incomplete),
                envoy_grpc::About::default(),
            ),
        };
        let answer = self.answered("envoy-grpc", decision);
        let frame = envoy_grpc::answer(answer, &about, self.removed_key.as_ref());
        let trailers = HeaderMap::from_iter([(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let body = Full::new(frame).with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut response = Response::new(Either::Right(body.boxed_unsync()));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    /// Rejects a question that only a wrong configuration of the proxy can have caused.
    fn incomplete(&self, dialect: &'static str, incomplete: &Incomplete) -> Decision {
        if self.logged.first() {
            let header = incomplete.0;
            tracing::error!(
                dialect,
                header,
                "question of the proxy is incomplete, see its configuration"
            );
        }
        Decision::misconfigured()
    }

    fn answered(&self, dialect: &'static str, decision: Decision) -> Answer {
        let (outcome, answer) = match decision {
            Decision::Public => {
                self.recent.record("public", None);
                ("public", Answer::Allowed(Identity::default()))
            }
            Decision::Allowed(context, audience) => {
                match self.identity(&context, audience.as_ref()) {
                    Ok(identity) => {
                        self.recent.record("allowed", Some(context.org_code()));
                        ("allowed", Answer::Allowed(identity))
                    }
                    Err(unusable) => {
                        return self.answered(dialect, self.unusable(&context, &unusable));
                    }
                }
            }
            Decision::Incomplete(incomplete) => {
                return self.answered(dialect, self.incomplete(dialect, &incomplete));
            }
            Decision::Rejected(response) => {
                let rejection = response.extensions().get::<Rejection>();
                let code = rejection.map_or("internal", Rejection::code);
                self.recent.record(code, None);
                (code, Answer::Rejected(response))
            }
        };
        metrics::counter!(CHECKS, "dialect" => dialect, "outcome" => outcome).increment(1);
        answer
    }

    fn identity(
        &self,
        context: &OrgContext,
        audience: Option<&Arc<str>>,
    ) -> Result<Identity, Unusable> {
        let assertion = match &self.signer {
            Some(signer) => Some(
                signer
                    .assertion(context, audience)
                    .ok_or(Unusable::NotSigned)?,
            ),
            None => None,
        };
        Identity::new(context, assertion)
    }

    fn unusable(&self, context: &OrgContext, unusable: &Unusable) -> Decision {
        if self.logged.first() {
            let org_code = context.org_code().as_str();
            match unusable {
                Unusable::TooLong(bytes) => {
                    tracing::error!(org_code, bytes, "identity is too long for headers");
                }
                Unusable::NotSigned => tracing::error!(org_code, "assertion cannot be signed"),
                Unusable::NotText => {
                    tracing::error!(org_code, "identity has characters that headers cannot have");
                }
            }
        }
        Decision::misconfigured()
    }
}

/// Rejects what is not a question: a client may have chosen the path.
fn unknown() -> Response<Bytes> {
    let detail = "The gateway does not answer this.";
    let rejection = Rejection::custom(StatusCode::NOT_FOUND, "unknown-endpoint", detail);
    rendered(rejection)
}

/// A failure of the call, which denies the request.
fn trailers_only(status: &'static str) -> Response<AnswerBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status));
    response
}

/// Limits a message that each request could cause.
#[derive(Debug, Default)]
struct OncePerSecond(AtomicU64);

impl OncePerSecond {
    fn first(&self) -> bool {
        let second = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        self.0.swap(second, Ordering::Relaxed) != second
    }
}
