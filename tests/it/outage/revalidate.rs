//! Rows 93 and 94: a job verifies its key again, and a stream that verifies its key stays open.

use std::time::Duration;

use tokio::task::JoinHandle;
use tower_orgkey::{KeyId, OrgCode, OrgContext, RejectionKind, Verification};

use crate::support::app::{App, HARD, SOFT, key, millis, pass, secs};
use crate::support::issuer::{Behavior, key_of};

const KEY: &str = "the-key-0";

async fn app() -> App {
    App::with(|builder| builder.revalidation(true))
        .knowing(&[KEY])
        .await
}

/// The context of a job.
async fn job(app: &App) -> OrgContext {
    app.get(KEY).await.org.unwrap()
}

async fn rejection(org: &OrgContext) -> RejectionKind {
    org.revalidate().await.unwrap_err().kind()
}

/// A stream that a request opened.
async fn open(app: &App, period: Duration) -> JoinHandle<()> {
    let stream = tokio::spawn(job(app).await.until_invalid_revalidating(period));
    pass(millis(1)).await;
    assert!(!stream.is_finished());
    stream
}

/// The time of the last call.
fn last_call(app: &App) -> Duration {
    app.issuer.logged(|_| true).last().unwrap().at
}

#[tokio::test(start_paused = true)]
async fn revalidate_returns_a_new_result() {
    let app = app().await;
    let org = job(&app).await;
    for n in 1..5 {
        pass(secs(1)).await;
        let asked = app.now();
        let again = org.revalidate().await.unwrap();
        assert_eq!(app.issuer.calls(), 1 + n);
        assert_eq!(last_call(&app), asked);
        assert_eq!(again.age(), app.now() - asked);
        assert_eq!(again.org_code(), org.org_code());
        // Requests use the result, and the new context can be verified again.
        assert_eq!(app.get_now(KEY).age(), app.now() - asked);
        assert!(again.is_still_valid() && org.is_still_valid());
    }
    // Callers at the same time share a call.
    let calls = app.issuer.calls();
    let jobs: Vec<_> = (0..100).map(|_| tokio::spawn(org.revalidate())).collect();
    for job in jobs {
        job.await.unwrap().unwrap();
    }
    assert_eq!(app.issuer.calls(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn fault_113_revoked_key_ends_a_job() {
    let app = app().await;
    let org = job(&app).await;
    app.issuer.revoke(KEY);
    assert!(org.is_still_valid(), "no call was made yet");
    assert_eq!(rejection(&org).await, RejectionKind::InvalidToken);
    assert!(!org.is_still_valid());
    assert_eq!(app.get_now(KEY).status, 401);
    // After the invalid answer is no longer cached.
    pass(secs(120)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert!(!org.is_still_valid());
}

#[tokio::test(start_paused = true)]
async fn fault_113_failing_issuer_is_no_invalid_key() {
    for behavior in Behavior::OUTAGES {
        let app = app().await;
        let verified = last_call(&app);
        let org = job(&app).await;
        app.issuer.is(behavior);
        for _ in 0..5 {
            let asked = app.now();
            let expected = match behavior {
                Behavior::Misconfigured => RejectionKind::VerifierMisconfigured,
                _ => RejectionKind::VerifierUnavailable,
            };
            assert_eq!(rejection(&org).await, expected, "{behavior:?}");
            assert!(app.now() - asked <= millis(2_500), "{behavior:?}");
            assert!(org.is_still_valid(), "{behavior:?}");
        }
        assert!(app.issuer.faults() > 0, "{behavior:?}");
        app.jump_to(verified + HARD - Duration::from_nanos(1));
        assert!(org.is_still_valid(), "{behavior:?}");
        app.jump_to(verified + HARD);
        assert!(!org.is_still_valid(), "{behavior:?}");
        app.issuer.is(Behavior::Answers);
        pass(secs(90)).await;
        assert!(org.revalidate().await.unwrap().is_still_valid());
        // The earlier context too: the key has a newer result.
        assert!(org.is_still_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn fault_113_block_or_invalidation_ends_a_job() {
    type Update = fn(&App);
    let updates: [(Update, bool); 7] = [
        (|app| app.handle.block_key(&key(KEY)).unwrap(), true),
        (
            |app| {
                let id = KeyId::from_static("id_the-key-0");
                app.handle.block_key_id(&id).unwrap();
            },
            true,
        ),
        (
            |app| {
                let org = OrgCode::from_static("org_1");
                app.handle.block_org(&org).unwrap();
            },
            true,
        ),
        (|app| app.handle.invalidate_key(&key(KEY)), false),
        (
            |app| {
                let id = KeyId::from_static("id_the-key-0");
                app.handle.invalidate_key_id(&id);
            },
            false,
        ),
        (
            |app| app.handle.invalidate_org(&OrgCode::from_static("org_1")),
            false,
        ),
        (|app| app.handle.invalidate_all(), false),
    ];
    for (update, blocks) in updates {
        let app = app().await;
        let org = job(&app).await;
        assert!(org.is_still_valid());
        update(&app);
        assert!(!org.is_still_valid());
        if blocks {
            assert_eq!(rejection(&org).await, RejectionKind::InvalidToken);
            assert!(!org.is_still_valid());
        } else {
            assert!(org.revalidate().await.unwrap().is_still_valid());
            assert!(org.is_still_valid());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_113_changed_organization_ends_a_job() {
    type Change = fn(Verification) -> Verification;
    let changes: [Change; 2] = [
        |_| key_of("org_2", &format!("id_{KEY}")),
        |valid| valid.with_user_id("kp_1"),
    ];
    for change in changes {
        let app = app().await;
        let org = job(&app).await;
        app.issuer.change(KEY, change);
        assert_eq!(rejection(&org).await, RejectionKind::InvalidToken);
        assert!(!org.is_still_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn fault_113_jobs_share_their_organizations_pace() {
    let app = App::with(|builder| builder.revalidation(true));
    let mut jobs = Vec::new();
    for n in 0..50 {
        let secret = format!("busy-key-{n:02}");
        app.issuer.issue(&secret);
        jobs.push(app.get(&secret).await.org.unwrap());
    }
    app.issuer.issue_as("other-key", "org_2", "id_2");
    let other = app.get("other-key").await.org.unwrap();
    pass(secs(2)).await;
    let began = app.now();
    let mut failed = 0;
    while app.now() < began + secs(5) {
        let tasks: Vec<_> = jobs
            .iter()
            .map(|org| tokio::spawn(org.revalidate()))
            .collect();
        pass(millis(100)).await;
        let asked = app.now();
        other.revalidate().await.unwrap();
        assert!(app.now() - asked <= millis(25), "{:?}", app.now() - asked);
        for task in tasks {
            if let Err(rejection) = task.await.unwrap() {
                assert_eq!(rejection.kind(), RejectionKind::VerifierUnavailable);
                failed += 1;
            }
        }
        assert!(jobs.iter().all(OrgContext::is_still_valid));
    }
    let calls = app
        .issuer
        .logged(|call| call.at >= began && call.key != "other-key")
        .len();
    // 25 at once, and then 25 per second.
    let most = 25 + 25 * usize::try_from((app.now() - began).as_secs() + 1).unwrap();
    assert!(calls <= most, "{calls} calls in {:?}", app.now() - began);
    assert!(calls > 100, "{calls} calls, {failed} failed");
}

#[tokio::test(start_paused = true)]
async fn fault_113_job_without_layer_cannot_tell() {
    let app = app().await;
    let (org, issuer, clock) = (job(&app).await, app.issuer.clone(), app.clock.clone());
    let verified = last_call(&app);
    drop(app);
    assert_eq!(issuer.holders(), 1, "the layer was not dropped");
    assert_eq!(rejection(&org).await, RejectionKind::VerifierUnavailable);
    assert!(org.is_still_valid());
    clock.jump(verified + HARD - clock.elapsed());
    assert!(!org.is_still_valid());
}

#[tokio::test(start_paused = true)]
async fn fault_113_keys_are_not_kept_by_default() {
    let app = App::new().knowing(&[KEY]).await;
    let org = job(&app).await;
    assert_eq!(rejection(&org).await, RejectionKind::Internal);
    assert!(org.is_still_valid());
    org.until_invalid_revalidating(SOFT).await;
    assert_eq!(app.issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_113_stripped_keys_are_kept() {
    const SECRET: &str = "secret-key";

    let app = App::with(|builder| builder.revalidation(true).strip_credential(true));
    app.issuer.issue_as(SECRET, "org_1", "id_1");
    // Of a request that waited, and of a hit.
    for _ in 0..2 {
        let org = app.get(SECRET).await.org.unwrap();
        let calls = app.issuer.calls();
        org.revalidate().await.unwrap();
        assert_eq!(app.issuer.calls(), calls + 1);
        assert!(!format!("{org:?}").contains(SECRET));
    }
}

#[tokio::test(start_paused = true)]
async fn fault_114_idle_stream_outlives_the_hard_ttl() {
    for period in [secs(30), SOFT, secs(300)] {
        let app = app().await;
        let stream = open(&app, period).await;
        let opened = app.now();
        pass(4 * HARD).await;
        assert!(!stream.is_finished(), "{period:?}");
        let calls = app.issuer.calls() - 1;
        let periods = usize::try_from(4 * HARD.as_secs() / period.as_secs()).unwrap();
        // Each period is shortened by up to 15 %.
        assert!((periods..=periods * 6 / 5 + 1).contains(&calls), "{calls}");
        let times: Vec<_> = app.issuer.logged(|call| call.at >= opened);
        for pair in times.windows(2) {
            let gap = pair[1].at - pair[0].at;
            assert!(gap <= period + millis(25), "{gap:?}");
        }
        assert!(times.iter().all(|call| call.known));
    }
}

#[tokio::test(start_paused = true)]
async fn fault_114_revoked_key_ends_its_stream_in_time() {
    for period in [secs(10), SOFT, secs(600)] {
        let app = app().await;
        let stream = open(&app, period).await;
        pass(3 * period / 2).await;
        assert!(!stream.is_finished());
        app.issuer.revoke(KEY);
        let revoked = app.now();
        stream.await.unwrap();
        assert!(app.now() - revoked <= period + millis(25));
        assert_eq!(app.get_now(KEY).status, 401);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_114_stream_survives_an_outage() {
    for behavior in Behavior::OUTAGES {
        let app = app().await;
        let stream = open(&app, SOFT).await;
        pass(HARD).await;
        let verified = last_call(&app);
        app.issuer.is(behavior);
        // Recovers in time.
        pass(HARD - secs(200)).await;
        assert!(app.issuer.faults() > 0, "{behavior:?}");
        assert!(!stream.is_finished(), "{behavior:?}");
        app.issuer.is(Behavior::Answers);
        pass(secs(190)).await;
        assert!(last_call(&app) > verified + HARD - secs(200));
        pass(HARD).await;
        assert!(!stream.is_finished(), "{behavior:?}");
        // Does not recover.
        pass(millis(100)).await;
        let verified = last_call(&app);
        app.issuer.is(behavior);
        pass(verified + HARD - millis(5) - app.now()).await;
        assert!(!stream.is_finished(), "{behavior:?}");
        stream.await.unwrap();
        let late = app.now() - (verified + HARD);
        assert!(late <= millis(2), "{behavior:?} {late:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_114_failing_streams_call_rarely() {
    let app = app().await;
    let stream = open(&app, SOFT).await;
    pass(SOFT).await;
    app.issuer.is(Behavior::Misconfigured);
    let calls = app.issuer.calls();
    pass(secs(600)).await;
    let calls = app.issuer.calls() - calls;
    // One in a twelfth of the period.
    assert!((60..=125).contains(&calls), "{calls}");
    assert!(!stream.is_finished());
}

#[tokio::test(start_paused = true)]
async fn fault_114_streams_of_a_key_share_failures() {
    let app = app().await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(open(&app, SOFT).await);
    }
    pass(SOFT).await;
    app.issuer.is(Behavior::Misconfigured);
    pass(2 * SOFT).await;
    let calls = app.issuer.calls();
    pass(secs(600)).await;
    let calls = app.issuer.calls() - calls;
    // As with one stream.
    assert!((60..=125).contains(&calls), "{calls}");
    assert!(streams.iter().all(|stream| !stream.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn fault_114_block_ends_a_stream_at_once() {
    let app = app().await;
    let streams = [open(&app, SOFT).await, open(&app, SOFT).await];
    app.handle
        .block_org(&OrgCode::from_static("org_1"))
        .unwrap();
    let blocked = app.now();
    for stream in streams {
        stream.await.unwrap();
        assert_eq!(app.now(), blocked);
    }
    assert_eq!(app.issuer.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_114_invalidated_stream_is_verified() {
    let app = app().await;
    let stream = open(&app, SOFT).await;
    app.handle.invalidate_all();
    pass(millis(25)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert!(!stream.is_finished(), "the key is valid");
    // It continues with the new result.
    pass(2 * HARD).await;
    assert!(!stream.is_finished());
    app.issuer.revoke(KEY);
    app.handle.invalidate_key(&key(KEY));
    let invalidated = app.now();
    stream.await.unwrap();
    assert!(app.now() - invalidated <= millis(25));

    for behavior in Behavior::OUTAGES {
        let app = self::app().await;
        let stream = open(&app, SOFT).await;
        app.issuer.is(behavior);
        app.handle.invalidate_org(&OrgCode::from_static("org_1"));
        let invalidated = app.now();
        stream.await.unwrap();
        let took = app.now() - invalidated;
        assert!(took <= millis(2_500), "{behavior:?} {took:?}");
        assert!(app.issuer.faults() > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_114_stream_does_not_keep_the_layer() {
    let app = app().await;
    let stream = open(&app, SOFT).await;
    pass(HARD).await;
    // The stream takes a new result at its next check, up to a twelfth of the period after the call.
    while app.now() - last_call(&app) < SOFT / 6 {
        pass(secs(1)).await;
    }
    let (issuer, clock, verified) = (app.issuer.clone(), app.clock.clone(), last_call(&app));
    drop(app);
    assert_eq!(issuer.holders(), 1, "the layer was not dropped");
    pass(verified + HARD - millis(5) - clock.elapsed()).await;
    assert!(!stream.is_finished());
    stream.await.unwrap();
    assert!(clock.elapsed() - (verified + HARD) <= millis(2));
}

#[tokio::test(start_paused = true)]
async fn fault_114_streams_and_requests_share_calls() {
    let app = app().await;
    let org = job(&app).await;
    let streams: Vec<_> = (0..1_000)
        .map(|_| tokio::spawn(org.until_invalid_revalidating(SOFT)))
        .collect();
    pass(4 * HARD).await;
    let calls = app.issuer.calls() - 1;
    let periods = usize::try_from(4 * HARD.as_secs() / SOFT.as_secs()).unwrap();
    assert!(calls <= periods * 6 / 5 + 1, "{calls}");
    // A request with a shorter interval leaves nothing for the streams.
    let began = app.now();
    while app.now() < began + HARD {
        let _ = app.max_age(secs(20)).get(KEY).await;
        pass(secs(21)).await;
    }
    let calls = app.issuer.logged(|call| call.at > began).len();
    assert!(calls <= 45, "{calls}");
    assert!(streams.iter().all(|stream| !stream.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn fault_114_short_periods_keep_to_the_pace() {
    let app = App::with(|builder| builder.revalidation(true));
    let mut streams = Vec::new();
    for n in 0..100 {
        let secret = format!("busy-key-{n:02}");
        app.issuer.issue(&secret);
        let org = app.get(&secret).await.org.unwrap();
        streams.push(tokio::spawn(org.until_invalid_revalidating(Duration::ZERO)));
    }
    pass(secs(10)).await;
    let from = app.now();
    pass(secs(20)).await;
    let most = app.issuer.most_in_a_second(from);
    assert!((20..=27).contains(&most), "{most} calls in a second");
    assert!(streams.iter().all(|stream| !stream.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn fault_114_jump_of_the_clock_is_noticed() {
    let app = app().await;
    let stream = open(&app, SOFT).await;
    app.clock.jump(SOFT);
    pass(millis(25)).await;
    assert_eq!(app.issuer.calls(), 2);
    app.clock.jump(HARD);
    let jumped = app.now();
    stream.await.unwrap();
    assert_eq!(app.now(), jumped);
}
