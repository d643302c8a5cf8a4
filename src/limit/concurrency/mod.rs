//! The concurrency limit: a layer, its service and future, and the body that holds a place until it ends.

mod body;
mod future;
mod layer;
mod permits;
mod service;

pub use self::body::PermitBody;
pub use self::future::OrgConcurrencyLimitFuture;
pub use self::layer::OrgConcurrencyLimitLayer;
pub use self::service::OrgConcurrencyLimit;
