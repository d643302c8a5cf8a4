//! A vendor's endpoint in memory behind a proxy, and what a handler sees of a key.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{Request, Response};
use serde_json::Value;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_orgkey::{ApiKey, ApiKeyLayer, OrgContext, Verifier};
use tower_orgkey_issuers::conformance::{FaultProxy, IssuerUnderTest};

use super::stub::{Answer, Endpoint, Request as Received, Stub};

/// The answer about a key: of this organization, or invalid.
pub(crate) type About = fn(key: &str, organization: Option<&str>) -> (u16, Value);

pub(crate) struct Vendor {
    pub(crate) stub: Stub,
    pub(crate) proxy: FaultProxy,
    keys: Arc<Mutex<HashMap<String, String>>>,
    prefix: &'static str,
}

impl Vendor {
    /// A vendor whose keys begin with this prefix, and who finds the key in a request with `key_of`.
    pub(crate) async fn start(
        prefix: &'static str,
        key_of: fn(&Received) -> String,
        about: About,
        inactive: Option<(u16, &str)>,
    ) -> Self {
        let stub = Stub::start().await;
        let keys: Arc<Mutex<HashMap<String, String>>> = Arc::default();
        let known = Arc::clone(&keys);
        stub.on(Endpoint::Elsewhere, move |request| {
            let key = key_of(request);
            let organization = known.lock().unwrap().get(&key).cloned();
            let (status, json) = about(&key, organization.as_deref());
            Answer::json(status, &json.to_string())
        });
        let mut proxy = FaultProxy::builder(stub.addr);
        if let Some((status, json)) = inactive {
            proxy = proxy.inactive(status, json);
        }
        Self {
            stub,
            proxy: proxy.start().await.unwrap(),
            keys,
            prefix,
        }
    }

    /// The URL of a path, through the proxy.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.proxy.url())
    }

    pub(crate) fn new_key(&self, organization: &str) -> ApiKey {
        let mut keys = self.keys.lock().unwrap();
        let key = format!("{}{:016}", self.prefix, keys.len());
        keys.insert(key.clone(), organization.to_owned());
        ApiKey::parse(&key).unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.stub.requests(Endpoint::Elsewhere)
    }
}

impl IssuerUnderTest for Vendor {
    async fn issue(&mut self, organization: &str) -> ApiKey {
        self.new_key(organization)
    }

    async fn revoke(&mut self, key: &ApiKey) {
        // A key of no organization, so that no other key gets its number.
        let mut keys = self.keys.lock().unwrap();
        let secret = keys.remove_entry(key.expose_secret()).unwrap().0;
        keys.insert(format!("revoked-{secret}"), String::new());
    }

    fn proxy(&self) -> Option<&FaultProxy> {
        Some(&self.proxy)
    }
}

/// Reads a member of the request's JSON.
pub(crate) fn member(request: &Received, name: &str) -> String {
    let body: Value = serde_json::from_str(&request.body).unwrap();
    body[name].as_str().unwrap().to_owned()
}

/// Sends a request with the key through a new layer, and returns what the handler gets, or the status.
pub(crate) async fn seen(verifier: impl Verifier, key: &str) -> Result<OrgContext, u16> {
    let layer = ApiKeyLayer::builder(verifier).allow_user_keys();
    let layer = layer.build().unwrap();
    let handler = service_fn(async |request: Request<()>| {
        let mut response = Response::new(Body::empty());
        let org = OrgContext::of(request.extensions()).unwrap().clone();
        response.extensions_mut().insert(org);
        Ok::<_, Infallible>(response)
    });
    let request = Request::builder().header("authorization", format!("Bearer {key}"));
    let service = layer.layer(handler);
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    let org = response.extensions().get::<OrgContext>();
    org.cloned().ok_or(response.status().as_u16())
}
