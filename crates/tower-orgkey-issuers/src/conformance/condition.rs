use std::future::Future;

use tower_orgkey::ApiKey;

use super::proxy::FaultProxy;

/// How an issuer behaves during a part of [`check_verifier`](super::check_verifier).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// Answers about all keys.
    Normal,
    /// Cannot be reached.
    Down,
    /// Accepts calls and never answers.
    Slow,
    /// Responds with the status of a server error: 500 or 503. The proxy quotes the request in the body.
    ServerError,
    /// A proxy or firewall in front of the issuer responds: 400, 403, 404, 502 or 504 with a page in HTML, which quotes the request.
    GatewayError,
    /// Answers with something that is no answer: a page in HTML, JSON without the members of an answer, or a part of one. The proxy quotes
    /// the request in some.
    Garbage,
    /// Responds with 429.
    Throttled,
    /// Rejects the credentials of the verifier.
    CredentialsRejected,
    /// Has an outage that looks like the answer "this key is invalid", for every key.
    Inactive,
    /// Answers with a body of many megabytes.
    HugeReply,
    /// Redirects to another address.
    Redirect,
}

impl Condition {
    /// All conditions except [`Normal`](Self::Normal).
    pub const FAULTS: [Self; 10] = [
        Self::Down,
        Self::Slow,
        Self::ServerError,
        Self::GatewayError,
        Self::Garbage,
        Self::Throttled,
        Self::CredentialsRejected,
        Self::Inactive,
        Self::HugeReply,
        Self::Redirect,
    ];
}

/// The issuer of a verifier under test. See the [module documentation](super) for an example.
pub trait IssuerUnderTest: Send {
    /// Issues a new valid key for this organization: `org_conformance` or `org_conformance_2`. The key does not expire in the
    /// next 15 minutes.
    fn issue(&mut self, organization: &str) -> impl Future<Output = ApiKey> + Send;

    /// Returns the organization code of keys that were issued for this organization. The same text unless overridden, for
    /// issuers that name organizations themselves.
    fn organization_code(&self, organization: &str) -> String {
        organization.to_owned()
    }

    /// Revokes a key. The issuer's next answer about it says so.
    fn revoke(&mut self, key: &ApiKey) -> impl Future<Output = ()> + Send;

    /// Returns the proxy between the verifier and the issuer. None unless overridden.
    fn proxy(&self) -> Option<&FaultProxy> {
        None
    }

    /// Brings the issuer into this condition, in place of any other. Keys are issued and revoked in [`Condition::Normal`] only.
    ///
    /// Returns false if the issuer cannot be in this condition, for instance redirect if it is a database. Sets the
    /// condition of the [`proxy`](Self::proxy) unless overridden.
    fn set(&mut self, condition: Condition) -> impl Future<Output = bool> + Send {
        let is_set = match self.proxy() {
            Some(proxy) => proxy.set(condition),
            None => condition == Condition::Normal,
        };
        async move { is_set }
    }
}
