//! The interface to a store of settings.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use orgkey_lookup::{Failure, FailureKind};

use crate::identifier::OrgCode;

/// Loads the settings of organizations.
///
/// The layer runs at most one load per organization at a time, on a separate task, and drops the future when a deadline
/// passes, so the future must be cancel-safe at every `await`. A panic counts as an error.
///
/// A loader can load several types, each for another layer. [`settings_fn`] returns a loader that calls a function.
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
///         // An organization without a row has the default color.
///         Ok(Branding(color.unwrap_or_else(|| "blue".into())))
///     }
/// }
/// ```
pub trait SettingsLoader<T>: Send + Sync + 'static {
    /// Loads the settings of this organization.
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<T, SettingsError>> + Send;
}

impl<T, L: SettingsLoader<T>> SettingsLoader<T> for Arc<L> {
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<T, SettingsError>> + Send {
        L::load(self, org)
    }
}

/// Returns a [`SettingsLoader`] that calls a function. Its error is a [`SettingsError`], or is converted into one.
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

/// The [`SettingsLoader`] returned by [`settings_fn`].
#[derive(Clone)]
pub struct SettingsFn<F>(F);

impl_debug!([F] SettingsFn<F>);

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

/// The error when an organization's settings could not be loaded. Never cached.
///
/// The kind decides which organizations it affects: [`unavailable`](Self::unavailable) may open the circuit breaker, which
/// stops all loads for a while, and [`broken`](Self::broken) affects this organization only. When in doubt, return
/// `unavailable`: the failures of a single organization do not open the breaker.
///
/// `Display` and the source are logged together with the organization's code, so neither may contain a secret.
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
    /// The store is unreachable, too slow, or responds with an error. Retried once for an organization without cached
    /// settings. Opens the circuit breaker when it happens to several organizations.
    #[error("the store gives no usable answer")]
    Unavailable,
    /// The store asks for fewer calls. Pauses all loads; does not open the circuit breaker.
    #[error("the store asks for fewer calls")]
    Throttled {
        /// How long the store asks to wait. Loads pause for at most 60 s.
        retry_after: Option<Duration>,
    },
    /// The settings of this organization are unusable, and an operator must fix them. Does not count towards the circuit
    /// breaker, and is not retried before the next request.
    #[error("the settings of this organization are unusable")]
    Broken,
}

impl SettingsError {
    /// The store is unreachable, too slow, or responds with an error.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(SettingsErrorKind::Unavailable, source)
    }

    /// The store asks for fewer calls, for this long if it said so.
    pub fn throttled(retry_after: Option<Duration>) -> Self {
        Self {
            kind: SettingsErrorKind::Throttled { retry_after },
            source: None,
        }
    }

    /// The settings of this organization are unusable.
    pub fn broken(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(SettingsErrorKind::Broken, source)
    }

    fn new(kind: SettingsErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Some(Arc::from(source.into())),
        }
    }

    /// Returns the kind of the error.
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
