//! The concurrency limit: its layer, service and future, and the response body that holds the permit.

mod body;
mod future;
mod layer;
mod permits;
mod service;

pub use self::body::PermitBody;
pub use self::future::OrgConcurrencyLimitFuture;
pub use self::layer::OrgConcurrencyLimitLayer;
pub use self::service::OrgConcurrencyLimit;
