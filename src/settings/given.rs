use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use http::Extensions;

use crate::context::{OrgCode, OrgContext};
use crate::rejection::Rejection;
use crate::telemetry;

/// The settings of the organization whose call this is.
///
/// Dereferences to `T`; cloning counts references. Only an [`OrgSettingsLayer`](super::OrgSettingsLayer) gives it to a request
/// (and, for unit tests, the test kit of the feature `test-util`), and only to one of the same organization.
///
/// As an extractor it answers 500 where no layer of this type gave the request its settings, and 401 where
/// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let a request without a key pass;
/// `Option<OrgSettings<T>>` is `None` for such a request. See the [module's guide](crate::settings) for an example, and
/// [`of`](Self::of) for plain Tower services.
pub struct OrgSettings<T> {
    settings: Arc<T>,
    org: OrgCode,
    is_default: bool,
}

/// How settings stand in a request's extensions. A type that nobody else can name, so that they are only ever read through
/// [`OrgSettings::of`], which looks whose they are.
struct Given<T>(OrgSettings<T>);

impl<T> Clone for Given<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> OrgSettings<T> {
    pub(crate) fn new(org: OrgCode, settings: Arc<T>) -> Self {
        Self {
            settings,
            org,
            is_default: false,
        }
    }

    pub(super) fn by_default(org: OrgCode, settings: Arc<T>) -> Self {
        Self {
            settings,
            org,
            is_default: true,
        }
    }

    /// The organization that the settings are of.
    pub fn org_code(&self) -> &OrgCode {
        &self.org
    }

    /// Whether this is the [default](super::OrgSettingsLayerBuilder::default_on_error), because there were no settings to be
    /// had.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    /// The settings, to be kept for longer than the request. What is kept does not learn of changes.
    pub fn into_inner(self) -> Arc<T> {
        self.settings
    }
}

impl<T: Send + Sync + 'static> OrgSettings<T> {
    /// The settings that the layer gave a request, out of its extensions.
    ///
    /// `None` where there is no layer of this type, where no organization's key let the request in, and where an
    /// [`ApiKeyLayer`](crate::ApiKeyLayer) further in has decided on another organization.
    ///
    /// ```
    /// use tower_orgkey::settings::OrgSettings;
    /// # struct Plan { seats: u32 }
    ///
    /// fn seats<B>(request: &http::Request<B>) -> Option<u32> {
    ///     Some(OrgSettings::<Plan>::of(request.extensions())?.seats)
    /// }
    /// ```
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        let context = extensions.get::<OrgContext>()?;
        let Given(given) = extensions.get::<Given<T>>()?;
        (given.org == *context.org_code()).then_some(given)
    }

    /// [`of`](Self::of), or the refusal that its absence calls for.
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "for the extractors")
    )]
    fn require<'a>(extensions: &'a Extensions, who_asks: &str) -> Result<&'a Self, Rejection> {
        // First whose call it is: without an organization it is not the settings that are missing.
        OrgContext::required_by(extensions, who_asks)?;
        Self::of(extensions).ok_or_else(|| {
            telemetry::settings::layer_missing(who_asks, std::any::type_name::<T>());
            Rejection::internal()
        })
    }

    pub(super) fn give_to(self, extensions: &mut Extensions) {
        extensions.insert(Given(self));
    }
}

impl<T> Clone for OrgSettings<T> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            org: self.org.clone(),
            is_default: self.is_default,
        }
    }
}

impl<T> Deref for OrgSettings<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.settings
    }
}

impl<T: fmt::Debug> fmt::Debug for OrgSettings<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgSettings")
            .field("org_code", &self.org)
            .field("is_default", &self.is_default)
            .field("settings", &self.settings)
            .finish()
    }
}

#[cfg(feature = "axum")]
mod extract {
    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;

    use super::OrgSettings;
    use crate::context::{Anonymous, OrgContext};
    use crate::rejection::Rejection;

    impl<S: Send + Sync, T: Send + Sync + 'static> FromRequestParts<S> for OrgSettings<T> {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Self::require(&parts.extensions, "the extractor `OrgSettings`").cloned()
        }
    }

    impl<S: Send + Sync, T: Send + Sync + 'static> OptionalFromRequestParts<S> for OrgSettings<T> {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
            let extensions = &parts.extensions;
            if extensions.get::<OrgContext>().is_none() && extensions.get::<Anonymous>().is_some() {
                return Ok(None);
            }
            Self::require(extensions, "the extractor `Option<OrgSettings>`")
                .cloned()
                .map(Some)
        }
    }
}
