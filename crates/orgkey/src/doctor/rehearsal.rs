//! Asks the layer itself, configured as recommended.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_orgkey::ApiKeyLayer;

use super::secret::Secret;
use super::table::IssuerTable;

/// Returns the status with which the layer answers a request with each of these keys.
pub(super) async fn statuses(
    table: &IssuerTable,
    secret: &Secret,
    keys: &[&Secret],
) -> Result<Vec<u16>, String> {
    let verifier = table.verifier(secret).map_err(|error| error.to_string())?;
    let layer = ApiKeyLayer::new(verifier);
    let service = layer.layer(service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let mut statuses = Vec::with_capacity(keys.len());
    for key in keys {
        let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose()))
            .map_err(|_| "a key is no valid header value".to_owned())?;
        value.set_sensitive(true);
        let mut request = Request::new(Full::default());
        request.headers_mut().insert(AUTHORIZATION, value);
        let response = service.clone().oneshot(request).await;
        statuses.push(response.map_or(500, |response| response.status().as_u16()));
    }
    Ok(statuses)
}
