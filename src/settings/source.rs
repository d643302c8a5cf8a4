//! Settings as a use of the lookup cache: a loader behind it, entries by organization, events about the loader.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use orgkey_lookup::{
    Answer, Answered, BreakerState, Circuit, Found, IndexKey, Label, LookupRequest, Source,
    Telemetry, Value,
};

use super::loader::{SettingsError, SettingsErrorKind, SettingsLoader};
use crate::identifier::OrgCode;
use crate::telemetry::settings as telemetry;

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
            hash: RandomState::new(),
        }
    }

    #[inline]
    pub(super) fn key(&self, org: OrgCode) -> OrgKey {
        let hash = self.hash.hash_one(org.as_str());
        OrgKey { org, hash }
    }
}

impl<T: Send + Sync + 'static> Loader<T> {
    pub(super) fn request(key: OrgKey) -> LookupRequest<Self> {
        LookupRequest {
            query: key.org.clone(),
            key,
            oldest: None,
            peer: None,
        }
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

impl<T> fmt::Debug for Loader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
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

impl<T> fmt::Debug for Settings<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// Events and metrics about the loader, labelled with the type of the settings.
#[derive(Debug)]
pub(super) struct LoaderTelemetry;

fn name<T>() -> &'static str {
    std::any::type_name::<T>()
}

impl<T: Send + Sync + 'static> Telemetry<Loader<T>> for LoaderTelemetry {
    const HAS_GAUGES: bool = cfg!(feature = "metrics");

    #[inline]
    fn looked_up(found: Found) {
        telemetry::looked_up(found);
    }

    fn entries(number: usize) {
        telemetry::entries(name::<T>(), number);
    }

    fn called(
        _: &Label,
        org: &OrgCode,
        outcome: &Result<Answered<Settings<T>>, SettingsError>,
        took: Duration,
    ) {
        let (result, error) = match outcome {
            Ok(_) => ("loaded", None),
            Err(error) => match error.kind() {
                SettingsErrorKind::Unavailable => ("unavailable", Some(error)),
                // A pause is an event of its own.
                SettingsErrorKind::Throttled { .. } => ("throttled", None),
                SettingsErrorKind::Broken => ("broken", Some(error)),
            },
        };
        let error = error.map(|error| error as &(dyn Error + 'static));
        telemetry::called(name::<T>(), org.as_str(), result, error, took);
    }

    fn occupied(_: &Label, calls: usize, waiting: usize) {
        telemetry::occupied(name::<T>(), calls, waiting);
    }

    fn breaker_state(_: &Label, circuit: Circuit, state: BreakerState) {
        telemetry::breaker_state(name::<T>(), circuit.name(), state.as_gauge());
    }

    fn breaker_opened(_: &Label, circuit: Circuit, open_for: Duration) {
        telemetry::breaker_opened(name::<T>(), circuit.name(), open_for);
    }

    fn breaker_tries(_: &Label, circuit: Circuit) {
        telemetry::breaker_tries(name::<T>(), circuit.name());
    }

    fn breaker_closed(_: &Label, circuit: Circuit) {
        telemetry::breaker_closed(name::<T>(), circuit.name());
    }

    fn throttled(_: &Label, pause: Duration) {
        telemetry::throttled(name::<T>(), pause);
    }
}
