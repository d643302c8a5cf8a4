use std::collections::BTreeMap;

use http::Method;
use utoipa::openapi::OpenApi;

use crate::operations::all;

/// The longest scope that Kinde derives without shortening it.
const MAX_LEN: usize = 64;

/// Returns the scope that Kinde derives from an operation of an imported OpenAPI document: the method and the path in lower
/// case, without braces, and with `_` for everything but letters and digits.
///
/// `None` if the path has a wildcard, or the scope has more than 64 characters: Kinde shortens those in a way that it does not
/// publish.
///
/// ```
/// use http::Method;
/// use tower_orgkey_openapi::operation_scope;
///
/// let scope = operation_scope(&Method::GET, "/users/{userId}");
/// assert_eq!(scope.as_deref(), Some("get:users_userid"));
/// ```
pub fn operation_scope(method: &Method, path: &str) -> Option<String> {
    if path.contains("{*") {
        return None;
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let letters = path.chars().filter(|c| !matches!(c, '{' | '}'));
    let name: String = letters
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    let scope = format!("{}:{name}", method.as_str().to_ascii_lowercase());
    (!name.is_empty() && scope.len() <= MAX_LEN).then_some(scope)
}

/// Returns the scope of each operation of a document, with its method and path. Call it at start.
///
/// # Errors
///
/// If an operation has no scope, or two have the same: see [`operation_scope`].
///
/// ```
/// use tower_orgkey_openapi::operation_scopes;
/// use utoipa_axum::{router::OpenApiRouter, routes};
///
/// #[utoipa::path(get, path = "/a-b")]
/// async fn one() {}
/// #[utoipa::path(get, path = "/a_b")]
/// async fn other() {}
///
/// let (_, api) = OpenApiRouter::<()>::new().routes(routes!(one)).routes(routes!(other)).split_for_parts();
/// let error = operation_scopes(&api).unwrap_err();
/// assert_eq!(error.to_string(), "`GET /a-b` and `GET /a_b` have the same scope `get:a_b`");
/// ```
pub fn operation_scopes(
    api: &OpenApi,
) -> Result<BTreeMap<String, (Method, String)>, OperationScopeError> {
    let mut scopes: BTreeMap<String, (Method, String)> = BTreeMap::new();
    for (method, path, _) in all(&api.paths) {
        let parsed = Method::from_bytes(method.as_bytes()).ok();
        let found = parsed.and_then(|method| Some((operation_scope(&method, path)?, method)));
        let Some((scope, method)) = found else {
            let operation = format!("{method} {path}");
            return Err(OperationScopeError::Missing { operation });
        };
        if let Some((other, other_path)) = scopes.get(&scope) {
            return Err(OperationScopeError::Shared {
                operations: [format!("{other} {other_path}"), format!("{method} {path}")],
                scope,
            });
        }
        scopes.insert(scope, (method, path.to_owned()));
    }
    Ok(scopes)
}

/// Why [`operation_scopes`] fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationScopeError {
    /// An operation has no scope.
    #[error(
        "`{operation}` has no scope: its path is a wildcard, is empty, or is longer than Kinde's limit of 64 characters, or its \
         method is not one of HTTP"
    )]
    Missing {
        /// The method and the path.
        operation: String,
    },
    /// Two operations have the same scope.
    #[error("`{}` and `{}` have the same scope `{scope}`", operations[0], operations[1])]
    Shared {
        /// Both methods and paths.
        operations: [String; 2],
        /// The scope.
        scope: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_follow_kindes_rule() {
        let scope = |path| operation_scope(&Method::DELETE, path);
        assert_eq!(
            scope("/orgs/{org_code}/API-keys.v2").as_deref(),
            Some("delete:orgs_org_code_api_keys_v2")
        );
        assert_eq!(scope("/files/{*rest}"), None);
        assert_eq!(scope("/"), None);
        let longest = format!("/{}", "a".repeat(57));
        assert_eq!(scope(&longest).unwrap().len(), 64);
        assert_eq!(scope(&format!("{longest}a")), None);
    }
}
