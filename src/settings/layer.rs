use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, Request};
use tower_layer::Layer;

use super::builder::OrgSettingsLayerBuilder;
use super::given::OrgSettings;
use super::handle::OrgSettingsHandle;
use super::loader::SettingsLoader;
use super::service::OrgSettingsService;
use crate::cache::{ApiKeyHandle, Cache, CacheResult, Entry, LookupRequest, LookupResult};
use crate::context::{Anonymous, OrgCode, OrgContext};
use crate::key::ApiKey;
use crate::observer::RequestObservation;
use crate::pending::Judge;
use crate::rejection::Rejection;
use crate::telemetry;
use crate::verify::Extra;

/// The layer that gives a request the settings of its organization, as [`OrgSettings<T>`](super::OrgSettings).
///
/// See the [module's guide](crate::settings) for where it stands. Clones share one cache; two layers share nothing.
#[must_use]
pub struct OrgSettingsLayer<T> {
    pub(super) core: Arc<Core<T>>,
}

/// What a layer and its clones share.
pub(super) struct Core<T> {
    pub(super) cache: Arc<Cache>,
    pub(super) default: Option<Arc<T>>,
}

/// Which way a request goes.
pub(super) enum Way {
    Pass,
    Refuse(Rejection),
    Wait(LookupRequest),
}

impl<T: Send + Sync + 'static> OrgSettingsLayer<T> {
    /// The layer over this loader, with the defaults of [`OrgSettingsLayerBuilder`]. The handle is that of the
    /// [`ApiKeyLayer`](crate::ApiKeyLayer) in front: what it invalidates is invalidated here too.
    ///
    /// Needs no runtime, and starts nothing.
    ///
    /// # Panics
    ///
    /// When the operating system has no random numbers, from which the cache draws its secret;
    /// [`OrgSettingsLayerBuilder::build`] returns the error instead.
    #[track_caller]
    pub fn new(keys: &ApiKeyHandle, loader: impl SettingsLoader<T>) -> Self {
        match Self::builder(keys, loader).build() {
            Ok(layer) => layer,
            // The defaults do not contradict each other.
            Err(error) => panic!("{error}"),
        }
    }

    /// A builder for bounds of your own.
    pub fn builder(
        keys: &ApiKeyHandle,
        loader: impl SettingsLoader<T>,
    ) -> OrgSettingsLayerBuilder<T> {
        OrgSettingsLayerBuilder::new(keys.clone(), loader)
    }
}

impl<T> OrgSettingsLayer<T> {
    /// Invalidates settings while the layer runs, and tells how things stand.
    pub fn handle(&self) -> OrgSettingsHandle {
        OrgSettingsHandle::new(Arc::clone(&self.core.cache))
    }
}

impl<T: Send + Sync + 'static> Core<T> {
    /// Decides on a request, and gives it the settings if they are at hand.
    #[inline]
    pub(super) fn way<B>(&self, request: &mut Request<B>) -> Way {
        let extensions = request.extensions_mut();
        let Some(context) = extensions.get::<OrgContext>() else {
            return without_organization(extensions);
        };
        let org = context.org_code().clone();
        let cache = &self.cache;
        let digest = cache.digest(org.as_str());
        let now = cache.clock.now();
        let entry = match cache.get_settings(digest, now) {
            CacheResult::Serve(entry) => entry,
            CacheResult::ServeAndRefresh(entry) => {
                cache.refresh(ApiKey::standing_for(&org), &entry);
                entry
            }
            // A loader refuses nobody, and a code is held to no grammar of keys; if it were not so, to ask again would be the way
            // out.
            CacheResult::LookUp | CacheResult::Invalid | CacheResult::Malformed => {
                return Way::Wait(LookupRequest {
                    key: ApiKey::standing_for(&org),
                    digest,
                    oldest: None,
                    peer: None,
                });
            }
        };
        match self.give(extensions, org, Some(&entry), Duration::ZERO) {
            Ok(()) => Way::Pass,
            Err(rejection) => Way::Refuse(rejection),
        }
    }

    /// Gives a request the settings of an entry, or else the default.
    #[inline]
    fn give(
        &self,
        extensions: &mut Extensions,
        org: OrgCode,
        entry: Option<&Entry>,
        retry_after: Duration,
    ) -> Result<(), Rejection> {
        let given = match (entry.and_then(|entry| read(entry, &org)), &self.default) {
            (Some(settings), _) => OrgSettings::new(org, settings),
            (None, Some(default)) => {
                telemetry::settings::defaulted();
                OrgSettings::by_default(org, Arc::clone(default))
            }
            (None, None) => return Err(Rejection::settings_unavailable(retry_after)),
        };
        // Goes before what a layer further out may have put there.
        given.give_to(extensions);
        Ok(())
    }
}

/// The settings in an entry of this organization. The digest of its code has found the entry; that the entry is its own is
/// looked at all the same.
#[inline]
fn read<T: Send + Sync + 'static>(entry: &Entry, org: &OrgCode) -> Option<Arc<T>> {
    let facts = &entry.facts;
    if facts.org.as_ref() != Some(org) {
        return None;
    }
    match facts.extra.as_deref()? {
        Extra::Settings(settings) => Arc::clone(settings).downcast().ok(),
        Extra::User(_) => None,
    }
}

#[cold]
fn without_organization(extensions: &Extensions) -> Way {
    if extensions.get::<Anonymous>().is_some() {
        // What a layer further out may have given is not read without an organization.
        Way::Pass
    } else {
        Way::Refuse(Rejection::layer_missing("an `OrgSettingsLayer`"))
    }
}

impl<B, T: Send + Sync + 'static> Judge<B> for Arc<Core<T>> {
    fn judge(&self, request: &mut Request<B>, result: LookupResult) -> Result<(), Rejection> {
        let extensions = request.extensions_mut();
        let org = OrgContext::required_by(extensions, "an `OrgSettingsLayer`")?
            .org_code()
            .clone();
        let given = match result {
            LookupResult::Serve(entry, _) => {
                self.give(extensions, org, Some(&entry), Duration::ZERO)
            }
            LookupResult::CannotTell(cannot_tell) => {
                self.give(extensions, org, None, cannot_tell.retry_after)
            }
            LookupResult::Invalid => self.give(extensions, org, None, Duration::ZERO),
        };
        given.map_err(|rejection| RequestObservation::rejected(extensions, rejection))
    }
}

impl<S, T> Layer<S> for OrgSettingsLayer<T> {
    type Service = OrgSettingsService<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgSettingsService::new(inner, self.clone())
    }
}

impl<T> Clone for OrgSettingsLayer<T> {
    fn clone(&self) -> Self {
        Self {
            core: Arc::clone(&self.core),
        }
    }
}

impl<T> fmt::Debug for OrgSettingsLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgSettingsLayer")
            .field("settings", &std::any::type_name::<T>())
            .field("has_default", &self.core.default.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Lifetimes;
    use crate::clock::Tick;
    use crate::key::DigestSecret;
    use crate::verify::Facts;

    #[test]
    fn settings_are_read_from_an_entry_of_the_same_organization_and_the_same_type_alone() {
        let of = |extra| {
            let facts = Facts {
                org: Some(OrgCode::from_static("org_1")),
                extra: Some(Box::new(extra)),
                ..Facts::default()
            };
            let lifetimes = Lifetimes {
                soft: Duration::from_secs(60),
                hard: Duration::from_secs(900),
            };
            let digest = DigestSecret::draw().unwrap().digest("org_1");
            Entry::new(facts, digest, Tick(1), 1, lifetimes, Tick(1), None)
        };
        let entry = of(Extra::Settings(Arc::new(7_u32)));
        let org = OrgCode::from_static("org_1");
        assert_eq!(read::<u32>(&entry, &org), Some(Arc::new(7)));
        assert_eq!(read::<u32>(&entry, &OrgCode::from_static("org_2")), None);
        assert_eq!(read::<u64>(&entry, &org), None);
        assert_eq!(read::<u32>(&of(Extra::User("7".into())), &org), None);
    }
}
