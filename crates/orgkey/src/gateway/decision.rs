//! Decides about a request, with the layer, guards and limits of `tower-orgkey`.
//!
//! Each route has a service: the layer and what the route demands, around an inner service that answers with the context of the
//! organization. The service gets a request with the method, the path and the credential of the original one, so statuses,
//! challenges and problem documents are those of the layer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Collected, Full};
use tower::util::{BoxCloneSyncService, option_layer};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_orgkey::guard::RequireScopeLayer;
use tower_orgkey::{
    ApiKeyHandle, ApiKeyLayer, OrgContext, OrgRateLimitLayer, Quota, Rejection, RequestHead,
    require_org_with,
};
use tower_orgkey_audit::AuditLayer;

use super::config::{Config, Demand, RouteConfig};
use super::path;
use super::routes::{NotFound, Routes};

/// Answers a request that was asked about. An allowed one has an [`OrgContext`] in its extensions.
type Decide = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

/// A request that a proxy asks about.
pub(super) struct Check<'a> {
    pub(super) method: Method,
    /// The path and query, as the client sent them.
    pub(super) target: &'a str,
    pub(super) host: Option<&'a str>,
    /// The client's headers. Only the key, the request's id and the address of the client are read.
    pub(super) headers: &'a HeaderMap,
    /// How long the proxy waits.
    pub(super) deadline: Option<Duration>,
}

/// What was decided about a request.
pub(super) enum Decision {
    /// The route is public. No key was read.
    Public,
    /// The organization may do it. Holds the audience of its assertion, if the route has its own.
    Allowed(OrgContext, Option<Arc<str>>),
    /// It may not pass.
    Rejected(Response<Bytes>),
}

impl Decision {
    /// Rejects a request for a reason that the layer does not know, in the same format.
    pub(super) fn reject(rejection: Rejection) -> Self {
        Self::Rejected(rendered(rejection))
    }

    /// Rejects a request that the gateway cannot decide about, because something is not set up.
    pub(super) fn misconfigured() -> Self {
        Self::reject(Rejection::internal())
    }
}

/// What is decided about requests, and the state that decisions share.
pub(super) struct Decisions {
    layer: ApiKeyLayer,
    limit: OrgRateLimitLayer,
    quota: Arc<ArcSwap<Option<Quota>>>,
    audit: Option<AuditLayer>,
    /// The headers of the client that the layers read.
    read: Vec<HeaderName>,
    client_address: Option<HeaderName>,
    routes: ArcSwap<RouteServices>,
}

struct RouteServices {
    routes: Routes,
    services: Vec<Route>,
}

/// What a route demands, as a service. `None` for public routes.
struct Route {
    name: Arc<str>,
    organization: Option<String>,
    audience: Option<Arc<str>>,
    decide: Option<Decide>,
}

/// What guards and the audit trail know about a request beside its head.
#[derive(Clone)]
struct Matched {
    route: Arc<str>,
    organization: Option<String>,
    client: Option<IpAddr>,
}

impl Matched {
    fn of(head: RequestHead<'_>) -> Option<&Self> {
        head.extensions.get()
    }
}

impl Decisions {
    pub(super) fn new(config: &Config, layer: ApiKeyLayer, audit: Option<AuditLayer>) -> Self {
        let quota = Arc::new(ArcSwap::from_pointee(config.limit));
        let current = Arc::clone(&quota);
        let audit = audit.map(|audit| {
            audit
                .route(|head| Some(Matched::of(head)?.route.to_string()))
                .peer(|head| Matched::of(head)?.client)
        });
        let client_address = config
            .audit
            .as_ref()
            .and_then(|audit| audit.client_address_header.clone());
        let mut decisions = Self {
            layer,
            limit: OrgRateLimitLayer::new(move |_: &OrgContext| **current.load()),
            quota,
            audit,
            read: vec![
                config.keys.header_name(),
                HeaderName::from_static("x-request-id"),
            ],
            client_address,
            routes: ArcSwap::from_pointee(RouteServices {
                routes: Routes::new(Vec::new(), false),
                services: Vec::new(),
            }),
        };
        decisions.routes = ArcSwap::from_pointee(decisions.services(config));
        decisions
    }

    /// Replaces routes and limits. Entries, blocks and what limits have counted stay.
    pub(super) fn reload(&self, config: &Config) {
        let services = self.services(config);
        self.quota.store(Arc::new(config.limit));
        self.routes.store(Arc::new(services));
    }

    pub(super) fn keys(&self) -> ApiKeyHandle {
        self.layer.handle()
    }

    /// Returns the limit of each organization.
    pub(super) fn quota(&self) -> Option<Quota> {
        **self.quota.load()
    }

    /// Whether a header of the client is read.
    pub(super) fn reads(&self, name: &HeaderName) -> bool {
        self.read.contains(name) || self.client_address.as_ref() == Some(name)
    }

    fn services(&self, config: &Config) -> RouteServices {
        let services = config.routes.iter().map(|route| Route {
            name: route.pattern.as_str().into(),
            organization: match &route.demand {
                Demand::Key { organization, .. } => organization.clone(),
                Demand::Nothing => None,
            },
            audience: route.audience.as_deref().map(Into::into),
            decide: self.service(route),
        });
        RouteServices {
            services: services.collect(),
            routes: Routes::new(config.routes.clone(), config.allow_semicolons),
        }
    }

    /// From the outside in: audit, the layer, the limit, the organization, scopes.
    fn service(&self, route: &RouteConfig) -> Option<Decide> {
        let Demand::Key {
            scopes,
            organization,
        } = &route.demand
        else {
            return None;
        };
        let scopes = option_layer(scopes.clone().map(RequireScopeLayer::new));
        let organization = option_layer(organization.as_ref().map(|_| {
            require_org_with(|head: RequestHead<'_>| Matched::of(head)?.organization.clone())
        }));
        let guarded = organization.layer(scopes.layer(service_fn(allow)));
        let decided = self.layer.layer(self.limit.layer(guarded));
        Some(match &self.audit {
            Some(audit) => BoxCloneSyncService::new(audit.layer(decided).map_response(whole)),
            None => BoxCloneSyncService::new(decided.map_response(whole)),
        })
    }

    /// Decides about a request.
    pub(super) async fn decide(&self, check: Check<'_>) -> Decision {
        let current = self.routes.load_full();
        let found = match current.routes.find(&check.method, check.host, check.target) {
            Ok(found) => found,
            Err(NotFound::NoRoute) => return Decision::reject(no_route()),
            Err(NotFound::Ambiguous(reason)) => return Decision::reject(ambiguous(reason)),
        };
        let route = &current.services[found.index];
        let Some(mut decide) = route.decide.clone() else {
            return Decision::Public;
        };
        let organization = route
            .organization
            .as_deref()
            .and_then(|name| found.parameter(name));
        let Ok(uri) = Uri::try_from(path::of_target(check.target)) else {
            return Decision::reject(ambiguous("is not a path of a URI"));
        };
        let mut request = Request::new(());
        *request.method_mut() = check.method;
        *request.uri_mut() = uri;
        for name in &self.read {
            for value in check.headers.get_all(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        request.extensions_mut().insert(Matched {
            route: Arc::clone(&route.name),
            organization: organization.and_then(decoded),
            client: self.client(check.headers),
        });
        let decided = decide.call(request);
        let response = match check.deadline {
            None => decided.await,
            Some(deadline) => match tokio::time::timeout(deadline, decided).await {
                Ok(response) => response,
                // The verification goes on, and the next request finds its result.
                Err(_) => return Decision::reject(too_slow()),
            },
        };
        let Ok(mut response) = response;
        match response.extensions_mut().remove::<OrgContext>() {
            Some(context) if response.status() == StatusCode::OK => {
                Decision::Allowed(context, route.audience.clone())
            }
            // Whatever else passed would be an allow to the proxy.
            _ if !(400..600).contains(&response.status().as_u16()) => Decision::misconfigured(),
            _ => Decision::Rejected(response),
        }
    }

    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut values = headers.get_all(self.client_address.as_ref()?).iter();
        match (values.next(), values.next()) {
            (Some(address), None) => address.to_str().ok()?.trim().parse().ok(),
            _ => None,
        }
    }
}

/// The inner service of the layer: the request may pass.
async fn allow(request: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if let Some(context) = request.extensions().get::<OrgContext>() {
        response.extensions_mut().insert(context.clone());
    }
    Ok(response)
}

/// Renders a rejection as the layer does.
pub(super) fn rendered(rejection: Rejection) -> Response<Bytes> {
    whole(axum::response::IntoResponse::into_response(rejection))
}

/// Reads a body that is complete, as all bodies of rejections are.
fn whole<B: Body<Data = Bytes>>(response: Response<B>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().now_or_never();
    let bytes = collected.and_then(Result::ok).map(Collected::to_bytes);
    Response::from_parts(parts, bytes.unwrap_or_default())
}

/// Decodes a parameter of a path once. `None` if it is not UTF-8.
fn decoded(parameter: &str) -> Option<String> {
    let decoded = percent_encoding::percent_decode_str(parameter).decode_utf8();
    Some(decoded.ok()?.into_owned())
}

fn no_route() -> Rejection {
    let detail = "The gateway has no route for this method and path.";
    Rejection::custom(StatusCode::FORBIDDEN, "no-route", detail)
}

fn ambiguous(reason: &'static str) -> Rejection {
    let detail = format!("The path {reason}.");
    Rejection::custom(StatusCode::BAD_REQUEST, "ambiguous-path", detail)
}

fn too_slow() -> Rejection {
    Rejection::verifier_unavailable(Duration::from_secs(1))
}
