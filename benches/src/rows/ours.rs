//! The layer of this crate in its default configuration.

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use http::StatusCode;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, Scopes, Verification, VerifyError,
    require_org, require_scope, verifier_fn,
};

use super::{
    BEARER, Call, JUNK, MALFORMED, ORG_REPORTS, REPORTS, SCOPE, SCOPES, SECRET, api, passes,
    request, through,
};

pub(super) fn hit() -> Call {
    passes(api().layer((warm_layer(), require_scope(SCOPE))))
}

pub(super) fn auth() -> Call {
    passes(api().layer(warm_layer()))
}

pub(super) fn auth_parameter() -> Call {
    let api = api().layer(warm_layer());
    through(ORG_REPORTS, BEARER, StatusCode::OK, api)
}

pub(super) fn org() -> Call {
    let api = api().layer((warm_layer(), require_org("org_code")));
    through(ORG_REPORTS, BEARER, StatusCode::OK, api)
}

pub(super) fn handler() -> Call {
    async fn handler(org: OrgContext) -> &'static str {
        if org.is_stale() { "stale" } else { "fresh" }
    }
    let layers = (warm_layer(), require_scope(SCOPE));
    passes(Router::new().route(REPORTS, get(handler)).layer(layers))
}

pub(super) fn invalid() -> Call {
    let api = api().layer((warm_layer(), require_scope(SCOPE)));
    through(REPORTS, JUNK, StatusCode::UNAUTHORIZED, api)
}

pub(super) fn malformed() -> Call {
    let api = api().layer((warm_layer(), require_scope(SCOPE)));
    through(REPORTS, MALFORMED, StatusCode::BAD_REQUEST, api)
}

/// A layer that has verified the key and an invalid key.
pub(crate) fn warm_layer() -> ApiKeyLayer {
    let auth = ApiKeyLayer::builder(verifier_fn(answer))
        .fixed_digest_secret(SECRET)
        .build()
        .expect("the default configuration");
    let router = api().layer(auth.clone());
    for authorization in [BEARER, JUNK] {
        ask(&router, authorization);
    }
    auth
}

/// A request that may wait for a lookup, so that the next one is a hit.
pub(super) fn ask(router: &Router, authorization: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let asked = router.clone().oneshot(request(REPORTS, authorization));
    drop(runtime.block_on(asked));
}

pub(crate) fn answer(
    key: ApiKey,
) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
    async move {
        Ok(if key.expose_secret() == super::KEY {
            Verification::of_organization(OrgCode::from_static("org_1234567890"))
                .with_key_id(KeyId::from_static(
                    "api_key_0195ac80a14e8d71f42b98e75d3c61ad",
                ))
                .with_scopes(Scopes::from_names(SCOPES))
        } else {
            Verification::invalid()
        })
    }
    .boxed()
}
