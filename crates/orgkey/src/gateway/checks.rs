//! The listener for the check requests of proxies.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full, Limited};
use metrics::Counter;
use tower_orgkey::Rejection;

use super::config::{Config, Dialect};
use super::decision::{Check, Decision, Decisions, Routed};
use super::dialect::{Incomplete, Original, Outcome, envoy_grpc, envoy_http, forward_auth, nginx};
use super::identity;
use super::once_map::OnceMap;
use super::once_per_second::OncePerSecond;
use super::recent::Recent;
use super::rendered::rendered;

/// The counter of checks, by `dialect` and `outcome`: `allowed`, `public`, or the code of the rejection.
pub(super) const CHECKS: &str = "orgkey_gateway_checks_total";

/// A message over gRPC that is too large, or does not end in time.
const UNREAD: Incomplete = Incomplete("message of at most 256 KiB, in time");

/// The body of a response: over gRPC, it has trailers.
pub(super) type ResponseBody = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::convert::Infallible>>;

/// A dialect that sends the whole check request in a head, without a body.
#[derive(Clone, Copy)]
enum HeadDialect {
    Nginx,
    ForwardAuth,
    EnvoyHttp,
}

/// Responds to the check requests of proxies.
pub(super) struct Checks {
    decisions: Decisions,
    dialects: Vec<Dialect>,
    /// The header with the key, if services must not get it.
    removed_key: Option<HeaderName>,
    envoy: envoy_http::Responses,
    counters: Counters,
    logged: OncePerSecond,
}

impl Checks {
    pub(super) fn new(config: &Config, decisions: Decisions) -> Self {
        let removed_key = (!config.keys.pass_to_service).then(|| config.keys.header_name());
        Self {
            decisions,
            dialects: config.listen.dialects.clone(),
            envoy: envoy_http::Responses::new(removed_key.as_ref()),
            removed_key,
            counters: Counters::default(),
            logged: OncePerSecond::default(),
        }
    }

    pub(super) fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Returns what was decided in the last hour.
    pub(super) fn recent(&self) -> &Recent {
        self.decisions.recent()
    }

    /// Responds to a check request. Its body must arrive within `timeout`. Rejects any other request.
    pub(super) fn respond<B>(
        self: &Arc<Self>,
        request: Request<B>,
        timeout: Duration,
    ) -> BoxFuture<'static, Response<ResponseBody>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut parts, body) = request.into_parts();
        let speaks = |dialect| self.dialects.contains(&dialect);
        let (dialect, routed) = match parts.uri.path() {
            "/v1/nginx" if speaks(Dialect::Nginx) => (
                HeadDialect::Nginx,
                self.routed(nginx::original(&parts.headers)),
            ),
            "/v1/forward-auth" if speaks(Dialect::ForwardAuth) => {
                let routed = self.routed(forward_auth::original(&parts.headers));
                (HeadDialect::ForwardAuth, routed)
            }
            envoy_grpc::PATH if speaks(Dialect::Envoy) && parts.version == Version::HTTP_2 => {
                return Arc::clone(self).grpc(parts.headers, body, timeout).boxed();
            }
            _ => match envoy_http::target(&parts.uri) {
                Some(target) if speaks(Dialect::Envoy) => {
                    let routed = self.routed(envoy_http::original(&parts, target));
                    (HeadDialect::EnvoyHttp, routed)
                }
                _ => return ready(unknown()).boxed(),
            },
        };
        let checks = Arc::clone(self);
        let render = move |decision| {
            // Kept while the check waits: hyper closes a connection if a body is dropped before it has arrived.
            drop(body);
            checks.record_and_render(dialect, decision)
        };
        match routed {
            Ok(routed) => {
                let check = Check {
                    routed,
                    headers: &mut parts.headers,
                    scopes: None,
                    deadline: None,
                };
                self.decisions.decide(check, render)
            }
            Err(incomplete) => ready(render(Decision::Incomplete(incomplete))).boxed(),
        }
    }

    fn routed(&self, original: Result<Original<'_>, Incomplete>) -> Result<Routed, Incomplete> {
        let Original {
            method,
            target,
            host,
        } = original?;
        Ok(self.decisions.route(method, host.as_deref(), &target))
    }

    /// Records a decision, and renders it in a dialect.
    fn record_and_render(
        &self,
        dialect: HeadDialect,
        decision: Decision,
    ) -> Response<ResponseBody> {
        let response = match dialect {
            HeadDialect::Nginx => nginx::response(self.outcome("nginx", decision)),
            HeadDialect::ForwardAuth => {
                forward_auth::response(self.outcome("forward-auth", decision))
            }
            HeadDialect::EnvoyHttp => self.envoy.response(self.outcome("envoy-http", decision)),
        };
        response.map(without_trailers)
    }

    async fn grpc<B>(
        self: Arc<Self>,
        headers: HeaderMap,
        body: B,
        timeout: Duration,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let deadline = envoy_grpc::deadline(&headers);
        let read = Limited::new(body, envoy_grpc::MAX_LEN).collect();
        let request = match tokio::time::timeout(timeout, read).await {
            Ok(Ok(body)) => envoy_grpc::read(&body.to_bytes(), |name| self.decisions.reads(name)),
            // Not a failure of the call, which `failure_mode_allow` would allow.
            _ => Err(UNREAD),
        };
        let (decision, about) = match request {
            Ok(mut request) => {
                let host = Some(request.host.as_str());
                let check = Check {
                    routed: self.decisions.route(request.method, host, &request.target),
                    headers: &mut request.headers,
                    scopes: request.scopes,
                    deadline,
                };
                let decision = self.decisions.decide(check, std::convert::identity).await;
                (decision, request.about)
            }
            Err(incomplete) => (
                Decision::Incomplete(incomplete),
                envoy_grpc::About::default(),
            ),
        };
        let outcome = self.outcome("envoy-grpc", decision);
        let frame = envoy_grpc::response(outcome, &about, self.removed_key.as_ref());
        let trailers = HeaderMap::from_iter([(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let body = Full::new(frame).with_trailers(ready(Some(Ok(trailers))));
        let mut response = Response::new(Either::Right(body.boxed_unsync()));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    /// Rejects a check request that only a wrong configuration of the proxy can have caused.
    fn incomplete(&self, dialect: &'static str, incomplete: &Incomplete) -> Decision {
        if self.logged.first() {
            let header = incomplete.0;
            tracing::error!(
                dialect,
                header,
                "check request of the proxy is incomplete, see its configuration"
            );
        }
        Decision::misconfigured()
    }

    fn outcome(&self, dialect: &'static str, decision: Decision) -> Outcome {
        let (name, outcome) = match decision {
            Decision::Public => {
                self.recent().record("public", None);
                ("public", Outcome::Allowed(identity::without_caller()))
            }
            Decision::Allowed(headers) => ("allowed", Outcome::Allowed(headers)),
            Decision::Incomplete(incomplete) => {
                return self.outcome(dialect, self.incomplete(dialect, &incomplete));
            }
            Decision::Rejected(response) => {
                let rejection = response.extensions().get::<Rejection>();
                let code = rejection.map_or("internal", Rejection::code);
                self.recent().record(code, None);
                (code, Outcome::Rejected(response))
            }
        };
        self.counters.count(dialect, name);
        outcome
    }
}

/// Rejects what is not a check request: a client may have chosen the path.
fn unknown() -> Response<ResponseBody> {
    let detail = "The gateway has no such endpoint.";
    let rejection = Rejection::custom(StatusCode::NOT_FOUND, "unknown-endpoint", detail);
    rendered(rejection).map(without_trailers)
}

/// Returns the body of a response over HTTP, which has no trailers.
fn without_trailers(body: Bytes) -> ResponseBody {
    Either::Left(Full::new(body))
}

/// The counters of checks, by dialect and outcome. Looked up once, because the registry compares all labels each time.
#[derive(Default)]
struct Counters(OnceMap<(&'static str, &'static str), Counter>);

impl Counters {
    fn count(&self, dialect: &'static str, outcome: &'static str) {
        let make = || metrics::counter!(CHECKS, "dialect" => dialect, "outcome" => outcome);
        let known = self.0.get_or_insert(
            dialect.len() + outcome.len(),
            |known| *known == (dialect, outcome),
            || ((dialect, outcome), make()),
        );
        match known {
            Some(counter) => counter.increment(1),
            None => make().increment(1),
        }
    }
}
