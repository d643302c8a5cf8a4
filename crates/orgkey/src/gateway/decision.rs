//! Decides about a request, with the layer, guards and limits of `tower-orgkey`.
//!
//! Each route has a service: the layer and what the route demands, around an inner service that responds with the context of the
//! organization. The service gets a request with the method, the path and the credential of the original one, so statuses,
//! challenges and problem documents are those of the layer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::Full;
use tower::util::{BoxCloneSyncService, option_layer};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_orgkey::auth::network_of;
use tower_orgkey::guard::RequireScopeLayer;
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{
    ApiKeyHandle, ApiKeyLayer, OrgContext, OrgRateLimitLayer, Quota, Rejection, RequestHead,
    require_org_with,
};
use tower_orgkey_audit::AuditLayer;

use super::config::{Config, Demand, RouteConfig};
use super::deadline::{Deadline, WithDeadline};
use super::dialect::Incomplete;
use super::identity::{Identities, Identity};
use super::path;
use super::region::Regions;
use super::rendered::{rendered, whole};
use super::routes::{NotFound, Routes};
use super::waiting::{Bounded, Waiter, Waiting};

/// The header with the request's id, for the audit trail.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const HOST: Incomplete = Incomplete("the host, which some routes have");
const SCOPES_OF_PUBLIC_ROUTE: Incomplete = Incomplete("context_extensions.scope of a public route");

/// Decides on a checked request. The response for an allowed one has a [`Granted`] in its extensions.
type Decide = BoxCloneSyncService<Request<()>, Response<Bytes>, Infallible>;

/// A request to decide on, as a proxy describes it.
pub(super) struct Check<'a> {
    pub(super) method: Method,
    /// The path and query, as the client sent them.
    pub(super) target: &'a str,
    pub(super) host: Option<&'a str>,
    /// The client's headers. Only the key, the request's id and the address of the client are read.
    pub(super) headers: &'a HeaderMap,
    /// The scopes that the proxy demands beside those of the route.
    pub(super) scopes: Option<ScopePolicy>,
    /// How long the proxy waits.
    pub(super) deadline: Option<Duration>,
    /// Whether the check holds its connection until it is decided.
    pub(super) holds_connection: bool,
}

/// What was decided about a request.
pub(super) enum Decision {
    /// The route is public. No key was read.
    Public,
    /// The organization may do it.
    Allowed(OrgContext, Identity),
    /// It may not pass.
    Rejected(Response<Bytes>),
    /// It may not pass, because the proxy is not configured as its dialect requires.
    Incomplete(Incomplete),
}

impl Decision {
    /// Rejects a request that the gateway cannot decide about, because something is not set up.
    pub(super) fn misconfigured() -> Self {
        Self::Rejected(rendered(Rejection::internal()))
    }
}

/// What is decided about requests, and the state that decisions share.
pub(super) struct Decisions {
    layer: ApiKeyLayer,
    regions: Option<Regions>,
    identities: Arc<Identities>,
    limit: OrgRateLimitLayer,
    quota: Arc<ArcSwap<Option<Quota>>>,
    audit: Option<AuditLayer>,
    /// For public routes, if they are recorded.
    public_audit: Option<AuditLayer>,
    /// Responds to requests without a route, with the rejection in their extensions.
    reject: Decide,
    waiting: Waiting,
    /// The header with the key.
    key: HeaderName,
    client_address: Option<HeaderName>,
    routes: ArcSwap<RouteServices>,
}

struct RouteServices {
    routes: Routes,
    services: Vec<Route>,
}

struct Route {
    name: Arc<str>,
    demand: RouteDemand,
}

/// What a route demands, as a service.
enum RouteDemand {
    /// No key is read. The service records the request, if public ones are recorded.
    Nothing(Option<Decide>),
    Key(Decide),
}

/// What guards and the audit trail know about a request beside its head.
#[derive(Clone, Default)]
struct Matched {
    route: Option<Arc<str>>,
    organization: Option<String>,
    scopes: Option<ScopePolicy>,
    client: Option<IpAddr>,
}

impl Matched {
    fn of(head: RequestHead<'_>) -> Option<&Self> {
        head.extensions.get()
    }
}

/// Returns the address of a request's client, if the proxy says it.
pub(super) fn client(head: RequestHead<'_>) -> Option<IpAddr> {
    Matched::of(head)?.client
}

impl Decisions {
    pub(super) fn new(
        config: &Config,
        layer: ApiKeyLayer,
        regions: Option<Regions>,
        identities: Identities,
        audit: Option<AuditLayer>,
        waiting: Waiting,
    ) -> Self {
        let quota = Arc::new(ArcSwap::from_pointee(config.limit));
        let current = Arc::clone(&quota);
        let is_minimal = config
            .region
            .as_ref()
            .is_some_and(|region| region.minimal_audit);
        let audit = audit.map(|audit| {
            let audit = if is_minimal {
                audit.minimal_outside_home()
            } else {
                audit
            };
            audit
                .route(|head| Some(Matched::of(head)?.route.as_ref()?.to_string()))
                .peer(client)
        });
        let reject = audited(audit.as_ref(), service_fn(reject));
        let settings = config.audit.as_ref();
        let client_address = settings.and_then(|audit| audit.client_address_header.clone());
        let records_public = settings.is_some_and(|audit| audit.public_requests);
        let public_audit = audit.clone().filter(|_| records_public);
        let public_audit = public_audit.map(|audit| audit.record_undecided(true));
        let mut decisions = Self {
            layer,
            regions,
            identities: Arc::new(identities),
            limit: OrgRateLimitLayer::new(move |_: &OrgContext| **current.load()),
            quota,
            audit,
            public_audit,
            reject,
            waiting,
            key: config.keys.header_name(),
            client_address,
            routes: ArcSwap::from_pointee(RouteServices {
                routes: Routes::new(Vec::new(), false),
                services: Vec::new(),
            }),
        };
        decisions.routes = ArcSwap::from_pointee(decisions.services(config));
        decisions
    }

    /// Replaces routes, limits and homes. Entries, blocks and what limits have counted stay.
    ///
    /// # Errors
    ///
    /// If homes cannot be read. Nothing is replaced then.
    pub(super) fn reload(&self, config: &Config) -> Result<(), String> {
        let homes = match (&self.regions, &config.region) {
            (Some(regions), Some(region)) => Some(regions.reload(region)?),
            _ => None,
        };
        let services = self.services(config);
        self.quota.store(Arc::new(config.limit));
        self.routes.store(Arc::new(services));
        if let Some(apply) = homes {
            apply();
        }
        Ok(())
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
        [&self.key, &REQUEST_ID].contains(&name) || self.client_address.as_ref() == Some(name)
    }

    fn services(&self, config: &Config) -> RouteServices {
        let services = config.routes.iter().map(|route| Route {
            name: route.pattern.as_str().into(),
            demand: self.demand(route),
        });
        RouteServices {
            services: services.collect(),
            routes: Routes::new(config.routes.clone(), config.allow_semicolons),
        }
    }

    /// From the outside in: audit, the deadline, the bound of checks that wait, the layer, the region, the limit, the organization, scopes.
    fn demand(&self, route: &RouteConfig) -> RouteDemand {
        let Demand::Key {
            scopes,
            organization,
        } = &route.demand
        else {
            let audit = self.public_audit.as_ref();
            return RouteDemand::Nothing(audit.map(|audit| audited(Some(audit), service_fn(pass))));
        };
        let scopes = option_layer(scopes.clone().map(RequireScopeLayer::new));
        let organization = option_layer(organization.as_ref().map(|_| {
            require_org_with(|head: RequestHead<'_>| Matched::of(head)?.organization.clone())
        }));
        let allow = Allow {
            identities: Arc::clone(&self.identities),
            audience: route.audience.as_deref().map(Into::into),
        };
        let allow = Arc::new(allow);
        let allow = service_fn(move |request| Arc::clone(&allow).with_scopes(request));
        let guarded = organization.layer(scopes.layer(allow));
        let region = option_layer(self.regions.as_ref().map(|regions| regions.layer.clone()));
        let decided = self.layer.layer(region.layer(self.limit.layer(guarded)));
        let decided = decided.map_response(|response| whole(response).map(Full::new));
        let decided = Bounded::new(decided, self.waiting.clone());
        RouteDemand::Key(audited(self.audit.as_ref(), WithDeadline(decided)))
    }

    /// Decides about a request.
    pub(super) async fn decide(&self, check: Check<'_>) -> Decision {
        let current = self.routes.load_full();
        let found = match current.routes.find(&check.method, check.host, check.target) {
            Ok(found) => found,
            Err(NotFound::NoRoute) => return self.reject(&check, no_route()).await,
            Err(NotFound::Ambiguous(why)) => return self.reject(&check, ambiguous(why)).await,
            Err(NotFound::NoHost) => {
                self.reject(&check, Rejection::internal()).await;
                return Decision::Incomplete(HOST);
            }
        };
        let route = &current.services[found.index];
        let client = self.client(check.headers);
        let matched = Matched {
            route: Some(Arc::clone(&route.name)),
            organization: found.organization.as_deref().and_then(decoded),
            scopes: check.scopes.clone(),
            client,
        };
        let mut decide = match &route.demand {
            RouteDemand::Nothing(_) if check.scopes.is_some() => {
                self.reject(&check, Rejection::internal()).await;
                return Decision::Incomplete(SCOPES_OF_PUBLIC_ROUTE);
            }
            RouteDemand::Nothing(None) => return Decision::Public,
            RouteDemand::Nothing(Some(record)) => {
                let request = self.request(&check, matched, false);
                let Ok(_) = record.clone().call(request).await;
                return Decision::Public;
            }
            RouteDemand::Key(decide) => decide.clone(),
        };
        let Ok(uri) = Uri::try_from(path::of_target(check.target)) else {
            let why = ambiguous("is not a path of a URI");
            return self.reject(&check, why).await;
        };
        let mut request = self.request(&check, matched, true);
        *request.uri_mut() = uri;
        if let Some(deadline) = check.deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        if check.holds_connection {
            request
                .extensions_mut()
                .insert(Waiter(client.map(network_of)));
        }
        let Ok(mut response) = decide.call(request).await;
        match response.extensions_mut().remove::<Granted>() {
            Some(Granted(context, identity)) if response.status() == StatusCode::OK => {
                Decision::Allowed(context, identity)
            }
            // Whatever else passed would be an allow to the proxy.
            _ if !(400..600).contains(&response.status().as_u16()) => Decision::misconfigured(),
            _ => Decision::Rejected(response),
        }
    }

    /// Rejects a request for a reason that the layer does not know, in the same format.
    async fn reject(&self, check: &Check<'_>, rejection: Rejection) -> Decision {
        let matched = Matched {
            client: self.client(check.headers),
            ..Matched::default()
        };
        let mut request = self.request(check, matched, false);
        request.extensions_mut().insert(rejection);
        let Ok(response) = self.reject.clone().call(request).await;
        Decision::Rejected(response)
    }

    /// Returns the request that services decide about, without its path.
    fn request(&self, check: &Check<'_>, matched: Matched, has_key: bool) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = check.method.clone();
        let key = has_key.then_some(&self.key);
        for name in key.into_iter().chain([&REQUEST_ID]) {
            for value in check.headers.get_all(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        let is_read = self.audit.is_some()
            || matched.organization.is_some()
            || matched.scopes.is_some()
            || matched.client.is_some();
        if is_read {
            request.extensions_mut().insert(matched);
        }
        request
    }

    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut values = headers.get_all(self.client_address.as_ref()?).iter();
        match (values.next(), values.next()) {
            (Some(address), None) => address.to_str().ok()?.trim().parse().ok(),
            _ => None,
        }
    }
}

/// Puts the audit trail around a service, and reads its bodies.
fn audited<S, B>(audit: Option<&AuditLayer>, service: S) -> Decide
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + 'static,
{
    match audit {
        Some(audit) => BoxCloneSyncService::new(audit.layer(service).map_response(whole)),
        None => BoxCloneSyncService::new(service.map_response(whole)),
    }
}

/// Rejects a request by the rejection in its extensions.
async fn reject(mut request: Request<()>) -> Result<axum::response::Response, Infallible> {
    let rejection = request.extensions_mut().remove::<Rejection>();
    Ok(rejection
        .unwrap_or_else(Rejection::internal)
        .into_response())
}

/// The inner service of the layer. It creates the identity here, so that the audit trail records a failure to do so.
struct Allow {
    identities: Arc<Identities>,
    /// Who the assertion is for, if the route has its own.
    audience: Option<Arc<str>>,
}

/// The caller of an allowed request, and what its service is told.
#[derive(Clone)]
struct Granted(OrgContext, Identity);

impl Allow {
    /// Checks the scopes that the proxy demands.
    async fn with_scopes(
        self: Arc<Self>,
        request: Request<()>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let matched = Matched::of(RequestHead::of(&request));
        match matched.and_then(|matched| matched.scopes.clone()) {
            None => Ok(self.allow(&request)),
            Some(policy) => {
                let guard = RequireScopeLayer::new(policy);
                let allow = service_fn(|request| std::future::ready(Ok(self.allow(&request))));
                guard.layer(allow).oneshot(request).await
            }
        }
    }

    fn allow(&self, request: &Request<()>) -> Response<Full<Bytes>> {
        let Some(context) = request.extensions().get::<OrgContext>() else {
            return rendered(Rejection::internal()).map(Full::new);
        };
        match self.identities.of(context, self.audience.as_ref()) {
            None => rendered(Rejection::internal()).map(Full::new),
            Some(identity) => {
                let mut response = Response::new(Full::default());
                let granted = Granted(context.clone(), identity);
                response.extensions_mut().insert(granted);
                response
            }
        }
    }
}

/// The inner service of a public route.
async fn pass(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
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
