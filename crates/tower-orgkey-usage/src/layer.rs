use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tower_layer::Layer;

use crate::aggregator::{Aggregator, RouteFn, Settings, draw_run};
use crate::pusher::UsagePusherBuilder;
use crate::service::UsageService;
use crate::sink::UsageSink;
use crate::snapshot::UsageSnapshot;
use crate::table::Bounds;
use crate::wall_clock::WallClock;
use tower_orgkey::ConfigError;
use tower_orgkey::RequestHead;

/// A layer that counts what each organization and each key does, by route and minute.
///
/// Put it outside [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer); inside, it responds with 500. See the
/// [crate documentation](crate). Clones share their counts; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct UsageLayer {
    aggregator: Arc<Aggregator>,
}

impl UsageLayer {
    /// Creates a layer with the defaults of [`UsageLayerBuilder`]. Needs no runtime.
    ///
    /// # Panics
    ///
    /// If the operating system has no random numbers, which the ids of records need;
    /// [`UsageLayerBuilder::build`] returns the error instead.
    #[track_caller]
    #[allow(clippy::new_without_default)] // It can panic.
    pub fn new() -> Self {
        match Self::builder().build() {
            Ok(layer) => layer,
            // The defaults do not contradict each other.
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns a builder.
    pub fn builder() -> UsageLayerBuilder {
        UsageLayerBuilder {
            capacity: 100_000,
            organizations: 100_000,
            routes: 1_000,
            route: None,
            wall: WallClock::default(),
        }
    }

    /// Returns a handle that reads and pushes the counts.
    pub fn handle(&self) -> UsageHandle {
        UsageHandle {
            aggregator: Arc::clone(&self.aggregator),
        }
    }
}

impl<S> Layer<S> for UsageLayer {
    type Service = UsageService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        UsageService::new(inner, Arc::clone(&self.aggregator))
    }
}

impl fmt::Debug for UsageLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLayer").finish_non_exhaustive()
    }
}

/// Configures a [`UsageLayer`].
///
/// ```
/// use std::borrow::Cow;
/// use tower_orgkey::RequestHead;
/// use tower_orgkey_usage::UsageLayer;
///
/// let usage = UsageLayer::builder()
///     .capacity(20_000)
///     .route(|head: RequestHead<'_>| {
///         head.uri.path().starts_with("/reports").then_some(Cow::Borrowed("/reports/…"))
///     })
///     .build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct UsageLayerBuilder {
    capacity: usize,
    organizations: usize,
    routes: usize,
    route: Option<RouteFn>,
    wall: WallClock,
}

impl UsageLayerBuilder {
    /// Sets how many rows are held for the current minute, and as many for the totals. 1 to 10,000,000. Default: 100,000.
    ///
    /// A row is a key on a route, and takes about 300 bytes. The least recently used row beyond the capacity is merged into
    /// the row for [other keys](crate::KeyName::Other) of its organization.
    pub fn capacity(mut self, rows: usize) -> Self {
        self.capacity = rows;
        self
    }

    /// Sets how many organizations have a row for [other keys](crate::KeyName::Other). 1 to 10,000,000. Default: 100,000.
    ///
    /// The least recently used one beyond the bound is merged into the row for
    /// [other organizations](crate::Account::OtherOrganizations).
    pub fn organizations(mut self, organizations: usize) -> Self {
        self.organizations = organizations;
        self
    }

    /// Sets how many routes are counted separately: the first ones. At most 1,000,000. Default: 1,000. All others, and
    /// templates of more than 1,024 bytes, count as [other routes](crate::Route::Other).
    pub fn routes(mut self, routes: usize) -> Self {
        self.routes = routes;
        self
    }

    /// Sets a function that names the route of a request. Default: axum's matched path (feature `axum`).
    ///
    /// The name must not contain what differs from request to request, such as ids.
    pub fn route(
        mut self,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        self.route = Some(Box::new(route));
        self
    }

    /// Sets a wall clock for tests, which names the minutes.
    #[cfg(feature = "test-util")]
    pub fn test_wall_clock(mut self, clock: crate::test_util::TestWallClock) -> Self {
        self.wall = WallClock::Test(clock);
        self
    }

    /// Builds the layer. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that is out of range.
    pub fn build(self) -> Result<UsageLayer, ConfigError> {
        const MOST: usize = 10_000_000;
        let wrong = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        if !(1..=MOST).contains(&self.capacity) {
            return wrong("capacity", "must be 1 to 10,000,000 rows");
        }
        if !(1..=MOST).contains(&self.organizations) {
            return wrong("organizations", "must be 1 to 10,000,000");
        }
        if self.routes > 1_000_000 {
            return wrong("routes", "must be at most 1,000,000");
        }
        let run = draw_run()
            .map_err(|_| ConfigError::new("build", "the operating system has no random numbers"))?;
        let settings = Settings {
            bounds: Bounds {
                rows: self.capacity,
                organizations: self.organizations,
            },
            routes: self.routes,
            route: self.route,
            wall: self.wall,
        };
        Ok(UsageLayer {
            aggregator: Arc::new(Aggregator::new(settings, run)),
        })
    }
}

impl fmt::Debug for UsageLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLayerBuilder")
            .field("capacity", &self.capacity)
            .field("organizations", &self.organizations)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// Reads and pushes the counts of a [`UsageLayer`].
#[derive(Clone)]
pub struct UsageHandle {
    pub(crate) aggregator: Arc<Aggregator>,
}

impl UsageHandle {
    /// Returns everything that was counted since the layer was built. Copies every row.
    pub fn snapshot(&self) -> UsageSnapshot {
        self.aggregator.snapshot()
    }

    /// Returns a builder for a pusher of closed minutes. See [`UsagePusher`](crate::UsagePusher).
    pub fn pusher<S: UsageSink>(&self, sink: S) -> UsagePusherBuilder<S> {
        UsagePusherBuilder::new(Arc::clone(&self.aggregator), sink)
    }

    /// Returns how many rows and records there are. Visits every row.
    pub fn stats(&self) -> UsageStats {
        let (rows, merged) = self.aggregator.size();
        let records = &self.aggregator.records;
        UsageStats {
            rows,
            merged,
            waiting: records.waiting.load(Ordering::Relaxed),
            parked: records.parked.load(Ordering::Relaxed),
            too_old: records.too_old.load(Ordering::Relaxed),
            settled: records.settled.load(Ordering::Relaxed),
            pushed: records.pushed.load(Ordering::Relaxed),
            undeliverable: records.undeliverable.load(Ordering::Relaxed),
            dropped: records.dropped.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for UsageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageHandle").finish_non_exhaustive()
    }
}

/// Rows and records of a [`UsageLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageStats {
    /// Rows that are held, of the current minute and of the totals.
    pub rows: usize,
    /// Rows that were merged into an "other" row. No count was lost.
    pub merged: u64,
    /// Records of closed minutes that wait for the sink.
    pub waiting: usize,
    /// Records that are [parked](crate::ParkedRecords), for any reason.
    pub parked: usize,
    /// Records that are parked because they are [too old](crate::ParkReason::TooOld).
    pub too_old: usize,
    /// Parked records that were settled as [billed](crate::Settlement::Billed).
    pub settled: u64,
    /// Records that the sink has stored.
    pub pushed: u64,
    /// Records that the sink will never store. They are in the snapshot, but not billed.
    pub undeliverable: u64,
    /// Records that were dropped because too many were waiting or parked, or because the pusher was dropped. The sink may have stored
    /// some of them without the pusher learning of it.
    pub dropped: u64,
}
