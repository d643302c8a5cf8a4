//! Rejections by handlers and layers of the application.

use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::json;
use tower_orgkey::{Rejection, RejectionKind};

use super::*;
use crate::support::wire::{get as get_at, serve};

async fn publish(org: OrgContext) -> Result<&'static str, Rejection> {
    if !org.scopes().contains("publish:reports") {
        return Err(Rejection::insufficient_scope(["publish:reports"]));
    }
    Err(Rejection::custom(
        StatusCode::CONFLICT,
        "no-seat-left",
        "All \"seats\" are taken.",
    ))
}

fn app() -> Router {
    let issuer = Issuer::knowing([
        (ONE, org("org_one", &["read:reports"])),
        (TWO, org("org_two", &["publish:reports"])),
    ]);
    let auth = ApiKeyLayer::builder(issuer).realm("acme").build().unwrap();
    Router::new()
        .route("/publish", get(publish))
        .route_layer(auth)
}

#[tokio::test]
async fn rejection_of_a_handler_has_the_layers_format() {
    let address = serve(app()).await;
    let answer = get_at(address, "/publish").key(ONE).send().await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.header("www-authenticate"),
        Some(r#"Bearer realm="acme", error="insufficient_scope", scope="publish:reports""#)
    );
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["scope"], "publish:reports");
}

#[tokio::test]
async fn custom_rejection_keeps_its_parts() {
    let address = serve(app()).await;
    let answer = get_at(address, "/publish").key(TWO).send().await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("www-authenticate"), None);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let expected = json!({
        "type": "about:blank", "title": "Conflict", "status": 409,
        "detail": "All \"seats\" are taken.", "code": "no-seat-left",
    });
    assert_eq!(body, expected);
}

#[test]
fn every_part_of_a_rejection_can_be_read() {
    use std::time::Duration;

    let wait = Duration::from_secs(3);
    let made = [
        Rejection::missing_credential(),
        Rejection::malformed_credential(),
        Rejection::invalid_token(),
        Rejection::organization_required(),
        Rejection::insufficient_scope(["a"]),
        Rejection::organization_mismatch(),
        Rejection::not_found(),
        Rejection::wrong_region("us", None, StatusCode::MISDIRECTED_REQUEST),
        Rejection::region_unknown(wait),
        Rejection::verifier_unavailable(wait),
        Rejection::verifier_misconfigured(wait),
        Rejection::rate_limited(wait),
        Rejection::concurrency_limited(wait),
        Rejection::settings_unavailable(wait),
        Rejection::internal(),
        Rejection::custom(StatusCode::GONE, "gone", "For good.").with_retry_after(wait),
    ];
    let kinds: Vec<RejectionKind> = made.iter().map(Rejection::kind).collect();
    assert_eq!(kinds, RejectionKind::ALL);
    for rejection in made {
        let is_temporary = matches!(rejection.status().as_u16(), 429 | 503 | 410);
        assert_eq!(rejection.retry_after(), is_temporary.then_some(wait));
        assert!(!rejection.title().is_empty() && !rejection.detail().is_empty());
        let status = rejection.status();
        assert_eq!(rejection.into_response().status(), status);
    }
}
