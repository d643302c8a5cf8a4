//! What all services of a layer count into.
//!
//! Rows are spread over shards by the hash of account, key and route, each behind a lock that is held for one look-up and a
//! few additions; making room and closing a minute happen under the same lock, so no count can fall between them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use http::Extensions;

use super::counts::{Counts, Ended};
use super::ledger::{AccountRef, Bounds, KeyRef, Ledger, RowKey, RowRef};
use super::record::{Period, UsageRecord};
use super::routes::{RouteId, Routes};
use super::snapshot::{LineKey, UsageSnapshot};
use super::wall::Wall;
use crate::telemetry;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{Caller, RequestObservation};

/// Names the route of a request.
pub(super) type RouteFn =
    Box<dyn for<'a> Fn(RequestHead<'a>) -> Option<Cow<'a, str>> + Send + Sync>;

/// What books are made with.
pub(super) struct Settings {
    pub(super) bounds: Bounds,
    pub(super) routes: usize,
    pub(super) route: Option<RouteFn>,
    pub(super) wall: Wall,
}

pub(super) struct Books {
    pub(super) wall: Wall,
    route: Option<RouteFn>,
    routes: Routes,
    hasher: RandomState,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// Tells these books from all others. Part of every record's id.
    run: String,
    /// What is below it is closed.
    floor: Mutex<Period>,
    /// How many rows of minutes that are over a shard keeps until they are closed. 0 while nobody pushes them.
    kept: AtomicUsize,
    pub(super) tally: Tally,
}

/// What became of records.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) waiting: AtomicUsize,
    pub(super) pushed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) dropped: AtomicU64,
}

struct Shard {
    period: Period,
    /// What is counted in that period.
    open: Ledger,
    /// What was counted in all periods before it.
    totals: Ledger,
    /// Periods that are over and wait to be closed, in order.
    over: Vec<(Period, Ledger)>,
}

/// What a step had to give up.
#[derive(Clone, Copy, Debug, Default)]
struct GivenUp {
    /// Rows that are now a part of coarser ones.
    folded: u64,
    /// Records of minutes that nobody took in time.
    records: u64,
}

/// The most shards. A row has one.
const SHARDS: usize = 64;
/// The least rows that a shard is worth having for.
const ROWS_A_SHARD: usize = 64;

impl Books {
    pub(super) fn new(settings: Settings, run: String) -> Self {
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
            open: Ledger::new(bounds),
            totals: Ledger::new(bounds),
            over: Vec::new(),
        };
        Self {
            wall: settings.wall,
            route: settings.route,
            routes: Routes::new(settings.routes),
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(|| CachePadded::new(Mutex::new(shard())))
                .take(shards)
                .collect(),
            run,
            floor: Mutex::default(),
            kept: AtomicUsize::new(0),
            tally: Tally::default(),
        }
    }

    /// The route of a request, if one is known where the layer stands.
    #[inline]
    pub(super) fn route(&self, head: RequestHead<'_>) -> RouteId {
        if let Some(route) = &self.route {
            return match route(head) {
                Some(template) => self.routes.id(&template),
                None => RouteId::UNMATCHED,
            };
        }
        match matched_path(head.extensions) {
            Some(template) => self.routes.id(template),
            None => RouteId::UNMATCHED,
        }
    }

    /// Counts a request that has ended, in the minute that it is.
    #[inline]
    pub(super) fn count(&self, observation: &RequestObservation, route: RouteId, ended: Ended) {
        let caller = observation.caller();
        let (account, key) = match &caller {
            Some(Caller::Organization { context, .. }) => (
                AccountRef::Organization(context.org_code()),
                context.key_id().map_or(KeyRef::Unnamed, KeyRef::Id),
            ),
            Some(Caller::Anonymous) => (AccountRef::Anonymous, KeyRef::Unnamed),
            Some(_) | None => (AccountRef::Nobody, KeyRef::Unnamed),
        };
        let row = RowRef {
            account,
            key,
            route,
        };
        let hash = self.hasher.hash_one(row);
        let now = Period::of(self.wall.minute());
        let given_up = {
            let mut shard = self.shard(hash);
            let given_up = shard.roll(now, self);
            let before = shard.open.folds();
            shard.open.row(&self.hasher, hash, row).count(ended);
            GivenUp {
                folded: given_up.folded + shard.open.folds() - before,
                ..given_up
            }
        };
        self.tell(given_up);
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // By the high half: tables of a shard use the low bits and the topmost seven.
        let place = (hash >> 24) as usize % self.shards.len();
        lock(&self.shards[place])
    }

    #[inline]
    fn tell(&self, given_up: GivenUp) {
        if given_up.folded > 0 {
            telemetry::folded(given_up.folded);
        }
        if given_up.records > 0 {
            let records = given_up.records;
            self.tally.dropped.fetch_add(records, Ordering::Relaxed);
            telemetry::dropped(records, "the pusher does not run");
        }
    }

    /// From now on minutes that are over are kept until [`close`](Self::close) takes them, about so many records of
    /// them. `false` if that is so already.
    pub(super) fn keep(&self, records: usize) -> bool {
        let kept = (records / self.shards.len()).max(1);
        self.kept
            .compare_exchange(0, kept, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Nobody will take minutes any more. Tells how many records of them nobody has taken.
    pub(super) fn keep_no_more(&self) -> usize {
        self.kept.store(0, Ordering::Relaxed);
        let taken = self.shards.iter().map(|shard| {
            let over = std::mem::take(&mut lock(shard).over);
            over.iter()
                .map(|(_, ledger)| ledger.lines().count())
                .sum::<usize>()
        });
        taken.sum()
    }

    /// Closes every minute that is over, and with `early` also what there is of the one under way. Nothing is counted into
    /// them any more; each is told here, and only here.
    pub(super) fn close(&self, early: bool) -> Vec<UsageRecord> {
        let target = {
            let mut floor = lock(&self.floor);
            let mut target = Period::of(self.wall.minute()).max(*floor);
            if early {
                // A request may have come by another reading of the clock.
                for shard in &self.shards {
                    target = target.max(lock(shard).period);
                }
                target = target.next_part();
            }
            *floor = target;
            target
        };
        let mut periods: BTreeMap<Period, BTreeMap<LineKey, Counts>> = BTreeMap::new();
        for shard in &self.shards {
            let (over, given_up) = {
                let mut shard = lock(shard);
                let given_up = shard.roll(target, self);
                let number = shard.over.partition_point(|(period, _)| *period < target);
                let later = shard.over.split_off(number);
                (std::mem::replace(&mut shard.over, later), given_up)
            };
            self.tell(given_up);
            for (period, ledger) in over {
                let lines = periods.entry(period).or_default();
                for (key, counts) in ledger.lines() {
                    lines.entry(self.named(key)).or_default().add(counts);
                }
            }
        }
        let records = periods
            .into_iter()
            .flat_map(|(period, lines)| self.records(period, lines));
        records.collect()
    }

    fn records(
        &self,
        Period { minute, part }: Period,
        lines: BTreeMap<LineKey, Counts>,
    ) -> impl Iterator<Item = UsageRecord> {
        let lines = lines.into_iter().enumerate();
        lines.map(move |(n, ((account, key, route), counts))| UsageRecord {
            id: format!("{}-{minute}-{part}-{n}", self.run),
            minute: minute.saturating_mul(60),
            account,
            key,
            route,
            counts,
        })
    }

    /// The same with the route's name for its number, which depends on who came first.
    fn named(&self, row: RowKey) -> LineKey {
        (row.account, row.key, self.routes.route(row.route))
    }

    pub(super) fn snapshot(&self) -> UsageSnapshot {
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

    /// How many rows there are, and how many have had to make room.
    pub(super) fn size(&self) -> (usize, u64) {
        let mut size = (0, 0);
        for shard in &self.shards {
            let shard = lock(shard);
            for ledger in [&shard.open, &shard.totals] {
                size.0 += ledger.lines().count();
                size.1 += ledger.folds();
            }
        }
        size
    }
}

impl Shard {
    /// Goes on to this period, unless a later one has begun. What cannot be kept until it is closed is given up, the oldest
    /// first.
    #[inline]
    fn roll(&mut self, to: Period, books: &Books) -> GivenUp {
        if to <= self.period {
            return GivenUp::default();
        }
        self.begin(to, books)
    }

    #[cold]
    fn begin(&mut self, period: Period, books: &Books) -> GivenUp {
        let mut given_up = GivenUp::default();
        let closes = std::mem::replace(&mut self.period, period);
        if self.open.is_empty() {
            return given_up;
        }
        let over = self.open.take();
        let before = self.totals.folds();
        self.totals.absorb(&books.hasher, &over);
        given_up.folded = self.totals.folds() - before;
        let kept = books.kept.load(Ordering::Relaxed);
        if kept == 0 {
            return given_up;
        }
        self.over.push((closes, over));
        let mut held: usize = self.over.iter().map(|(_, ledger)| ledger.len()).sum();
        // The youngest stays, however many records it has: the ledger has bounds of its own.
        while held > kept && self.over.len() > 1 {
            let (_, oldest) = self.over.remove(0);
            held -= oldest.len();
            given_up.records += oldest.lines().count() as u64;
        }
        given_up
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

/// No lock here is held while something that could panic is called; if it were so all the same, counts are still counts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Books")
            .field("run", &self.run)
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

/// A number that no other process has drawn.
pub(super) fn draw_run() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
