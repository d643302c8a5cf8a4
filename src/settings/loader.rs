//! The door to a store of settings, and its place behind the machinery that asks issuers.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use orgkey_lookup::{Failure, FailureKind};

use crate::context::OrgCode;

/// Loads an organization's settings, whatever they are.
///
/// The layer calls it at most once at a time for an organization, on a task of its own, under deadlines of its own, and drops
/// the future when one passes; the future must bear that at every `await`. A panic counts as an error.
///
/// One loader may load several types, each for a layer of its own. [`settings_fn`] makes one of a function.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey::settings::{SettingsError, SettingsLoader};
///
/// struct Database(/* a pool */);
/// struct Branding(String);
/// # impl Database { async fn color(&self, _: &OrgCode) -> Result<Option<String>, std::io::Error> { Ok(None) } }
///
/// impl SettingsLoader<Branding> for Database {
///     async fn load(&self, org: &OrgCode) -> Result<Branding, SettingsError> {
///         let color = self.color(org).await.map_err(SettingsError::unavailable)?;
///         // An organization without a row has the usual color: that is no error.
///         Ok(Branding(color.unwrap_or_else(|| "blue".into())))
///     }
/// }
/// ```
pub trait SettingsLoader<T>: Send + Sync + 'static {
    /// The settings of this organization.
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<T, SettingsError>> + Send;
}

impl<T, L: SettingsLoader<T>> SettingsLoader<T> for Arc<L> {
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<T, SettingsError>> + Send {
        L::load(self, org)
    }
}

/// A [`SettingsLoader`] from a function, whose error is a [`SettingsError`] or becomes one.
///
/// ```
/// use tower_orgkey::OrgCode;
/// use tower_orgkey::settings::{SettingsError, settings_fn};
///
/// struct Plan {
///     seats: u32,
/// }
///
/// enum StoreError {
///     Down(std::io::Error),
///     NoSuchPlan(String),
/// }
///
/// impl From<StoreError> for SettingsError {
///     fn from(error: StoreError) -> Self {
///         match error {
///             StoreError::Down(error) => SettingsError::unavailable(error),
///             StoreError::NoSuchPlan(name) => SettingsError::broken(format!("no plan {name:?}")),
///         }
///     }
/// }
///
/// async fn load(org: OrgCode) -> Result<Plan, StoreError> {
/// #   if org == "org_2" { return Err(StoreError::NoSuchPlan("golden".into())) }
/// #   if org == "org_3" { return Err(StoreError::Down(std::io::ErrorKind::ConnectionRefused.into())) }
///     Ok(Plan { seats: 3 })
/// }
///
/// let loader = settings_fn(load);
/// ```
pub fn settings_fn<F, Fut, T, E>(f: F) -> SettingsFn<F>
where
    F: Fn(OrgCode) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send,
    E: Into<SettingsError>,
{
    SettingsFn(f)
}

/// The loader that [`settings_fn`] makes.
#[derive(Clone)]
pub struct SettingsFn<F>(F);

impl<F> fmt::Debug for SettingsFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SettingsFn").finish()
    }
}

impl<F, Fut, T, E> SettingsLoader<T> for SettingsFn<F>
where
    F: Fn(OrgCode) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send,
    E: Into<SettingsError>,
{
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<T, SettingsError>> + Send {
        let load = self.0(org.clone());
        async move { load.await.map_err(Into::into) }
    }
}

/// An organization's settings could not be loaded. Never remembered against it.
///
/// The kind decides who pays for it: [`unavailable`](Self::unavailable) may stop the loads of all organizations for a while,
/// [`broken`](Self::broken) is the organization's own affair. When in doubt, say `unavailable`: the failures of one
/// organization alone stop nobody else's loads.
///
/// `Display` and source go into the operator's log together with the organization's code, so neither may hold a secret.
///
/// ```
/// use tower_orgkey::settings::{SettingsError, SettingsErrorKind};
///
/// let error = SettingsError::broken("the plan has a negative number of seats");
/// assert_eq!(error.kind(), SettingsErrorKind::Broken);
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct SettingsError {
    kind: SettingsErrorKind,
    #[source]
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Why settings could not be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsErrorKind {
    /// The store is out of reach or answers with an error of its own. Tried again at once where nothing is held; opens the
    /// breaker when it happens to several organizations.
    #[error("the store gives no usable answer")]
    Unavailable,
    /// The store asks for fewer calls. Slows all loads down; does not open the breaker.
    #[error("the store asks for fewer calls")]
    Throttled {
        /// How long it asks to be left alone; at most 60 s are granted.
        retry_after: Option<Duration>,
    },
    /// The store answers, and what it holds of this organization makes no sense: somebody must mend it. Counts for nothing
    /// against the store, and is not tried again before the next request.
    #[error("what the store holds of this organization makes no sense")]
    Broken,
}

impl SettingsError {
    /// The store is out of reach or answers with an error of its own.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(SettingsErrorKind::Unavailable, source)
    }

    /// The store asks for fewer calls, for so long if it said.
    pub fn throttled(retry_after: Option<Duration>) -> Self {
        Self {
            kind: SettingsErrorKind::Throttled { retry_after },
            source: None,
        }
    }

    /// The store answers, and what it holds of this organization makes no sense.
    pub fn broken(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(SettingsErrorKind::Broken, source)
    }

    fn new(kind: SettingsErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Some(Arc::from(source.into())),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> SettingsErrorKind {
        self.kind
    }
}

/// For loaders that never fail.
impl From<Infallible> for SettingsError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Failure for SettingsError {
    fn kind(&self) -> FailureKind {
        match self.kind {
            SettingsErrorKind::Unavailable => FailureKind::Unavailable,
            SettingsErrorKind::Throttled { retry_after } => FailureKind::Throttled { retry_after },
            // The store answered, and an operator has to act.
            SettingsErrorKind::Broken => FailureKind::Misconfigured,
        }
    }
}
