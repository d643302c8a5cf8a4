//! From a [`Rejection`] to a response: the default face, the user's own, and who puts it on.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, TRANSFER_ENCODING, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response};

use super::{Rejection, RejectionKind, Style};

/// Makes the response to a refused request.
///
/// Functions `FnMut(&Rejection) -> Response<B> + Clone` are rejection responses. What a refusal must carry is added where
/// the function left it out: the challenge, `Retry-After`, and `Cache-Control: no-store`.
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
pub trait RejectionResponse<B> {
    /// The response.
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B>;
}

impl<B, F> RejectionResponse<B> for F
where
    F: FnMut(&Rejection) -> Response<B> + Clone,
{
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        self(rejection)
    }
}

/// The default [`RejectionResponse`]: `application/problem+json` (RFC 9457), for every body that is made `From<Bytes>`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DefaultRejectionResponse;

impl<B: From<Bytes>> RejectionResponse<B> for DefaultRejectionResponse {
    fn rejection_response(&mut self, rejection: &Rejection) -> Response<B> {
        let mut response = Response::new(B::from(problem(rejection)));
        *response.status_mut() = rejection.status();
        // Room for what is added to it as well.
        *response.headers_mut() = HeaderMap::with_capacity(4);
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

/// The problem document.
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
    body.push('}');
    body.into()
}

/// A text as the inside of a JSON string.
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

/// A layer's way to refuse: whose function makes the response, and in what words it challenges.
#[derive(Clone, Debug)]
pub(crate) struct Face<F> {
    pub(crate) respond: F,
    /// `None` stands for the default, which then costs a request not even a reference count.
    pub(crate) style: Option<Arc<Style>>,
}

impl<F> Face<F> {
    pub(crate) fn vary(&self) -> Option<&HeaderValue> {
        self.style.as_ref()?.vary()
    }
}

/// The response of a layer that refuses.
pub(crate) fn render<B, F: RejectionResponse<B>>(
    face: &mut Face<F>,
    mut rejection: Rejection,
) -> Response<B> {
    let mut response = face.respond.rejection_response(&rejection);
    let headers = response.headers_mut();
    let challenge = match &face.style {
        Some(style) => style.challenge(&rejection),
        None => default_challenge(&rejection),
    };
    if let Some(challenge) = challenge {
        add_missing(headers, WWW_AUTHENTICATE, challenge);
    }
    if let Some(wait) = rejection.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        add_missing(headers, RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    add_missing(headers, CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(vary) = face.vary() {
        add_vary(headers, vary);
    }
    rejection.dressed = true;
    response.extensions_mut().insert(rejection);
    response
}

/// As `entry` and `or_insert` would, at two thirds of their price: every refusal of a flood of junk comes by here.
fn add_missing(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value);
    }
}

fn default_challenge(rejection: &Rejection) -> Option<HeaderValue> {
    use std::sync::LazyLock;

    static DEFAULT: LazyLock<Style> = LazyLock::new(Style::default);
    DEFAULT.challenge(rejection)
}

/// What described the body that a layer's own face replaces.
const OF_THE_BODY: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    CONTENT_ENCODING,
    TRANSFER_ENCODING,
    WWW_AUTHENTICATE,
    RETRY_AFTER,
];

/// Gives a response from beneath the layer what the layer owes it: its own face, if it is a refusal that wears none yet,
/// and the headers of a credential that stands in a header of the user's own.
pub(crate) fn dress<B, F: RejectionResponse<B>>(
    face: &mut Face<F>,
    mut response: Response<B>,
) -> Response<B> {
    if let Some(rejection) = response.extensions().get::<Rejection>()
        && !rejection.dressed
    {
        let rejection = rejection.clone();
        let mut refused = render(face, rejection);
        // What middleware between the guard and this layer added stays, except what described the body that goes.
        let mut kept = std::mem::take(response.headers_mut());
        for name in OF_THE_BODY {
            kept.remove(name);
        }
        merge(refused.headers_mut(), kept);
        return refused;
    }
    if let Some(vary) = face.vary() {
        let headers = response.headers_mut();
        add_vary(headers, vary);
        add_missing(headers, CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    response
}

/// Adds the names that are not there yet. `Vary` is a list, so both say their part.
fn merge(into: &mut HeaderMap, from: HeaderMap) {
    let mut current = None;
    for (name, value) in from {
        // `IntoIter` names a header once, before the first of its values.
        if let Some(name) = name {
            current = (name == VARY || !into.contains_key(&name)).then_some(name);
        }
        if let Some(name) = &current {
            into.append(name.clone(), value);
        }
    }
}

fn add_vary(headers: &mut HeaderMap, value: &HeaderValue) {
    headers.append(VARY, value.clone());
}

#[cfg(feature = "axum")]
impl axum::response::IntoResponse for Rejection {
    /// The default face. A layer further out puts on its own.
    fn into_response(self) -> axum::response::Response {
        undressed(self)
    }
}

/// The response of a guard: complete in itself, and marked for the layer to put its own face on.
pub(crate) fn undressed<B: From<Bytes>>(rejection: Rejection) -> Response<B> {
    let mut face = Face {
        respond: DefaultRejectionResponse,
        style: None,
    };
    let mut response = render(&mut face, rejection);
    if let Some(rejection) = response.extensions_mut().get_mut::<Rejection>() {
        rejection.dressed = false;
    }
    response
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn every_kind_is_at_its_own_place_in_the_list() {
        for (at, kind) in RejectionKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }

    #[test]
    fn every_problem_is_json_with_the_members_of_rfc_9457_and_an_anchor_in_the_guide() {
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
        let response: Response<Bytes> = undressed(rejection);
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
            let response: Response<Bytes> = undressed(rejection);
            assert_eq!(response.headers()[RETRY_AFTER], header, "{wait} ms");
        }
    }

    #[test]
    fn a_layer_keeps_what_stood_between_it_and_the_guard() {
        let mut beneath: Response<Bytes> = undressed(Rejection::insufficient_scope(["a"]));
        beneath
            .headers_mut()
            .insert("x-request-id", HeaderValue::from_static("7"));
        beneath
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut face = Face {
            respond: |_: &Rejection| Response::new(Bytes::from_static(b"mine")),
            style: Some(Arc::new(Style::bearer("acme").unwrap())),
        };
        let dressed = dress(&mut face, beneath);
        assert_eq!(dressed.body(), "mine");
        assert_eq!(dressed.headers()["x-request-id"], "7");
        assert!(!dressed.headers().contains_key(CONTENT_ENCODING));
        assert!(!dressed.headers().contains_key(CONTENT_TYPE));
        assert_eq!(
            dressed.headers()[WWW_AUTHENTICATE],
            r#"Bearer realm="acme", error="insufficient_scope", scope="a""#
        );
        let mut outer = Face {
            respond: |_: &Rejection| Response::new(Bytes::from_static(b"outer")),
            style: None,
        };
        assert_eq!(dress(&mut outer, dressed).body(), "mine");
    }
}
