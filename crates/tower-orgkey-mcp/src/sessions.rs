use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tower_layer::Layer;
use tower_orgkey::{KeyId, OrgCode, OrgContext, Rejection};
use tower_service::Service;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

/// The maximum number of sessions of a key. The oldest is forgotten.
const PER_KEY: usize = 64;

/// The maximum number of keys with sessions.
const KEYS: u64 = 100_000;

/// The maximum length of a session id in bytes.
const MAX_ID: usize = 256;

/// How long a key without requests keeps its sessions, by default.
const DEFAULT_IDLE: Duration = Duration::from_secs(3_600);

/// A layer that binds MCP sessions to the key that began them.
///
/// A server gives a session an id in the response to `initialize`. Whoever knows the id can use the session, also with the key
/// of another organization, unless the server checks it. This layer remembers each id with the organization and the key that it
/// was given to, and responds with 404 to any other, and for an id that it does not know. A client begins a new session then.
///
/// A key has at most 64 sessions here, and the oldest is forgotten when it begins another one, so that a key affects no
/// other. The sessions of the 100,000 keys that were used last are kept. The stream of a session does not end with its key: end
/// it in the server, by [`OrgContext::until_invalid`]. Sessions are kept in memory: behind a load balancer, requests of a session must reach the same node.
///
/// Place it inside of [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer). See the [crate](crate) for an example.
#[derive(Clone)]
#[must_use]
pub struct McpSessions {
    owners: Cache<Owner, Ids>,
}

/// The ids of one owner, the oldest first.
type Ids = Arc<Mutex<VecDeque<Box<[u8]>>>>;

/// The key that began a session. Without an identifier of the key it is the organization.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Owner {
    org: OrgCode,
    key_id: Option<KeyId>,
    user_id: Option<Box<str>>,
}

impl McpSessions {
    /// Keeps the sessions of a key until it has sent no request for an hour.
    pub fn new() -> Self {
        Self::with_idle(DEFAULT_IDLE)
    }

    /// Keeps the sessions of a key until it has sent no request for this time.
    ///
    /// # Panics
    ///
    /// If it is longer than 1,000 years.
    pub fn with_idle(idle: Duration) -> Self {
        let owners = Cache::builder()
            .max_capacity(KEYS)
            // The default policy would refuse the entry of a new key in favor of frequent ones.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(idle)
            .build();
        Self { owners }
    }

    fn knows(&self, owner: &Owner, id: &[u8]) -> bool {
        self.owners
            .get(owner)
            .is_some_and(|ids| lock(&ids).iter().any(|known| **known == *id))
    }

    fn add(&self, owner: Owner, id: &[u8]) {
        let ids = self.owners.get_with(owner, Ids::default);
        let mut ids = lock(&ids);
        if !ids.iter().any(|known| **known == *id) {
            if ids.len() == PER_KEY {
                ids.pop_front();
            }
            ids.push_back(id.into());
        }
    }

    fn remove(&self, owner: &Owner, id: &[u8]) {
        if let Some(ids) = self.owners.get(owner) {
            lock(&ids).retain(|known| **known != *id);
        }
    }
}

fn lock(ids: &Ids) -> std::sync::MutexGuard<'_, VecDeque<Box<[u8]>>> {
    // Every change is one call, so the list is consistent after a panic.
    ids.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for McpSessions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for McpSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the ids, which are as good as a password to servers without this layer.
        f.debug_struct("McpSessions").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for McpSessions {
    type Service = McpSessionsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        McpSessionsService {
            inner,
            sessions: self.clone(),
        }
    }
}

/// The service of [`McpSessions`].
#[derive(Clone, Debug)]
#[must_use]
pub struct McpSessionsService<S> {
    inner: S,
    sessions: McpSessions,
}

/// The session of a request.
enum Requested {
    None,
    Id(Box<[u8]>),
    /// Repeated, empty or too long.
    Malformed,
}

fn requested(headers: &HeaderMap) -> Requested {
    let mut values = headers.get_all(SESSION).iter();
    match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None, _) => Requested::None,
        (Some(id), None) if !id.is_empty() && id.len() <= MAX_ID => Requested::Id(id.into()),
        (Some(_), _) => Requested::Malformed,
    }
}

impl<S> Service<Request> for McpSessionsService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let reject = |rejection: Rejection| -> Self::Future {
            Box::pin(std::future::ready(Ok(rejection.into_response())))
        };
        let owner = match OrgContext::of(request.extensions()) {
            Ok(context) => Owner {
                org: context.org_code().clone(),
                key_id: context.key_id().cloned(),
                user_id: context.user_id().map(Into::into),
            },
            Err(rejection) => return reject(rejection),
        };
        let requested = requested(request.headers());
        match &requested {
            Requested::None => {}
            Requested::Id(id) if self.sessions.knows(&owner, id) => {}
            Requested::Id(_) | Requested::Malformed => return reject(Rejection::not_found()),
        }
        let is_delete = request.method() == Method::DELETE;
        let sessions = self.sessions.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            match requested {
                Requested::Id(id) if is_delete && response.status().is_success() => {
                    sessions.remove(&owner, &id);
                }
                Requested::None => {
                    if let Some(id) = response.headers().get(SESSION)
                        && id.len() <= MAX_ID
                    {
                        sessions.add(owner, id.as_bytes());
                    }
                }
                Requested::Id(_) | Requested::Malformed => {}
            }
            Ok(response)
        })
    }
}
