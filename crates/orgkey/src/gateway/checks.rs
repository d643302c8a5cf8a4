//! The listener for the check requests of proxies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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

    /// Responds to a check request. Its body may take this long to arrive. Any other request is rejected.
    pub(super) async fn respond<B>(
        self: Arc<Self>,
        request: Request<B>,
        timeout: Duration,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut parts, body) = request.into_parts();
        let speaks = |dialect| self.dialects.contains(&dialect);
        let response = match parts.uri.path() {
            "/v1/nginx" if speaks(Dialect::Nginx) => {
                let routed = self.routed(nginx::original(&parts.headers));
                nginx::response(self.head("nginx", routed, &mut parts.headers).await)
            }
            "/v1/forward-auth" if speaks(Dialect::ForwardAuth) => {
                let routed = self.routed(forward_auth::original(&parts.headers));
                forward_auth::response(self.head("forward-auth", routed, &mut parts.headers).await)
            }
            envoy_grpc::PATH if speaks(Dialect::Envoy) && parts.version == Version::HTTP_2 => {
                // Boxed, so that the other dialects do not move its future.
                return Box::pin(self.grpc(&parts.headers, body, timeout)).await;
            }
            _ => match envoy_http::target(&parts.uri) {
                Some(target) if speaks(Dialect::Envoy) => {
                    let routed = self.routed(envoy_http::original(&parts, target));
                    let outcome = self.head("envoy-http", routed, &mut parts.headers).await;
                    self.envoy.response(outcome)
                }
                _ => unknown(),
            },
        };
        response.map(|body| Either::Left(Full::new(body)))
    }

    fn routed(&self, original: Result<Original<'_>, Incomplete>) -> Result<Routed, Incomplete> {
        let Original {
            method,
            target,
            host,
        } = original?;
        Ok(self.decisions.route(method, host.as_deref(), &target))
    }

    /// Decides on a check request that is in a head.
    async fn head(
        &self,
        dialect: &'static str,
        routed: Result<Routed, Incomplete>,
        headers: &mut HeaderMap,
    ) -> Outcome {
        let decision = match routed {
            Ok(routed) => {
                let check = Check {
                    routed,
                    headers,
                    scopes: None,
                    deadline: None,
                };
                self.decisions.decide(check).await
            }
            Err(incomplete) => Decision::Incomplete(incomplete),
        };
        self.outcome(dialect, decision)
    }

    async fn grpc<B>(
        &self,
        headers: &HeaderMap,
        body: B,
        timeout: Duration,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let deadline = envoy_grpc::deadline(headers);
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
                (self.decisions.decide(check).await, request.about)
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
        let body = Full::new(frame).with_trailers(std::future::ready(Some(Ok(trailers))));
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
fn unknown() -> Response<Bytes> {
    let detail = "The gateway has no such endpoint.";
    let rejection = Rejection::custom(StatusCode::NOT_FOUND, "unknown-endpoint", detail);
    rendered(rejection)
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
