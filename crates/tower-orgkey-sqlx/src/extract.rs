use axum::extract::{FromRef, FromRequestParts};
use http::request::Parts;
use tower_orgkey::{OrgContext, Rejection};

use crate::{OrgPool, OrgTx};

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S> FromRequestParts<S> for OrgTx
where
    OrgPool: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let org = OrgContext::of(&parts.extensions)?;
        Ok(OrgPool::from_ref(state).begin(org).await?)
    }
}
