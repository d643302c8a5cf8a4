//! The layer without axum: a plain Tower service behind hyper.
//!
//! ```sh
//! cargo run --example plain_tower
//! ```

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::util::BoxCloneService;
use tower::{ServiceBuilder, service_fn};
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, RequestHead, Scopes, Verification, require_org_with,
    require_scope, verifier_fn,
};

/// Builds the service.
fn service<B: Send + 'static>() -> BoxCloneService<Request<B>, Response<Full<Bytes>>, Infallible> {
    let verifier = verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_test_0123456789" => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_scopes(Scopes::from_names(["read:reports"])),
            _ => Verification::invalid(),
        })
    });
    // From the outside in. The layer's rejections need a body type that implements `From<Bytes>`.
    let service = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(verifier))
        .layer(require_scope("read:reports"))
        .layer(require_org_with(organization_in_the_path))
        .service(service_fn(reports));
    BoxCloneService::new(service)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One service for all connections: its clones share the cache.
    let service = service();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    eprintln!("connection failed: {error}");
                }
            });
        }
    });

    let http = reqwest::Client::builder().no_proxy().build()?;
    for (path, key) in [
        ("/org_1/reports", Some("k_test_0123456789")),
        ("/org_2/reports", Some("k_test_0123456789")),
        ("/org_1/reports", Some("k_test_unknown")),
        ("/org_1/reports", None),
    ] {
        let mut request = http.get(format!("{url}{path}"));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await?;
        println!("GET {path} with {}", key.unwrap_or("no key"));
        println!("  {}: {}", response.status(), response.text().await?);
    }
    Ok(())
}

/// Reads the context from the request's extensions.
async fn reports<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let reports = match request.extensions().get::<OrgContext>() {
        Some(org) => format!("reports of {}", org.org_code()),
        None => unreachable!("the layer rejects requests without a context"),
    };
    Ok(Response::new(Full::from(reports)))
}

fn organization_in_the_path(head: RequestHead<'_>) -> Option<String> {
    head.uri.path().split('/').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn only_the_own_organization_is_served() {
        for (path, key, status) in [
            ("/org_1/reports", "k_test_0123456789", 200),
            ("/org_2/reports", "k_test_0123456789", 403),
            ("/org_1/reports", "k_test_unknown", 401),
        ] {
            let request = Request::get(path)
                .header("authorization", format!("Bearer {key}"))
                .body(())
                .unwrap();
            let response = service().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path} {key}");
        }
    }
}
