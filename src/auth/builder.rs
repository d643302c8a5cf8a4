use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName};
use orgkey_lookup::Config;

use super::layer::{ApiKeyLayer, BeforeLookup, Core, PeerFn, peer_fn};
use super::network::network_of;
use super::stacked::{Outer, accepted};
use crate::api_keys::{ApiKeys, Cache};
use crate::clock::Clock;
use crate::config::{ConfigError, config_setters};
use crate::credential::{CredentialHeader, CredentialSource, KeyFilter, KeyRules};
use crate::fleet::{FleetLink, FleetMember, JoinFleet, LayerInfo};
use crate::key::{ApiKey, DigestSecret, MAX_KEY_LEN, MIN_KEY_LEN, is_token68};
use crate::rejection::{Challenge, DefaultRejectionResponse, Rejection, ResponseFormat};
use crate::request_head::RequestHead;
use crate::verify::{DynVerifier, Organizations};

/// Configures an [`ApiKeyLayer`].
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::ApiKeyLayer;
/// # use tower_orgkey::{Verification, verifier_fn};
/// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
///
/// let auth = ApiKeyLayer::builder(verifier)
///     .soft_ttl(Duration::from_secs(10))
///     .hard_ttl(Duration::from_secs(300))
///     .capacity(10_000)
///     .realm("acme")
///     .build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub struct ApiKeyLayerBuilder {
    verifier: Arc<dyn DynVerifier>,
    config: Config,
    clock: Clock,
    realm: Option<String>,
    resource_metadata: Option<String>,
    header: Option<(HeaderName, String)>,
    allow_anonymous: bool,
    allow_user_keys: bool,
    strip_credential: bool,
    keeps_key: bool,
    outer: Vec<Outer>,
    rules: KeyRules,
    peer: Option<PeerFn>,
    before_lookup: Option<BeforeLookup>,
    fleet: Option<Box<JoinFn>>,
    #[cfg(feature = "test-util")]
    digest_secret: Option<[u8; 16]>,
}

/// Joins the fleet when the layer is built, because the settings may change until then.
type JoinFn = dyn FnOnce(LayerInfo) -> Result<Arc<dyn FleetLink>, ConfigError> + Send + Sync;

impl ApiKeyLayerBuilder {
    pub(super) fn new(verifier: Arc<dyn DynVerifier>) -> Self {
        Self {
            verifier,
            config: Config::default(),
            clock: Clock::default(),
            realm: None,
            resource_metadata: None,
            header: None,
            allow_anonymous: false,
            allow_user_keys: false,
            strip_credential: false,
            keeps_key: false,
            outer: Vec::new(),
            rules: KeyRules::default(),
            peer: None,
            before_lookup: None,
            fleet: None,
            #[cfg(feature = "test-util")]
            digest_secret: None,
        }
    }

    config_setters! {
        /// Sets how long a result is fresh. At least 1 s; 60 s unless set. Each entry's time is shortened at random by up to
        /// 15 %.
        ///
        /// While verifications succeed, a revoked key is accepted for at most twice this time and one verification.
        soft_ttl(ttl: Duration) => lifetimes.soft;

        /// Sets how long a result is served while verifications fail, counted from the call that returned it. At least twice
        /// the soft TTL, at most 12 h; 15 min unless set.
        hard_ttl(ttl: Duration) => lifetimes.hard;

        /// Sets the maximum number of cached valid keys. At least 10; 100,000 unless set. Invalid keys have a separate cache
        /// of a tenth of this size.
        capacity(keys: u64) => capacity;

        /// Sets the maximum number of calls to the issuer per second. At least 1; no fixed limit unless set.
        ///
        /// Counts the calls of the verifier, repeated ones included. A verifier may send several requests in a call: see
        /// [what Kinde's sends](crate::kinde#requests-per-call).
        ///
        /// Any second has at most one call more, or one hundredth. Calls beyond the limit wait, and known keys are served from the
        /// cache meanwhile. Invalid keys get at most a quarter of the rate, and below four calls per second up to half of it. The rest
        /// must suffice for one call per key in use and soft TTL: a verification that finds no turn fails, and a revoked key is then
        /// accepted for longer. Below two calls per second, new keys may get 503 while there are invalid ones. A 429 halves the
        /// rate, whether or not a limit is set; it then rises again by a tenth per second.
        max_calls_per_second(calls: u32) => max_calls_per_second;

        /// Sets how long one call to the issuer may take. Not zero; 1 s unless set.
        ///
        /// A verifier that makes several calls applies it to each of them; see
        /// [`Verifier::verify_attempt`](crate::Verifier::verify_attempt).
        attempt_deadline(deadline: Duration) => attempt_deadline;

        /// Sets how long a request waits for a verification. At least the attempt deadline; 2.5 s unless set.
        ///
        /// A verification that would have to wait for its turn for longer than this is not queued: the request is served
        /// from the cache, or rejected with 503 at once.
        caller_deadline(deadline: Duration) => caller_deadline;

        /// Sets how long a verification may take with its retry and its waits. At least the caller deadline, at most 60 s;
        /// 10 s unless set.
        lookup_deadline(deadline: Duration) => lookup_deadline;
    }

    /// Sets the `realm` of the challenge. Printable ASCII without `"` and `\`; `api` unless set.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Adds the URL of protected resource metadata (RFC 9728) to challenges, for clients that get tokens by OAuth: see
    /// [`PrefixVerifier`](crate::PrefixVerifier) for an API with tokens and keys. It is not added with
    /// [`credential_header`](Self::credential_header). Printable ASCII without `"` and `\`.
    pub fn resource_metadata(mut self, url: impl Into<String>) -> Self {
        self.resource_metadata = Some(url.into());
        self
    }

    /// Reads the key from this header instead of from `Authorization: Bearer`. The value of the header is the key alone.
    /// Challenges have the scheme `scheme`, without the attributes of RFC 6750.
    ///
    /// Shared caches treat a response to a request with `Authorization` as private (RFC 9111 §3.5), but not to one with another
    /// header. So every response gets `Vary` with the name of the header and, if the handler did not set `Cache-Control`,
    /// `Cache-Control: private`.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_orgkey::ApiKeyLayer;
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    ///
    /// let auth = ApiKeyLayer::builder(verifier)
    ///     .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn credential_header(mut self, name: HeaderName, scheme: impl Into<String>) -> Self {
        self.header = Some((name, scheme.into()));
        self
    }

    /// Allows requests without a key, or with a credential of another scheme. Off unless called.
    ///
    /// # Warning
    ///
    /// A handler without [`OrgContext`](crate::OrgContext), [`Scoped`](crate::Scoped) or a guard is then open to all requests.
    /// Guards and `OrgContext` respond with 401; `Option<OrgContext>` is `None`. A request with an invalid or malformed key, or
    /// one that cannot be verified, is still rejected.
    pub fn allow_anonymous(mut self) -> Self {
        self.allow_anonymous = true;
        self
    }

    /// Accepts only credentials with this prefix as keys. Call it several times to accept several prefixes. All credentials
    /// unless set.
    ///
    /// For issuers with keys of a known form, and for routes that also accept other bearer tokens, such as JWTs of users. The
    /// layer does not verify another credential and counts it against no budget. It rejects the request with 401, or
    /// [passes it on](Self::pass_other_credentials_to_inner_auth).
    ///
    /// ```
    /// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    /// let auth = ApiKeyLayer::builder(verifier).only_prefix("k_live_").only_prefix("k_test_").build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn only_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.filter().prefixes.push(prefix.into());
        self
    }

    /// Accepts credentials for which this function returns true as keys, in addition to those with a
    /// [prefix](Self::only_prefix). All credentials unless set.
    ///
    /// The function gets what the client sent, which may have any length and need not be in the grammar of keys. It runs on every
    /// request and must not block.
    pub fn only_matching(mut self, accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.filter().functions.push(Box::new(accepts));
        self
    }

    fn filter(&mut self) -> &mut KeyFilter {
        self.rules.filter.get_or_insert_default()
    }

    /// Passes requests with other credentials to the inner service, for another authentication there. Off unless called.
    ///
    /// Other credentials are bearer tokens that [`only_prefix`](Self::only_prefix) and [`only_matching`](Self::only_matching) do
    /// not accept, and credentials of another scheme. They are passed on unchanged, whatever their length and grammar. Requests
    /// without a credential, with a repeated header, or with an invalid key are rejected as before.
    ///
    /// Guards, limits, settings and the extractors [`OrgContext`](crate::OrgContext), `Option<OrgContext>` and
    /// [`Scoped`](crate::Scoped) respond to such a request with 401, so it reaches only handlers that take neither.
    ///
    /// # Warning
    ///
    /// The layer does not verify these credentials. A handler without an inner authentication, an extractor or a guard is open
    /// to every request with any other credential.
    ///
    /// ```
    /// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    /// // Users have JWTs, which a layer inside this one verifies.
    /// let auth = ApiKeyLayer::builder(verifier)
    ///     .only_prefix("k_live_")
    ///     .pass_other_credentials_to_inner_auth()
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn pass_other_credentials_to_inner_auth(mut self) -> Self {
        self.rules.passes_others = true;
        self
    }

    /// Sets the maximum length of a key, in bytes. 8 to 8,192; 512 unless set. Longer keys are rejected with 400.
    ///
    /// For verifiers that accept JWTs. Servers limit the length of headers too.
    pub fn max_key_len(mut self, bytes: usize) -> Self {
        self.rules.max_len = bytes;
        self
    }

    /// Allows keys of users, if the issuer names an organization for them too. Off unless called.
    ///
    /// # Warning
    ///
    /// Such a key acts for one user, whom [`OrgContext::user_id`](crate::OrgContext::user_id) names. A handler that checks only
    /// the organization gives this user all rights of the organization.
    pub fn allow_user_keys(mut self) -> Self {
        self.allow_user_keys = true;
        self
    }

    /// Sets whether the credential is removed from the request before the inner service is called. Off unless set. The header is
    /// marked as sensitive in any case.
    ///
    /// A clone of this layer further in, for example on a route with [`max_age`](ApiKeyLayer::max_age), still finds the key in the
    /// request's extensions. Its type is private to this crate, so other layers and handlers cannot read it.
    pub fn strip_credential(mut self, strip: bool) -> Self {
        self.strip_credential = strip;
        self
    }

    /// Sets whether contexts keep the key of their request, in memory that is zeroized on drop. Off by default.
    ///
    /// Required by [`OrgContext::revalidate`](crate::OrgContext::revalidate) and
    /// [`OrgContext::until_invalid_revalidating`](crate::OrgContext::until_invalid_revalidating). The key is kept until the last
    /// clone of the context in the extensions of the request and the contexts that handlers keep are dropped. Observers get a
    /// context without it.
    pub fn revalidation(mut self, keep_key: bool) -> Self {
        self.keeps_key = keep_key;
        self
    }

    /// Accepts requests without a key for this layer that `outer`, a layer around this one, has authenticated. Not accepted by
    /// default: the inner of two layers requires its own key.
    ///
    /// Use it for keys in two headers. A request with a valid key for both layers is rejected with 400. Keys in one header need
    /// one layer, with a [`PrefixVerifier`](crate::verify::PrefixVerifier). A layer that `outer` accepts is accepted too.
    ///
    /// If this layer has a [`max_age`](ApiKeyLayer::max_age), set it on `outer` too: a verification result that is older is
    /// rejected with 503, because this layer cannot verify the key of another one. A key of a user is rejected with 403, unless
    /// this layer [allows it](Self::allow_user_keys). Blocks through the handle of this layer do not apply to keys of `outer`.
    ///
    /// `organizations` says whether the verifiers of both layers have the same organizations.
    ///
    /// # Errors
    ///
    /// [`build`](Self::build) fails if `outer` does not [`allow_anonymous`](Self::allow_anonymous), because it would reject the
    /// keys of this layer; if both take the key from the same header; and, with [`Organizations::Separate`], unless each issuer
    /// has a separate namespace, as those of a `PrefixVerifier` with that setting have.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tower_orgkey::ApiKeyLayer;
    /// use tower_orgkey::verify::Organizations;
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let kinde = verifier_fn(|_| async { Ok(Verification::invalid()) });
    /// # let table = kinde.clone();
    ///
    /// let outer = ApiKeyLayer::builder(table)
    ///     .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
    ///     .allow_anonymous()
    ///     .build()?;
    /// let inner = ApiKeyLayer::builder(kinde)
    ///     .allow_authenticated_by(&outer, Organizations::Shared)
    ///     .build()?;
    /// // `Router::new().route(…).route_layer(inner).route_layer(outer)`
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn allow_authenticated_by<F>(
        mut self,
        outer: &ApiKeyLayer<F>,
        organizations: Organizations,
    ) -> Self {
        self.outer.push(Outer {
            core: Arc::clone(&outer.core),
            organizations,
        });
        self
    }

    /// Sets a function that identifies the peer of a request, usually by its address.
    ///
    /// When invalid keys have used up their budget, unknown keys wait in a queue that is fair between peers. The function is
    /// called only for keys that have to be verified. Without it, one client with random keys takes all turns, and keys that the
    /// layer does not know yet are rejected with 503 as long as it does. See [`peer_address`](Self::peer_address) for addresses.
    ///
    /// ```
    /// use tower_orgkey::{ApiKeyLayer, RequestHead};
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    ///
    /// #[derive(Clone, Hash)]
    /// struct Tenant(u32);
    ///
    /// let auth = ApiKeyLayer::builder(verifier)
    ///     .peer(|head: RequestHead<'_>| head.extensions.get::<Tenant>().cloned())
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn peer<P: Hash>(
        mut self,
        peer: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
    ) -> Self {
        self.peer = Some(peer_fn(peer));
        self
    }

    /// Identifies the [`peer`](Self::peer) of a request by its address: of an IPv6 address by the first 64 bits, because a client
    /// may have all addresses of such a network. A client with several of them has as many turns: with the default
    /// `max_calls_per_second`, some hundred take all.
    ///
    /// Behind a proxy, the address of the connection is that of the proxy; use a forwarded address only from a proxy that you
    /// trust.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use axum::extract::ConnectInfo;
    /// use tower_orgkey::{ApiKeyLayer, RequestHead};
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    ///
    /// let auth = ApiKeyLayer::builder(verifier)
    ///     .peer_address(|head: RequestHead<'_>| {
    ///         head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.ip())
    ///     })
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn peer_address(
        self,
        address: impl Fn(RequestHead<'_>) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.peer(move |head| address(head).map(network_of))
    }

    /// Sets a function that can reject a request whose key would have to be looked up. If it returns a rejection, the issuer
    /// is not called, and nothing is cached.
    ///
    /// For what the key itself or the request shows, such as the [region](crate::rejection#wrong-region) of a prefix. The
    /// function cannot accept a request. It is not called for a key with a usable cached result, so it must not be the only
    /// place where a request of that kind is rejected. It must not block, and must not pass the key on.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_orgkey::{ApiKey, ApiKeyLayer, Rejection, RequestHead};
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    ///
    /// let auth = ApiKeyLayer::builder(verifier)
    ///     .reject_before_lookup(|_: RequestHead<'_>, key: &ApiKey| {
    ///         let is_old = key.expose_secret().starts_with("v1_");
    ///         is_old.then(|| Rejection::custom(StatusCode::GONE, "old-key", "Create a new key."))
    ///     })
    ///     .build()?;
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn reject_before_lookup(
        mut self,
        reject: impl Fn(RequestHead<'_>, &ApiKey) -> Option<Rejection> + Send + Sync + 'static,
    ) -> Self {
        self.before_lookup = Some(Box::new(reject));
        self
    }

    /// Joins a fleet of nodes, which share verification results and updates: see the crate `tower-orgkey-fleet`.
    ///
    /// [`max_calls_per_second`](Self::max_calls_per_second) is then the rate of all nodes together.
    ///
    /// # Errors
    ///
    /// [`build`](Self::build) fails if another layer has joined this `Fleet`, or if the verifier has no
    /// [identity](crate::Verifier::identity).
    pub fn fleet<F: JoinFleet + Clone + Send + Sync + 'static>(mut self, fleet: &F) -> Self {
        let fleet = fleet.clone();
        self.fleet = Some(Box::new(move |layer| fleet.join(layer)));
        self
    }

    /// Reads the time from a clock for tests.
    #[cfg(feature = "test-util")]
    pub fn test_clock(mut self, clock: crate::clock::TestClock) -> Self {
        self.clock = Clock::Test(clock);
        self
    }

    /// Sets the secret of the digest, so that two runs of a benchmark do the same work.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn fixed_digest_secret(mut self, secret: [u8; 16]) -> Self {
        self.digest_secret = Some(secret);
        self
    }

    /// Builds the layer. Needs no runtime and spawns no task.
    pub fn build(self) -> Result<ApiKeyLayer, ConfigError> {
        self.config.check()?;
        check_rules(&self.rules)?;
        let info = LayerInfo {
            issuer: self.verifier.identity(),
            soft_ttl: self.config.lifetimes.soft,
            hard_ttl: self.config.lifetimes.hard,
            lookup_deadline: self.config.lookup_deadline,
        };
        if self.fleet.is_some() && info.issuer.is_empty() {
            return Err(ConfigError::new(
                "fleet",
                "the verifier has no identity, so nodes with other issuers would share its results: see `Verifier::identity`",
            ));
        }
        let fleet = self.fleet.map(|join| join(info)).transpose()?;
        let secret = match &fleet {
            Some(fleet) => DigestSecret::fixed(fleet.digest_secret()),
            None => DigestSecret::draw().map_err(|_| {
                ConfigError::new("build", "the operating system has no random numbers")
            })?,
        };
        #[cfg(feature = "test-util")]
        let secret = self.digest_secret.map_or(secret, DigestSecret::fixed);
        let realm = self.realm.as_deref().unwrap_or(Challenge::DEFAULT_REALM);
        let (header, challenge) = match self.header {
            Some((AUTHORIZATION, _)) => {
                return Err(ConfigError::new(
                    "credential_header",
                    "`authorization` has a scheme before the key",
                ));
            }
            Some((name, scheme)) => {
                let challenge = Challenge::custom(&scheme, realm, &name)?;
                (CredentialHeader::Custom(name), Some(challenge))
            }
            None => {
                let metadata = self.resource_metadata.as_deref();
                let is_default = realm == Challenge::DEFAULT_REALM && metadata.is_none();
                let challenge = (!is_default).then(|| Challenge::bearer(realm, metadata));
                (
                    CredentialHeader::AuthorizationBearer,
                    challenge.transpose()?,
                )
            }
        };
        let keys = ApiKeys::new(self.verifier, secret, fleet.clone());
        let credential = CredentialSource::new(header, self.rules);
        let accepted = accepted(&self.outer, &credential, keys.issuers())?;
        let cache = Cache::new(keys, self.config, self.clock);
        if let Some(fleet) = fleet {
            let member: Arc<dyn FleetMember> = Arc::<Cache>::clone(&cache);
            fleet.attach(Arc::downgrade(&member));
        }
        Ok(ApiKeyLayer {
            core: Arc::new(Core {
                credential,
                cache,
                allow_anonymous: self.allow_anonymous,
                allow_user_keys: self.allow_user_keys,
                strip_credential: self.strip_credential,
                keeps_key: self.keeps_key,
                has_extras: self.strip_credential || self.keeps_key || !accepted.is_empty(),
                accepted,
                peer: self.peer,
                before_lookup: self.before_lookup,
            }),
            format: ResponseFormat {
                respond: DefaultRejectionResponse,
                challenge: challenge.map(Arc::new),
            },
            max_age: None,
        })
    }
}

fn check_rules(rules: &KeyRules) -> Result<(), ConfigError> {
    if !(MIN_KEY_LEN..=MAX_KEY_LEN).contains(&rules.max_len) {
        return Err(ConfigError::new("max_key_len", "must be 8 to 8192"));
    }
    let prefixes = rules.filter.iter().flat_map(|filter| &filter.prefixes);
    for prefix in prefixes {
        if prefix.is_empty() || prefix.len() > rules.max_len || !is_token68(prefix.as_bytes()) {
            return Err(ConfigError::new(
                "only_prefix",
                "no key begins like this: expected letters, digits and `-._~+/`",
            ));
        }
    }
    Ok(())
}

impl_debug!(ApiKeyLayerBuilder, |builder| { config: builder.config });
