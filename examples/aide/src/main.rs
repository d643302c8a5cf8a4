//! OpenAPI with aide: the scopes in the type of a handler are in the document, without another line.
//!
//! ```sh
//! cargo run -p example-aide
//! ```

use std::error::Error;

use aide::axum::ApiRouter;
use aide::axum::routing::get;
use aide::generate::GenContext;
use aide::openapi::{OpenApi, Operation, Response, SecurityScheme};
use aide::operation::OperationInput;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::{Json, Router};
use indexmap::IndexMap;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Rejection, ScopeSet, Scoped, Scopes, Verification,
    verifier_fn,
};

/// The name of the security scheme.
const SCHEME: &str = "org_key";

/// `Scoped` that documents itself. A type of the application, because `OperationInput` is a trait of another crate.
struct Requires<P>(Scoped<P>);

impl<P> Requires<P> {
    fn into_inner(self) -> OrgContext {
        self.0.into_inner()
    }
}

impl<P: ScopeSet, S: Send + Sync> FromRequestParts<S> for Requires<P> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        Scoped::from_request_parts(parts, state).await.map(Self)
    }
}

impl<P: ScopeSet> OperationInput for Requires<P> {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        for scopes in P::ALTERNATIVES {
            let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
            operation
                .security
                .push(IndexMap::from([(SCHEME.to_owned(), scopes)]));
        }
    }

    fn inferred_early_responses(
        _: &mut GenContext,
        _: &mut Operation,
    ) -> Vec<(Option<u16>, Response)> {
        [
            (400, "The key is malformed or repeated."),
            (401, "There is no key, or it is invalid."),
            (403, "The key lacks a scope, or belongs to no organization."),
            (503, "The key cannot be verified at the moment."),
        ]
        .map(|(status, description)| {
            let response = Response {
                description: description.to_owned(),
                ..Response::default()
            };
            (Some(status), response)
        })
        .into()
    }
}

struct ReadReports;

impl ScopeSet for ReadReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports"], &["admin"]];
}

async fn list(org: Requires<ReadReports>) -> Json<Vec<String>> {
    let org = org.into_inner();
    Json(vec![format!("report of {}", org.org_code())])
}

fn app() -> (Router, OpenApi) {
    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        let org = OrgCode::from_static("org_1");
        let scopes = match key.expose_secret() {
            "k_test_reader" => Scopes::from_names(["read:reports"]),
            "k_test_other" => Scopes::none(),
            _ => return Ok(Verification::invalid()),
        };
        Ok(Verification::of_organization(org).with_scopes(scopes))
    }));
    let mut api = OpenApi::default();
    let router = ApiRouter::new()
        .api_route("/reports", get(list))
        .finish_api_with(&mut api, |api| {
            let scheme = SecurityScheme::Http {
                scheme: "bearer".to_owned(),
                bearer_format: Some("API key".to_owned()),
                description: None,
                extensions: IndexMap::new(),
            };
            api.security_scheme(SCHEME, scheme)
        });
    (router.route_layer(auth), api)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (_, api) = app();
    println!("{}", serde_json::to_string_pretty(&api)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn document_has_the_scopes_of_the_handler() {
        let (_, api) = app();
        let document = serde_json::to_value(api).unwrap();
        let operation = &document["paths"]["/reports"]["get"];
        let expected = json!([{"org_key": ["read:reports"]}, {"org_key": ["admin"]}]);
        assert_eq!(operation["security"], expected);
        for status in ["200", "400", "401", "403", "503"] {
            assert!(operation["responses"][status].is_object(), "{status}");
        }
        let scheme = &document["components"]["securitySchemes"]["org_key"];
        assert_eq!(scheme["scheme"], "bearer");
    }

    #[tokio::test]
    async fn handler_requires_them() {
        let (app, _) = app();
        for (key, status) in [
            ("k_test_reader", 200),
            ("k_test_other", 403),
            ("k_test_bad", 401),
        ] {
            let request = Request::get("/reports")
                .header("authorization", format!("Bearer {key}"))
                .body(Body::empty())
                .unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{key}");
        }
    }
}
