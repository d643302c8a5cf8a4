//! Floods of keys that never were any good.

use crate::kit::{App, HARD, Mood, Outcome, Peer, SOFT, millis, pass, secs};

const KNOWN: &str = "known-key";
const FLOOD: Peer = Peer(1);
const CUSTOMER: Peer = Peer(2);

/// Ten thousand requests a second of junk that is sent so many times, for some seconds, from one peer or none told apart.
/// Asks on behalf of the known key all along, and counts what became of the junk.
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
                let secret = format!("junk-{:08}", self.sent / self.times);
                self.sent += 1;
                drop(app.begin_from(&secret, self.peer));
            }
            pass(millis(1)).await;
            assert_eq!(app.get_now(KNOWN).status, 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fault_32_junk_hurts_no_known_key_asks_no_more_than_its_budget_and_opens_no_breaker() {
    for times in [1, 3, 10] {
        for peer in [Some(FLOOD), None] {
            let app = App::new().knowing(&["former-key"]).await;
            // The former key expired an hour ago: nothing is held of it but that it was good.
            pass(HARD + secs(3_600)).await;
            let app = app.knowing(&[KNOWN]).await;
            let began = app.now();
            let mut flood = Flood {
                sent: 0,
                times,
                peer,
            };
            flood.rage(&app, 3_000).await;

            let former = app.begin_from("former-key", peer);
            app.issuer.issue("new-key-0");
            let new = app.begin_from("new-key-0", Some(CUSTOMER));
            flood.rage(&app, 2_000).await;
            assert!(former.is_finished());
            let former = former.await.unwrap();
            assert_eq!(former.status, 200, "{times} times, {peer:?}");
            assert!(former.took <= millis(200), "{:?}", former.took);
            // Told apart from the flood or from the crowd that is not told apart, it gets the next turn but one.
            assert!(new.is_finished());
            let new = new.await.unwrap();
            assert_eq!(new.status, 200, "{times} times, {peer:?}");
            assert!(new.took <= millis(200), "{:?}", new.took);

            let refused = app
                .issuer
                .logged(|call| call.at >= began && call.outcome == Outcome::No)
                .len();
            let budget = 500 + 50 * 5 + 1;
            assert!(
                (500..=budget).contains(&refused),
                "{refused} refusals, {times} times"
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
async fn fault_32_junk_sees_401_or_503_and_nothing_else() {
    let app = App::new().knowing(&[KNOWN]).await;
    let answers: Vec<_> = (0..2_000)
        .map(|n| app.begin_from(&format!("junk-{n:06}"), Some(FLOOD)))
        .collect();
    let (mut refused, mut unavailable) = (0, 0);
    for answer in answers {
        match answer.await.unwrap().status {
            401 => refused += 1,
            503 => unavailable += 1,
            status => panic!("{status}"),
        }
    }
    assert!(refused >= 256, "{refused}");
    assert_eq!(refused + unavailable, 2_000);
    assert_eq!(app.reached(), 1);
}

#[tokio::test(start_paused = true)]
async fn fault_32_refused_junk_is_not_asked_about_again() {
    let app = App::new();
    for _ in 0..100 {
        for n in 0..100 {
            let status = app.get(&format!("junk-{n:06}")).await.status;
            assert_eq!(status, 401);
        }
    }
    // 20 ms each, so the last of them is refused anew after two seconds: all in the first five.
    assert_eq!(app.issuer.calls(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_of_good_keys_alone_is_never_throttled() {
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
async fn fault_33_junk_that_makes_the_issuer_say_400_is_401_and_no_outage() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Mood::BadRequest);
    for n in 0..200 {
        assert_eq!(app.get(&format!("junk-{n:06}")).await.status, 401);
        assert_eq!(app.get_now(KNOWN).status, 200);
    }
    let refused = app.issuer.logged(|call| call.outcome == Outcome::No).len();
    assert_eq!(refused, 200);
    assert_eq!(
        app.handle.upstream().breaker,
        tower_orgkey::BreakerState::Closed
    );
    app.issuer.is(Mood::Answers);
    app.issuer.issue("new-key-0");
    assert_eq!(app.get("new-key-0").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn fault_33b_an_issuer_that_says_400_to_everything_gives_up_no_known_key() {
    for n_known in [1, 30] {
        let keys: Vec<_> = (0..n_known).map(|n| format!("known-{n:04}")).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let app = App::new().knowing(&keys).await;
        let verified = app.issuer.logged(|_| true)[0].at;
        app.issuer.is(Mood::BadRequest);
        let mut junk = 0;
        while app.now() < verified + HARD - secs(11) {
            for known in &keys {
                assert_eq!(app.get(known).await.status, 200);
            }
            junk += 1;
            assert_eq!(app.get(&format!("junk-{junk:06}")).await.status, 401);
            pass(secs(10)).await;
        }
        let doubted = app
            .issuer
            .logged(|call| call.known && call.outcome == Outcome::No)
            .len();
        assert!(doubted >= 50, "{doubted}");
        app.jump_to(verified + HARD - millis(1));
        assert_eq!(app.get(keys[0]).await.status, 200);
        app.jump_to(verified + HARD);
        assert_eq!(app.get(keys[0]).await.status, 401);
    }
}

#[tokio::test(start_paused = true)]
async fn a_400_about_a_known_key_counts_when_the_issuer_then_answers_another_call() {
    // A yes is an answer, and so is a no.
    for (other, status) in [("other-key", 200), ("junk-0000", 401)] {
        let app = App::new().knowing(&[KNOWN, "other-key"]).await;
        pass(SOFT).await;
        app.issuer.is(Mood::BadRequest);
        assert_eq!(app.get_now(KNOWN).status, 200);
        pass(secs(1)).await;
        assert_eq!(app.get_now(KNOWN).status, 200);
        app.issuer.is(Mood::Answers);
        assert_eq!(app.get(other).await.status, status);
        pass(millis(30)).await;
        assert_eq!(app.get_now(KNOWN).status, 401, "{other}");
        assert_eq!(app.get_now(other).status, status);
    }
}
