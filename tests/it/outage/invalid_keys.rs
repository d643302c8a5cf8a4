//! Floods of invalid keys.

use tower_orgkey::OrgCode;

use crate::support::app::{App, HARD, Peer, SOFT, millis, pass, secs};
use crate::support::issuer::{Answer, Behavior, CallOutcome};

const KNOWN: &str = "known-key";
const FLOOD: Peer = Peer(1);
const CUSTOMER: Peer = Peer(2);

/// Sends 10,000 requests per second with invalid keys for some seconds, each key `times` times, with or without peers. Sends
/// requests with the known key meanwhile, and counts the responses to invalid keys.
struct Flood {
    sent: u64,
    times: u64,
    peer: Option<Peer>,
}

impl Flood {
    const PER_MILLISECOND: u64 = 10;

    async fn rage(&mut self, app: &App, milliseconds: u64) {
        for _ in 0..milliseconds {
            for _ in 0..Self::PER_MILLISECOND {
                let secret = format!("none-{:08}", self.sent / self.times);
                self.sent += 1;
                drop(app.begin_from(&secret, self.peer));
            }
            pass(millis(1)).await;
            assert_eq!(app.get_now(KNOWN).status, 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_32_invalid_keys_cost_only_their_budget() {
    for times in [1, 3, 10] {
        for peer in [Some(FLOOD), None] {
            let app = App::new().knowing(&["valid-before"]).await;
            // The recently valid key expired an hour ago.
            pass(HARD + secs(3_600)).await;
            let app = app.knowing(&[KNOWN]).await;
            let began = app.now();
            let mut flood = Flood {
                sent: 0,
                times,
                peer,
            };
            flood.rage(&app, 3_000).await;

            let recently_valid = app.begin_from("valid-before", peer);
            app.issuer.issue("new-key-0");
            let new = app.begin_from("new-key-0", Some(CUSTOMER));
            flood.rage(&app, 2_000).await;
            assert!(recently_valid.is_finished());
            let recently_valid = recently_valid.await.unwrap();
            assert_eq!(recently_valid.status, 200, "{times} times, {peer:?}");
            assert!(
                recently_valid.took <= millis(200),
                "{:?}",
                recently_valid.took
            );
            // As a separate peer, it gets the next turn but one.
            assert!(new.is_finished());
            let new = new.await.unwrap();
            assert_eq!(new.status, 200, "{times} times, {peer:?}");
            assert!(new.took <= millis(200), "{:?}", new.took);

            let rejected = app
                .issuer
                .logged(|call| call.at >= began && call.outcome == CallOutcome::Invalid)
                .len();
            let budget = 500 + 50 * 5 + 1;
            assert!(
                (500..=budget).contains(&rejected),
                "{rejected} invalid answers, {times} times"
            );
            assert_eq!(app.issuer.faults(), 0);
            assert_eq!(
                app.handle.upstream().breaker,
                tower_orgkey::BreakerState::Closed
            );
            assert_eq!(app.handle.stats().evictions, 0);
            assert!(app.handle.upstream().waiting <= 256);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_32_invalid_keys_get_401_or_503() {
    let app = App::new().knowing(&[KNOWN]).await;
    let answers: Vec<_> = (0..2_000)
        .map(|n| app.begin_from(&format!("none-{n:06}"), Some(FLOOD)))
        .collect();
    let (mut rejected, mut unavailable) = (0, 0);
    for answer in answers {
        match answer.await.unwrap().status {
            401 => rejected += 1,
            503 => unavailable += 1,
            status => panic!("{status}"),
        }
    }
    assert!(rejected >= 256, "{rejected}");
    assert_eq!(rejected + unavailable, 2_000);
    assert_eq!(app.reached(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_32_cached_invalid_key_costs_no_call() {
    let app = App::new();
    for _ in 0..100 {
        for n in 0..100 {
            let status = app.get(&format!("none-{n:06}")).await.status;
            assert_eq!(status, 401);
        }
    }
    // 20 ms each, so the last one is invalid after two seconds: all within the first five.
    assert_eq!(app.issuer.calls(), 100);
}

#[tokio::test(start_paused = true)]
async fn cold_start_of_valid_keys_is_not_throttled() {
    let app = App::new();
    let mut passed = 0;
    for batch in 0..20 {
        let loads: Vec<_> = (0..200)
            .map(|n| {
                let secret = format!("good-{batch:03}-{n:03}");
                app.issuer.issue(&secret);
                app.begin(&secret)
            })
            .collect();
        for load in loads {
            let answer = load.await.unwrap();
            assert_eq!(answer.status, 200);
            assert!(answer.took <= millis(110), "{:?}", answer.took);
            passed += 1;
        }
    }
    assert_eq!(passed, 4_000);
}

#[tokio::test(start_paused = true)]
async fn fault_33_400_for_invalid_keys_is_401() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::Unconfirmed);
    for n in 0..200 {
        assert_eq!(app.get(&format!("none-{n:06}")).await.status, 401);
        assert_eq!(app.get_now(KNOWN).status, 200);
    }
    let rejected = app
        .issuer
        .logged(|call| call.outcome == CallOutcome::Invalid)
        .len();
    assert_eq!(rejected, 200);
    assert_eq!(
        app.handle.upstream().breaker,
        tower_orgkey::BreakerState::Closed
    );
    app.issuer.is(Behavior::Answers);
    app.issuer.issue("new-key-0");
    assert_eq!(app.get("new-key-0").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn fault_33b_400_for_all_removes_no_known_key() {
    for n_known in [1, 30] {
        let keys: Vec<_> = (0..n_known).map(|n| format!("known-{n:04}")).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let app = App::new().knowing(&keys).await;
        let verified = app.issuer.logged(|_| true)[0].at;
        app.issuer.is(Behavior::Unconfirmed);
        let mut invalid = 0;
        while app.now() < verified + HARD - secs(11) {
            for known in &keys {
                assert_eq!(app.get(known).await.status, 200);
            }
            invalid += 1;
            assert_eq!(app.get(&format!("none-{invalid:06}")).await.status, 401);
            pass(secs(10)).await;
        }
        let doubted = app
            .issuer
            .logged(|call| call.known && call.outcome == CallOutcome::Invalid)
            .len();
        assert!(doubted >= 50, "{doubted}");
        app.jump_to(verified + HARD - millis(1));
        assert_eq!(app.get(keys[0]).await.status, 200);
        app.jump_to(verified + HARD);
        assert_eq!(app.get(keys[0]).await.status, 401);
    }
}

#[tokio::test(start_paused = true)]
async fn a_400_for_a_known_key_needs_a_later_answer() {
    // A valid answer and an invalid one both count as answers.
    for (other, status) in [("other-key", 200), ("none-0000", 401)] {
        let app = App::new().knowing(&[KNOWN, "other-key"]).await;
        pass(SOFT).await;
        app.issuer.is(Behavior::Unconfirmed);
        assert_eq!(app.get_now(KNOWN).status, 200);
        pass(secs(1)).await;
        assert_eq!(app.get_now(KNOWN).status, 200);
        app.issuer.is(Behavior::Answers);
        assert_eq!(app.get(other).await.status, status);
        pass(millis(30)).await;
        assert_eq!(app.get_now(KNOWN).status, 401, "{other}");
        assert_eq!(app.get_now(other).status, status);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_32b_invalid_keys_delay_no_refresh_under_a_rate() {
    for (calls, known, invalid) in [(20, 1_000, 1), (20, 1_000, 20), (4, 150, 1), (2, 40, 1)] {
        let app = App::with(|builder| builder.max_calls_per_second(calls));
        let known: Vec<_> = (0..known).map(|n| format!("known-{n:05}")).collect();
        let secrets: Vec<_> = known.iter().map(String::as_str).collect();
        let app = app.knowing(&secrets).await;
        let began = app.now();
        let (mut rejected, mut new, mut asked) = (0, 0, Vec::new());
        // Each known key is sent every 5 s, and so is a new one of another peer.
        for tenth in 0..6_000 {
            for n in 0..invalid {
                let secret = format!("none-{tenth:05}-{n:05}");
                drop(app.begin_from(&secret, Some(FLOOD)));
            }
            let keys = known.iter().skip(tenth % 50).step_by(50);
            asked.extend(keys.map(|key| app.begin(key)));
            pass(millis(100)).await;
            if tenth % 50 == 0 {
                let key = format!("new-key-{new}");
                new += 1;
                app.issuer.issue(&key);
                assert_eq!(app.get_from(&key, Some(CUSTOMER)).await.status, 200);
                rejected = app
                    .issuer
                    .logged(|call| call.at >= began && call.outcome == CallOutcome::Invalid)
                    .len();
                for asked in asked.drain(..) {
                    let reply = asked.await.unwrap();
                    assert_eq!(reply.status, 200);
                    let age = reply.age();
                    assert!(age < 2 * SOFT + secs(10), "{age:?}, {calls} calls, {tenth}");
                }
            }
        }
        // A quarter of the calls, or one per second, and those of 10 s at once.
        let per_second = (calls as usize / 4).max(1);
        let seconds = usize::try_from((app.now() - began).as_secs()).unwrap() + 1;
        let most = seconds * per_second + 10 * calls as usize + 1;
        assert!((most / 2..=most).contains(&rejected), "{rejected}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_76c_deleted_keys_starve_no_new_key() {
    let app = App::new();
    let deleted: Vec<_> = (0..4_000).map(|n| format!("deleted-{n:05}")).collect();
    for keys in deleted.chunks(500) {
        let loads: Vec<_> = keys
            .iter()
            .map(|key| {
                app.issuer.issue_as(key, "org_deleted", key);
                app.begin(key)
            })
            .collect();
        for load in loads {
            assert_eq!(load.await.unwrap().status, 200);
        }
    }
    for key in &deleted {
        app.issuer.set(key, Answer::Unconfirmed);
    }
    app.handle
        .invalidate_org(&OrgCode::from_static("org_deleted"));
    let answered = app.issuer.calls();
    // Each is sent every 5 s.
    for n in 0..6_000 {
        for key in deleted.iter().skip(n % 100).step_by(100) {
            drop(app.begin_from(key, Some(FLOOD)));
        }
        pass(millis(50)).await;
    }
    assert!(app.issuer.calls() > answered + 8_000);
    for n in 0..20 {
        let new = format!("new-key-{n}");
        app.issuer.issue(&new);
        let asked = app.begin_from(&new, Some(CUSTOMER));
        for key in deleted.iter().skip(n % 100).step_by(100) {
            drop(app.begin_from(key, Some(FLOOD)));
        }
        assert_eq!(asked.await.unwrap().status, 200, "{n}");
    }
}
