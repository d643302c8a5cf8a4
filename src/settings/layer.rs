use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, Request};
use orgkey_lookup::cache::{Dependent, Stats};
use orgkey_lookup::{CacheResult, Entry, LookupRequest, LookupResult, Target};
use tower_layer::Layer;

use super::builder::OrgSettingsLayerBuilder;
use super::extract::OrgSettings;
use super::handle::{Control, OrgSettingsHandle};
use super::loader::SettingsLoader;
use super::service::OrgSettingsService;
use super::source::{Cache, Loader};
use super::telemetry;
use crate::context::OrgContext;
use crate::context::observer::RequestObservation;
use crate::handle::ApiKeyHandle;
use crate::identifier::OrgCode;
use crate::pending::Decide;
use crate::rejection::Rejection;

/// A layer that adds the settings of its organization to a request, as [`OrgSettings<T>`](super::OrgSettings).
///
/// See the [module documentation](crate::settings) for the order of layers. Clones share one cache; two layers share nothing.
#[must_use]
pub struct OrgSettingsLayer<T: Send + Sync + 'static> {
    pub(super) core: Arc<Core<T>>,
}

/// The state that a layer shares with its clones.
pub(super) struct Core<T: Send + Sync + 'static> {
    pub(super) cache: Arc<Cache<T>>,
    pub(super) default: Option<Arc<T>>,
}

/// What the layer decides about a request.
pub(super) enum Decision<T: Send + Sync + 'static> {
    Pass,
    Reject(Rejection),
    Wait(LookupRequest<Loader<T>>),
}

impl<T: Send + Sync + 'static> OrgSettingsLayer<T> {
    /// Creates a layer with the defaults of [`OrgSettingsLayerBuilder`]. The handle is that of the outer
    /// [`ApiKeyLayer`](crate::ApiKeyLayer): what it invalidates is invalidated here too.
    ///
    /// Needs no runtime, and spawns nothing.
    pub fn new(keys: &ApiKeyHandle, loader: impl SettingsLoader<T>) -> Self {
        let layer = Self::builder(keys, loader).build();
        layer.unwrap_or_else(|error| unreachable!("the defaults are valid: {error}"))
    }

    /// Returns a builder.
    pub fn builder(
        keys: &ApiKeyHandle,
        loader: impl SettingsLoader<T>,
    ) -> OrgSettingsLayerBuilder<T> {
        OrgSettingsLayerBuilder::new(keys.clone(), loader)
    }

    /// Returns a handle that invalidates settings and returns statistics.
    pub fn handle(&self) -> OrgSettingsHandle {
        OrgSettingsHandle::new(Arc::<Core<T>>::clone(&self.core))
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Decides on a request, and adds cached settings to it.
    #[inline]
    pub(super) fn decide<B>(&self, request: &mut Request<B>) -> Decision<T> {
        let extensions = request.extensions_mut();
        let Some(context) = extensions.get::<OrgContext>() else {
            return without_organization(extensions);
        };
        let cache = &self.cache;
        let key = cache.source().key(context.org_code().clone());
        let now = cache.clock().now();
        let entry = match cache.get_fresh(&key, None, now) {
            Ok(entry) => entry,
            Err(cached) => match cache.classify(cached, &key, None, now) {
                CacheResult::Serve(entry) => entry,
                CacheResult::ServeAndRefresh(entry) => {
                    cache.refresh(key.org, &entry);
                    entry
                }
                // A loader finds no organization invalid.
                CacheResult::LookUp | CacheResult::Invalid => {
                    let org = key.org.clone();
                    return Decision::Wait(LookupRequest::new(org, key, None));
                }
            },
        };
        insert(extensions, &entry);
        Decision::Pass
    }

    /// Adds the default to a request whose settings cannot be loaded.
    fn insert_default(
        &self,
        extensions: &mut Extensions,
        retry_after: Duration,
    ) -> Result<(), Rejection> {
        let context = OrgContext::required_by(extensions, "an `OrgSettingsLayer`")?;
        let org = context.org_code().clone();
        let Some(default) = &self.default else {
            return Err(Rejection::settings_unavailable(retry_after));
        };
        telemetry::defaulted();
        OrgSettings::by_default(org, Arc::clone(default)).insert_into(extensions);
        Ok(())
    }
}

/// Adds cached settings to a request. Replaces what a layer further out may have added.
#[inline]
fn insert<T: Send + Sync + 'static>(extensions: &mut Extensions, entry: &Entry<Loader<T>>) {
    let settings = Arc::clone(&entry.value.0);
    OrgSettings::new(entry.key.org.clone(), settings).insert_into(extensions);
}

#[cold]
fn without_organization<T: Send + Sync + 'static>(extensions: &Extensions) -> Decision<T> {
    match OrgContext::optional_in_layer(extensions, "OrgSettingsLayer") {
        // Settings that an outer layer added are not read without an organization.
        Ok(_) => Decision::Pass,
        Err(rejection) => Decision::Reject(rejection),
    }
}

impl<B, T: Send + Sync + 'static> Decide<B> for Arc<Core<T>> {
    type Source = Loader<T>;

    fn decide(
        &self,
        request: &mut Request<B>,
        result: LookupResult<Loader<T>>,
    ) -> Result<(), Rejection> {
        let extensions = request.extensions_mut();
        let retry_after = match result {
            LookupResult::Serve(entry, _) => {
                insert(extensions, &entry);
                return Ok(());
            }
            LookupResult::CannotTell(cannot_tell) => cannot_tell.retry_after,
            LookupResult::Invalid => Duration::ZERO,
        };
        self.insert_default(extensions, retry_after)
            .map_err(|rejection| RequestObservation::rejected(extensions, rejection))
    }
}

impl<T: Send + Sync + 'static> Dependent for Core<T> {
    fn invalidate_organization(&self, organization: &str) {
        // An organization that is outside the grammar has no settings.
        if let Ok(org) = OrgCode::new(organization) {
            let key = self.cache.source().key(org);
            self.cache.invalidate(Target::Key(&key));
        }
    }

    fn invalidate_all(&self) {
        self.cache.invalidate_all();
    }
}

impl<T: Send + Sync + 'static> Control for Core<T> {
    fn stats(&self) -> Stats {
        self.cache.stats()
    }
}

impl<S, T: Send + Sync + 'static> Layer<S> for OrgSettingsLayer<T> {
    type Service = OrgSettingsService<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgSettingsService::new(inner, self.clone())
    }
}

impl<T: Send + Sync + 'static> Clone for OrgSettingsLayer<T> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
        }
    }
}

impl_debug!([T: Send + Sync + 'static] OrgSettingsLayer<T>, |layer| {
    settings: std::any::type_name::<T>(),
    has_default: layer.core.default.is_some()
});
