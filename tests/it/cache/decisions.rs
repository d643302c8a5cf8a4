//! Verification results are cached, decisions are not.

use tower::{Layer, ServiceBuilder};
use tower_orgkey::{RejectionKind, RequestHead, require_org_with, require_scope};

use super::{MINUTE, ONE, SECOND, TWO, builder, layer, settle};
use crate::support::issuer::verification;
use crate::support::service::{Handler, Outcome, allowed, api, outcome};
use crate::support::{Answer, Issuer, org};

#[tokio::test(start_paused = true)]
async fn scopes_are_checked_on_every_request() {
    for first in ["a", "b"] {
        let issuer = Issuer::knowing([(ONE, org("org_one", &["a"]))]);
        let (layer, _) = layer(issuer.clone());
        let handler = Handler::default();
        let wants = |scope| {
            ServiceBuilder::new()
                .layer(layer.clone())
                .layer(require_scope(scope))
                .service(handler.clone())
        };
        let (a, b) = (wants("a"), wants("b"));
        let lacks = Outcome::Rejected(RejectionKind::InsufficientScope);
        // Either service gets the miss, and both get hits.
        if first == "b" {
            assert_eq!(outcome(&b, ONE).await, lacks);
        }
        for _ in 0..3 {
            assert_eq!(outcome(&a, ONE).await, allowed("org_one"));
            assert_eq!(outcome(&b, ONE).await, lacks);
        }
        assert_eq!(handler.reached(), 3);
        assert_eq!(issuer.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_organization_is_checked_on_every_request() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
    let (layer, _) = layer(issuer.clone());
    let handler = Handler::default();
    let of = |code: &'static str| {
        ServiceBuilder::new()
            .layer(layer.clone())
            .layer(require_org_with(move |_: RequestHead<'_>| {
                Some(code.to_owned())
            }))
            .service(handler.clone())
    };
    let other = Outcome::Rejected(RejectionKind::OrganizationMismatch);
    for _ in 0..2 {
        assert_eq!(outcome(&of("org_one"), ONE).await, allowed("org_one"));
        assert_eq!(outcome(&of("org_two"), ONE).await, other);
        assert_eq!(outcome(&of("org_one"), TWO).await, other);
        assert_eq!(outcome(&of("org_two"), TWO).await, allowed("org_two"));
    }
    assert_eq!((handler.reached(), issuer.calls()), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn user_keys_are_checked_on_hits_too() {
    let user = verification("org_one", &[]).with_user_id("kp_1");
    let issuer = Issuer::knowing([
        (ONE, Answer::Valid(user)),
        (
            TWO,
            Answer::Valid(tower_orgkey::Verification::without_organization()),
        ),
    ]);
    let (strict, _) = layer(issuer.clone());
    let (builder, _) = builder(issuer.clone());
    let lax = builder.allow_user_keys().build().unwrap();
    let required = Outcome::Rejected(RejectionKind::OrganizationRequired);
    for _ in 0..3 {
        assert_eq!(outcome(&api(&strict), ONE).await, required);
        assert_eq!(outcome(&api(&lax), ONE).await, allowed("org_one"));
        assert_eq!(outcome(&api(&strict), TWO).await, required);
        assert_eq!(outcome(&api(&lax), TWO).await, required);
    }
    assert_eq!(issuer.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_applies_to_the_next_request() {
    let issuer = Issuer::knowing([(ONE, org("org_one", &["a"]))]);
    let (layer, _) = layer(issuer.clone());
    let handler = Handler::default();
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(require_scope("a"))
        .service(handler.clone());
    let open = layer.layer(handler);
    assert_eq!(outcome(&service, ONE).await, allowed("org_one"));
    issuer.set(ONE, org("org_moved", &["b"]));
    tokio::time::advance(MINUTE + SECOND).await;
    assert_eq!(outcome(&service, ONE).await, allowed("org_one"));
    settle().await;
    assert_eq!(issuer.calls(), 2);
    assert_eq!(
        outcome(&service, ONE).await,
        Outcome::Rejected(RejectionKind::InsufficientScope)
    );
    assert_eq!(outcome(&open, ONE).await, allowed("org_moved"));
}
