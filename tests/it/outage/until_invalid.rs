//! Rows 58, 80, 81 and 220: a stream ends with its key and is not woken by other keys.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{KeyId, OrgCode, OrgContext, Verification};

use crate::support::app::{App, HARD, Peer, SOFT, key, millis, pass, secs};
use crate::support::issuer::{Behavior, CallOutcome, Issuer, key_of};

const KEY: &str = "the-key-0";

/// A stream that a request opened.
async fn open(app: &App) -> JoinHandle<()> {
    let org = app.get(KEY).await.org.unwrap();
    let stream = tokio::spawn(org.until_invalid());
    pass(millis(1)).await;
    assert!(!stream.is_finished());
    stream
}

async fn app() -> App {
    App::new().knowing(&[KEY]).await
}

#[tokio::test(start_paused = true)]
async fn fault_58_block_or_invalidation_ends_a_stream() {
    type Update = fn(&App);
    let updates: [Update; 7] = [
        |app| app.handle.block_key(&key(KEY)).unwrap(),
        |app| {
            let id = KeyId::from_static("id_the-key-0");
            app.handle.block_key_id(&id).unwrap();
        },
        |app| {
            app.handle
                .block_org(&OrgCode::from_static("org_1"))
                .unwrap();
        },
        |app| app.handle.invalidate_key(&key(KEY)),
        |app| {
            app.handle
                .invalidate_key_id(&KeyId::from_static("id_the-key-0"));
        },
        |app| app.handle.invalidate_org(&OrgCode::from_static("org_1")),
        |app| app.handle.invalidate_all(),
    ];
    for update in updates {
        let app = app().await;
        app.issuer.issue_as("bystander", "org_2", "id_2");
        let stream = open(&app).await;
        // Updates about other keys have no effect.
        app.handle.block_key(&key("bystander")).unwrap();
        app.handle.invalidate_org(&OrgCode::from_static("org_2"));
        pass(millis(1)).await;
        assert!(!stream.is_finished());
        update(&app);
        let then = app.now();
        stream.await.unwrap();
        assert_eq!(app.now(), then);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_block_ends_a_thousand_streams() {
    let app = app().await;
    let org = app.get(KEY).await.org.unwrap();
    let streams: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(org.until_invalid()))
        .collect();
    pass(millis(1)).await;
    app.handle
        .block_org(&OrgCode::from_static("org_1"))
        .unwrap();
    let updated_at = app.now();
    for stream in streams {
        stream.await.unwrap();
    }
    assert_eq!(app.now(), updated_at);
    // One that is opened with an expired result ends at once.
    org.until_invalid().await;
    assert_eq!(app.now(), updated_at);
}

#[tokio::test(start_paused = true)]
async fn fault_58_invalid_answer_ends_a_stream() {
    let app = app().await;
    let stream = open(&app).await;
    app.issuer.revoke(KEY);
    pass(SOFT).await;
    assert!(!stream.is_finished(), "no call was made yet");
    assert_eq!(app.get_now(KEY).status, 200);
    let asked = app.now();
    stream.await.unwrap();
    assert!(app.now() - asked <= millis(25), "{:?}", app.now() - asked);
    assert_eq!(app.issuer.calls(), 2);
}

/// A client that does not read keeps its server from polling the stream.
#[tokio::test(start_paused = true)]
async fn fault_58_invalid_answer_ends_a_stream_that_is_polled_later() {
    for period in [None, Some(secs(90))] {
        let app = App::with(|builder| builder.revalidation(true))
            .knowing(&[KEY])
            .await;
        let org = app.get(KEY).await.org.unwrap();
        let mut stream: Pin<Box<dyn Future<Output = ()>>> = match period {
            None => Box::pin(org.until_invalid()),
            Some(period) => Box::pin(org.until_invalid_revalidating(period)),
        };
        assert!(stream.as_mut().now_or_never().is_none());
        app.issuer.revoke(KEY);
        pass(SOFT).await;
        app.get(KEY).await;
        pass(millis(25)).await;
        assert_eq!(app.get_now(KEY).status, 401);
        // The invalid answer is not cached any more.
        pass(secs(61)).await;
        assert!(stream.as_mut().now_or_never().is_some(), "{period:?}");
    }
}

/// A handler works for a while before it returns its stream, or creates it then.
#[tokio::test(start_paused = true)]
async fn fault_220_invalid_answer_before_the_first_poll_ends_a_stream() {
    for (period, is_created_first) in [
        (None, true),
        (None, false),
        (Some(secs(90)), true),
        (Some(secs(90)), false),
    ] {
        let app = App::with(|builder| builder.revalidation(true))
            .knowing(&[KEY])
            .await;
        let org = app.get(KEY).await.org.unwrap();
        let create = || -> Pin<Box<dyn Future<Output = ()>>> {
            match period {
                None => Box::pin(org.until_invalid()),
                Some(period) => Box::pin(org.until_invalid_revalidating(period)),
            }
        };
        let created = is_created_first.then(create);
        app.issuer.revoke(KEY);
        pass(SOFT).await;
        app.get(KEY).await;
        pass(millis(25)).await;
        assert_eq!(app.get_now(KEY).status, 401);
        // The invalid answer is not cached any more.
        pass(secs(6)).await;
        let calls = app.issuer.calls();
        let stream = created.unwrap_or_else(create);
        assert!(
            stream.now_or_never().is_some(),
            "{period:?}, created first: {is_created_first}"
        );
        assert_eq!(app.issuer.calls(), calls);
    }
}

/// An invalidation is no invalid answer: a stream that revalidates continues.
#[tokio::test(start_paused = true)]
async fn fault_220_invalidation_before_the_first_poll_is_verified() {
    type Update = fn(&App);
    let updates: [Update; 2] = [
        |app| app.handle.invalidate_key(&key(KEY)),
        |app| {
            app.handle
                .invalidate_key_id(&KeyId::from_static("id_the-key-0"));
        },
    ];
    for update in updates {
        let app = App::with(|builder| builder.revalidation(true))
            .knowing(&[KEY])
            .await;
        let org = app.get(KEY).await.org.unwrap();
        let stream = org.until_invalid_revalidating(secs(90));
        update(&app);
        let stream = tokio::spawn(stream);
        pass(secs(1)).await;
        assert!(!stream.is_finished());
        assert_eq!(app.issuer.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_confirmed_invalid_answer_ends_a_stream() {
    let app = app().await;
    let stream = open(&app).await;
    app.issuer.is(Behavior::Unconfirmed);
    pass(SOFT).await;
    app.get_now(KEY);
    pass(secs(1)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert!(!stream.is_finished());
    assert_eq!(app.get_now(KEY).status, 200);
    app.issuer.is(Behavior::Answers);
    app.issuer.issue("other-key");
    assert_eq!(app.get("other-key").await.status, 200);
    let confirmed = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), confirmed);
    assert_eq!(app.get_now(KEY).status, 401);
}

#[tokio::test(start_paused = true)]
async fn fault_58_hard_ttl_ends_a_stream() {
    for behavior in [Behavior::Answers, Behavior::Fails] {
        let app = app().await;
        let verified = app.issuer.logged(|_| true)[0].at;
        let stream = open(&app).await;
        app.issuer.is(behavior);
        pass(verified + HARD - millis(5) - app.now()).await;
        assert!(!stream.is_finished());
        stream.await.unwrap();
        let late = app.now() - (verified + HARD);
        assert!(late <= millis(2), "{late:?}");
        assert_eq!(app.issuer.calls(), 1, "a stream makes no calls");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_jump_of_the_clock_ends_a_stream() {
    let app = app().await;
    let stream = open(&app).await;
    app.clock.jump(HARD - secs(1));
    pass(millis(1)).await;
    assert!(!stream.is_finished());
    app.clock.jump(secs(3_600));
    let jumped = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), jumped);
}

#[tokio::test(start_paused = true)]
async fn fault_58_key_expiry_ends_a_stream() {
    let app = App::new();
    app.issuer.issue(KEY);
    // The wall clock is not paused, so this is slightly less than 30 s.
    app.issuer.change(KEY, |valid| {
        valid.with_expires_at(SystemTime::now() + secs(30))
    });
    let stream = open(&app).await;
    let opened = app.now();
    pass(secs(25)).await;
    assert!(!stream.is_finished());
    stream.await.unwrap();
    assert!(app.now() - opened <= secs(31));
    assert_eq!(app.get_now(KEY).status, 401);
}

#[tokio::test(start_paused = true)]
async fn fault_58_refreshes_prolong_a_stream() {
    let app = app().await;
    let stream = open(&app).await;
    let opened = app.now();
    while app.now() < opened + secs(4 * 900) {
        assert_eq!(app.get(KEY).await.status, 200);
        pass(secs(30)).await;
        assert!(!stream.is_finished());
    }
    assert!(app.issuer.calls() >= 40);
    let last = app.issuer.logged(|_| true).last().unwrap().at;
    stream.await.unwrap();
    let end = app.now() - last;
    assert!(end >= HARD && end <= HARD + millis(2), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn fault_58_eviction_ends_no_stream() {
    let app = App::with(|builder| builder.capacity(10))
        .knowing(&[KEY])
        .await;
    let verified = app.issuer.logged(|_| true)[0].at;
    let stream = open(&app).await;
    for n in 0..500 {
        let secret = format!("other-{n:05}");
        app.issuer.issue(&secret);
        assert_eq!(app.get(&secret).await.status, 200);
        // Used often, so that the policy prefers them.
        for _ in 0..200 {
            drop(app.try_now(&secret));
            app.clock.jump(Duration::from_nanos(1));
        }
    }
    assert!(
        app.handle.stats().evictions >= 400,
        "{:?}",
        app.handle.stats()
    );
    let calls = app.issuer.calls_for(KEY);
    assert!(app.try_now(KEY).is_none(), "the key is still cached");
    assert!(!stream.is_finished());
    pass(secs(1)).await;
    assert_eq!(app.issuer.calls_for(KEY), calls + 1);
    // After its return, the newest result counts.
    pass(verified + HARD - app.now()).await;
    assert!(!stream.is_finished());
    app.handle.block_key(&key(KEY)).unwrap();
    stream.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fault_58_changed_organization_ends_streams() {
    type Change = fn(Verification) -> Verification;
    let changes: [Change; 2] = [
        |_| key_of("org_2", &format!("id_{KEY}")),
        |valid| valid.with_user_id("kp_1"),
    ];
    for change in changes {
        let app = app().await;
        let stream = open(&app).await;
        app.issuer.change(KEY, change);
        pass(SOFT).await;
        app.get_now(KEY);
        let asked = app.now();
        stream.await.unwrap();
        assert!(app.now() - asked <= millis(25), "{:?}", app.now() - asked);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_invalid_evicted_key_ends_its_stream() {
    let app = App::with(|builder| builder.capacity(10))
        .knowing(&[KEY])
        .await;
    let stream = open(&app).await;
    for n in 0..500 {
        let secret = format!("other-{n:05}");
        app.issuer.issue(&secret);
        assert_eq!(app.get(&secret).await.status, 200);
        for _ in 0..200 {
            drop(app.try_now(&secret));
            app.clock.jump(Duration::from_nanos(1));
        }
    }
    app.issuer.revoke(KEY);
    let calls = app.issuer.calls_for(KEY);
    assert_eq!(app.get(KEY).await.status, 401);
    assert_eq!(
        app.issuer.calls_for(KEY),
        calls + 1,
        "the key is still cached"
    );
    let asked = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), asked);
}

/// A context after its layer, service and handle were dropped.
struct Orphan {
    org: OrgContext,
    clock: TestClock,
    /// The time when its key was verified.
    verified: Duration,
}

/// Opens a stream, drops the layer while it waits, and returns the rest.
async fn orphan(app: App) -> (JoinHandle<()>, Orphan) {
    let stream = open(&app).await;
    let orphan = Orphan {
        org: app.get_now(KEY).org.unwrap(),
        clock: app.clock.clone(),
        verified: app.issuer.logged(|_| true)[0].at,
    };
    let issuer: Issuer = app.issuer.clone();
    assert!(issuer.holders() > 1);
    drop(app);
    // The remaining reference is the test's.
    assert_eq!(issuer.holders(), 1, "the layer was not dropped");
    (stream, orphan)
}

#[tokio::test(start_paused = true)]
async fn fault_80_stream_without_layer_ends_at_hard_ttl() {
    let (waiting, orphan) = orphan(app().await).await;
    let opened_late = tokio::spawn(orphan.org.until_invalid());
    let end = orphan.verified + HARD;
    pass(end - millis(5) - orphan.clock.elapsed()).await;
    assert!(!waiting.is_finished() && !opened_late.is_finished());
    for stream in [waiting, opened_late] {
        stream.await.unwrap();
        let late = orphan.clock.elapsed() - end;
        assert!(late <= millis(2), "{late:?}");
    }
    // One that is opened now ends at once.
    let then = orphan.clock.elapsed();
    orphan.org.until_invalid().await;
    assert_eq!(orphan.clock.elapsed(), then);
}

#[tokio::test(start_paused = true)]
async fn fault_80_stream_without_layer_ends_at_expiry() {
    let app = App::new();
    app.issuer.issue(KEY);
    // The wall clock is not paused, so this is slightly less than 30 s.
    app.issuer.change(KEY, |valid| {
        valid.with_expires_at(SystemTime::now() + secs(30))
    });
    let (waiting, orphan) = orphan(app).await;
    let opened_late = tokio::spawn(orphan.org.until_invalid());
    pass(secs(25)).await;
    assert!(!waiting.is_finished() && !opened_late.is_finished());
    for stream in [waiting, opened_late] {
        stream.await.unwrap();
        assert!(orphan.clock.elapsed() - orphan.verified <= secs(31));
    }
}

#[tokio::test(start_paused = true)]
async fn fault_80_jump_ends_a_stream_without_layer() {
    let (waiting, orphan) = orphan(app().await).await;
    let opened_late = tokio::spawn(orphan.org.until_invalid());
    pass(millis(1)).await;
    orphan.clock.jump(secs(3_600));
    let woke = orphan.clock.elapsed();
    for stream in [waiting, opened_late] {
        stream.await.unwrap();
        assert_eq!(orphan.clock.elapsed(), woke);
    }
}

/// A stream that counts how often it is polled.
struct Counted<F> {
    stream: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.stream.as_mut().poll(cx)
    }
}

/// Opens streams of this key, each on its own task, and counts their polls.
async fn open_counted(
    app: &App,
    secret: &str,
    n: usize,
    polls: &Arc<AtomicUsize>,
) -> Vec<JoinHandle<()>> {
    let org = app.get(secret).await.org.unwrap();
    let open = |_| {
        tokio::spawn(Counted {
            stream: Box::pin(org.until_invalid()),
            polls: Arc::clone(polls),
        })
    };
    (0..n).map(open).collect()
}

/// 20 s without requests, then 20 s with a hundred invalid keys per second.
#[tokio::test(start_paused = true)]
async fn fault_81_invalid_keys_wake_no_stream() {
    const KEYS: usize = 100;
    const STREAMS: usize = 10_000;

    let app = App::new();
    let polls = Arc::<AtomicUsize>::default();
    let mut streams = Vec::new();
    for n in 0..KEYS {
        let secret = format!("good-{n:05}");
        app.issuer.issue(&secret);
        streams.extend(open_counted(&app, &secret, STREAMS / KEYS, &polls).await);
    }
    pass(secs(5)).await;
    assert_eq!(polls.load(Ordering::Relaxed), STREAMS);
    let polled_during = |before: usize| polls.load(Ordering::Relaxed) - before;

    let before = polls.load(Ordering::Relaxed);
    pass(secs(20)).await;
    let quiet = polled_during(before);
    // They check the clock periodically, in case the machine was suspended.
    assert!(quiet <= 2 * STREAMS, "{quiet}");

    let before = polls.load(Ordering::Relaxed);
    let mut invalid = Vec::new();
    for n in 0..20 * 100 {
        invalid.push(app.begin_from(&format!("none-{n:06}"), Some(Peer(n))));
        pass(millis(10)).await;
    }
    let flooded = polled_during(before);
    let rejected = app
        .issuer
        .logged(|call| call.outcome == CallOutcome::Invalid)
        .len();
    assert!(rejected >= 500, "{rejected} invalid answers");
    assert_eq!(flooded, quiet, "woken by {rejected} invalid keys");
    assert!(streams.iter().all(|stream| !stream.is_finished()));
    for invalid in invalid {
        let status = invalid.await.unwrap().status;
        assert!(matches!(status, 401 | 503), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_81_revoked_key_wakes_its_own_streams() {
    const STREAMS: usize = 10_000;

    let app = App::new().knowing(&[KEY, "other-key"]).await;
    let (mine, others) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let open = open_counted(&app, KEY, 10, &mine).await;
    let bystanders = open_counted(&app, "other-key", STREAMS, &others).await;
    // Between two checks of the clock.
    pass(SOFT + secs(5)).await;
    app.issuer.revoke(KEY);
    let (mine_before, others_before) = [&mine, &others]
        .map(|polls| polls.load(Ordering::Relaxed))
        .into();
    assert_eq!(app.get_now(KEY).status, 200);
    for stream in open {
        stream.await.unwrap();
    }
    assert_eq!(app.get_now(KEY).status, 401);
    assert_eq!(mine.load(Ordering::Relaxed), mine_before + 10);
    assert_eq!(others.load(Ordering::Relaxed), others_before);
    assert!(bystanders.iter().all(|stream| !stream.is_finished()));
}
