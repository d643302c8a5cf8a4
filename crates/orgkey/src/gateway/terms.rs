//! What the services of the gateway read beside the head of a request.

use std::time::Duration;

use tower_orgkey::scope::ScopePolicy;

use super::waiting::Waiter;

/// How a check is decided, as the body of the request that services decide about.
#[derive(Default)]
pub(super) struct Terms {
    /// The scopes that the proxy demands beside those of the route.
    pub(super) scopes: Option<ScopePolicy>,
    /// How long the proxy waits.
    pub(super) deadline: Option<Duration>,
    /// Who needs a place if the check has to wait.
    pub(super) waiter: Option<Waiter>,
}
