use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::{StatusCode, Uri};

use super::layer::{Core, HomeFn, RegionLayer};
use crate::config::ConfigError;

/// Configures a [`RegionLayer`].
///
/// ```
/// use http::Extensions;
/// use tower_orgkey::OrgContext;
/// use tower_orgkey::region::{Home, RegionLayer};
///
/// let region = RegionLayer::builder("eu", |_: &OrgContext, _: &Extensions| Home::Here)
///     .region("us", "https://us.api.example.com")
///     .region_without_base("ch")
///     .with_forbidden()
///     .build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct RegionLayerBuilder {
    here: Cow<'static, str>,
    home: Box<HomeFn>,
    others: Vec<(Cow<'static, str>, Option<Cow<'static, str>>)>,
    status: StatusCode,
    unknown_is_here: bool,
}

impl RegionLayerBuilder {
    pub(super) fn new(here: Cow<'static, str>, home: Box<HomeFn>) -> Self {
        Self {
            here,
            home,
            others: Vec::new(),
            status: StatusCode::MISDIRECTED_REQUEST,
            unknown_is_here: false,
        }
    }

    /// Declares another region, and the base address of the API there for its clients.
    ///
    /// Responses take the name and the address from here only, never from data about an organization.
    pub fn region(
        mut self,
        name: impl Into<Cow<'static, str>>,
        base: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.others.push((name.into(), Some(base.into())));
        self
    }

    /// Declares another region without an address: responses name the region alone.
    pub fn region_without_base(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.others.push((name.into(), None));
        self
    }

    /// Responds with 403 instead of 421, for clients and proxies that retry 421 by themselves.
    pub fn with_forbidden(mut self) -> Self {
        self.status = StatusCode::FORBIDDEN;
        self
    }

    /// Serves organizations with an [unknown](super::Home::Unknown) home in this region.
    ///
    /// # Warning
    ///
    /// If homes cannot be loaded, this region then serves every organization.
    pub fn unknown_is_here(mut self) -> Self {
        self.unknown_is_here = true;
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If the name of a region is not 1 to 64 letters, digits, `-`, `_` or `.`, if one is declared twice, or if a base address
    /// is not an `http` or `https` URL without user, query and fragment.
    pub fn build(self) -> Result<RegionLayer, ConfigError> {
        if !is_name(&self.here) {
            return Err(ConfigError::new("builder", NAME));
        }
        let mut others = BTreeMap::new();
        for (name, base) in self.others {
            if !is_name(&name) {
                return Err(ConfigError::new("region", NAME));
            }
            if base.as_deref().is_some_and(|base| !is_base(base)) {
                return Err(ConfigError::new(
                    "region",
                    "the base address must be an http or https URL without user, query and fragment",
                ));
            }
            if name == self.here || others.insert(name, base).is_some() {
                return Err(ConfigError::new("region", "a region is declared twice"));
            }
        }
        Ok(RegionLayer {
            core: Arc::new(Core {
                here: self.here,
                home: self.home,
                others,
                status: self.status,
                unknown_is_here: self.unknown_is_here,
            }),
        })
    }
}

const NAME: &str = "the name of a region must be 1 to 64 letters, digits, `-`, `_` or `.`";

fn is_name(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn is_base(base: &str) -> bool {
    let Ok(uri) = base.parse::<Uri>() else {
        return false;
    };
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    // `Uri` drops a fragment.
    is_http && has_host && uri.query().is_none() && !base.contains('#')
}

impl_debug!(RegionLayerBuilder, |builder| { here: builder.here, others: builder.others });
