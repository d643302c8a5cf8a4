//! Introspection at real authorization servers.

use serde_json::Value;
use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};
use tower_orgkey_issuers::Endpoint;
use tower_orgkey_issuers::conformance::{FaultProxy, IssuerUnderTest, check_verifier};
use tower_orgkey_issuers::introspection::{IntrospectionVerifier, IntrospectionVerifierBuilder};

use crate::python;
use crate::server::{Server, node};
use crate::vendor::seen;

/// The organizations of the kit, which are clients of the servers, and this service.
const CLIENTS: [&str; 3] = ["org_conformance", "org_conformance_2", "api"];

struct AuthorizationServer {
    server: Server,
    proxy: FaultProxy,
    client: reqwest::Client,
    token: &'static str,
    revocation: &'static str,
}

impl AuthorizationServer {
    async fn new(server: Server, token: &'static str, revocation: &'static str) -> Self {
        let proxy = FaultProxy::builder(server.addr()).inactive(200, r#"{"active":false}"#);
        Self {
            proxy: proxy.start().await.unwrap(),
            server,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            token,
            revocation,
        }
    }

    /// Calls the server past the proxy, as this client.
    async fn call(&self, client: &str, path: &str, form: String) -> reqwest::Response {
        let url = format!("http://{}{path}", self.server.addr());
        let request = self.client.post(url).basic_auth(client, Some("s%3A3+cret"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let response = request.body(form).send().await.unwrap();
        assert!(response.status().is_success(), "{response:?}");
        response
    }

    async fn issue_to(&self, client: &str) -> ApiKey {
        let form = "grant_type=client_credentials&scope=read:reports".to_owned();
        let reply = self.call(client, self.token, form).await;
        let reply: Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
        ApiKey::parse(reply["access_token"].as_str().unwrap()).unwrap()
    }

    fn endpoint(&self, path: &str, secret: &str) -> IntrospectionVerifierBuilder {
        let endpoint = Endpoint::builder(format!("{}{path}", self.proxy.url()));
        let endpoint = endpoint.client_credentials("api", secret).build().unwrap();
        IntrospectionVerifier::builder(endpoint)
    }
}

impl IssuerUnderTest for AuthorizationServer {
    async fn issue(&mut self, organization: &str) -> ApiKey {
        self.issue_to(organization).await
    }

    async fn revoke(&mut self, key: &ApiKey) {
        let form = format!("token={}", key.expose_secret());
        for client in &CLIENTS[..2] {
            // A client can revoke its own tokens, and both servers say 200 to others.
            self.call(client, self.revocation, form.clone()).await;
        }
    }

    fn proxy(&self) -> Option<&FaultProxy> {
        Some(&self.proxy)
    }
}

#[tokio::test]
async fn fault_137_oidc_provider_passes_the_kit() {
    let mut command = node("oidc.js");
    command.args(CLIENTS);
    let server = Server::start(command).await;
    let mut server = AuthorizationServer::new(server, "/token", "/token/revocation").await;
    let builder = |server: &AuthorizationServer, secret| {
        server
            .endpoint("/token/introspection", secret)
            .audience("https://api.acme.example")
            .organization_claim("org_id")
    };
    let canary = server.issue_to("api").await;
    let verifier = builder(&server, "s:3 cret").canary(canary.expose_secret());
    let verifier = verifier.build().unwrap();
    let report = check_verifier(verifier.clone(), &mut server).await;
    report.assert();

    let key = server.issue_to("org_conformance").await;
    let org = seen(verifier.clone(), key.expose_secret()).await.unwrap();
    assert!(org.scopes().contains("read:reports") && org.scopes().len() == 1);
    assert_eq!(org.key_id(), None, "an opaque token would be its own id");
    let expiry = verifier.verify(&key).await.unwrap().expires_at();
    assert!(expiry.is_some());

    // Active, as the server says.
    let refresh_token = server.server.ready["refresh_token"].as_str().unwrap();
    let any = || {
        builder(&server, "s:3 cret")
            .any_audience()
            .organization(|_| Ok(Some("org".into())))
    };
    let lenient = any().allow_missing_token_type().build().unwrap();
    assert!(seen(lenient, refresh_token).await.is_ok());
    let strict = any().build().unwrap();
    assert_eq!(seen(strict, refresh_token).await.unwrap_err(), 401);

    let foreign = builder(&server, "s:3 cret").audience("https://another.example");
    let foreign = seen(foreign.build().unwrap(), key.expose_secret()).await;
    assert_eq!(foreign.unwrap_err(), 401);

    let rejected = builder(&server, "another secret").build().unwrap();
    let error = rejected.verify(&key).await.unwrap_err();
    assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
}

#[tokio::test]
async fn fault_138_django_oauth_toolkit_passes_the_kit() {
    let mut command = python::program("python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/django_issuer.py");
    command.arg(script).args(CLIENTS);
    let server = Server::start(command).await;
    let mut server = AuthorizationServer::new(server, "/o/token/", "/o/revoke_token/").await;
    let canary = server.issue_to("api").await;
    // It sends neither a type nor an audience, and introspects access tokens only.
    let verifier = server
        .endpoint("/o/introspect/", "s:3 cret")
        .any_audience()
        .allow_missing_token_type()
        .organization(|claims| Ok(claims.text(&["client_id"])?.map(str::to_owned)))
        .canary(canary.expose_secret())
        .build()
        .unwrap();
    let report = check_verifier(verifier, &mut server).await;
    report.assert();
}
