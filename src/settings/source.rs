//! Settings as a use of the lookup cache: a loader behind it, and entries by organization.

use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use orgkey_lookup::{Answer, Answered, IndexKey, Source, Value};

use super::loader::{SettingsError, SettingsLoader};
use super::telemetry::LoaderTelemetry;
use crate::identifier::OrgCode;

/// The cache of a layer and its clones.
pub(super) type Cache<T> = orgkey_lookup::Cache<Loader<T>>;

type LoadFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SettingsError>> + Send + 'a>>;

/// An object-safe [`SettingsLoader`], so that a layer has no type parameter for it.
trait DynLoader<T>: Send + Sync + 'static {
    fn call<'a>(&'a self, org: &'a OrgCode) -> LoadFuture<'a, T>;
}

impl<T: 'static, L: SettingsLoader<T>> DynLoader<T> for L {
    fn call<'a>(&'a self, org: &'a OrgCode) -> LoadFuture<'a, T> {
        Box::pin(self.load(org))
    }
}

/// Settings of one type.
pub(super) struct Loader<T> {
    loader: Box<dyn DynLoader<T>>,
    /// Not a cryptographic hash: issuers choose organizations.
    hash: RandomState,
}

/// An organization, and a hash of its code.
#[derive(Clone, Debug)]
pub(super) struct OrgKey {
    pub(super) org: OrgCode,
    hash: u64,
}

/// Cached settings.
pub(super) struct Settings<T>(pub(super) Arc<T>);

impl<T: 'static> Loader<T> {
    pub(super) fn new(loader: impl SettingsLoader<T>) -> Self {
        Self {
            loader: Box::new(loader),
            hash: RandomState::default(),
        }
    }

    #[inline]
    pub(super) fn key(&self, org: OrgCode) -> OrgKey {
        let hash = self.hash.hash_one(org.as_str());
        OrgKey { org, hash }
    }
}

impl<T: Send + Sync + 'static> Source for Loader<T> {
    type Key = OrgKey;
    type Query = OrgCode;
    type Mark = ();
    type Value = Settings<T>;
    type Error = SettingsError;
    type Telemetry = LoaderTelemetry;

    fn mark(&self, _: &OrgCode) {}

    async fn call(
        &self,
        org: &OrgCode,
        _: Option<&Settings<T>>,
        deadline: Duration,
    ) -> Result<Answered<Settings<T>>, SettingsError> {
        let load = self.loader.call(org);
        let settings = match tokio::time::timeout(deadline, load).await {
            Ok(loaded) => loaded?,
            Err(elapsed) => return Err(SettingsError::unavailable(elapsed)),
        };
        Ok(Answered {
            answer: Answer::Valid(Settings(Arc::new(settings))),
            credential: 0,
        })
    }
}

impl IndexKey for OrgKey {
    #[inline]
    fn bits(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for OrgKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.org == other.org
    }
}

impl Eq for OrgKey {}

impl Hash for OrgKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<T: Send + Sync + 'static> Value for Settings<T> {}

impl_debug!([T] Settings<T>);
