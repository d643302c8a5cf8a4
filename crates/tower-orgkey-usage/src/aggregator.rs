//! Aggregates the counts of all services of a layer.
//!
//! Rows are spread over shards by the hash of account, key and route. Each shard has a lock that is held for one lookup and
//! a few additions. Merging rows and closing a minute happen under the same lock, so no count is lost between them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use foldhash::quality::RandomState;
use http::Extensions;

use crate::counts::{Counts, Ended};
use crate::record::{Period, UsageRecord};
use crate::routes::{KnownRoute, RouteId, Routes};
use crate::snapshot::{LineKey, UsageSnapshot};
use crate::table::{AccountRef, Bounds, KeyRef, RowKey, RowRef, Table};
use crate::telemetry;
use crate::wall_clock::WallClock;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{Caller, RequestObservation};

/// Names the route of a request.
pub(crate) type RouteFn =
    Box<dyn for<'a> Fn(RequestHead<'a>) -> Option<Cow<'a, str>> + Send + Sync>;

pub(crate) struct Settings {
    pub(crate) bounds: Bounds,
    pub(crate) routes: usize,
    pub(crate) route: Option<RouteFn>,
    pub(crate) wall: WallClock,
}

pub(crate) struct Aggregator {
    pub(crate) wall: WallClock,
    route: Option<RouteFn>,
    routes: Routes,
    /// Not a cryptographic hash: issuers choose organizations and keys, and the application its routes.
    hasher: RandomState,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// Unique per aggregator. A part of the id of every record.
    run: String,
    closed: Mutex<Closed>,
    /// How many rows of past minutes a shard keeps for the pusher. 0 without a pusher.
    kept: AtomicUsize,
    pub(crate) records: RecordCounts,
}

/// What happened to records.
#[derive(Debug, Default)]
pub(crate) struct RecordCounts {
    pub(crate) waiting: AtomicUsize,
    pub(crate) parked: AtomicUsize,
    /// Of those that are parked.
    pub(crate) too_old: AtomicUsize,
    pub(crate) settled: AtomicU64,
    pub(crate) pushed: AtomicU64,
    pub(crate) undeliverable: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// What the last close closed.
#[derive(Debug, Default)]
struct Closed {
    /// All earlier periods are closed.
    floor: Period,
    /// The minute of the wall clock then.
    at: u64,
    /// The latest period was more than [`MAX_AHEAD`] ahead of the clock.
    is_ahead: bool,
}

struct Shard {
    period: Period,
    /// The counts of that period.
    open: Table,
    /// The counts of all earlier periods.
    totals: Table,
    /// Past periods that wait to be closed, in order.
    past: Vec<(Period, Table)>,
}

/// What a step merged and dropped.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    /// Rows that were merged.
    merged: u64,
    /// Records of past minutes that were not closed in time.
    records: u64,
}

/// The most shards.
const SHARDS: usize = 64;
/// If the latest period is at most so many minutes ahead of the clock, it is closed when the clock has passed it.
const MAX_AHEAD: u64 = 1;
/// The fewest rows per shard.
const ROWS_A_SHARD: usize = 64;

impl Aggregator {
    pub(crate) fn new(settings: Settings, run: String) -> Self {
        let Bounds {
            rows,
            organizations,
        } = settings.bounds;
        let shards = (rows.min(organizations) / ROWS_A_SHARD).clamp(1, SHARDS);
        let bounds = Bounds {
            rows: rows / shards,
            organizations: organizations / shards,
        };
        let shard = || Shard {
            period: Period::default(),
            open: Table::new(bounds),
            totals: Table::new(bounds),
            past: Vec::new(),
        };
        Self {
            wall: settings.wall,
            route: settings.route,
            routes: Routes::new(settings.routes),
            hasher: RandomState::default(),
            shards: std::iter::repeat_with(|| CachePadded::new(Mutex::new(shard())))
                .take(shards)
                .collect(),
            run,
            closed: Mutex::default(),
            kept: AtomicUsize::new(0),
            records: RecordCounts::default(),
        }
    }

    /// Returns the route of a request. `known` is the first one of its service.
    #[inline]
    pub(crate) fn route(&self, head: RequestHead<'_>, known: &KnownRoute) -> RouteId {
        if let Some(route) = &self.route {
            return match route(head) {
                Some(template) => known.id(&self.routes, &template),
                None => RouteId::UNMATCHED,
            };
        }
        match matched_path(head.extensions) {
            Some(template) => known.id(&self.routes, template),
            None => RouteId::UNMATCHED,
        }
    }

    /// Counts a request that has ended, in the current minute.
    #[inline]
    pub(crate) fn count(&self, observation: &RequestObservation, route: RouteId, ended: Ended) {
        let loss = observation.read(|recorded| {
            let (account, key) = match recorded.caller() {
                Some(Caller::Organization { context, .. }) => (
                    AccountRef::Organization(context.org_code()),
                    context.key_id().map_or(KeyRef::Unnamed, KeyRef::Id),
                ),
                Some(Caller::Anonymous) => (AccountRef::Anonymous, KeyRef::Unnamed),
                Some(_) | None => (AccountRef::Unauthenticated, KeyRef::Unnamed),
            };
            let row = RowRef {
                account,
                key,
                route: match recorded.operation() {
                    Some(operation) => self.routes.id(operation),
                    None => route,
                },
            };
            self.count_row(row, ended, recorded.caller().is_some())
        });
        self.report(loss);
    }

    #[inline]
    fn count_row(&self, row: RowRef<'_>, ended: Ended, is_let_through: bool) -> Loss {
        let hash = self.hasher.hash_one(row);
        let now = Period::of(self.wall.minute());
        let mut shard = self.shard(hash);
        let loss = shard.roll(now, self);
        let before = shard.open.merged();
        let counts = shard.open.row(&self.hasher, hash, row);
        counts.count(ended, is_let_through);
        Loss {
            merged: loss.merged + shard.open.merged() - before,
            ..loss
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // By middle bits: the tables of a shard use the low bits and the highest seven.
        let place = (hash >> 24) as usize % self.shards.len();
        lock(&self.shards[place])
    }

    #[inline]
    fn report(&self, loss: Loss) {
        if loss.merged > 0 {
            telemetry::rows_merged(loss.merged);
        }
        if loss.records > 0 {
            let records = loss.records;
            self.records.dropped.fetch_add(records, Ordering::Relaxed);
            telemetry::dropped(records, "the pusher did not run");
        }
    }

    /// Keeps about so many records of past minutes until [`close`](Self::close) takes them. `false` if they are kept already.
    pub(crate) fn keep(&self, records: usize) -> bool {
        let kept = (records / self.shards.len()).max(1);
        self.kept
            .compare_exchange(0, kept, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Stops keeping past minutes, and returns how many records of them were not taken.
    pub(crate) fn keep_no_more(&self) -> usize {
        self.kept.store(0, Ordering::Relaxed);
        let taken = self.shards.iter().map(|shard| {
            let past = std::mem::take(&mut lock(shard).past);
            past.iter()
                .map(|(_, table)| table.lines().count())
                .sum::<usize>()
        });
        taken.sum()
    }

    /// Whether a minute has begun since the last [`close`](Self::close).
    pub(crate) fn is_minute_over(&self) -> bool {
        self.wall.minute() != lock(&self.closed).at
    }

    /// Closes every past minute and, with `early`, the current one so far, and returns their records. Later requests are
    /// counted in later periods.
    ///
    /// After the clock was set back, requests count in parts of the latest period, one for each minute.
    pub(crate) fn close(&self, early: bool) -> Vec<UsageRecord> {
        let now = self.wall.minute();
        let (target, ahead) = {
            let mut closed = lock(&self.closed);
            let target = Period::of(now).max(closed.floor);
            // A request may have read the clock later.
            let shards = self.shards.iter().map(|shard| lock(shard).period);
            let latest = shards.fold(target, Period::max);
            let ahead = latest.minute.saturating_sub(now);
            let is_ahead = ahead > MAX_AHEAD;
            let was_ahead = std::mem::replace(&mut closed.is_ahead, is_ahead);
            let is_over = now != closed.at;
            closed.at = now;
            closed.floor = if early || is_ahead && is_over {
                latest.next_part()
            } else {
                target
            };
            (closed.floor, (is_ahead && !was_ahead).then_some(ahead))
        };
        if let Some(minutes) = ahead {
            telemetry::clock_set_back(minutes);
        }
        let mut periods: BTreeMap<Period, BTreeMap<LineKey, Counts>> = BTreeMap::new();
        for shard in &self.shards {
            let (past, loss) = {
                let mut shard = lock(shard);
                let loss = shard.roll(target, self);
                let number = shard.past.partition_point(|(period, _)| *period < target);
                let later = shard.past.split_off(number);
                (std::mem::replace(&mut shard.past, later), loss)
            };
            self.report(loss);
            for (period, table) in past {
                let lines = periods.entry(period).or_default();
                for (key, counts) in table.lines() {
                    lines.entry(self.named(key)).or_default().add(counts);
                }
            }
        }
        let records = periods
            .into_iter()
            .flat_map(|(period, lines)| self.records(period, now, lines));
        records.collect()
    }

    /// The period is in the ids, which stay unique and in order if the clock is set back. The minute is not after `now`.
    fn records(
        &self,
        Period { minute, part }: Period,
        now: u64,
        lines: BTreeMap<LineKey, Counts>,
    ) -> impl Iterator<Item = UsageRecord> {
        let lines = lines.into_iter().enumerate();
        lines.map(move |(n, ((account, key, route), counts))| UsageRecord {
            id: format!("{}-{minute}-{part}-{n}", self.run),
            minute: minute.min(now).saturating_mul(60),
            account,
            key,
            route,
            counts,
        })
    }

    /// Replaces the number of the route by its name.
    fn named(&self, row: RowKey) -> LineKey {
        (row.account, row.key, self.routes.route(row.route))
    }

    pub(crate) fn snapshot(&self) -> UsageSnapshot {
        let mut lines: BTreeMap<LineKey, Counts> = BTreeMap::new();
        for shard in &self.shards {
            let of_shard: Vec<(RowKey, Counts)> = {
                let shard = lock(shard);
                let lines = shard.totals.lines().chain(shard.open.lines());
                lines.map(|(key, counts)| (key, counts.clone())).collect()
            };
            for (key, counts) in of_shard {
                lines.entry(self.named(key)).or_default().add(&counts);
            }
        }
        UsageSnapshot::new(self.run.clone(), lines)
    }

    /// Returns how many rows are held, and how many were merged.
    pub(crate) fn size(&self) -> (usize, u64) {
        let mut size = (0, 0);
        for shard in &self.shards {
            let shard = lock(shard);
            for table in [&shard.open, &shard.totals] {
                size.0 += table.lines().count();
                size.1 += table.merged();
            }
        }
        size
    }
}

impl Shard {
    /// Advances to a period, unless a later one has begun. Drops the oldest past minutes beyond the bound.
    #[inline]
    fn roll(&mut self, to: Period, aggregator: &Aggregator) -> Loss {
        if to <= self.period {
            return Loss::default();
        }
        self.begin(to, aggregator)
    }

    #[cold]
    fn begin(&mut self, period: Period, aggregator: &Aggregator) -> Loss {
        let mut loss = Loss::default();
        let closes = std::mem::replace(&mut self.period, period);
        if self.open.is_empty() {
            return loss;
        }
        let past = self.open.take();
        let before = self.totals.merged();
        self.totals.add(&aggregator.hasher, &past);
        loss.merged = self.totals.merged() - before;
        let kept = aggregator.kept.load(Ordering::Relaxed);
        if kept == 0 {
            return loss;
        }
        self.past.push((closes, past));
        let mut held: usize = self.past.iter().map(|(_, table)| table.len()).sum();
        // The latest stays, however many records it has: a table is bounded.
        while held > kept && self.past.len() > 1 {
            let (_, oldest) = self.past.remove(0);
            held -= oldest.len();
            loss.records += oldest.lines().count() as u64;
        }
        loss
    }
}

#[cfg(feature = "axum")]
fn matched_path(extensions: &Extensions) -> Option<&str> {
    let matched = extensions.get::<axum::extract::MatchedPath>();
    matched.map(axum::extract::MatchedPath::as_str)
}

#[cfg(not(feature = "axum"))]
fn matched_path(_: &Extensions) -> Option<&str> {
    None
}

/// Nothing that can panic is called while a lock is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregator")
            .field("run", &self.run)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

/// Draws a random identifier.
pub(crate) fn draw_run() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
