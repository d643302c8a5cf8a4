use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::Method;
use tower_orgkey::guard::RequireScopeLayer;
use tower_orgkey::observer::Requirement;
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{OrgContext, Rejection, ScopeSet};
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::SCHEME;
use crate::operation_scope::operation_scope;
use crate::operations::{Alternatives, all, all_mut, both, documented};

/// The name of the schema of rejections.
const PROBLEM: &str = "Problem";

/// Guards the operations of [`routes!`](utoipa_axum::routes), and documents what they require.
///
/// Each method adds the security requirement, the responses 400, 401, 403, 429 and 503 unless the operation documents others,
/// and the required scopes to the description. With two calls a key must meet both requirements. The routes must be inside of
/// [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer).
///
/// These responses are those of the layer's own response format. Document the operation's own if
/// [`with_rejection_response`](tower_orgkey::ApiKeyLayer::with_rejection_response) replaces their body, and add 421 for a
/// `RegionLayer`, and 404 for [`with_not_found`](tower_orgkey::guard::RequireOrgLayer::with_not_found).
///
/// A policy without alternatives, which rejects every key, panics: a document without alternatives means that no key is required.
///
/// Another guard is added by [`UtoipaMethodRouterExt::map`](utoipa_axum::router::UtoipaMethodRouterExt::map):
/// `routes!(list).any_key().map(|routes| routes.route_layer(require_org("org_code")))`.
pub trait Guarded: Sized {
    /// Requires these scopes, by a guard.
    ///
    /// See the [crate](crate) for an example.
    fn guarded(self, policy: ScopePolicy) -> Self;

    /// Documents the scopes of handlers that take [`Scoped<P>`](tower_orgkey::Scoped). The handler requires them; no guard is
    /// added.
    ///
    /// ```
    /// use tower_orgkey::{ScopeSet, Scoped};
    /// use tower_orgkey_openapi::Guarded;
    /// use utoipa_axum::{router::OpenApiRouter, routes};
    ///
    /// struct ReadReports;
    ///
    /// impl ScopeSet for ReadReports {
    ///     const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports"]];
    /// }
    ///
    /// #[utoipa::path(get, path = "/reports")]
    /// async fn list(_: Scoped<ReadReports>) {}
    ///
    /// let router: OpenApiRouter = OpenApiRouter::new().routes(routes!(list).scoped::<ReadReports>());
    /// ```
    fn scoped<P: ScopeSet>(self) -> Self;

    /// Requires a key with any scopes, by a guard, also beneath a layer that allows anonymous requests.
    fn any_key(self) -> Self;

    /// Requires, by a guard, the scope that Kinde derives from the method and the path of each operation: see
    /// [`operation_scope`]. `prefix` is where the router of these routes is nested, `""` for nowhere.
    ///
    /// # Panics
    ///
    /// If an operation has none, because its path has a wildcard, or its name is longer than 64 characters; and if one is `HEAD`,
    /// because requests with that method need the scope of `GET`.
    fn operation_scope(self, prefix: &str) -> Self;
}

impl<S> Guarded for UtoipaMethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    fn guarded(self, policy: ScopePolicy) -> Self {
        let names = |scopes: &[tower_orgkey::scope::Scope]| {
            scopes
                .iter()
                .map(|scope| scope.as_str().to_owned())
                .collect()
        };
        let alternatives = policy.alternatives().map(names).collect();
        let mut documented = document(self, &alternatives);
        documented.2 = documented.2.route_layer(RequireScopeLayer::new(policy));
        documented
    }

    fn scoped<P: ScopeSet>(self) -> Self {
        let names = |scopes: &&[&str]| scopes.iter().map(|&scope| scope.to_owned()).collect();
        document(self, &P::ALTERNATIVES.iter().map(names).collect())
    }

    fn any_key(self) -> Self {
        let mut documented = document(self, &Alternatives::from([[].into()]));
        documented.2 = documented.2.route_layer(from_fn(require_key));
        documented
    }

    #[track_caller]
    fn operation_scope(self, prefix: &str) -> Self {
        let mut scopes = Vec::new();
        for (method, path, _) in all(&self.1) {
            let path = format!("{prefix}{path}");
            assert!(method != "HEAD", "{method} {path} needs the scope of GET");
            let parsed = Method::from_bytes(method.as_bytes()).ok();
            match parsed.and_then(|method| operation_scope(&method, &path)) {
                Some(scope) => scopes.push(Alternatives::from([[scope].into()])),
                None => panic!("{method} {path} has no scope of its own"),
            }
        }
        let mut documented = document_each(self, scopes);
        documented.2 = documented.2.route_layer(from_fn(require));
        documented
    }
}

async fn require_key(request: Request, next: Next) -> Response {
    match OrgContext::of(request.extensions()) {
        Ok(_) => next.run(request).await,
        Err(rejection) => rejection.into_response(),
    }
}

/// Requires the scope of the operation. By the matched path, which has the prefixes of all nested routers.
async fn require(path: MatchedPath, request: Request, next: Next) -> Response {
    let context = match OrgContext::of(request.extensions()) {
        Ok(context) => context,
        Err(rejection) => return rejection.into_response(),
    };
    // axum calls the handler of GET for HEAD.
    let method = match request.method() {
        &Method::HEAD => &Method::GET,
        method => method,
    };
    let scope = operation_scope(method, path.as_str());
    let is_met = scope
        .as_ref()
        .is_some_and(|scope| context.scopes().contains(scope));
    if let Some(observation) = context.observation() {
        let policy = ScopePolicy::new(scope.iter().map(|scope| [scope.as_str()]));
        observation.record_requirement(Requirement::scopes(policy, is_met));
    }
    if is_met {
        next.run(request).await
    } else {
        Rejection::insufficient_scope(scope).into_response()
    }
}

/// Documents that all operations require this.
fn document<S>(routes: UtoipaMethodRouter<S>, required: &Alternatives) -> UtoipaMethodRouter<S> {
    document_each(routes, std::iter::repeat(required.clone()))
}

/// Documents what each operation requires, in the order of [`all`].
fn document_each<S>(
    mut routes: UtoipaMethodRouter<S>,
    required: impl IntoIterator<Item = Alternatives>,
) -> UtoipaMethodRouter<S> {
    for (operation, required) in all_mut(&mut routes.1).zip(required) {
        let all = match documented(operation.security.as_deref()) {
            Some(before) => both(&before, &required),
            None => required,
        };
        assert!(
            !all.is_empty(),
            "a policy without alternatives rejects every key, which OpenAPI would show as open"
        );
        describe(operation, &all);
        operation.security = Some(
            all.iter()
                .map(|scopes| SecurityRequirement::new(SCHEME, scopes))
                .collect(),
        );
        add_responses(operation);
    }
    if !routes.0.iter().any(|(name, _)| name == PROBLEM) {
        routes.0.push((PROBLEM.to_owned(), RefOr::T(problem())));
    }
    routes
}

const REQUIRES: &str = "Requires a key";

/// Says in the description which scopes are required. Replaces what an earlier call said.
fn describe(operation: &mut Operation, alternatives: &Alternatives) {
    let of = |scopes: &std::collections::BTreeSet<String>| {
        let names: Vec<String> = scopes.iter().map(|scope| format!("`{scope}`")).collect();
        names.join(" and ")
    };
    let scopes: Vec<String> = alternatives
        .iter()
        .map(of)
        .filter(|of| !of.is_empty())
        .collect();
    let sentence = if scopes.is_empty() {
        format!("{REQUIRES} of an organization.")
    } else {
        format!("{REQUIRES} with {}.", scopes.join(", or "))
    };
    let mut paragraphs: Vec<&str> = operation
        .description
        .iter()
        .flat_map(|text| text.split("\n\n"))
        .filter(|paragraph| !paragraph.is_empty() && !paragraph.starts_with(REQUIRES))
        .collect();
    paragraphs.push(&sentence);
    operation.description = Some(paragraphs.join("\n\n"));
}

fn add_responses(operation: &mut Operation) {
    for (status, description) in [
        ("400", "The key is malformed or repeated."),
        ("401", "There is no key, or it is invalid."),
        (
            "403",
            "The key lacks a scope, or belongs to no organization or to another one.",
        ),
        (
            "429",
            "The organization has reached a limit. `Retry-After` says when to try again.",
        ),
        (
            "503",
            "The key cannot be verified at the moment. `Retry-After` says when to try again.",
        ),
    ] {
        let content = Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name(PROBLEM))));
        let response = ResponseBuilder::new()
            .description(description)
            .content("application/problem+json", content)
            .build();
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert(RefOr::T(response));
    }
}

/// The schema of the problem documents of `tower_orgkey::rejection`.
fn problem() -> Schema {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let status = ObjectBuilder::new().schema_type(Type::Integer);
    ObjectBuilder::new()
        .description(Some("A problem document (RFC 9457)."))
        .property("type", text())
        .property("title", text())
        .property("status", status)
        .property("detail", text())
        .property(
            "code",
            text().description(Some("A stable name for the problem.")),
        )
        .property(
            "scope",
            text().description(Some("The scopes that are required, separated by spaces.")),
        )
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("code")
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_replaced_and_kept() {
        let mut operation = Operation::new();
        operation.description = Some("Lists.\n\nIn order.".to_owned());
        describe(
            &mut operation,
            &Alternatives::from([["a".to_owned()].into()]),
        );
        let both = Alternatives::from([
            ["a".to_owned(), "b".to_owned()].into(),
            ["c".to_owned()].into(),
        ]);
        describe(&mut operation, &both);
        let expected = "Lists.\n\nIn order.\n\nRequires a key with `a` and `b`, or `c`.";
        assert_eq!(operation.description.as_deref(), Some(expected));
    }
}
