//! Rows 58, 80 and 81: what goes on for long ends with its key, and is not woken for others.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{KeyId, OrgCode, OrgContext};

use crate::kit::{App, HARD, Issuer, Mood, Outcome, Peer, SOFT, key, millis, pass, secs};

const KEY: &str = "the-key-0";

/// A stream that its key's request opened.
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
async fn fault_58_a_block_or_an_invalidation_ends_a_stream_at_once() {
    type Decree = fn(&App);
    let decrees: [Decree; 7] = [
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
    for decree in decrees {
        let app = app().await;
        app.issuer.issue_as("bystander", "org_2", "id_2");
        let stream = open(&app).await;
        // Decrees about others are none of its business.
        app.handle.block_key(&key("bystander")).unwrap();
        app.handle.invalidate_org(&OrgCode::from_static("org_2"));
        pass(millis(1)).await;
        assert!(!stream.is_finished());
        decree(&app);
        let then = app.now();
        stream.await.unwrap();
        assert_eq!(app.now(), then);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_a_block_ends_a_thousand_streams() {
    let app = app().await;
    let org = app.get(KEY).await.org.unwrap();
    let streams: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(org.until_invalid()))
        .collect();
    pass(millis(1)).await;
    app.handle
        .block_org(&OrgCode::from_static("org_1"))
        .unwrap();
    let decreed = app.now();
    for stream in streams {
        stream.await.unwrap();
    }
    assert_eq!(app.now(), decreed);
    // One that is opened on old facts ends before it begins.
    org.until_invalid().await;
    assert_eq!(app.now(), decreed);
}

#[tokio::test(start_paused = true)]
async fn fault_58_a_refusal_anew_ends_a_stream() {
    let app = app().await;
    let stream = open(&app).await;
    app.issuer.revoke(KEY);
    pass(SOFT).await;
    assert!(!stream.is_finished(), "nothing has asked yet");
    assert_eq!(app.get_now(KEY).status, 200);
    let asked = app.now();
    stream.await.unwrap();
    assert!(app.now() - asked <= millis(25), "{:?}", app.now() - asked);
    assert_eq!(app.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_58_a_doubtful_refusal_ends_a_stream_when_it_is_confirmed() {
    let app = app().await;
    let stream = open(&app).await;
    app.issuer.is(Mood::BadRequest);
    pass(SOFT).await;
    app.get_now(KEY);
    pass(secs(1)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert!(!stream.is_finished());
    assert_eq!(app.get_now(KEY).status, 200);
    app.issuer.is(Mood::Answers);
    app.issuer.issue("other-key");
    assert_eq!(app.get("other-key").await.status, 200);
    let confirmed = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), confirmed);
    assert_eq!(app.get_now(KEY).status, 401);
}

#[tokio::test(start_paused = true)]
async fn fault_58_the_hard_ttl_ends_a_stream_and_nothing_does_before() {
    for mood in [Mood::Answers, Mood::Fails] {
        let app = app().await;
        let verified = app.issuer.logged(|_| true)[0].at;
        let stream = open(&app).await;
        app.issuer.is(mood);
        pass(verified + HARD - millis(5) - app.now()).await;
        assert!(!stream.is_finished());
        stream.await.unwrap();
        let late = app.now() - (verified + HARD);
        assert!(late <= millis(2), "{late:?}");
        assert_eq!(
            app.issuer.calls(),
            1,
            "nothing is asked on behalf of a stream"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fault_58_a_machine_that_slept_ends_a_stream_within_ten_seconds_of_waking() {
    let app = app().await;
    let stream = open(&app).await;
    app.clock.jump(secs(3_600));
    let woke = app.now();
    stream.await.unwrap();
    assert!(app.now() - woke <= secs(10) + millis(1));
}

#[tokio::test(start_paused = true)]
async fn fault_58_the_expiry_of_the_key_ends_a_stream() {
    let app = App::new();
    app.issuer.issue(KEY);
    // The wall clock is not paused, so this is 30 s less the moment until the answer is read.
    app.issuer.change(KEY, |key| {
        key.expires_at = Some(SystemTime::now() + secs(30));
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
async fn fault_58_a_stream_lives_as_long_as_its_key_is_refreshed() {
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
async fn fault_58_eviction_for_want_of_room_ends_no_stream() {
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
    assert!(app.try_now(KEY).is_none(), "the key is still held");
    assert!(!stream.is_finished());
    pass(secs(1)).await;
    assert_eq!(app.issuer.calls_for(KEY), calls + 1);
    // Back again, its youngest facts are what counts.
    pass(verified + HARD - app.now()).await;
    assert!(!stream.is_finished());
    app.handle.block_key(&key(KEY)).unwrap();
    stream.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fault_58_a_key_that_changed_hands_ends_the_streams_of_its_former_owner() {
    type Change = fn(&mut crate::kit::Key);
    let changes: [Change; 2] = [
        |key| key.org = "org_2".to_owned(),
        |key| key.user = Some("kp_1".to_owned()),
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
async fn fault_58_a_no_about_an_evicted_key_ends_its_stream_at_once() {
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
        "the key is still held"
    );
    let asked = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), asked);
}

/// A context without its layer: the layer, its service and its handle are dropped.
struct Orphan {
    org: OrgContext,
    clock: TestClock,
    /// When its key was verified.
    verified: Duration,
}

/// Opens a stream, drops the layer while it waits, and gives out what is left of both.
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
    // The one that is left is the test's.
    assert_eq!(issuer.holders(), 1, "the layer was not dropped");
    (stream, orphan)
}

#[tokio::test(start_paused = true)]
async fn fault_80_a_stream_ends_at_the_hard_ttl_without_its_layer() {
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
    // One that is opened now ends before it begins.
    let then = orphan.clock.elapsed();
    orphan.org.until_invalid().await;
    assert_eq!(orphan.clock.elapsed(), then);
}

#[tokio::test(start_paused = true)]
async fn fault_80_a_stream_ends_when_its_key_expires_without_its_layer() {
    let app = App::new();
    app.issuer.issue(KEY);
    // The wall clock is not paused, so this is 30 s less the moment until the answer is read.
    app.issuer.change(KEY, |key| {
        key.expires_at = Some(SystemTime::now() + secs(30));
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
async fn fault_80_a_machine_that_slept_ends_a_stream_without_its_layer() {
    let (waiting, orphan) = orphan(app().await).await;
    let opened_late = tokio::spawn(orphan.org.until_invalid());
    pass(millis(1)).await;
    orphan.clock.jump(secs(3_600));
    let woke = orphan.clock.elapsed();
    for stream in [waiting, opened_late] {
        stream.await.unwrap();
        assert!(orphan.clock.elapsed() - woke <= secs(10) + millis(1));
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

/// Opens so many streams of this key on tasks of their own, which count their polls here.
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

/// 20 s are quiet, and in the next 20 s a hundred invalid keys come each second.
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
    // They look at the clock now and then, in case the machine slept.
    assert!(quiet <= 2 * STREAMS, "{quiet}");

    let before = polls.load(Ordering::Relaxed);
    let mut invalid = Vec::new();
    for n in 0..20 * 100 {
        invalid.push(app.begin_from(&format!("junk-{n:06}"), Some(Peer(n))));
        pass(millis(10)).await;
    }
    let flooded = polled_during(before);
    let refused = app.issuer.logged(|call| call.outcome == Outcome::No).len();
    assert!(refused >= 500, "the issuer refused {refused}");
    assert_eq!(flooded, quiet, "woken by {refused} invalid keys");
    assert!(streams.iter().all(|stream| !stream.is_finished()));
    for invalid in invalid {
        let status = invalid.await.unwrap().status;
        assert!(matches!(status, 401 | 503), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_81_a_revoked_key_wakes_its_own_streams_alone() {
    const STREAMS: usize = 10_000;

    let app = App::new().knowing(&[KEY, "other-key"]).await;
    let (mine, others) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let open = open_counted(&app, KEY, 10, &mine).await;
    let bystanders = open_counted(&app, "other-key", STREAMS, &others).await;
    // Between two looks at the clock.
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
