//! Compares a document with what the routes require.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use tower::ServiceExt;
use tower_orgkey::observer::RequestObservation;
use tower_orgkey::{ApiKeyLayer, OrgCode, Scopes, Verification, verifier_fn};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::SecurityRequirement;

use crate::SCHEME;
use crate::operations::{Alternatives, all, both, documented};

const KEY: &str = "k_test_documented";

/// The organization of the key, and the value of every path parameter: so guards of the organization pass.
const ORG: &str = "1";

/// The deadline of a handler.
const DEADLINE: Duration = Duration::from_secs(10);

/// Returns how the document and the routes differ, one line per operation. Empty if they agree.
///
/// `app` builds the routes behind the layer that it gets. Each operation of the document is called twice: without a key, and
/// with one that holds all documented scopes. What guards and [`Scoped`](tower_orgkey::Scoped) required is then compared with
/// `security`:
///
/// * An operation that requires a key must document it, and the other way round.
/// * The alternatives of scopes must be the documented ones.
/// * Each alternative must be the scheme `org_key` alone: no other one was observed to open the route.
///
/// An operation without `security` has that of the document. One whose method is no method of HTTP is a difference.
///
/// **The handlers run**, with `1` for every path parameter and an empty body, so call it with the state of a test. Scopes that
/// a handler tests itself are not seen. The layer that `app` gets rejects requests without a key, so what
/// [`allow_anonymous`](tower_orgkey::auth::ApiKeyLayerBuilder::allow_anonymous) opens in the service is not seen either. A handler
/// that extracts something else before `Scoped`, and fails, hides it.
pub async fn undocumented(api: &OpenApi, app: impl FnOnce(ApiKeyLayer) -> Router) -> Vec<String> {
    let scopes: BTreeSet<String> = all(&api.paths)
        .filter_map(|(_, _, operation)| documented(security(api, operation)))
        .flatten()
        .flatten()
        .collect();
    let verifier = verifier_fn(move |_| {
        let scopes = Scopes::from_names(scopes.iter().map(String::as_str));
        async move { Ok(Verification::of_organization(OrgCode::from_static(ORG)).with_scopes(scopes)) }
    });
    let app = app(ApiKeyLayer::new(verifier));
    let mut differences = Vec::new();
    for (method, path, operation) in all(&api.paths) {
        let security = security(api, operation);
        if has_other_schemes(security) {
            differences.push(format!(
                "{method} {path} documents an alternative without `org_key`, or with another scheme beside it"
            ));
        }
        let difference = match observe(&app, method, path).await {
            Ok(required) => difference(documented(security), required),
            Err(problem) => Some(problem),
        };
        if let Some(difference) = difference {
            differences.push(format!("{method} {path} {difference}"));
        }
    }
    differences
}

/// Panics if the document and the routes differ: see [`undocumented`].
///
/// ```
/// use tower_orgkey::scope::ScopePolicy;
/// use tower_orgkey_openapi::{Guarded, assert_documented};
/// use utoipa_axum::{router::OpenApiRouter, routes};
///
/// #[utoipa::path(get, path = "/reports")]
/// async fn list() {}
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (router, api) = OpenApiRouter::new()
///     .routes(routes!(list).guarded(ScopePolicy::new([["read:reports"]])))
///     .split_for_parts();
/// assert_documented(&api, |auth| router.route_layer(auth)).await;
/// # }
/// ```
///
/// # Panics
///
/// With all differences.
pub async fn assert_documented(api: &OpenApi, app: impl FnOnce(ApiKeyLayer) -> Router) {
    let differences = undocumented(api, app).await;
    assert!(
        differences.is_empty(),
        "the document and the routes differ:\n{}",
        differences.join("\n")
    );
}

/// Returns the security of an operation, which is that of the document if it has none itself.
fn security<'a>(api: &'a OpenApi, operation: &'a Operation) -> Option<&'a [SecurityRequirement]> {
    operation.security.as_deref().or(api.security.as_deref())
}

/// Whether one alternative of a `security` that documents keys of organizations needs no such key, or another scheme beside it.
fn has_other_schemes(security: Option<&[SecurityRequirement]>) -> bool {
    let is_ours_alone = |requirement| {
        let requirement = serde_json::to_value(requirement).unwrap_or_default();
        let schemes = requirement.as_object();
        schemes.is_some_and(|schemes| schemes.len() == 1 && schemes.contains_key(SCHEME))
    };
    documented(security).is_some() && !security.into_iter().flatten().all(is_ours_alone)
}

/// Returns what an operation requires, `None` if it requires no key.
async fn observe(app: &Router, method: &str, path: &str) -> Result<Option<Alternatives>, String> {
    let method = &Method::from_bytes(method.as_bytes())
        .map_err(|_| "cannot be called: this is no method".to_owned())?;
    let (status, _) = call(app, method, path, None).await?;
    if status == StatusCode::NOT_FOUND || status == StatusCode::METHOD_NOT_ALLOWED {
        return Err(format!("is not routed: {status}"));
    }
    if status != StatusCode::UNAUTHORIZED {
        return Ok(None);
    }
    let (_, observation) = call(app, method, path, Some(KEY)).await?;
    let mut required = Alternatives::from([BTreeSet::new()]);
    for requirement in observation.requirements().iter() {
        if let Some(alternatives) = requirement.scope_alternatives() {
            let alternatives = alternatives.map(|scopes| scopes.map(str::to_owned).collect());
            required = both(&required, &alternatives.collect());
        }
    }
    Ok(Some(required))
}

async fn call(
    app: &Router,
    method: &Method,
    path: &str,
    key: Option<&str>,
) -> Result<(StatusCode, RequestObservation), String> {
    let mut request = Request::builder().method(method).uri(filled(path));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut request = request
        .body(Body::empty())
        .map_err(|error| format!("is no path: {error}"))?;
    let observation = RequestObservation::attach(request.extensions_mut());
    let response = tokio::time::timeout(DEADLINE, app.clone().oneshot(request));
    let response = response.await.map_err(|_| "does not respond".to_owned())?;
    let Ok(response) = response;
    Ok((response.status(), observation))
}

/// Replaces the parameters of a path.
fn filled(path: &str) -> String {
    let mut filled = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        let (_, after) = after.split_once('}').unwrap_or((after, ""));
        // Writing to a string cannot fail.
        let _ = write!(filled, "{before}{ORG}");
        rest = after;
    }
    filled + rest
}

fn difference(documented: Option<Alternatives>, required: Option<Alternatives>) -> Option<String> {
    if documented == required {
        return None;
    }
    let text = |alternatives: Option<Alternatives>| match alternatives {
        None => "no key".to_owned(),
        Some(alternatives) => {
            let of =
                |scopes: &BTreeSet<String>| scopes.iter().cloned().collect::<Vec<_>>().join(" ");
            let sets: Vec<String> = alternatives.iter().map(of).collect();
            format!("a key with [{}]", sets.join(" | "))
        }
    };
    Some(format!(
        "requires {}, and documents {}",
        text(required),
        text(documented)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_filled() {
        assert_eq!(filled("/a/{b}/c-{d}/{*rest}"), "/a/1/c-1/1");
        assert_eq!(filled("/"), "/");
    }
}
