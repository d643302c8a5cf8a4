//! Two issuers, for instance during a migration: behind one layer, chosen by the prefix of the key, and behind two layers, for
//! keys in two headers. The issuers run in memory here.
//!
//! ```sh
//! cargo run --example two_issuers
//! ```

use std::error::Error;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, Request};
use axum::{Router, routing::get};
use tower::ServiceExt;
use tower_orgkey::verify::{BoxVerifier, Organizations, PrefixVerifier};
use tower_orgkey::{
    ApiKeyHandle, ApiKeyLayer, ConfigError, OrgCode, OrgContext, Verification, Verifier,
    VerifyError, verifier_fn,
};

/// In place of `KindeVerifier::builder("https://acme.kinde.com")…build()?`.
fn kinde() -> BoxVerifier {
    verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_live_0123456789" => Verification::of_organization(OrgCode::from_static("org_acme")),
            _ => Verification::invalid(),
        })
    })
    .boxed()
}

/// In place of a table of keys, which is down for keys that end with `down`.
fn table() -> BoxVerifier {
    verifier_fn(|key| async move {
        match key.expose_secret() {
            "acme-0123456789" => Ok(Verification::of_organization(OrgCode::from_static(
                "org_acme",
            ))),
            key if key.ends_with("down") => Err(VerifyError::unavailable("connection refused")),
            _ => Ok(Verification::invalid()),
        }
    })
    .boxed()
}

/// One layer. Each issuer has its own circuit breaker and limits, and keys with another prefix are rejected without a call.
fn by_prefix(
    kinde: BoxVerifier,
    table: BoxVerifier,
) -> Result<(Router, ApiKeyHandle), ConfigError> {
    let verifier = PrefixVerifier::builder()
        .issuer("kinde", ["k_live_"], kinde)
        .issuer("table", ["acme-"], table)
        // `org_acme` of one issuer is not `org_acme` of the other: handlers see `kinde:org_acme` and `table:org_acme`.
        .organizations(Organizations::Separate)
        .build()?;
    let auth = ApiKeyLayer::new(verifier);
    let handle = auth.handle();
    let app = Router::new().route("/whoami", get(whoami));
    Ok((app.route_layer(auth), handle))
}

/// Two layers: the outer one takes keys of the table from `X-Api-Key`, the inner one keys of Kinde from `Authorization`.
fn by_header(kinde: BoxVerifier, table: BoxVerifier) -> Result<Router, ConfigError> {
    let outer = ApiKeyLayer::builder(table)
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
        .build()?;
    // `Shared`, because every customer has the same code at both issuers.
    let inner = ApiKeyLayer::builder(kinde)
        .allow_authenticated_by(&outer, Organizations::Shared)
        .build()?;
    let app = Router::new().route("/whoami", get(whoami));
    Ok(app.route_layer(inner).route_layer(outer))
}

async fn whoami(org: OrgContext) -> String {
    org.org_code().to_string()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (app, handle) = by_prefix(kinde(), table())?;
    for key in [
        "k_live_0123456789",
        "acme-0123456789",
        "k_live_9876543210",
        "other_0123456789",
        "acme-1-down",
    ] {
        send(&app, "authorization", &format!("Bearer {key}")).await?;
    }
    for (issuer, state) in handle.issuers() {
        println!("{issuer}: circuit breaker {:?}", state.unknown_breaker);
    }

    let app = by_header(kinde(), table())?;
    send(&app, "authorization", "Bearer k_live_0123456789").await?;
    send(&app, "x-api-key", "acme-0123456789").await?;
    Ok(())
}

async fn send(app: &Router, header: &str, value: &str) -> Result<(), Box<dyn Error>> {
    let request = Request::get("/whoami")
        .header(header, value)
        .body(Body::empty())?;
    let response = app.clone().oneshot(request).await?;
    let status = response.status();
    let body = to_bytes(response.into_body(), 64 * 1024).await?;
    println!(
        "{header}: {value}: {status}\n  {}",
        String::from_utf8_lossy(&body)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn whoami_with(app: &Router, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::get("/whoami");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 64 * 1024).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn prefixes_choose_the_issuer() {
        let (app, _) = by_prefix(kinde(), table()).unwrap();
        for (key, status) in [
            ("k_live_9876543210", 401),
            ("other_0123456789", 401),
            ("acme-1-down", 503),
        ] {
            let header = format!("Bearer {key}");
            let answer = whoami_with(&app, &[("authorization", &header)]).await;
            assert_eq!(answer.0, status, "{key}");
        }
        let kinde = whoami_with(&app, &[("authorization", "Bearer k_live_0123456789")]).await;
        assert_eq!(kinde, (200, "kinde:org_acme".to_owned()));
        let table = whoami_with(&app, &[("authorization", "Bearer acme-0123456789")]).await;
        assert_eq!(table, (200, "table:org_acme".to_owned()));
    }

    #[tokio::test]
    async fn headers_choose_the_issuer() {
        let app = by_header(kinde(), table()).unwrap();
        let kinde = ("authorization", "Bearer k_live_0123456789");
        let table = ("x-api-key", "acme-0123456789");
        for headers in [&[kinde][..], &[table]] {
            let answer = whoami_with(&app, headers).await;
            assert_eq!(answer, (200, "org_acme".to_owned()));
        }
        assert_eq!(whoami_with(&app, &[kinde, table]).await.0, 400);
        assert_eq!(whoami_with(&app, &[]).await.0, 401);
    }
}
