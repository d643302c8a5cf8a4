//! Rows 90 to 92: several issuers behind one layer.

use std::time::Duration;

use tower_orgkey::verify::Organizations;
use tower_orgkey::{BreakerState, KeyId, OrgCode, UpstreamState};

use crate::support::app::{App, Peer, SOFT, key, millis, pass, secs};
use crate::support::issuer::{Behavior, Issuer};

/// The names and states of the issuers.
fn states(app: &App) -> Vec<(String, UpstreamState)> {
    let issuers = app.handle.issuers();
    issuers
        .map(|(name, state)| (name.to_owned(), state))
        .collect()
}

fn is_calm(state: &UpstreamState) -> bool {
    state.breaker == BreakerState::Closed
        && state.unknown_breaker == BreakerState::Closed
        && state.paused_for.is_none()
        && (state.in_flight, state.waiting) == (0, 0)
}

/// Two issuers with one key each, just verified.
async fn two() -> (App, Issuer) {
    let (app, b) = App::of_two(Organizations::Separate);
    app.issuer.issue("a-known-0");
    for n in 0..10 {
        b.issue(&format!("b-known-{n}"));
        assert_eq!(app.get(&format!("b-known-{n}")).await.status, 200);
    }
    assert_eq!(app.get("a-known-0").await.status, 200);
    (app, b)
}

#[tokio::test(start_paused = true)]
async fn fault_110_failing_issuer_affects_its_keys_only() {
    for behavior in Behavior::OUTAGES {
        let (app, b) = two().await;
        b.is(behavior);
        pass(2 * SOFT + secs(1)).await;
        let faults = b.faults();
        for n in 0..10 {
            let waits = [
                app.begin(&format!("b-known-{n}")),
                app.begin(&format!("b-new-key-{n}")),
            ];
            let [known, new] = waits;
            assert_eq!(known.await.unwrap().status, 200, "{behavior:?}");
            assert_eq!(new.await.unwrap().status, 503, "{behavior:?}");
        }
        assert!(b.faults() > faults, "{behavior:?}");
        let states = states(&app);
        let [(a_name, a_state), (b_name, b_state)] = states.as_slice() else {
            panic!("{states:?}")
        };
        assert_eq!((&**a_name, &**b_name), ("a", "b"));
        if behavior != Behavior::Misconfigured {
            assert!(!is_calm(b_state), "{behavior:?} {b_state:?}");
        }
        assert!(is_calm(a_state), "{behavior:?} {a_state:?}");
        for n in 0..20 {
            let secret = format!("a-new-key-{n}");
            app.issuer.issue(&secret);
            let answer = app.get(&secret).await;
            assert_eq!(answer.status, 200, "{behavior:?}");
            assert!(answer.took <= millis(25), "{behavior:?} {:?}", answer.took);
        }
        // Refreshed, and not only served.
        assert!(app.get("a-known-0").await.age() <= millis(25));
        b.is(Behavior::Answers);
        pass(secs(90)).await;
        assert_eq!(app.get("b-known-0").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_110_invalid_keys_use_their_issuers_budget() {
    let (app, b) = two().await;
    let invalid: Vec<_> = (0..2_000)
        .map(|n| app.begin_from(&format!("b-none-{n:04}"), Some(Peer(n))))
        .collect();
    pass(millis(500)).await;
    let [(_, first), (_, second)] = &states(&app)[..] else {
        panic!("two issuers")
    };
    assert!(second.waiting > 0, "the budget is not used up");
    assert!(is_calm(first), "{first:?}");
    app.issuer.issue("a-new-key");
    let answer = app.get("a-new-key").await;
    assert_eq!(answer.status, 200);
    assert!(answer.took <= millis(25), "{:?}", answer.took);
    for invalid in invalid {
        let status = invalid.await.unwrap().status;
        assert!(matches!(status, 401 | 503), "{status}");
    }
    assert!(b.calls() < 1_000, "{}", b.calls());
}

#[tokio::test(start_paused = true)]
async fn fault_110_an_answer_confirms_its_issuers_only() {
    let (app, b) = two().await;
    b.is(Behavior::Unconfirmed);
    pass(SOFT).await;
    assert_eq!(app.get("b-known-0").await.status, 200);
    pass(millis(100)).await;
    assert_eq!(b.calls_for("b-known-0"), 2);
    app.issuer.issue("a-new-key");
    assert_eq!(app.get("a-new-key").await.status, 200);
    assert_eq!(app.get_now("b-known-0").status, 200);
    b.is(Behavior::Answers);
    b.issue("b-new-key");
    assert_eq!(app.get("b-new-key").await.status, 200);
    assert_eq!(app.get_now("b-known-0").status, 401);
}

#[tokio::test(start_paused = true)]
async fn fault_111_keys_of_no_issuer_are_rejected() {
    let (app, b) = two().await;
    let calls = app.issuer.calls() + b.calls();
    let before = app.handle.stats();
    for n in 0..10_000 {
        let secret = format!("c-none-{n:05}");
        let answer = app.get_now(&secret);
        assert_eq!((answer.status, answer.code), (401, Some("invalid-token")));
    }
    // Not a prefix, and the prefix in another case.
    for secret in ["xa-known-0", "A-known-0"] {
        assert_eq!(app.get_now(secret).status, 401);
    }
    // A route that requires a verification makes no call either.
    let strict = app.max_age(Duration::ZERO);
    assert_eq!(strict.get_now("c-none-00000").status, 401);
    assert_eq!(app.issuer.calls() + b.calls(), calls);
    let after = app.handle.stats();
    assert_eq!(
        (after.entries, after.invalid_entries),
        (before.entries, before.invalid_entries)
    );
    assert!(states(&app).iter().all(|(_, state)| is_calm(state)));
    for issuer in [&app.issuer, &b] {
        issuer.issue("a-new-key");
        issuer.issue("b-new-key");
    }
    for secret in ["a-new-key", "b-new-key"] {
        let answer = app.get(secret).await;
        assert_eq!(answer.status, 200);
        assert!(answer.took <= millis(25), "{:?}", answer.took);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_112_equal_codes_are_separate_organizations() {
    let (app, b) = App::of_two(Organizations::Separate);
    app.issuer.issue_as("a-known-0", "org_acme", "id_1");
    b.issue_as("b-known-0", "org_acme", "id_1");
    // The issuer cannot name an organization of the other one.
    b.issue_as("b-evil-00", "a:org_acme", "a:id_1");
    let org = async |secret| app.get(secret).await.org.unwrap();
    assert_eq!(org("a-known-0").await.org_code(), &"a:org_acme");
    assert_eq!(org("b-known-0").await.org_code(), &"b:org_acme");
    assert_eq!(org("b-evil-00").await.org_code(), &"b:a:org_acme");

    app.handle
        .block_org(&OrgCode::from_static("a:org_acme"))
        .unwrap();
    let statuses = ["a-known-0", "b-known-0", "b-evil-00"].map(|secret| app.get_now(secret).status);
    assert_eq!(statuses, [401, 200, 200]);
    app.handle.unblock_org(&OrgCode::from_static("a:org_acme"));
    app.handle
        .block_key_id(&KeyId::from_static("b:id_1"))
        .unwrap();
    assert_eq!(app.get("a-known-0").await.status, 200);
    assert_eq!(app.get_now("b-known-0").status, 401);
    assert_eq!(app.get_now("b-evil-00").status, 200);
}

#[tokio::test(start_paused = true)]
async fn fault_112_shared_organizations_have_own_key_ids() {
    let (app, b) = App::of_two(Organizations::Shared);
    app.issuer.issue_as("a-known-0", "org_acme", "id_1");
    b.issue_as("b-known-0", "org_acme", "id_1");
    for secret in ["a-known-0", "b-known-0"] {
        let org = app.get(secret).await.org.unwrap();
        assert_eq!(org.org_code(), &"org_acme");
    }
    app.handle.invalidate_key_id(&KeyId::from_static("a:id_1"));
    assert_eq!(app.get_now("b-known-0").status, 200);
    assert!(app.try_now("a-known-0").is_none());
    app.handle
        .block_org(&OrgCode::from_static("org_acme"))
        .unwrap();
    assert_eq!(app.get_now("b-known-0").status, 401);
    assert_eq!(app.get("a-known-0").await.status, 401);
    app.handle.block_key(&key("a-known-0")).unwrap();
    assert_eq!(app.get_now("a-known-0").status, 401);
}
