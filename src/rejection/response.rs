//! Renders a [`Rejection`] as a response, in the default format or in a custom one.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, TRANSFER_ENCODING, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response};

use super::{Challenge, Rejection, RejectionKind};
use crate::request_head::RequestHead;

/// Creates the response for a rejection.
///
/// Implemented for functions `FnMut(&Rejection) -> Response<B> + Clone`. The layer adds the headers that a rejection needs, if
/// the response does not have them: the challenge, `Retry-After`, and `Cache-Control: no-store`.
///
/// ```
/// use axum::Json;
/// use axum::response::IntoResponse;
/// use serde_json::json;
/// use tower_orgkey::{ApiKeyLayer, Rejection, Verification, verifier_fn};
///
/// let layer = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }))
///     .with_rejection_response(|rejection: &Rejection| {
///         (rejection.status(), Json(json!({ "error": rejection.code() }))).into_response()
///     });
/// ```
///
/// # The type of the layer
///
/// A function is a part of the type of the layer: `ApiKeyLayer<F>` instead of `ApiKeyLayer`, and a closure has no name. To pass
/// such a layer to a function, or to store it, implement the trait for a type, and name that:
///
/// ```
/// use axum::body::Body;
/// use axum::http::Response;
/// use axum::response::IntoResponse;
/// use axum::{Router, routing::get};
/// use tower_orgkey::{ApiKeyLayer, Rejection, RejectionResponse, Verification, verifier_fn};
///
/// #[derive(Clone)]
/// struct JsonError;
///
/// impl RejectionResponse<Body> for JsonError {
///     fn rejection_response(&mut self, rejection: &Rejection) -> Response<Body> {
///         (rejection.status(), rejection.code()).into_response()
///     }
/// }
///
/// type Auth = ApiKeyLayer<JsonError>;
///
/// fn app(auth: Auth) -> Router {
///     Router::new().route("/reports", get(async || "reports")).route_layer(auth)
/// }
///
/// let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
/// let app = app(auth.with_rejection_response(JsonError));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot respond to a rejection with a body of type `{B}`",
    label = "no rejection response for this body",
    note = "the default response needs a body that implements `From<Bytes>`, such as `axum::body::Body` or `http_body_util::Full<Bytes>`",
    note = "a layer directly inside of `ApiKeyLayer` that changes the body type causes this: move it outside, or call `with_rejection_response` with a function `FnMut(&Rejection) -> Response<{B}> + Clone`"
)]
pub trait RejectionResponse<B> {
    /// Called with every request before it is decided about, on a clone for this request. For a format that depends on the
    /// request, such as that of [gRPC](crate::grpc::GrpcRejectionResponse). A format that wraps another one must call it there
    /// too. Must not block. Does nothing by default.
    #[inline]
    fn prepare(&mut self, request: RequestHead<'_>) {
        let _ = request;
    }

    /// Creates the response.
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B>;
}

#[diagnostic::do_not_recommend]
impl<B, F> RejectionResponse<B> for F
where
    F: FnMut(&Rejection) -> Response<B> + Clone,
{
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        self(rejection)
    }
}

/// A response body that can be empty. Implemented for all bodies that implement `Default`.
///
/// The bound of guards, limits and settings. They respond to a request that they reject with the status, the headers and an empty body, and with the
/// [`Rejection`] in the response's extensions. [`ApiKeyLayer`](crate::ApiKeyLayer) around them renders it in its format.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the body of a rejection",
    label = "this body does not implement `Default`",
    note = "guards, limits and settings need a body that implements `Default`, such as `axum::body::Body` or `http_body_util::Full<Bytes>`",
    note = "a layer directly inside of the guard that changes the body type causes this: move it outside, or map the body with `tower_http::map_response_body`"
)]
pub trait RejectionBody: Default {}

#[diagnostic::do_not_recommend]
impl<B: Default> RejectionBody for B {}

/// The default [`RejectionResponse`]: `application/problem+json` (RFC 9457), for all bodies that implement `From<Bytes>`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DefaultRejectionResponse;

#[diagnostic::do_not_recommend]
impl<B: From<Bytes>> RejectionResponse<B> for DefaultRejectionResponse {
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        let mut response = Response::new(B::from(problem(rejection)));
        *response.status_mut() = rejection.status();
        // Includes room for the headers that are added later.
        *response.headers_mut() = HeaderMap::with_capacity(4);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

/// A [`RejectionResponse`] with an empty body: the status, the challenge and the other headers. For all bodies that implement
/// `Default`.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyRejectionResponse;

#[diagnostic::do_not_recommend]
impl<B: Default> RejectionResponse<B> for EmptyRejectionResponse {
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = rejection.status();
        response
    }
}

/// Returns the problem document.
fn problem(rejection: &Rejection) -> Bytes {
    use std::sync::LazyLock;

    static BODIES: LazyLock<[Bytes; RejectionKind::KINDS.len()]> =
        LazyLock::new(|| RejectionKind::KINDS.map(|kind| write_problem(&Rejection::new(kind))));

    if rejection.details.is_some() {
        write_problem(rejection)
    } else {
        BODIES[rejection.kind as usize].clone()
    }
}

fn write_problem(rejection: &Rejection) -> Bytes {
    let code = Escaped(rejection.code());
    let mut body = match rejection.kind {
        RejectionKind::Custom => r#"{"type":"about:blank""#.to_owned(),
        _ => format!(
            r#"{{"type":"https://docs.rs/tower-orgkey/latest/tower_orgkey/rejection/index.html#{code}""#
        ),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        r#","title":"{title}","status":{status},"detail":"{detail}","code":"{code}""#,
        title = rejection.title(),
        status = rejection.status().as_u16(),
        detail = Escaped(rejection.detail()),
    );
    if let Some(scope) = rejection.required_scope() {
        // A scope-token has neither `"` nor `\` nor control characters.
        let _ = write!(body, r#","scope":"{scope}""#);
    }
    for (member, value) in [
        ("region", rejection.region()),
        ("base", rejection.region_base()),
    ] {
        if let Some(value) = value {
            let _ = write!(body, r#","{member}":"{}""#, Escaped(value));
        }
    }
    body.push('}');
    body.into()
}

/// Displays a text as the inside of a JSON string.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The response format of a layer.
#[derive(Clone, Debug)]
pub(crate) struct ResponseFormat<F> {
    pub(crate) respond: F,
    /// `None` for the default, so that cloning it costs no reference count.
    pub(crate) challenge: Option<Arc<Challenge>>,
}

impl<F> ResponseFormat<F> {
    /// Returns this format with the clone of `respond` for one request.
    #[inline]
    pub(crate) fn with(&self, respond: F) -> Self {
        Self {
            respond,
            challenge: self.challenge.clone(),
        }
    }

    pub(crate) fn vary(&self) -> Option<&HeaderValue> {
        self.challenge.as_ref()?.vary()
    }
}

/// Renders a rejection in the format of a layer.
pub(crate) fn render<B, F: RejectionResponse<B>>(
    format: &mut ResponseFormat<F>,
    mut rejection: Rejection,
) -> Response<B> {
    let mut response = format.respond.rejection_response(&rejection);
    let headers = response.headers_mut();
    let challenge = match &format.challenge {
        Some(challenge) => challenge.value(&rejection),
        None => default_challenge(&rejection),
    };
    if let Some(challenge) = challenge {
        add_missing(headers, WWW_AUTHENTICATE, challenge);
    }
    if let Some(wait) = rejection.retry_after() {
        let seconds = wait
            .as_secs()
            .saturating_add(u64::from(wait.subsec_nanos() > 0));
        add_missing(headers, RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    add_missing(headers, CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(vary) = format.vary() {
        add_vary(headers, vary);
    }
    rejection.is_rendered = true;
    response.extensions_mut().insert(rejection);
    response
}

/// Costs two thirds of `entry` and `or_insert`, and runs for every rejection of a flood of invalid keys.
fn add_missing(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value);
    }
}

fn default_challenge(rejection: &Rejection) -> Option<HeaderValue> {
    use std::sync::LazyLock;

    static DEFAULT: LazyLock<Challenge> = LazyLock::new(Challenge::default);
    DEFAULT.value(rejection)
}

/// The headers that describe a body which is replaced.
const BODY_HEADERS: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    CONTENT_ENCODING,
    TRANSFER_ENCODING,
    WWW_AUTHENTICATE,
    RETRY_AFTER,
];

/// Completes a response from beneath the layer: renders a rejection that is not rendered yet, and adds the headers for a
/// credential in a configured header.
pub(crate) fn complete<B, F: RejectionResponse<B>>(
    format: &mut ResponseFormat<F>,
    mut response: Response<B>,
) -> Response<B> {
    if let Some(rejection) = response.extensions().get::<Rejection>()
        && !rejection.is_rendered
    {
        let rejection = rejection.clone();
        let mut rendered = render(format, rejection);
        // Keeps the headers that middleware between the guard and this layer added, except those about the replaced body.
        let mut kept = std::mem::take(response.headers_mut());
        for name in BODY_HEADERS {
            kept.remove(name);
        }
        merge(rendered.headers_mut(), kept);
        return rendered;
    }
    if let Some(vary) = format.vary() {
        let headers = response.headers_mut();
        add_vary(headers, vary);
        add_missing(headers, CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    response
}

/// Adds the headers that are missing. `Vary` is a list, so its values are combined.
fn merge(into: &mut HeaderMap, from: HeaderMap) {
    let mut current = None;
    for (name, value) in from {
        // `IntoIter` returns the name with the first value of a header only.
        if let Some(name) = name {
            current = (name == VARY || !into.contains_key(&name)).then_some(name);
        }
        match &current {
            Some(name) if name == VARY => add_vary(into, &value),
            Some(name) => {
                into.append(name.clone(), value);
            }
            None => {}
        }
    }
}

/// Adds the names that `Vary` does not list yet.
fn add_vary(headers: &mut HeaderMap, names: &HeaderValue) {
    for name in list(names) {
        let is_listed = |value| list(value).any(|listed| listed.eq_ignore_ascii_case(name));
        if headers.get_all(VARY).iter().any(is_listed) {
            continue;
        }
        if name.len() == names.len() {
            headers.append(VARY, names.clone());
        } else if let Ok(name) = HeaderValue::from_bytes(name) {
            headers.append(VARY, name);
        }
    }
}

fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
}

#[cfg(feature = "axum")]
impl axum::response::IntoResponse for Rejection {
    /// Renders in the default format. An outer layer replaces it by its own.
    fn into_response(self) -> axum::response::Response {
        replaceable(DefaultRejectionResponse, self)
    }
}

/// Returns an empty response with the headers of a rejection. The layer around it renders it again.
pub(crate) fn unrendered<B: RejectionBody>(rejection: Rejection) -> Response<B> {
    replaceable(EmptyRejectionResponse, rejection)
}

/// Renders a rejection, and marks it so that the layer around it renders it again in its own format.
fn replaceable<B>(respond: impl RejectionResponse<B>, rejection: Rejection) -> Response<B> {
    let mut format = ResponseFormat {
        respond,
        challenge: None,
    };
    let mut response = render(&mut format, rejection);
    if let Some(rejection) = response.extensions_mut().get_mut::<Rejection>() {
        rejection.is_rendered = false;
    }
    response
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn rendered(rejection: Rejection) -> Response<Bytes> {
        replaceable(DefaultRejectionResponse, rejection)
    }

    #[test]
    fn kinds_are_listed_in_order() {
        for (at, kind) in RejectionKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }

    #[test]
    fn every_problem_is_documented_json() {
        let guide = include_str!("mod.rs");
        for kind in RejectionKind::KINDS {
            let mut rejection = Rejection::new(kind);
            if kind == RejectionKind::InsufficientScope {
                rejection = Rejection::insufficient_scope(["a:b", "not a\"scope", "!#[]"]);
                assert_eq!(rejection.required_scope(), Some("a:b !#[]"));
            }
            let body: serde_json::Value = serde_json::from_slice(&problem(&rejection)).unwrap();
            assert_eq!(body["status"], rejection.status().as_u16());
            assert_eq!(body["code"], rejection.code());
            assert!(
                guide.contains(&format!("//! ## {}\n", rejection.code())),
                "{kind:?}"
            );
            if kind != RejectionKind::Custom {
                let anchor = format!("#{}", rejection.code());
                assert!(body["type"].as_str().unwrap().ends_with(&anchor));
            }
            assert_eq!(body["title"], rejection.title());
            assert_eq!(body["detail"], rejection.detail());
            assert_eq!(body["scope"].as_str(), rejection.required_scope());
        }
    }

    #[test]
    fn custom_rejections_have_their_own_parts() {
        let detail = "line\none, \"two\" \\ \u{7f}\u{9b} ü";
        let rejection = Rejection::custom(StatusCode::CONFLICT, "no-seat-left", detail)
            .with_retry_after(std::time::Duration::from_secs(7));
        let response = rendered(rejection);
        assert_eq!(response.status(), 409);
        assert_eq!(response.headers()[RETRY_AFTER], "7");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Conflict", "status": 409, "detail": detail, "code": "no-seat-left",
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (wait, header) in [
            (0, "1"),
            (1, "1"),
            (1_000, "1"),
            (1_001, "2"),
            (30_000, "30"),
        ] {
            let rejection = Rejection::verifier_unavailable(std::time::Duration::from_millis(wait));
            let response = rendered(rejection);
            assert_eq!(response.headers()[RETRY_AFTER], header, "{wait} ms");
        }
    }

    #[test]
    fn vary_lists_each_name_once() {
        let name = HeaderName::from_static("x-api-key");
        let challenge = Some(Arc::new(Challenge::custom("ApiKey", "api", &name).unwrap()));
        let mut format = ResponseFormat {
            respond: DefaultRejectionResponse,
            challenge,
        };
        let vary = |response: &Response<Bytes>| -> Vec<String> {
            let values = response.headers().get_all(VARY).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect()
        };
        for (beneath, expected) in [
            (&[][..], &["x-api-key"][..]),
            (&["X-API-Key"], &["X-API-Key"]),
            (&["origin, x-api-key"], &["origin, x-api-key"]),
            (
                &["x-api-key-2", "origin"],
                &["x-api-key-2", "origin", "x-api-key"],
            ),
        ] {
            let mut response = Response::new(Bytes::new());
            for &value in beneath {
                response
                    .headers_mut()
                    .append(VARY, HeaderValue::from_static(value));
            }
            let once = complete(&mut format, response);
            assert_eq!(vary(&once), expected);
            assert_eq!(vary(&complete(&mut format, once)), expected);
        }
        let mut beneath: Response<Bytes> = unrendered(Rejection::invalid_token());
        beneath
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("origin, X-Api-Key"));
        assert_eq!(
            vary(&complete(&mut format, beneath)),
            ["x-api-key", "origin"]
        );
    }

    #[test]
    fn headers_added_above_a_guard_are_kept() {
        let mut beneath: Response<Bytes> = unrendered(Rejection::insufficient_scope(["a"]));
        beneath
            .headers_mut()
            .insert("x-request-id", HeaderValue::from_static("7"));
        beneath
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut format = ResponseFormat {
            respond: |_: &Rejection| Response::new(Bytes::from_static(b"mine")),
            challenge: Some(Arc::new(Challenge::bearer("acme", None).unwrap())),
        };
        let completed = complete(&mut format, beneath);
        assert_eq!(completed.body(), "mine");
        assert_eq!(completed.headers()["x-request-id"], "7");
        assert!(!completed.headers().contains_key(CONTENT_ENCODING));
        assert!(!completed.headers().contains_key(CONTENT_TYPE));
        assert_eq!(
            completed.headers()[WWW_AUTHENTICATE],
            r#"Bearer realm="acme", error="insufficient_scope", scope="a""#
        );
        let mut outer = ResponseFormat {
            respond: |_: &Rejection| Response::new(Bytes::from_static(b"outer")),
            challenge: None,
        };
        assert_eq!(complete(&mut outer, completed).body(), "mine");
    }
}
