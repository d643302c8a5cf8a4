//! Settings of organizations on the nodes of a fleet.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_orgkey::OrgCode;
use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey_fleet::MemoryEngine;

use crate::support::{Issuer, KEY, Node, nodes};

/// The settings of an organization on one node.
struct Settings {
    layer: OrgSettingsLayer<usize>,
    loads: Arc<AtomicUsize>,
}

impl Settings {
    fn of(node: &Node) -> Self {
        let loads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&loads);
        let load = move |_: OrgCode| {
            let load = counted.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, SettingsError>(load) }
        };
        let layer = OrgSettingsLayer::new(&node.auth.handle(), settings_fn(load));
        Self { layer, loads }
    }

    /// Returns how often the settings were loaded, after one more request.
    async fn loads(&self, node: &Node) -> usize {
        let handler = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let service = node.auth.layer(self.layer.layer(handler));
        let request = Request::get("/").header("authorization", format!("Bearer {KEY}"));
        let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        self.loads.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn settings_are_invalidated_on_every_node() {
    let (engine, issuer) = (MemoryEngine::new(), Issuer::default());
    let nodes: [Node; 2] = nodes(&engine, &issuer).await;
    let settings = nodes.each_ref().map(Settings::of);
    let spread = nodes[0].auth.handle().spread();
    let [org, other] = ["org_1", "org_2"].map(OrgCode::from_static);
    let expect = async |loads: usize| {
        for (node, settings) in nodes.iter().zip(&settings) {
            assert_eq!(settings.loads(node).await, loads);
        }
    };
    expect(1).await;
    expect(1).await;
    assert!(spread.invalidate_org(&other).await.unwrap().is_complete());
    expect(1).await;
    assert!(spread.invalidate_org(&org).await.unwrap().is_complete());
    expect(2).await;
    assert!(spread.invalidate_all().await.unwrap().is_complete());
    expect(3).await;
}
