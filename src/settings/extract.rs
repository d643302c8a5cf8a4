use std::ops::Deref;
use std::sync::Arc;

use http::Extensions;

use super::telemetry;
use crate::context::OrgContext;
use crate::identifier::OrgCode;
use crate::rejection::Rejection;

/// The settings of the organization that a request is authenticated for.
///
/// Dereferences to `T`, and is cheap to clone. Only an [`OrgSettingsLayer`](super::OrgSettingsLayer) adds it to a request (and
/// `test_util`, for unit tests).
///
/// As an extractor it rejects with 500 if no layer added settings of this type, and with 401 if
/// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) accepted a request without a key;
/// `Option<OrgSettings<T>>` is `None` for such a request. See the [module documentation](crate::settings) for an example, and
/// [`of`](Self::of) for plain Tower services.
#[derive(Debug)]
pub struct OrgSettings<T> {
    settings: Arc<T>,
    org: OrgCode,
    is_default: bool,
}

/// The extension that contains settings. Private, so that settings are only read through [`OrgSettings::of`], which compares
/// the organization.
struct Extension<T>(OrgSettings<T>);

impl<T> Clone for Extension<T> {
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

    /// Returns the organization that the settings belong to.
    pub fn org_code(&self) -> &OrgCode {
        &self.org
    }

    /// Returns whether this is the [default](super::OrgSettingsLayerBuilder::default_on_error), because the settings could not
    /// be loaded.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    /// Returns the settings, to use them for longer than the request. They are not updated.
    pub fn into_inner(self) -> Arc<T> {
        self.settings
    }
}

impl<T: Send + Sync + 'static> OrgSettings<T> {
    /// Returns the settings that the layer added to the extensions of a request.
    ///
    /// `None` without a layer of this type, without an organization, and if an inner [`ApiKeyLayer`](crate::ApiKeyLayer) has
    /// authenticated another organization.
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
        let Extension(settings) = extensions.get::<Extension<T>>()?;
        (settings.org == *context.org_code()).then_some(settings)
    }

    /// Returns the settings, or the rejection of a request without them.
    #[cfg_attr(
        not(any(feature = "axum", feature = "limit")),
        expect(dead_code, reason = "for the extractors and the limits")
    )]
    pub(crate) fn require<'a>(
        extensions: &'a Extensions,
        component: &'static str,
    ) -> Result<&'a Self, Rejection> {
        // Without an organization, not the settings are missing but a key or the layer of keys.
        OrgContext::required_by(extensions, component)?;
        Self::of(extensions).ok_or_else(|| {
            telemetry::layer_missing(component, std::any::type_name::<T>());
            Rejection::internal()
        })
    }

    pub(super) fn insert_into(self, extensions: &mut Extensions) {
        extensions.insert(Extension(self));
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

#[cfg(feature = "axum")]
mod axum_extract {
    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;

    use super::OrgSettings;
    use crate::context::OrgContext;
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
            const COMPONENT: &str = "the extractor `Option<OrgSettings>`";

            match OrgContext::optional(&parts.extensions, COMPONENT)? {
                None => Ok(None),
                Some(_) => Self::require(&parts.extensions, COMPONENT)
                    .cloned()
                    .map(Some),
            }
        }
    }
}
