//! No key in any output.

use std::iter::once;

use http::header::AUTHORIZATION;
use tower::{Layer, ServiceBuilder};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::{DefaultMakeSpan, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tower_orgkey::ApiKeyLayer;
use tracing::Level;

use super::*;
use crate::support::Answer;
use crate::support::log::Log;
use crate::support::service::Handler;
use crate::support::wire::{get, serve};

/// Panics if eight bytes in a row of any key are in the text. No other text contains such a sequence.
#[track_caller]
fn assert_holds_no_key(text: &str, keys: &[&str]) {
    for key in keys {
        for at in 0..=key.len() - 8 {
            let part = &key[at..at + 8];
            assert!(!text.contains(part), "{part} of {key}");
        }
    }
}

const GOOD: &str = "QwErTyUiOpAsDfGhJk";
const REFUSED: &str = "ZxCvBnMaSdFgHjKlQw";
const SILENT: &str = "PoIuYtReWqLkJhGfDs";
const PANICS: &str = "MnBvCxZlKjHgFdSaPo";
const DOWN: &str = "1q2w3e4r5t6y7u8i9o";
const MALFORMED: &str = "0p9o8i7u6y,5t4r3e2w";
const KEYS: [&str; 6] = [GOOD, REFUSED, SILENT, PANICS, DOWN, MALFORMED];

#[tokio::test]
async fn no_key_is_logged_at_trace() {
    let (log, _guard) = Log::capture();
    let issuer = Issuer::knowing([
        (GOOD, org("org_one", &["read:reports"])),
        (SILENT, Answer::Silence),
        (PANICS, Answer::Panic),
        (DOWN, Answer::Unavailable),
    ]);
    let layer = ApiKeyLayer::builder(issuer.clone())
        .attempt_deadline(std::time::Duration::from_millis(50))
        .build()
        .unwrap();
    // The order that the guide shows, with headers in the spans.
    let app = guarded().route_layer(layer).layer(
        ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new(once(AUTHORIZATION)))
            .layer(
                TraceLayer::new_for_http()
                    .make_span_with(
                        DefaultMakeSpan::new()
                            .include_headers(true)
                            .level(Level::TRACE),
                    )
                    .on_request(DefaultOnRequest::new().level(Level::TRACE))
                    .on_response(
                        DefaultOnResponse::new()
                            .include_headers(true)
                            .level(Level::TRACE),
                    ),
            ),
    );
    let address = serve(app).await;
    for path in ["/whoami", "/guarded", "/typed", "/orgs/x", "/misnamed/x"] {
        for key in KEYS {
            for _ in 0..2 {
                let answer = get(address, path).key(key).send().await;
                assert_holds_no_key(&format!("{answer:?}"), &KEYS);
            }
        }
    }
    assert!(issuer.panicked() > 0);
    assert!(issuer.calls_for(SILENT) > 0 && issuer.calls_for(DOWN) > 0);
    let text = log.text();
    assert_holds_no_key(&text, &KEYS);
    // The log has events of the server and of this crate.
    assert!(text.contains("Sensitive"));
    assert!(text.contains("tower_http::trace"));
    assert!(text.contains("tower_orgkey: "), "{text}");
    for result in ["valid", "invalid", "unavailable"] {
        assert!(text.contains(&format!("result=\"{result}\"")), "{text}");
    }
}

#[tokio::test]
async fn debug_output_has_no_key() {
    let issuer = Issuer::knowing([(GOOD, org("org_one", &[])), (DOWN, Answer::Unavailable)]);
    let builder =
        ApiKeyLayer::builder(issuer.clone()).peer(|head| Some(format!("{:?}", head.headers)));
    let mut shown = vec![format!("{builder:?}")];
    let layer = builder.build().unwrap();
    let service = layer.layer(Handler::default());
    let gate = issuer.hold();
    let mut waiting = Vec::new();
    for key in [GOOD, REFUSED, DOWN] {
        let service = service.clone();
        let request = crate::support::service::request(key);
        waiting.push(tokio::spawn(tower::ServiceExt::oneshot(service, request)));
    }
    while issuer.in_flight() < 3 {
        tokio::task::yield_now().await;
    }
    // While lookups are in flight, and after they completed.
    shown.push(format!("{layer:?} {service:?}"));
    gate.add_permits(100);
    for waiting in waiting {
        let response = waiting.await.unwrap().unwrap();
        shown.push(format!(
            "{:?} {:?}",
            response.extensions().get::<tower_orgkey::Rejection>(),
            response.extensions().get::<OrgContext>(),
        ));
    }
    shown.push(format!("{layer:?} {service:?} {:?}", layer.clone()));
    let mut service = service;
    let future = tower::Service::call(&mut service, crate::support::service::request(REFUSED));
    shown.push(format!("{future:?}"));
    let shown = shown.concat();
    assert!(
        shown.contains("ApiKeyLayer") && shown.contains("org_one"),
        "{shown}"
    );
    assert_holds_no_key(&shown, &KEYS);
}
