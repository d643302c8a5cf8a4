//! Calls of Kinde's management API by other crates, with the token of a verifier.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderValue;

use super::verifier::{Kinde, KindeVerifier};
use super::wire::{Reply, retry_after};
use crate::verify::VerifyError;

/// Calls Kinde's management API with the access token and the connections of a [`KindeVerifier`].
///
/// For crates that need more of the API than keys. The application needs the scope of each call. Kinde bills each token, so do
/// not fetch others. All clients of a verifier together renew a token once after a 401, and once after a 403, then after 5 s,
/// doubling to 15 min, until that helps.
///
/// ```no_run
/// # async fn show(kinde: tower_orgkey::kinde::KindeVerifier) -> Result<(), tower_orgkey::kinde::ManagementError> {
/// let reply = kinde.management().get("/api/v1/organization", &[("code", "org_1")]).await?;
/// println!("{}", reply.status());
/// # Ok(()) }
/// ```
pub struct ManagementApi {
    kinde: Arc<Kinde>,
}

/// A reply of the management API.
pub struct ManagementReply(Reply);

/// The management API did not reply.
///
/// `Display` and `source` do not contain the token or the request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the management API did not reply")]
pub struct ManagementError {
    pub(super) may_have_arrived: bool,
    #[source]
    pub(super) source: VerifyError,
}

impl ManagementError {
    /// Returns whether Kinde may have carried out the call. `false` if there was no token or no connection.
    pub fn may_have_arrived(&self) -> bool {
        self.may_have_arrived
    }

    fn not_sent(source: VerifyError) -> Self {
        Self {
            may_have_arrived: false,
            source,
        }
    }
}

impl ManagementReply {
    /// Returns the status. A 401 or 403 was answered to a renewed token too, unless tokens were renewed often of late.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Returns the body, at most 64 KiB. Empty if the status is neither 200, 400, 401, 403 nor 404.
    pub fn body(&self) -> &[u8] {
        &self.0.body
    }

    /// Returns how long Kinde asks to wait, 1 s to 24 h.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.0.headers)
    }
}

impl KindeVerifier {
    /// Returns a client of the management API that shares the token of this verifier.
    pub fn management(&self) -> ManagementApi {
        ManagementApi {
            kinde: Arc::clone(&self.0),
        }
    }
}

impl ManagementApi {
    /// Returns the issuer: the URL that the verifier was built with, without a slash at its end.
    pub fn issuer(&self) -> &str {
        &self.kinde.issuer
    }

    /// Sends a GET. The path begins with `/`; the query is encoded. Waits at most 10 s, and for a token.
    pub async fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<ManagementReply, ManagementError> {
        self.call(path, query, None).await
    }

    /// Sends a POST with a JSON body. Waits at most 10 s, and for a token.
    ///
    /// The call is not repeated, except with a renewed token after a 401 or 403.
    pub async fn post(&self, path: &str, json: &[u8]) -> Result<ManagementReply, ManagementError> {
        self.call(path, &[], Some(json)).await
    }

    async fn call(
        &self,
        path: &str,
        query: &[(&str, &str)],
        json: Option<&[u8]>,
    ) -> Result<ManagementReply, ManagementError> {
        let token = self.kinde.credentials.token().await;
        let Some(token) = token.map_err(ManagementError::not_sent)? else {
            let why = VerifyError::misconfigured("the verifier has no credentials");
            return Err(ManagementError::not_sent(why));
        };
        let send = async |token: &HeaderValue| {
            let reply = self.kinde.http.manage(path, query, json, token).await;
            reply.map(ManagementReply)
        };
        let reply = send(&token.header).await?;
        let [unauthorized, forbidden] = &self.kinde.management_renewals;
        // The token may have been revoked early, or issued without its scopes.
        let renewals = match reply.status() {
            StatusCode::UNAUTHORIZED => unauthorized,
            StatusCode::FORBIDDEN => forbidden,
            _ => return Ok(reply),
        };
        let backoff = || renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let allow = |now| backoff().allow(now);
        match self.kinde.credentials.renew(token.id, allow).await {
            Ok(Some(renewed)) => {
                let again = send(&renewed.header).await?;
                if again.status() != reply.status() {
                    backoff().reset();
                }
                Ok(again)
            }
            // The reply says why the call was not carried out.
            Ok(None) | Err(_) => Ok(reply),
        }
    }
}

impl_debug!(ManagementApi, |api| { issuer: api.kinde.issuer });

impl_debug!(ManagementReply, |reply| { status: reply.0.status });
