//! The shapes of Kinde's replies and errors.

use serde_json::{Value, json};

/// A reply before it becomes an HTTP response. A fault may still change it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether `Cache-Control: no-store` is sent, as RFC 6749 §5.1 requires at the token endpoint.
    pub(crate) no_store: bool,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: body.to_string(),
            no_store: false,
        }
    }

    /// An error of the management API: `errors` is an array.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(
            status,
            &json!({ "errors": [{ "code": code, "message": message }] }),
        )
    }

    /// The 404 of the management API: `errors` is an object.
    pub(crate) fn not_found(code: &str, message: &str) -> Self {
        Self::json(
            404,
            &json!({ "errors": { "code": code, "message": message } }),
        )
    }

    /// The reply to an unknown path, and to an unknown key id in a path.
    pub(crate) fn route_not_found() -> Self {
        Self::not_found("ROUTE_NOT_FOUND", "The requested API route does not exist")
    }

    /// An error of the token endpoint (RFC 6749 §5.2).
    pub(crate) fn oauth_error(status: u16, error: &str, description: &str) -> Self {
        Self {
            no_store: true,
            ..Self::json(
                status,
                &json!({ "error": error, "error_description": description }),
            )
        }
    }
}
