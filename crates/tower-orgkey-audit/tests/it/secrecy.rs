//! No key in any event, and no client can forge one.

use std::net::IpAddr;

use tower_orgkey::RequestHead;
use tower_orgkey_audit::{AuditEvent, AuditSink, PseudonymKey, SinkError, TracingSink};

use crate::support::log::Log;
use crate::*;

/// Stores the events.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<AuditEvent>>>);

impl AuditSink for Kept {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        self.0.lock().unwrap().extend_from_slice(events);
        Ok(())
    }
}

#[track_caller]
fn assert_holds_no_key(text: &str) {
    for key in [ONE, TWO, NO_ORG, USER, DOUBTFUL, STRANGE, BAD] {
        for at in 0..=key.len() - 8 {
            let part = &key[at..at + 8];
            assert!(!text.contains(part), "{part} of {key} in {text}");
        }
    }
}

#[tokio::test]
async fn events_and_debug_contain_no_key() {
    let (log, _guard) = Log::capture();
    let kept = Kept::default();
    let trail = AuditTrail::start(kept.clone()).unwrap();
    let layer = AuditLayer::new(&trail);
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(layer.clone());
    for key in [ONE, TWO, NO_ORG, USER, DOUBTFUL, STRANGE, BAD] {
        for path in ["/read", "/orgs/{}?key={}", "/hidden/{}"] {
            let mut request = request("GET", &path.replace("{}", key), key);
            request.headers_mut().insert("cookie", key.parse().unwrap());
            request
                .headers_mut()
                .insert("referer", format!("/{key}").parse().unwrap());
            send(&app, request).await;
        }
        // A key in the wrong place.
        let mut malformed = request("GET", "/read", key);
        malformed
            .headers_mut()
            .append("authorization", key.parse().unwrap());
        send(&app, malformed).await;
    }
    trail.flush(LONG).await.unwrap();
    let events = kept.0.lock().unwrap().clone();
    assert_eq!(events.len(), 28);
    for event in &events {
        let json = serde_json::to_string(event).unwrap();
        assert_eq!(
            schema::faults(&serde_json::from_str(&json).unwrap()),
            [""; 0]
        );
        assert_holds_no_key(&json);
        assert_holds_no_key(&format!("{event:#?}"));
    }
    TracingSink.write(&events).unwrap();
    assert!(log.text().contains("tower_orgkey::audit"));
    assert_holds_no_key(&log.text());
    assert_holds_no_key(&format!(
        "{layer:?} {trail:?} {:?}",
        JsonLines::new(Lines::default())
    ));
}

#[tokio::test]
async fn clients_cannot_forge_lines_or_fields() {
    let kept = Kept::default();
    let trail = AuditTrail::start(kept.clone()).unwrap();
    let hostile = "\"},{\n\r\u{0}\u{1b}[31m\u{2028}</script>{{";
    let layer = AuditLayer::new(&trail)
        .record_path(true)
        .route(move |head: RequestHead<'_>| Some(format!("{hostile}{}", head.uri.path())));
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .fallback(async || ())
        .layer(layer);
    let long = "A".repeat(5_000);
    for id in [
        r#""},"class_uid":1,{"#,
        r"\u000a\",
        "%0a%0d",
        &"x".repeat(4_000),
    ] {
        for method in ["GET", "X-'`|~!#$%&*+.^_", &long] {
            let mut request = request(method, &format!("/whoami?{long}"), ONE);
            request
                .headers_mut()
                .insert("x-request-id", id.parse().unwrap());
            send(&app, request).await;
        }
    }
    trail.flush(LONG).await.unwrap();
    let events = kept.0.lock().unwrap().clone();
    assert_eq!(events.len(), 12);
    for event in &events {
        let json = serde_json::to_string(event).unwrap();
        assert!(json.bytes().all(|byte| byte >= b' '), "{json}");
        assert!(json.len() < 6_000, "{}", json.len());
        let event: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(schema::faults(&event), [""; 0]);
        let operation = event["api"]["operation"].as_str().unwrap();
        assert!(operation.contains(hostile) && operation.ends_with("/whoami"));
        assert_eq!(event["class_uid"], 6003);
    }
    let (shown, _guard) = Log::capture();
    TracingSink.write(&events).unwrap();
    assert_eq!(shown.text().lines().count(), 12, "{}", shown.text());
    assert!(!shown.text().contains('\u{1b}'));
}

#[tokio::test]
async fn the_log_names_operators_and_pseudonyms() {
    let kept = Kept::default();
    let trail = AuditTrail::start(kept.clone()).unwrap();
    trail.record_operator_action("/v1/block", "org_code=org_1\n\u{1b}");
    let key = || PseudonymKey::new(&[7; 32]).unwrap();
    let peer = IpAddr::from([192, 0, 2, 77]);
    let layer = AuditLayer::new(&trail).peer(move |_: RequestHead<'_>| Some(peer));
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(layer.pseudonymize(key()));
    send(&app, request("GET", "/read", ONE)).await;
    trail.flush(LONG).await.unwrap();
    let events = kept.0.lock().unwrap().clone();
    let (log, _guard) = Log::capture();
    TracingSink.write(&events).unwrap();
    let text = log.text();
    assert!(
        text.contains(r#"unmapped.target="org_code=org_1\n\u{1b}""#),
        "{text}"
    );
    assert!(text.contains(r#"actor.user.name="operator""#), "{text}");
    let peer = format!("src_endpoint.uid=\"{}\"", key().of_peer(peer));
    assert!(text.contains(&peer), "{text}");
}
