//! Keys that the issuer revoked or rotated.

use super::kit::{App, Behavior, HARD, Outcome, SOFT, millis, pass, secs};

#[tokio::test(start_paused = true)]
async fn fault_21_invalid_known_key_is_removed_at_once() {
    let app = App::new().knowing(&["known-key"]).await;
    app.issuer.revoke("known-key");
    pass(2 * SOFT).await;
    assert_eq!(app.get("known-key").await.status, 401);
    assert_eq!(
        app.issuer
            .logged(|call| call.outcome == Outcome::Invalid)
            .len(),
        1
    );
    assert_eq!(app.handle.stats().entries, 0);
    app.issuer.is(Behavior::Fails);
    assert_eq!(app.get_now("known-key").status, 401);
    pass(HARD).await;
    app.get("known-key").await.is_unavailable();
}

#[tokio::test(start_paused = true)]
async fn fault_27b_rotated_secret_is_rejected_in_time() {
    for (idle, revoked_at_once) in [(secs(10), false), (secs(14 * 60), true)] {
        let app = App::new();
        app.issuer.issue_as("old-secret", "org_1", "id_1");
        assert_eq!(app.get("old-secret").await.status, 200);
        // Rotated: the same id, another secret.
        app.issuer.revoke("old-secret");
        app.issuer.issue_as("new-secret", "org_1", "id_1");
        let rotated = app.now();
        pass(idle).await;
        assert_eq!(app.get("new-secret").await.status, 200);
        let old = app.get("old-secret").await.status;
        assert_eq!(old, if revoked_at_once { 401 } else { 200 });
        // The new secret is refreshed meanwhile, which must not keep the old one valid.
        let mut accepted = rotated;
        while app.now() < rotated + idle + secs(400) {
            assert_eq!(app.get("new-secret").await.status, 200);
            if app.get("old-secret").await.status == 200 {
                accepted = app.now();
            }
            pass(secs(5)).await;
        }
        assert!(accepted - rotated <= 2 * SOFT + millis(20));
        assert!(
            !app.issuer
                .logged(|call| call.key == "old-secret" && call.outcome == Outcome::Invalid)
                .is_empty()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fault_27b_invalidated_id_keeps_the_new_secret() {
    let app = App::new();
    app.issuer.issue_as("old-secret", "org_1", "id_1");
    assert_eq!(app.get("old-secret").await.status, 200);
    app.issuer.revoke("old-secret");
    app.issuer.issue_as("new-secret", "org_1", "id_1");
    assert_eq!(app.get("new-secret").await.status, 200);
    assert_eq!(app.get_now("old-secret").status, 200);
    app.handle
        .invalidate_key_id(&tower_orgkey::KeyId::from_static("id_1"));
    assert_eq!(app.get("old-secret").await.status, 401);
    assert_eq!(app.get("new-secret").await.status, 200);
}
