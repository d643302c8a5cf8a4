//! Decides about a request, with the layer, guards and limits of `tower-orgkey`.
//!
//! Each route has a service: the layer and what the route demands, around an inner service that responds with the context of the
//! organization. The service gets a request with the method and the headers of the original one, so statuses, challenges and problem
//! documents are those of the layer.

use std::convert::Infallible;
use std::future::ready;
use std::mem;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body::Body;
use tower::util::{Either, option_layer};
use tower::{Layer, Service};
use tower_orgkey::auth::network_of;
use tower_orgkey::guard::{FromHead, RequireOrg, RequireScope, RequireScopeLayer};
use tower_orgkey::limit::OrgRateLimit;
use tower_orgkey::region::RegionService;
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{
    ApiKeyHandle, ApiKeyLayer, ApiKeyService, OrgContext, OrgRateLimitLayer, Quota, Rejection,
    RequestHead, require_org_with,
};
use tower_orgkey_audit::{AuditLayer, AuditService};

use super::allow::Allow;
use super::config::{Config, Demand, RouteConfig};
use super::deadline::WithDeadline;
use super::dialect::Incomplete;
use super::identity::{Identities, ORG_CODE};
use super::no_key::{self, Pass, Reject};
use super::recent::Recent;
use super::region::Regions;
use super::rendered::{rendered, whole};
use super::routes::{Found, NotFound, Routes};
use super::terms::Terms;
use super::waiting::{Bounded, Waiting};

/// The header with the request's id, for the audit trail.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const HOST: Incomplete = Incomplete("the host, which some routes have");
const SCOPES_OF_PUBLIC_ROUTE: Incomplete = Incomplete("context_extensions.scope of a public route");

/// Decides about a request, from the outside in: the deadline, the bound of checks that wait, the layer, the region, the limit, the
/// organization, scopes. Named, because boxed services cost two allocations per check.
type Decide = WithDeadline<Bounded<ApiKeyService<Regional>>>;
type Regional = Either<RegionService<Limited>, Limited>;
type Limited = Either<OrgRateLimit<Guarded>, Guarded>;
type Guarded = Either<RequireOrg<Scoped, FromHead<Claim>>, Scoped>;
type Claim = fn(RequestHead<'_>) -> Option<String>;
type Scoped = Either<RequireScope<Allow>, Allow>;

/// A request to decide on, as a proxy describes it.
pub(super) struct Check<'a> {
    pub(super) routed: Routed,
    /// The client's headers. Only the key, the request's id and the address of the client are read. Taken when they are needed,
    /// so that the check is moved without them.
    pub(super) headers: &'a mut HeaderMap,
    /// The scopes that the proxy demands beside those of the route.
    pub(super) scopes: Option<ScopePolicy>,
    /// How long the proxy waits.
    pub(super) deadline: Option<Duration>,
}

/// The method of a request, and its route.
pub(super) struct Routed {
    method: Method,
    // A guard costs less than an `Arc`, but a thread has few of them. Not held across an `await`.
    route: Result<(Guard<Arc<RouteServices>>, Found), NotFound>,
}

/// What was decided about a request.
pub(super) enum Decision {
    /// The route is public. No key was read.
    Public,
    /// The organization may do it. With the headers that say so.
    Allowed(HeaderMap),
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
    recent: Arc<Recent>,
    limit: OrgRateLimitLayer,
    quota: Arc<ArcSwap<Option<Quota>>>,
    audit: Option<AuditLayer>,
    /// For public routes, if they are recorded.
    public_audit: Option<AuditLayer>,
    /// Rejects requests before they reach the layer.
    reject: Reject,
    waiting: Waiting,
    /// The header with the key.
    key: HeaderName,
    client_address: Option<HeaderName>,
    routes: ArcSwap<RouteServices>,
    reloading: Mutex<()>,
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
    Nothing(Option<Pass>),
    Key(Decide),
    /// With the audit trail around it.
    Recorded(AuditService<Decide>),
}

/// What guards and the audit trail know about a request beside its head.
#[derive(Clone, Default)]
struct Matched {
    route: Option<Arc<str>>,
    organization: Option<String>,
    client: Option<IpAddr>,
}

impl Matched {
    fn of(head: RequestHead<'_>) -> Option<&Self> {
        head.extensions.get()
    }
}

/// Returns the organization that the path of a request names.
fn claimed(head: RequestHead<'_>) -> Option<String> {
    Matched::of(head)?.organization.clone()
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
                .route(|head| Some(String::from(&**Matched::of(head)?.route.as_ref()?)))
                .peer(client)
        });
        let reject = no_key::reject(audit.as_ref());
        let settings = config.audit.as_ref();
        let client_address = settings.and_then(|audit| audit.client_address_header.clone());
        let records_public = settings.is_some_and(|audit| audit.public_requests);
        let public_audit = audit.clone().filter(|_| records_public);
        let public_audit = public_audit.map(|audit| audit.record_undecided(true));
        let mut decisions = Self {
            layer,
            regions,
            identities: Arc::new(identities),
            recent: Arc::new(Recent::new()),
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
            reloading: Mutex::default(),
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
        // The routes of one configuration do not fit the limit of another. The next reload replaces what a panic left.
        let _guard = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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

    /// Returns what was decided in the last hour.
    pub(super) fn recent(&self) -> &Recent {
        &self.recent
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
            demand: self.demand(route, config.limit),
        });
        RouteServices {
            services: services.collect(),
            routes: Routes::new(config.routes.clone(), config.allow_semicolons),
        }
    }

    fn demand(&self, route: &RouteConfig, limit: Option<Quota>) -> RouteDemand {
        let Demand::Key {
            scopes,
            organization,
        } = &route.demand
        else {
            let audit = self.public_audit.as_ref();
            return RouteDemand::Nothing(audit.map(no_key::pass));
        };
        let scopes = option_layer(scopes.clone().map(RequireScopeLayer::new));
        let claimed: Claim = claimed;
        let organization = organization.as_ref().map(|_| require_org_with(claimed));
        let organization = option_layer(organization);
        let region = option_layer(self.regions.as_ref().map(|regions| regions.layer.clone()));
        let allow = Allow::new(&self.identities, &self.recent, route);
        let guarded = organization.layer(scopes.layer(allow));
        // Without a limit, only what it has counted is kept.
        let limit = option_layer(limit.map(|_| self.limit.clone()));
        let decide = self.layer.layer(region.layer(limit.layer(guarded)));
        let decide = WithDeadline(Bounded(decide));
        match &self.audit {
            None => RouteDemand::Key(decide),
            Some(audit) => RouteDemand::Recorded(audit.layer(decide)),
        }
    }

    /// Finds the route of a request. The target is its path and query, as the client sent them.
    pub(super) fn route(&self, method: Method, host: Option<&str>, target: &str) -> Routed {
        let current = self.routes.load();
        let found = current.routes.find(&method, host, target);
        let route = found.map(|found| (current, found));
        Routed { method, route }
    }

    /// Decides about a request, and returns what `render` makes of the decision.
    ///
    /// Not an `async fn`: its future would be large, and would be moved with the decision in it.
    pub(super) fn decide<T: Send + 'static>(
        &self,
        check: Check<'_>,
        render: impl FnOnce(Decision) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let Check {
            routed: Routed { method, route },
            headers,
            scopes,
            deadline,
        } = check;
        let client = self.client(headers);
        let (current, found) = match route {
            Ok(routed) => routed,
            Err(not_found) => {
                let (why, incomplete) = match not_found {
                    NotFound::NoRoute => (no_key::no_route(), None),
                    NotFound::Ambiguous(why) => (no_key::ambiguous(why), None),
                    NotFound::NoHost => (Rejection::internal(), Some(HOST)),
                };
                let rejected = self.reject(method, headers, client, why, incomplete);
                return rejected.map(render).boxed();
            }
        };
        let Route { name, demand } = &current.services[found.index];
        let is_read = self.audit.is_some() || found.organization.is_some() || client.is_some();
        let matched = is_read.then(|| Matched {
            route: Some(Arc::clone(name)),
            organization: found.organization.as_deref().and_then(decoded),
            client,
        });
        match demand {
            RouteDemand::Nothing(_) if scopes.is_some() => {
                let incomplete = Some(SCOPES_OF_PUBLIC_ROUTE);
                let rejected =
                    self.reject(method, headers, client, Rejection::internal(), incomplete);
                rejected.map(render).boxed()
            }
            RouteDemand::Nothing(None) => ready(render(Decision::Public)).boxed(),
            RouteDemand::Nothing(Some(record)) => {
                let recorded = record.clone().call(request(method, headers, matched, ()));
                recorded.map(|_| render(Decision::Public)).boxed()
            }
            RouteDemand::Key(decide) => {
                let terms = self.terms(scopes, deadline, client);
                let future = decide
                    .clone()
                    .call(request(method, headers, matched, terms));
                future.map(|response| render(decided(response))).boxed()
            }
            RouteDemand::Recorded(decide) => {
                let terms = self.terms(scopes, deadline, client);
                let future = decide
                    .clone()
                    .call(request(method, headers, matched, terms));
                future.map(|response| render(decided(response))).boxed()
            }
        }
    }

    /// Returns what the services of a route read beside the head.
    fn terms(
        &self,
        scopes: Option<ScopePolicy>,
        deadline: Option<Duration>,
        client: Option<IpAddr>,
    ) -> Terms {
        Terms {
            scopes,
            deadline,
            waiter: Some(self.waiting.waiter(self.network(client))),
        }
    }

    /// Rejects a request for a reason that the layer does not know, in the same format. With `incomplete`, `why` is only recorded,
    /// and the decision is [`Decision::Incomplete`].
    fn reject(
        &self,
        method: Method,
        headers: &mut HeaderMap,
        client: Option<IpAddr>,
        why: Rejection,
        incomplete: Option<Incomplete>,
    ) -> impl Future<Output = Decision> + Send + use<> {
        let matched = Matched {
            client,
            ..Matched::default()
        };
        let request = request(method, headers, Some(matched), why);
        let rejected = self.reject.clone().call(request);
        rejected.map(|Ok(response)| match incomplete {
            Some(incomplete) => Decision::Incomplete(incomplete),
            None => Decision::Rejected(response),
        })
    }

    fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let mut values = headers.get_all(self.client_address.as_ref()?).iter();
        match (values.next(), values.next()) {
            (Some(address), None) => address.to_str().ok()?.trim().parse().ok(),
            _ => None,
        }
    }

    /// Returns the network of a client, if the proxy has to say it. Requests without a valid address count as one network, because
    /// clients may cause that.
    fn network(&self, client: Option<IpAddr>) -> Option<IpAddr> {
        self.client_address.as_ref()?;
        Some(client.map_or(Ipv6Addr::UNSPECIFIED.into(), network_of))
    }
}

/// Returns a request for the services of a route. They read no path.
fn request<B>(
    method: Method,
    headers: &mut HeaderMap,
    matched: Option<Matched>,
    body: B,
) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.headers_mut() = mem::take(headers);
    if let Some(matched) = matched {
        request.extensions_mut().insert(matched);
    }
    request
}

/// Returns what the service of a route has decided.
fn decided<B: Body<Data = Bytes>>(decided: Result<Response<B>, Infallible>) -> Decision {
    let Ok(response) = decided;
    match response.status() {
        // Only `Allow` sets the header. Whatever else passed would be an allow to the proxy.
        StatusCode::OK if response.headers().keys().any(|name| *name == ORG_CODE) => {
            Decision::Allowed(response.into_parts().0.headers)
        }
        status if !(400..600).contains(&status.as_u16()) => Decision::misconfigured(),
        _ => Decision::Rejected(whole(response)),
    }
}

/// Decodes a parameter of a path once. `None` if it is not UTF-8.
fn decoded(parameter: &str) -> Option<String> {
    let decoded = percent_encoding::percent_decode_str(parameter).decode_utf8();
    Some(decoded.ok()?.into_owned())
}
