//! A layer may outlive the runtime that its first caller came from.

use futures_util::FutureExt;
use tower::ServiceExt;
use tower_orgkey::ApiKeyLayer;

use super::ONE;
use crate::support::service::{allowed, api, outcome, request};
use crate::support::{Issuer, org};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn a_runtime_that_ends_before_a_verification_has_begun_leaves_the_key_usable() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let api = api(&ApiKeyLayer::new(issuer.clone()));
    runtime().block_on(async {
        // Starts the task, and ends the runtime before the task has had its turn.
        assert!(api.clone().oneshot(request(ONE)).now_or_never().is_none());
    });
    assert_eq!(issuer.calls(), 0, "the task was to have no turn");
    assert_eq!(runtime().block_on(outcome(&api, ONE)), allowed("org_one"));
    assert_eq!(issuer.calls(), 1);
}

#[test]
fn a_runtime_that_ends_during_a_verification_leaves_the_key_usable() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let gate = issuer.hold();
    let api = api(&ApiKeyLayer::new(issuer.clone()));
    runtime().block_on(async {
        assert!(api.clone().oneshot(request(ONE)).now_or_never().is_none());
        while issuer.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!((issuer.calls(), issuer.in_flight()), (1, 0));
    gate.add_permits(1);
    assert_eq!(runtime().block_on(outcome(&api, ONE)), allowed("org_one"));
    assert_eq!(issuer.calls(), 2);
}
