//! The rate limit: its layer, service and future.

mod builder;
mod future;
mod layer;
mod service;

pub use self::builder::OrgRateLimitLayerBuilder;
pub use self::future::OrgRateLimitFuture;
pub use self::layer::OrgRateLimitLayer;
pub use self::service::OrgRateLimit;
