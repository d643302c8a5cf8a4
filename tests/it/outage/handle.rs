//! Blocks and invalidations before, during and after a verification.

use std::time::Duration;

use tower_orgkey::{KeyId, OrgCode};

use crate::support::app::{App, SOFT, key, millis, pass, secs};
use crate::support::issuer::Behavior;

const KEY: &str = "the-key-0";
const ID: &str = "id_the-key-0";
const ORG: &str = "org_1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Update {
    BlockKey,
    BlockId,
    BlockOrg,
    InvalidateKey,
    InvalidateId,
    InvalidateOrg,
    InvalidateAll,
}

use Update::{
    BlockId, BlockKey, BlockOrg, InvalidateAll, InvalidateId, InvalidateKey, InvalidateOrg,
};

const BLOCKS: [Update; 3] = [BlockKey, BlockId, BlockOrg];
const INVALIDATIONS: [Update; 4] = [InvalidateKey, InvalidateId, InvalidateOrg, InvalidateAll];

impl Update {
    fn all() -> impl Iterator<Item = Self> {
        BLOCKS.into_iter().chain(INVALIDATIONS)
    }

    fn is_block(self) -> bool {
        BLOCKS.contains(&self)
    }

    fn apply(self, app: &App) {
        let handle = app.handle.clone();
        match self {
            BlockKey => handle.block_key(&key(KEY)).unwrap(),
            BlockId => handle.block_key_id(&KeyId::from_static(ID)).unwrap(),
            BlockOrg => handle.block_org(&OrgCode::from_static(ORG)).unwrap(),
            InvalidateKey => handle.invalidate_key(&key(KEY)),
            InvalidateId => handle.invalidate_key_id(&KeyId::from_static(ID)),
            InvalidateOrg => handle.invalidate_org(&OrgCode::from_static(ORG)),
            InvalidateAll => handle.invalidate_all(),
        }
    }

    fn lift(self, app: &App) -> bool {
        match self {
            BlockKey => app.handle.unblock_key(&key(KEY)),
            BlockId => app.handle.unblock_key_id(&KeyId::from_static(ID)),
            BlockOrg => app.handle.unblock_org(&OrgCode::from_static(ORG)),
            _ => unreachable!("only blocks are lifted"),
        }
    }
}

/// A valid unknown key, and a known key of another organization.
async fn app() -> App {
    let app = App::new();
    app.issuer.issue_as("bystander", "org_2", "id_bystander");
    assert_eq!(app.get("bystander").await.status, 200);
    app.issuer.issue_as(KEY, ORG, ID);
    app
}

#[tokio::test(start_paused = true)]
async fn fault_26_block_before_the_first_lookup_applies() {
    for update in Update::all() {
        let app = app().await;
        update.apply(&app);
        let answer = app.get(KEY).await;
        if update.is_block() {
            assert_eq!(answer.status, 401, "{update:?}");
            pass(secs(3_600)).await;
            assert_eq!(app.get(KEY).await.status, 401, "{update:?}");
        } else {
            assert_eq!(answer.status, 200, "{update:?}");
        }
        let calls = usize::from(update != BlockKey);
        assert!(app.issuer.calls_for(KEY) >= calls);
        assert!(update != BlockKey || app.issuer.calls_for(KEY) == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_block_applies_to_the_next_request() {
    for update in Update::all() {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        update.apply(&app);
        let bystander = app.try_now("bystander");
        assert_eq!(
            bystander.is_some_and(|answer| answer.status == 200),
            update != InvalidateAll,
            "{update:?}"
        );
        if update.is_block() {
            assert_eq!(app.get_now(KEY).status, 401, "{update:?}");
            // A blocked key needs no call to the issuer.
            app.issuer.is(Behavior::Fails);
            pass(2 * SOFT).await;
            assert_eq!(app.get_now(KEY).status, 401, "{update:?}");
            assert_eq!(app.issuer.calls_for(KEY), 1);
        } else {
            let updated_at = app.now();
            let answer = app.get(KEY).await;
            assert_eq!(answer.status, 200);
            assert!(
                app.now() - answer.age() >= updated_at,
                "{update:?}: an old result"
            );
            assert_eq!(app.issuer.calls_for(KEY), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_invalidated_key_needs_the_issuer() {
    for update in INVALIDATIONS {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        app.issuer.is(Behavior::Fails);
        update.apply(&app);
        app.get(KEY).await.is_unavailable();
        assert!(app.issuer.faults() >= 1);
        app.open_breaker().await;
        app.get(KEY).await.is_unavailable();
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_invalidated_invalid_key_is_verified() {
    for update in [InvalidateKey, InvalidateAll] {
        let app = App::new();
        assert_eq!(app.get(KEY).await.status, 401);
        assert_eq!(app.get_now(KEY).status, 401);
        app.issuer.issue_as(KEY, ORG, ID);
        update.apply(&app);
        assert_eq!(app.get(KEY).await.status, 200, "{update:?}");
        assert_eq!(app.issuer.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_waiters_get_no_earlier_answer() {
    for update in Update::all() {
        let app = app().await;
        app.issuer.latency(millis(500));
        let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 1, "one call for all of them");
        // The answer in flight is valid; the key is deleted at the issuer and then blocked or invalidated here.
        app.issuer.revoke(KEY);
        update.apply(&app);
        let later: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(300)).await;
        let too_early = waiters.iter().filter(|waiter| waiter.is_finished()).count();
        assert!(too_early == 0 || update == BlockKey, "{update:?}");
        let latest: Vec<_> = (0..10).map(|_| app.begin(KEY)).collect();
        for answer in waiters.into_iter().chain(later).chain(latest) {
            assert_eq!(answer.await.unwrap().status, 401, "{update:?}");
        }
        assert_eq!(app.reached(), 1, "only the other key passes");
        let calls = app.issuer.calls_for(KEY);
        assert_eq!(calls, if update.is_block() { 1 } else { 2 }, "{update:?}");
        // It was not cached either.
        assert_eq!(app.get_now(KEY).status, 401, "{update:?}");
        if update.is_block() {
            assert!(update.lift(&app));
            assert_eq!(app.get(KEY).await.status, 401, "{update:?}");
            assert_eq!(
                app.issuer.calls_for(KEY),
                2,
                "{update:?}: an unblocked key is verified again"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_waiters_get_a_later_answer() {
    for update in INVALIDATIONS {
        let app = app().await;
        app.issuer.latency(millis(500));
        let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(100)).await;
        update.apply(&app);
        let updated_at = app.now();
        let later: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        for answer in waiters.into_iter().chain(later) {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 200, "{update:?}");
        }
        let calls = app.issuer.logged(|call| call.key == KEY);
        assert_eq!(calls.len(), 2, "{update:?}: one more for all of them");
        assert!(calls[1].at >= updated_at);
        assert_eq!(app.now() - app.get_now(KEY).age(), calls[1].at);
    }
}

#[tokio::test(start_paused = true)]
async fn invalidation_restarts_waiting_lookups() {
    for update in [InvalidateKey, InvalidateAll] {
        let app = app().await;
        app.issuer.latency(millis(500));
        let waiter = app.begin(KEY);
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 1, "{update:?}");
        update.apply(&app);
        pass(millis(1)).await;
        assert_eq!(app.issuer.calls_for(KEY), 2, "{update:?}");
        assert_eq!(waiter.await.unwrap().status, 200, "{update:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_refresh_in_flight_restores_nothing() {
    for update in Update::all() {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        app.issuer.latency(millis(500));
        pass(SOFT).await;
        assert!(app.get_now(KEY).is_stale());
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 2, "a refresh is in flight");
        app.issuer.revoke(KEY);
        update.apply(&app);
        // No request starts a lookup until it has completed.
        pass(millis(500)).await;
        assert_eq!(app.issuer.in_flight(), 0);
        assert_eq!(app.get(KEY).await.status, 401, "{update:?}");
        assert_eq!(
            app.issuer.calls_for(KEY),
            if update.is_block() { 2 } else { 3 }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_many_updates_start_few_calls() {
    let app = app().await;
    app.issuer.latency(millis(100));
    let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
    for update in INVALIDATIONS.iter().cycle().take(20) {
        pass(millis(10)).await;
        update.apply(&app);
    }
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().status, 200);
    }
    assert!((2..=21).contains(&app.issuer.calls_for(KEY)));
}

#[tokio::test(start_paused = true)]
async fn unblocked_key_is_verified_again() {
    for block in BLOCKS {
        let app = app().await;
        assert!(!block.lift(&app), "there was none");
        assert_eq!(app.get(KEY).await.status, 200);
        block.apply(&app);
        assert_eq!(app.get_now(KEY).status, 401);
        assert!(block.lift(&app));
        assert!(!block.lift(&app));
        app.issuer.is(Behavior::Fails);
        app.get(KEY).await.is_unavailable();
        app.issuer.is(Behavior::Answers);
        assert_eq!(app.get(KEY).await.status, 200, "{block:?}");
        assert!(app.get_now(KEY).age() < secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn key_passes_after_its_last_block_is_removed() {
    let app = app().await;
    for block in BLOCKS {
        block.apply(&app);
    }
    for block in BLOCKS {
        assert_eq!(app.get(KEY).await.status, 401);
        assert!(block.lift(&app));
    }
    assert_eq!(app.get(KEY).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn block_above_the_capacity_is_an_error() {
    const MOST: usize = 100_000;

    let app = app().await;
    for block in BLOCKS {
        block.apply(&app);
    }
    for n in 1..MOST {
        let name = format!("blocked-{n}");
        app.handle.block_key(&key(&name)).unwrap();
        app.handle
            .block_key_id(&KeyId::new(name.as_str()).unwrap())
            .unwrap();
        app.handle
            .block_org(&OrgCode::new(name.as_str()).unwrap())
            .unwrap();
    }
    let more = "one-more-of-each";
    let full = [
        app.handle.block_key(&key(more)),
        app.handle
            .block_key_id(&KeyId::from_static("one-more-of-each")),
        app.handle
            .block_org(&OrgCode::from_static("one-more-of-each")),
    ];
    for (full, what) in full.into_iter().zip(["keys", "key ids", "organizations"]) {
        assert_eq!(
            full.unwrap_err().to_string(),
            format!("the list of blocked {what} is full")
        );
    }
    // Blocked items can be blocked again, and the first block of each list still applies.
    for block in BLOCKS {
        block.apply(&app);
    }
    for block in BLOCKS {
        assert_eq!(app.get(KEY).await.status, 401);
        assert!(block.lift(&app));
    }
    assert_eq!(app.get(KEY).await.status, 200);
    app.issuer.issue_as(more, more, more);
    assert_eq!(app.get(more).await.status, 200, "nothing was blocked");
    app.handle.block_key(&key(more)).unwrap();
    assert_eq!(app.get(more).await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn statistics_are_consistent() {
    let app = app().await;
    let mut requests = 1;
    let mut add = |n: u64| requests += n;

    app.issuer.latency(millis(500));
    let waiters: Vec<_> = (0..100).map(|_| app.begin(KEY)).collect();
    add(100);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().status, 200);
    }
    assert_eq!(app.handle.stats().coalesced, 99);
    for _ in 0..10 {
        app.get_now(KEY);
    }
    add(10);
    pass(SOFT).await;
    // A refresh that joins a lookup in flight starts none.
    let strict = app.max_age(Duration::ZERO).begin(KEY);
    pass(millis(1)).await;
    for _ in 0..10 {
        app.get_now(KEY);
    }
    add(11);
    assert_eq!(strict.await.unwrap().status, 200);
    for _ in 0..5 {
        app.get("none-none").await;
    }
    add(5);
    // Not a key, although it has the length of one, so nothing was looked up.
    for _ in 0..5 {
        assert_eq!(app.get("none,none").await.status, 400);
    }
    app.handle.block_org(&OrgCode::from_static(ORG)).unwrap();
    app.get_now(KEY);
    add(1);

    let stats = app.handle.stats();
    assert_eq!(
        stats.hits + stats.stale_hits + stats.misses + stats.invalid_hits,
        requests
    );
    assert_eq!(
        (stats.hits, stats.stale_hits, stats.invalid_hits),
        (10, 10, 5)
    );
    // One of the other key, two of the key (one with `max_age`), one of the invalid key.
    assert_eq!(stats.misses - stats.coalesced, 4);
    assert_eq!(app.issuer.calls() as u64, stats.misses - stats.coalesced);
    assert_eq!((stats.entries, stats.evictions), (2, 0));
    assert_eq!((stats.upstream.in_flight, stats.upstream.waiting), (0, 0));
    assert_eq!(stats.upstream, app.handle.upstream());
}

#[tokio::test(start_paused = true)]
async fn evictions_are_counted() {
    let app = App::with(|builder| builder.capacity(50));
    for n in 0..2_000 {
        let secret = format!("new-key-{n}");
        app.issuer.issue(&secret);
        assert_eq!(app.get(&secret).await.status, 200);
    }
    let stats = app.handle.stats();
    assert!(stats.evictions >= 1_000, "{stats:?}");
    assert!(stats.entries as u64 + stats.evictions <= 2_000, "{stats:?}");
}
