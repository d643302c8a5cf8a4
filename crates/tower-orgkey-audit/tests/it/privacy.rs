//! What events leave out about people, and about organizations at home elsewhere.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use http::Extensions;
use serde_json::{Value, json};
use tower_orgkey::region::{Home, RegionLayer};
use tower_orgkey::{OrgContext, RequestHead};
use tower_orgkey_audit::PseudonymKey;

use crate::*;

const PEER: &str = "192.0.2.77:4433";

fn key() -> PseudonymKey {
    PseudonymKey::new(&[7; 32]).unwrap()
}

/// A layer that records everything it can.
fn layer(stage: &Stage) -> AuditLayer {
    stage
        .layer()
        .record_path(true)
        .peer(|head: RequestHead<'_>| {
            head.extensions
                .get::<ConnectInfo<SocketAddr>>()
                .map(|at| at.0)
        })
}

async fn event(stage: &Stage, app: &Router, path: &str, secret: &str) -> (Value, String) {
    let mut request = request("GET", path, secret);
    let id = http::HeaderValue::from_static("id-of-the-client");
    request.headers_mut().insert("x-request-id", id);
    let peer: SocketAddr = PEER.parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    send(app, request).await;
    let event = stage.events().await.pop().unwrap();
    let text = event.to_string();
    (event, text)
}

#[tokio::test]
async fn users_and_peers_have_pseudonyms() {
    let stage = Stage::new();
    let auth = ApiKeyLayer::builder(issuer()).allow_user_keys();
    let app = routes()
        .route_layer(auth.build().unwrap())
        .route_layer(layer(&stage).pseudonymize(key()));
    // A user who is let through, one who is rejected, and an unknown caller.
    for (path, secret) in [("/whoami", USER), ("/write", USER), ("/whoami", BAD)] {
        let (event, text) = event(&stage, &app, path, secret).await;
        for clear in ["kp_7", "192.0.2.77", "4433"] {
            assert!(!text.contains(clear), "{clear} in {text}");
        }
        let peer = key().of_peer("192.0.2.77".parse().unwrap());
        assert_eq!(
            event["src_endpoint"],
            json!({"name": "unknown", "uid": peer})
        );
        if secret == USER {
            let user = &event["actor"]["user"];
            assert_eq!(user["uid"], key().of_user("kp_7"));
            assert_eq!(user["org"]["uid"], "org_one");
        }
    }
}

fn regional(layer: AuditLayer) -> Router {
    regional_between(tower::layer::util::Identity::new(), layer)
}

/// With a layer between the layer of keys and the audit.
fn regional_between<L>(between: L, layer: AuditLayer) -> Router
where
    L: tower::Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: tower::Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    <L::Service as tower::Service<Request<Body>>>::Future: Send,
{
    let home = |org: &OrgContext, _: &Extensions| match org.org_code().as_str() {
        "org_one" => Home::Here,
        _ => Home::At("us".into()),
    };
    let region = RegionLayer::builder("eu", home).region_without_base("us");
    routes()
        .route_layer(region.build().unwrap())
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(between)
        .route_layer(layer)
}

#[tokio::test]
async fn wrong_region_is_recorded_with_its_organization() {
    let stage = Stage::new();
    let app = regional(layer(&stage));
    let (event, _) = event(&stage, &app, "/whoami", TWO).await;
    assert_eq!(event["status_code"], "wrong-region");
    assert_eq!(event["class_uid"], 6003);
    assert_eq!(event["action_id"], 2);
    assert_eq!(event["actor"]["user"]["org"]["uid"], "org_two");
    assert_eq!(event["http_response"]["code"], 421);
}

#[tokio::test]
async fn minimal_events_identify_no_caller() {
    let stage = Stage::new();
    let app = regional(layer(&stage).minimal_outside_home());
    let (minimal, text) = event(&stage, &app, "/whoami", TWO).await;
    assert_eq!(minimal["status_code"], "wrong-region");
    for clear in ["org_two", "192.0.2.77", "id-of-the-client"] {
        assert!(!text.contains(clear), "{clear} in {text}");
    }
    assert_eq!(minimal["http_request"]["url"], Value::Null);
    assert_eq!(minimal["api"]["operation"], "GET /whoami");
    assert_eq!(minimal["http_request"]["uid"], Value::Null);
    // A layer in between that makes another response of it changes nothing.
    let redirect =
        tower::util::MapResponseLayer::new(|response: Response<Body>| match response.status() {
            StatusCode::MISDIRECTED_REQUEST => {
                let mut redirect = Response::new(Body::empty());
                *redirect.status_mut() = StatusCode::TEMPORARY_REDIRECT;
                redirect
            }
            _ => response,
        });
    let app = regional_between(redirect, layer(&stage).minimal_outside_home());
    let (replaced, text) = event(&stage, &app, "/whoami", TWO).await;
    assert_eq!(replaced["http_response"]["code"], 307);
    assert!(!text.contains("org_two"), "{text}");
    // Other events are complete.
    let (complete, _) = event(&stage, &app, "/whoami", ONE).await;
    assert_eq!(complete["actor"]["user"]["org"]["uid"], "org_one");
    assert_eq!(complete["src_endpoint"]["ip"], "192.0.2.77");
}
