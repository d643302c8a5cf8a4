use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::{Attempt, Issuer, Verification, Verifier, VerifyError};
use crate::key::ApiKey;

/// The future of a verification, boxed.
type VerifyFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Verification, VerifyError>> + Send + 'a>>;

/// An object-safe [`Verifier`], so that a layer has no type parameter for it.
pub(crate) trait DynVerifier: Send + Sync + 'static {
    fn verify<'a>(&'a self, key: &'a ApiKey) -> VerifyFuture<'a>;

    fn reverify<'a>(&'a self, key: &'a ApiKey) -> VerifyFuture<'a>;

    fn verify_attempt<'a>(&'a self, key: &'a ApiKey, attempt: Attempt) -> VerifyFuture<'a>;

    fn issuers(&self) -> Vec<Issuer>;

    fn identity(&self) -> String;

    fn issuer_of(&self, key: &ApiKey) -> Option<usize>;
}

impl<V: Verifier> DynVerifier for V {
    fn verify<'a>(&'a self, key: &'a ApiKey) -> VerifyFuture<'a> {
        Box::pin(Verifier::verify(self, key))
    }

    fn reverify<'a>(&'a self, key: &'a ApiKey) -> VerifyFuture<'a> {
        Box::pin(Verifier::reverify(self, key))
    }

    fn verify_attempt<'a>(&'a self, key: &'a ApiKey, attempt: Attempt) -> VerifyFuture<'a> {
        Box::pin(Verifier::verify_attempt(self, key, attempt))
    }

    fn issuers(&self) -> Vec<Issuer> {
        Verifier::issuers(self)
    }

    fn identity(&self) -> String {
        Verifier::identity(self)
    }

    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        Verifier::issuer_of(self, key)
    }
}

/// A [`Verifier`] of any type, returned by [`Verifier::boxed`]. Clones share the verifier.
#[derive(Clone)]
pub struct BoxVerifier(Arc<dyn DynVerifier>);

impl BoxVerifier {
    /// Boxes a verifier.
    pub fn new(verifier: impl Verifier) -> Self {
        Self(Arc::new(verifier))
    }
}

impl Verifier for BoxVerifier {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.verify(key).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.reverify(key).await
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        self.0.verify_attempt(key, attempt).await
    }

    fn issuers(&self) -> Vec<Issuer> {
        self.0.issuers()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        self.0.issuer_of(key)
    }

    fn boxed(self) -> BoxVerifier {
        self
    }
}

impl_debug!(BoxVerifier);
