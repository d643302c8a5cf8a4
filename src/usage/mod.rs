//! Usage.

mod account;
mod books;
mod caught;
mod counts;
mod future;
mod layer;
mod ledger;
#[cfg(feature = "openmeter")]
mod openmeter;
mod outbox;
mod pusher;
mod record;
mod ring;
mod routes;
mod service;
mod sink;
mod snapshot;
mod unsent;
mod wall;

pub use self::account::{Account, KeyName, Route};
pub use self::counts::{Counts, DURATION_BOUNDS_MS};
pub use self::future::ResponseFuture;
pub use self::layer::{UsageHandle, UsageLayer, UsageLayerBuilder, UsageStats};
#[cfg(feature = "openmeter")]
#[cfg_attr(docsrs, doc(cfg(feature = "openmeter")))]
pub use self::openmeter::{OpenMeterSink, OpenMeterSinkBuilder};
pub use self::pusher::{PushReport, UsagePusher, UsagePusherBuilder};
pub use self::record::UsageRecord;
pub use self::service::UsageService;
pub use self::sink::{PushError, PushErrorKind, UsageSink};
pub use self::snapshot::{UsageLine, UsageSnapshot};
pub use self::unsent::{UnsentFile, UnsentFileError};
