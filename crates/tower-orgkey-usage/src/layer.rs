use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tower_layer::Layer;

use super::books::{Books, RouteFn, Settings, draw_run};
use super::ledger::Bounds;
use super::pusher::UsagePusherBuilder;
use super::service::UsageService;
use super::sink::UsageSink;
use super::snapshot::UsageSnapshot;
use super::wall::Wall;
use tower_orgkey::ConfigError;
use tower_orgkey::RequestHead;

/// The layer that counts what each organization and each key does, by route and minute.
///
/// It stands outside of [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer): see the [crate's guide](crate). Clones count into the
/// same books; two layers have nothing in common.
#[derive(Clone)]
#[must_use]
pub struct UsageLayer {
    books: Arc<Books>,
}

impl UsageLayer {
    /// The layer with the defaults of [`UsageLayerBuilder`]. Needs no runtime, and starts nothing.
    ///
    /// # Panics
    ///
    /// When the operating system has no random numbers, from which the ids of records are drawn;
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

    /// A builder for settings of your own.
    pub fn builder() -> UsageLayerBuilder {
        UsageLayerBuilder {
            capacity: 100_000,
            organizations: 100_000,
            routes: 1_000,
            route: None,
            wall: Wall::default(),
        }
    }

    /// Reads what is counted, and pushes it.
    pub fn handle(&self) -> UsageHandle {
        UsageHandle {
            books: Arc::clone(&self.books),
        }
    }
}

impl<S> Layer<S> for UsageLayer {
    type Service = UsageService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        UsageService::new(inner, Arc::clone(&self.books))
    }
}

impl fmt::Debug for UsageLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLayer").finish_non_exhaustive()
    }
}

/// Builds a [`UsageLayer`] with settings of your own.
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
    wall: Wall,
}

impl UsageLayerBuilder {
    /// How many rows are held, one for each key and route: of the minute under way so many, and of the totals as many
    /// again. 1 to 10,000,000; 100,000 unless set. A row takes about 300 bytes. Beyond it the rows that were not used for
    /// longest are folded into their organization's.
    pub fn capacity(mut self, rows: usize) -> Self {
        self.capacity = rows;
        self
    }

    /// How many organizations have a remainder of their own, which is what their folded rows become at last. 1 to
    /// 10,000,000; 100,000 unless set. Beyond it the remainders that were not used for longest are added to that of
    /// [other organizations](super::Account::OtherOrganizations).
    pub fn organizations(mut self, organizations: usize) -> Self {
        self.organizations = organizations;
        self
    }

    /// How many routes are told apart, the first that come. At most 1,000,000; 1,000 unless set. All others are one, and so
    /// is a template of more than 1,024 bytes.
    pub fn routes(mut self, routes: usize) -> Self {
        self.routes = routes;
        self
    }

    /// Names the route of a request. Unless set, it is axum's matched path, where there is one.
    ///
    /// The name must not hold what differs from request to request, such as ids.
    pub fn route(
        mut self,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        self.route = Some(Box::new(route));
        self
    }

    /// Reads the minutes from a test's wall clock.
    #[cfg(feature = "test-util")]
    pub fn test_wall_clock(mut self, clock: crate::test_util::TestWallClock) -> Self {
        self.wall = Wall::Test(clock);
        self
    }

    /// The layer. Needs no runtime, and starts nothing.
    ///
    /// # Errors
    ///
    /// Names the setting that is outside of its range.
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
            books: Arc::new(Books::new(settings, run)),
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

/// Reads what a [`UsageLayer`] counts, and pushes it. Cloning counts a reference.
#[derive(Clone)]
pub struct UsageHandle {
    pub(super) books: Arc<Books>,
}

impl UsageHandle {
    /// What was counted since the layer was built. Costs a copy of every row.
    pub fn snapshot(&self) -> UsageSnapshot {
        self.books.snapshot()
    }

    /// A pusher of closed minutes to this sink. Nothing runs before you spawn it.
    ///
    /// See [`UsagePusher`](super::UsagePusher) for an example.
    pub fn pusher<S: UsageSink>(&self, sink: S) -> UsagePusherBuilder<S> {
        UsagePusherBuilder::new(Arc::clone(&self.books), sink)
    }

    /// How many rows and records there are, and what became of the others. Costs a look at every row.
    pub fn stats(&self) -> UsageStats {
        let (rows, folds) = self.books.size();
        let tally = &self.books.tally;
        UsageStats {
            rows,
            folds,
            waiting: tally.waiting.load(Ordering::Relaxed),
            pushed: tally.pushed.load(Ordering::Relaxed),
            refused: tally.refused.load(Ordering::Relaxed),
            dropped: tally.dropped.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for UsageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageHandle").finish_non_exhaustive()
    }
}

/// How things stand with what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageStats {
    /// Rows held, of the minute under way and of the totals.
    pub rows: usize,
    /// How many rows have been folded into coarser ones, for want of room. No count was lost by it.
    pub folds: u64,
    /// Records of closed minutes that the sink has not taken yet.
    pub waiting: usize,
    /// Records that the sink has taken.
    pub pushed: u64,
    /// Records that the sink has refused for good. They are in the snapshot, and in no bill.
    pub refused: u64,
    /// Records that were given up because too many were waiting, or because the pusher was dropped. A record that the sink
    /// may have taken without our hearing of it is among them.
    pub dropped: u64,
}
