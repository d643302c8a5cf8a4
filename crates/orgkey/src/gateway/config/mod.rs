//! The configuration file of the gateway.

mod fleet;
mod issuer;
mod other_issuers;
mod region;
mod route;
mod section;
mod values;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use toml::Spanned;
use toml::de::DeTable;
use tower_orgkey::{ApiKeyLayer, ApiKeyLayerBuilder, Quota, Verification, Verifier, verifier_fn};

pub use self::fleet::FleetConfig;
pub(super) use self::issuer::prefix_verifier;
pub use self::issuer::{Issuer, IssuerKind, Kinde};
pub use self::other_issuers::{Introspection, OrganizationSource, Vendor, WithToken};
pub use self::region::{OtherRegion, Region};
pub use self::route::{Demand, Methods, RouteConfig};
pub use self::section::Problem;
use self::section::{Problems, Section};
pub use self::values::{Address, Dialect, KeyHeader, SecretSource};
use self::values::{Header, Span};
use super::routes::Routes;

/// The longest wait between the change of readiness and the end of the listeners.
const MAX_SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the gateway listens, and for whom.
    pub listen: Listen,
    /// The issuers of keys, at least one.
    pub issuers: Vec<Issuer>,
    /// Whether several issuers have the same organizations.
    pub shared_organizations: bool,
    /// How keys are read and cached.
    pub keys: Keys,
    /// Whether a path may have `;`.
    pub allow_semicolons: bool,
    /// What each route demands.
    pub routes: Vec<RouteConfig>,
    /// Which organizations are served here. All of them without it.
    pub region: Option<Region>,
    /// The limit of each organization.
    pub limit: Option<Quota>,
    /// Where decisions are recorded.
    pub audit: Option<Audit>,
    /// The signed identity.
    pub identity: Option<Identity>,
    /// The other nodes.
    pub fleet: Option<FleetConfig>,
}

/// The table `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where proxies send their check requests.
    pub checks: Address,
    /// The dialects of these requests that are served.
    pub dialects: Vec<Dialect>,
    /// Where operators send their requests.
    pub admin: Option<Address>,
    /// The file with the token of operators.
    pub admin_token_file: Option<PathBuf>,
    /// How long the gateway serves after it has stopped to be ready. 0 s by default, at most 5 s.
    pub shutdown_wait: Duration,
}

/// The table `[keys]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Keys {
    /// The header with the key.
    pub header: KeyHeader,
    /// How long a result is fresh.
    pub soft_ttl: Option<Duration>,
    /// How long a result is served while verifications fail.
    pub hard_ttl: Option<Duration>,
    /// Whether Envoy leaves the key in the request to the service.
    pub pass_to_service: bool,
}

impl Keys {
    /// Returns the name of the header with the key.
    pub fn header_name(&self) -> HeaderName {
        match self.header {
            KeyHeader::Authorization => http::header::AUTHORIZATION,
            KeyHeader::XApiKey => HeaderName::from_static("x-api-key"),
        }
    }

    /// Returns the builder of the layer, with these settings.
    pub(super) fn layer(&self, verifier: impl Verifier) -> ApiKeyLayerBuilder {
        let mut builder = ApiKeyLayer::builder(verifier);
        if self.header == KeyHeader::XApiKey {
            builder = builder.credential_header(self.header_name(), "ApiKey");
        }
        if let Some(ttl) = self.soft_ttl {
            builder = builder.soft_ttl(ttl);
        }
        if let Some(ttl) = self.hard_ttl {
            builder = builder.hard_ttl(ttl);
        }
        builder
    }
}

/// The table `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The file that events are appended to.
    pub file: Option<PathBuf>,
    /// The header in which the proxy says who the client is.
    pub client_address_header: Option<HeaderName>,
    /// Whether requests to public routes are recorded.
    pub public_requests: bool,
    /// The secret of pseudonyms for the ids of users and the addresses of clients.
    pub pseudonym_key_file: Option<PathBuf>,
}

/// The table `[identity]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The audience of assertions, unless a route has another.
    pub audience: String,
    /// The issuer of assertions. `orgkey` by default.
    pub issuer: String,
    /// The Ed25519 key that signs them, in PEM.
    pub key_file: PathBuf,
    /// Further keys of the key set, which do not sign.
    pub other_key_files: Vec<PathBuf>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// All errors, in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::new(text);
        let (table, syntax) = DeTable::parse_recoverable(text);
        for error in &syntax {
            problems.add(&error.span().unwrap_or_default(), error.message());
        }
        let mut root = Section::new("the file", table);
        let listen = listen(&mut root, &mut problems);
        let (issuers, shared_organizations) = issuer::issuers(&mut root, &mut problems);
        let keys = keys(&mut root, &mut problems);
        let allow_semicolons = paths(&mut root, &mut problems);
        let routes: Vec<_> = root
            .tables("route", "[[route]]", &mut problems)
            .into_iter()
            .filter_map(|section| route::route(section, allow_semicolons, &mut problems))
            .collect();
        let region = region::region(&mut root, &mut problems);
        let limit = limit(&mut root, &mut problems);
        let audit = audit(&mut root, &mut problems);
        let identity = identity(&mut root, &mut problems);
        let fleet = fleet::fleet(&mut root, &mut problems);
        root.finish(&mut problems);

        if identity.is_none() {
            for route in routes.iter().filter(|route| route.audience.is_some()) {
                problems.add(
                    &route.span,
                    "`assertion_audience` needs the table [identity]",
                );
            }
        }
        for (index, message) in Routes::conflicts(&routes) {
            problems.add(&routes[index].span, message);
        }
        match listen {
            Some(listen) if problems.is_empty() => Ok(Self {
                listen,
                issuers,
                shared_organizations,
                keys,
                allow_semicolons,
                routes,
                region,
                limit,
                audit,
                identity,
                fleet,
            }),
            _ => Err(problems.into_sorted()),
        }
    }

    /// Returns the builder of the layer.
    pub(super) fn layer(&self, verifier: impl Verifier) -> ApiKeyLayerBuilder {
        let builder = self.keys.layer(verifier);
        // Access tokens are often JWTs, which are longer than the keys of other issuers.
        let has_tokens = |issuer: &Issuer| matches!(issuer.kind, IssuerKind::Introspection(_));
        if self.issuers.iter().any(has_tokens) {
            builder.max_key_len(tower_orgkey::MAX_KEY_LEN)
        } else {
            builder
        }
    }

    /// Returns what an operator should know about a configuration without errors.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.issuers.iter().any(
            |issuer| matches!(&issuer.kind, IssuerKind::Kinde(kinde) if kinde.api_id.is_none()),
        ) {
            warnings.push("an issuer has no `api_id`: keys of its other APIs are accepted");
        }
        let any_audience = |issuer: &Issuer| matches!(&issuer.kind, IssuerKind::Introspection(server) if server.audience.is_none());
        if self.issuers.iter().any(any_audience) {
            warnings.push("an issuer has `any_audience`: tokens for its other APIs are accepted");
        }
        if !self.listen.checks.is_local() {
            warnings.push("`checks` is not on loopback: keys cross the network unencrypted");
        }
        if self
            .listen
            .admin
            .as_ref()
            .is_some_and(|admin| !admin.is_local())
        {
            warnings.push("`admin` is not on loopback: its token crosses the network unencrypted");
        }
        if self.listen.admin.is_some() && self.listen.admin_token_file.is_none() {
            warnings.push("`admin` has no `admin_token_file`: it serves only /livez and /readyz");
        }
        let is_plain = |fleet: &FleetConfig| fleet.is_plain_and_remote();
        if self.fleet.as_ref().is_some_and(is_plain) {
            warnings.push("`redis` or `sentinels` are neither on loopback nor `rediss://`: passwords cross the network unencrypted");
        }
        if self.routes.is_empty() {
            warnings.push("there is no [[route]]: every request is rejected");
        }
        warnings
    }

    /// Returns the tables that differ and that only a restart can change.
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let same_issuers = self.issuers == other.issuers
            && self.shared_organizations == other.shared_organizations;
        let tables = [
            ("[listen]", self.listen == other.listen),
            ("[issuer]", same_issuers),
            ("[keys]", self.keys == other.keys),
            ("[region]", self.region == other.region),
            ("[audit]", self.audit == other.audit),
            ("[identity]", self.identity == other.identity),
            ("[fleet]", self.fleet == other.fleet),
        ];
        let differ = tables.into_iter().filter(|(_, is_same)| !is_same);
        differ.map(|(table, _)| table).collect()
    }
}

fn value<T>(spanned: Option<Spanned<T>>) -> Option<T> {
    spanned.map(Spanned::into_inner)
}

fn listen(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Listen> {
    let Some(mut section) = root.table("listen", "[listen]", problems) else {
        problems.add(&(0..0), "the table [listen] is missing");
        return None;
    };
    let checks: Option<Address> = value(section.required("checks", problems));
    let dialects: Option<Spanned<Vec<Dialect>>> = section.optional("dialects", problems);
    if let Some(dialects) = &dialects
        && dialects.get_ref().is_empty()
    {
        problems.add(&dialects.span(), "`dialects` must not be empty");
    }
    let admin = value(section.optional("admin", problems));
    let admin_token_file = value(section.optional("admin_token_file", problems));
    let shutdown_wait: Option<Spanned<Span>> = section.optional("shutdown_wait", problems);
    if let Some(wait) = &shutdown_wait
        && wait.get_ref().0 > MAX_SHUTDOWN_WAIT
    {
        problems.add(&wait.span(), "`shutdown_wait` must be at most 5 s");
    }
    // Two free ports of the system differ.
    if checks.as_ref().is_some_and(|checks| !checks.is_any_port()) && checks == admin {
        problems.add(&section.span, "`checks` and `admin` must differ");
    }
    section.finish(problems);
    Some(Listen {
        checks: checks?,
        dialects: value(dialects).unwrap_or_else(|| Dialect::ALL.to_vec()),
        admin,
        admin_token_file,
        shutdown_wait: value(shutdown_wait).map_or(Duration::ZERO, |wait| wait.0),
    })
}

fn keys(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Keys {
    let Some(mut section) = root.table("keys", "[keys]", problems) else {
        return Keys::default();
    };
    let header = value(section.optional("header", problems)).unwrap_or_default();
    let soft_ttl: Option<Spanned<Span>> = section.optional("soft_ttl", problems);
    let hard_ttl: Option<Spanned<Span>> = section.optional("hard_ttl", problems);
    let pass_to_service = value(section.optional("pass_to_service", problems)).unwrap_or_default();
    let at = |ttl: &Option<Spanned<Span>>| ttl.as_ref().map(Spanned::span);
    let spans = (at(&soft_ttl), at(&hard_ttl));
    let keys = Keys {
        header,
        soft_ttl: value(soft_ttl).map(|ttl| ttl.0),
        hard_ttl: value(hard_ttl).map(|ttl| ttl.0),
        pass_to_service,
    };
    // The layer knows which settings fit together.
    let trial = keys.layer(verifier_fn(|_| async { Ok(Verification::invalid()) }));
    if let Err(error) = trial.build() {
        let span = match error.field() {
            "soft_ttl" => spans.0,
            "hard_ttl" => spans.1.or(spans.0),
            _ => None,
        };
        problems.add(
            &span.unwrap_or(section.span.clone()),
            format!("[keys] {error}"),
        );
    }
    section.finish(problems);
    keys
}

fn paths(root: &mut Section<'_>, problems: &mut Problems<'_>) -> bool {
    let Some(mut section) = root.table("paths", "[paths]", problems) else {
        return false;
    };
    let allow = value(section.optional("allow_semicolons", problems)).unwrap_or_default();
    section.finish(problems);
    allow
}

fn limit(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Quota> {
    let mut section = root.table("limits", "[limits]", problems)?;
    let requests: Option<NonZeroU32> = value(section.required("requests_per_minute", problems));
    let burst: Option<NonZeroU32> = value(section.optional("burst", problems));
    section.finish(problems);
    let quota = Quota::per_minute(requests?.get());
    Some(match burst {
        Some(burst) => quota.burst(burst.get()),
        None => quota,
    })
}

fn audit(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Audit> {
    let mut section = root.table("audit", "[audit]", problems)?;
    let file = value(section.optional("file", problems));
    let client_address_header =
        value(section.optional::<Header>("client_address_header", problems)).map(|name| name.0);
    let public_requests = value(section.optional("public_requests", problems));
    let pseudonym_key_file = value(section.optional("pseudonym_key_file", problems));
    section.finish(problems);
    Some(Audit {
        file,
        client_address_header,
        public_requests: public_requests.unwrap_or_default(),
        pseudonym_key_file,
    })
}

fn identity(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Identity> {
    let mut section = root.table("identity", "[identity]", problems)?;
    let audience: Option<Spanned<String>> = section.required("assertion_audience", problems);
    let key_file = value(section.required("assertion_key_file", problems));
    let other_key_files = value(section.optional("assertion_other_key_files", problems));
    let issuer = value(section.optional("assertion_issuer", problems));
    if let Some(audience) = &audience
        && audience.get_ref().trim().is_empty()
    {
        problems.add(&audience.span(), "`assertion_audience` must not be empty");
    }
    section.finish(problems);
    Some(Identity {
        audience: value(audience)?,
        issuer: issuer.unwrap_or_else(|| "orgkey".to_owned()),
        key_file: key_file?,
        other_key_files: other_key_files.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
