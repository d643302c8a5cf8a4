//! Layers that outlive the runtime of their first caller.

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
fn a_key_is_usable_after_its_runtime_ended_early() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[]))]);
    let api = api(&ApiKeyLayer::new(issuer.clone()));
    runtime().block_on(async {
        // The runtime ends before it polls the task.
        assert!(api.clone().oneshot(request(ONE)).now_or_never().is_none());
    });
    assert_eq!(issuer.calls(), 0, "the task was to have no turn");
    assert_eq!(runtime().block_on(outcome(&api, ONE)), allowed("org_one"));
    assert_eq!(issuer.calls(), 1);
}

#[test]
fn a_key_is_usable_after_its_runtime_ended() {
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
