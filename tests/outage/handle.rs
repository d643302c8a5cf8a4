//! What an operator decrees, and when it lands: before, during and after a verification.

use std::time::Duration;

use tower_orgkey::{KeyId, OrgCode};

use crate::kit::{App, Mood, SOFT, key, millis, pass, secs};

const KEY: &str = "the-key-0";
const ID: &str = "id_the-key-0";
const ORG: &str = "org_1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decree {
    BlockKey,
    BlockId,
    BlockOrg,
    InvalidateKey,
    InvalidateId,
    InvalidateOrg,
    InvalidateAll,
}

use Decree::{
    BlockId, BlockKey, BlockOrg, InvalidateAll, InvalidateId, InvalidateKey, InvalidateOrg,
};

const BLOCKS: [Decree; 3] = [BlockKey, BlockId, BlockOrg];
const INVALIDATIONS: [Decree; 4] = [InvalidateKey, InvalidateId, InvalidateOrg, InvalidateAll];

impl Decree {
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

/// The key is good at the issuer; so is a bystander of another organization, who is known.
async fn app() -> App {
    let app = App::new();
    app.issuer.issue_as("bystander", "org_2", "id_bystander");
    assert_eq!(app.get("bystander").await.status, 200);
    app.issuer.issue_as(KEY, ORG, ID);
    app
}

#[tokio::test(start_paused = true)]
async fn fault_26_a_decree_before_the_first_load_holds_for_it() {
    for decree in Decree::all() {
        let app = app().await;
        decree.apply(&app);
        let answer = app.get(KEY).await;
        if decree.is_block() {
            assert_eq!(answer.status, 401, "{decree:?}");
            pass(secs(3_600)).await;
            assert_eq!(app.get(KEY).await.status, 401, "{decree:?}");
        } else {
            assert_eq!(answer.status, 200, "{decree:?}");
        }
        let calls = usize::from(decree != BlockKey);
        assert!(app.issuer.calls_for(KEY) >= calls);
        assert!(decree != BlockKey || app.issuer.calls_for(KEY) == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_a_decree_after_a_load_is_in_force_for_the_next_request() {
    for decree in Decree::all() {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        decree.apply(&app);
        let bystander = app.try_now("bystander");
        assert_eq!(
            bystander.is_some_and(|answer| answer.status == 200),
            decree != InvalidateAll,
            "{decree:?}"
        );
        if decree.is_block() {
            assert_eq!(app.get_now(KEY).status, 401, "{decree:?}");
            // The issuer is not asked about what is blocked, nor does its absence matter.
            app.issuer.is(Mood::Fails);
            pass(2 * SOFT).await;
            assert_eq!(app.get_now(KEY).status, 401, "{decree:?}");
            assert_eq!(app.issuer.calls_for(KEY), 1);
        } else {
            let decreed = app.now();
            let answer = app.get(KEY).await;
            assert_eq!(answer.status, 200);
            assert!(app.now() - answer.age() >= decreed, "{decree:?}: old facts");
            assert_eq!(app.issuer.calls_for(KEY), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_what_was_invalidated_is_not_served_without_the_issuer() {
    for decree in INVALIDATIONS {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        app.issuer.is(Mood::Fails);
        decree.apply(&app);
        app.get(KEY).await.is_unavailable();
        assert!(app.issuer.faults() >= 1);
        app.open_breaker().await;
        app.get(KEY).await.is_unavailable();
    }
}

#[tokio::test(start_paused = true)]
async fn fault_26_a_refusal_that_was_invalidated_is_asked_about_anew() {
    for decree in [InvalidateKey, InvalidateAll] {
        let app = App::new();
        assert_eq!(app.get(KEY).await.status, 401);
        assert_eq!(app.get_now(KEY).status, 401);
        app.issuer.issue_as(KEY, ORG, ID);
        decree.apply(&app);
        assert_eq!(app.get(KEY).await.status, 200, "{decree:?}");
        assert_eq!(app.issuer.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_a_thousand_waiters_and_those_who_come_later_get_nothing_from_before_the_decree() {
    for decree in Decree::all() {
        let app = app().await;
        app.issuer.takes(millis(500));
        let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 1, "one call for all of them");
        // The answer under way is a yes; the key is deleted at the issuer, and then decreed upon here.
        app.issuer.revoke(KEY);
        decree.apply(&app);
        let later: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(300)).await;
        let too_early = waiters.iter().filter(|waiter| waiter.is_finished()).count();
        assert!(too_early == 0 || decree == BlockKey, "{decree:?}");
        let latest: Vec<_> = (0..10).map(|_| app.begin(KEY)).collect();
        for answer in waiters.into_iter().chain(later).chain(latest) {
            assert_eq!(answer.await.unwrap().status, 401, "{decree:?}");
        }
        assert_eq!(app.reached(), 1, "the bystander, and nobody else");
        let calls = app.issuer.calls_for(KEY);
        assert_eq!(calls, if decree.is_block() { 1 } else { 2 }, "{decree:?}");
        // Nor was it written.
        assert_eq!(app.get_now(KEY).status, 401, "{decree:?}");
        if decree.is_block() {
            assert!(decree.lift(&app));
            assert_eq!(app.get(KEY).await.status, 401, "{decree:?}");
            assert_eq!(
                app.issuer.calls_for(KEY),
                2,
                "{decree:?}: an unblocked key is verified anew"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_waiters_for_a_key_that_stays_good_are_served_by_a_call_from_after_the_decree() {
    for decree in INVALIDATIONS {
        let app = app().await;
        app.issuer.takes(millis(500));
        let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        pass(millis(100)).await;
        decree.apply(&app);
        let decreed = app.now();
        let later: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
        for answer in waiters.into_iter().chain(later) {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 200, "{decree:?}");
        }
        let calls = app.issuer.logged(|call| call.key == KEY);
        assert_eq!(calls.len(), 2, "{decree:?}: one more for all of them");
        assert!(calls[1].at >= decreed);
        assert_eq!(app.now() - app.get_now(KEY).age(), calls[1].at);
    }
}

#[tokio::test(start_paused = true)]
async fn invalidating_a_key_or_everything_sends_those_who_wait_to_ask_anew_at_once() {
    for decree in [InvalidateKey, InvalidateAll] {
        let app = app().await;
        app.issuer.takes(millis(500));
        let waiter = app.begin(KEY);
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 1, "{decree:?}");
        decree.apply(&app);
        pass(millis(1)).await;
        assert_eq!(app.issuer.calls_for(KEY), 2, "{decree:?}");
        assert_eq!(waiter.await.unwrap().status, 200, "{decree:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_a_refresh_under_way_brings_nothing_back() {
    for decree in Decree::all() {
        let app = app().await;
        assert_eq!(app.get(KEY).await.status, 200);
        app.issuer.takes(millis(500));
        pass(SOFT).await;
        assert!(app.get_now(KEY).is_stale());
        pass(millis(100)).await;
        assert_eq!(app.issuer.calls_for(KEY), 2, "a refresh is under way");
        app.issuer.revoke(KEY);
        decree.apply(&app);
        // Nobody asks until it has landed.
        pass(millis(500)).await;
        assert_eq!(app.issuer.under_way(), 0);
        assert_eq!(app.get(KEY).await.status, 401, "{decree:?}");
        assert_eq!(
            app.issuer.calls_for(KEY),
            if decree.is_block() { 2 } else { 3 }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27_decrees_upon_decrees_start_no_call_for_every_waiter() {
    let app = app().await;
    app.issuer.takes(millis(100));
    let waiters: Vec<_> = (0..1_000).map(|_| app.begin(KEY)).collect();
    for decree in INVALIDATIONS.iter().cycle().take(20) {
        pass(millis(10)).await;
        decree.apply(&app);
    }
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().status, 200);
    }
    assert!((2..=21).contains(&app.issuer.calls_for(KEY)));
}

#[tokio::test(start_paused = true)]
async fn an_unblocked_key_is_verified_anew_and_what_was_verified_before_the_block_stays_away() {
    for block in BLOCKS {
        let app = app().await;
        assert!(!block.lift(&app), "there was none");
        assert_eq!(app.get(KEY).await.status, 200);
        block.apply(&app);
        assert_eq!(app.get_now(KEY).status, 401);
        assert!(block.lift(&app));
        assert!(!block.lift(&app));
        app.issuer.is(Mood::Fails);
        app.get(KEY).await.is_unavailable();
        app.issuer.is(Mood::Answers);
        assert_eq!(app.get(KEY).await.status, 200, "{block:?}");
        assert!(app.get_now(KEY).age() < secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_blocked_thrice_passes_when_the_last_block_is_lifted() {
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
async fn blocks_are_bounded_and_one_too_many_is_an_error_that_drops_nothing() {
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
    // What stands in the lists may be blocked again, and the first of them is in force still, in each list.
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
async fn the_statistics_add_up() {
    let app = app().await;
    let mut requests = 1;
    let mut add = |n: u64| requests += n;

    app.issuer.takes(millis(500));
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
    // A refresh that finds the question on its way already is no request that asked.
    let strict = app.max_age(Duration::ZERO).begin(KEY);
    pass(millis(1)).await;
    for _ in 0..10 {
        app.get_now(KEY);
    }
    add(11);
    assert_eq!(strict.await.unwrap().status, 200);
    for _ in 0..5 {
        app.get("junk-junk").await;
    }
    add(5);
    // No key, so nothing was looked up, though it is as long as one.
    for _ in 0..5 {
        assert_eq!(app.get("junk,junk").await.status, 400);
    }
    app.handle.block_org(&OrgCode::from_static(ORG)).unwrap();
    app.get_now(KEY);
    add(1);

    let stats = app.handle.stats();
    assert_eq!(
        stats.hits + stats.stale_hits + stats.misses + stats.refusals,
        requests
    );
    assert_eq!((stats.hits, stats.stale_hits, stats.refusals), (10, 10, 5));
    // The bystander's, the key's first and its strict one, and the junk's.
    assert_eq!(stats.misses - stats.coalesced, 4);
    assert_eq!(app.issuer.calls() as u64, stats.misses - stats.coalesced);
    assert_eq!((stats.entries, stats.evictions), (2, 0));
    assert_eq!((stats.upstream.in_flight, stats.upstream.waiting), (0, 0));
    assert_eq!(stats.upstream, app.handle.upstream());
}

#[tokio::test(start_paused = true)]
async fn evictions_are_counted_and_entries_stay_within_the_capacity() {
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
