//! The `ext_authz` of Envoy over gRPC, and other implementations of its protocol.
//!
//! A response without a status allows the request, so each outcome has one constructor that sets all fields.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use prost::Message;
use tower_orgkey::grpc::GrpcRejectionResponse;
use tower_orgkey::rejection::RejectionResponse;
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{Rejection, RequestHead};

use super::proto::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue as Header, HeaderValueOption,
    HttpRequest, HttpResponse, HttpStatus, OkHttpResponse, Status,
};
use super::{Incomplete, Outcome};
use crate::gateway::identity::{absent, aliases, is_reserved, present};

pub(in crate::gateway) const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The most bytes that a check request may have. Envoy accepts 60 KiB of headers from a client, and sends some of them twice.
pub(in crate::gateway) const MAX_LEN: usize = 256 * 1_024;

/// The key of `context_extensions` with the scopes of a route of Envoy, separated by spaces.
const SCOPE: &str = "scope";

/// How long before the end of Envoy's deadline a response is sent.
const MARGIN: Duration = Duration::from_millis(50);

const STATUS: &str = "grpc-status";
const DETAILS: &str = "grpc-status-details-bin";

/// The status of a denial without another one.
const INTERNAL: i32 = 13;

/// The `append_action` that replaces a header or adds it.
const OVERWRITE_IF_EXISTS_OR_ADD: i32 = 2;

/// The original request, as Envoy describes it.
#[derive(Debug)]
pub(in crate::gateway) struct GrpcCheck {
    pub(in crate::gateway) method: Method,
    pub(in crate::gateway) target: String,
    pub(in crate::gateway) host: String,
    /// The headers that the layers read.
    pub(in crate::gateway) headers: HeaderMap,
    /// The scopes that the configuration of Envoy demands, all of them.
    pub(in crate::gateway) scopes: Option<ScopePolicy>,
    /// What the response depends on.
    pub(in crate::gateway) about: About,
}

/// What a response depends on beside the decision.
#[derive(Debug, Default)]
pub(in crate::gateway) struct About {
    /// The client's headers that could be read as an identity.
    reserved: Vec<String>,
    /// Whether the client speaks gRPC.
    is_grpc: bool,
}

/// Reads a check request from the body of a call. `reads` says which headers are kept.
pub(in crate::gateway) fn read(
    body: &[u8],
    reads: impl Fn(&HeaderName) -> bool,
) -> Result<GrpcCheck, Incomplete> {
    let message = match body {
        // Not compressed, and one message.
        [0, a, b, c, d, message @ ..]
            if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() =>
        {
            message
        }
        _ => return Err(Incomplete("message")),
    };
    let request = CheckRequest::decode(message).map_err(|_| Incomplete("message"))?;
    let attributes = request.attributes.ok_or(Incomplete("attributes"))?;
    let scopes = attributes.context_extensions.get(SCOPE).map(|names| {
        let names = names.split_ascii_whitespace();
        ScopePolicy::try_new([names]).map_err(|_| Incomplete("context_extensions.scope"))
    });
    let scopes = scopes.transpose()?;
    let http = attributes
        .request
        .and_then(|request| request.http)
        .ok_or(Incomplete("attributes.request.http"))?;
    let HttpRequest {
        method,
        headers,
        path,
        host,
        header_map,
    } = http;
    let method = method.parse().map_err(|_| Incomplete("method"))?;
    if path.is_empty() {
        return Err(Incomplete("path"));
    }
    let raw = header_map.into_iter().flat_map(|map| map.headers);
    let raw = raw.map(|header| {
        let value = if header.raw_value.is_empty() {
            header.value.into_bytes()
        } else {
            header.raw_value
        };
        (header.key, value)
    });
    let joined = headers
        .into_iter()
        .map(|(name, value)| (name, value.into_bytes()));
    let mut kept = HeaderMap::new();
    let mut about = About::default();
    for (name, value) in joined.chain(raw) {
        let name = name.to_ascii_lowercase();
        if is_reserved(&name) {
            about.reserved.push(name);
            continue;
        }
        let Ok(name) = HeaderName::try_from(name) else {
            continue;
        };
        if name == CONTENT_TYPE {
            about.is_grpc = value.starts_with(b"application/grpc");
        }
        if reads(&name) {
            // A key outside the grammar of headers is not a key: an empty one is rejected as malformed.
            let value = HeaderValue::from_maybe_shared(Bytes::from(value));
            kept.append(name, value.unwrap_or(HeaderValue::from_static("")));
        }
    }
    Ok(GrpcCheck {
        method,
        target: path,
        host,
        headers: kept,
        scopes,
        about,
    })
}

/// Returns how long the caller waits, less the time that a response takes.
pub(in crate::gateway) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.saturating_sub(MARGIN.min(timeout / 4)))
}

/// Returns the frame that responds to a check request. `key_header` is the header with the key, if services must not get it.
pub(in crate::gateway) fn response(
    outcome: Outcome,
    about: &About,
    key_header: Option<&HeaderName>,
) -> Bytes {
    let response = match outcome {
        Outcome::Allowed(headers) => {
            let present: Vec<_> = present(&headers).collect();
            let set = present
                .iter()
                .filter_map(|(name, value)| Some(header(name.as_str(), value.to_str().ok()?)))
                .collect();
            let is_set = |name: &String| present.iter().any(|(set, _)| set.as_str() == name);
            let reserved = about.reserved.iter().filter(|name| !is_set(name)).cloned();
            let absent = absent(&headers).map(|name| name.as_str().to_owned());
            let key = key_header.map(|name| name.as_str().to_owned());
            CheckResponse {
                status: Some(Status { code: 0 }),
                http_response: Some(HttpResponse::Ok(OkHttpResponse {
                    headers: set,
                    headers_to_remove: reserved.chain(aliases()).chain(absent).chain(key).collect(),
                })),
            }
        }
        Outcome::Rejected(response) => denied(&response, about),
    };
    framed(&response)
}

fn denied(response: &Response<Bytes>, about: &About) -> CheckResponse {
    let status = response.status().as_u16();
    let rejection = response.extensions().get::<Rejection>();
    let rejection = rejection.cloned().unwrap_or_else(Rejection::internal);
    let of_grpc = grpc_headers(&rejection);
    let sent = response
        .headers()
        .iter()
        .filter(|(name, _)| **name != CONTENT_LENGTH && !(about.is_grpc && **name == CONTENT_TYPE));
    let mut headers: Vec<_> = sent
        .filter_map(|(name, value)| Some(header(name.as_str(), value.to_str().ok()?)))
        .collect();
    let body = if about.is_grpc {
        // Envoy would choose another code for 400 and 429.
        let sent = [STATUS, DETAILS].map(|name| Some((name, of_grpc.get(name)?.to_str().ok()?)));
        headers.extend(
            sent.into_iter()
                .flatten()
                .map(|(name, value)| header(name, value)),
        );
        // It becomes the message of the status.
        rejection.detail().to_owned()
    } else {
        String::from_utf8_lossy(response.body()).into_owned()
    };
    CheckResponse {
        status: Some(Status {
            code: grpc_code(&of_grpc),
        }),
        http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
            status: Some(HttpStatus {
                code: status.into(),
            }),
            headers,
            body,
        })),
    }
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(Header {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append_action: OVERWRITE_IF_EXISTS_OR_ADD,
    }
}

/// Returns the headers of a rejection for a caller of gRPC, as the layer sets them.
fn grpc_headers(rejection: &Rejection) -> HeaderMap {
    let mut request = Request::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert(CONTENT_TYPE, grpc);
    let mut format = GrpcRejectionResponse::new();
    RejectionResponse::<Bytes>::prepare(&mut format, RequestHead::of(&request));
    let response: Response<Bytes> = format.rejection_response(rejection);
    response.into_parts().0.headers
}

/// Returns the code of a status. Never OK, which would allow the request.
fn grpc_code(headers: &HeaderMap) -> i32 {
    let code = headers.get(STATUS).and_then(|code| code.to_str().ok());
    match code.and_then(|code| code.parse().ok()) {
        None | Some(0) => INTERNAL,
        Some(code) => code,
    }
}

fn framed(message: &CheckResponse) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + len);
    frame.put_u8(0);
    // The message holds what fits into headers.
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // A `BytesMut` grows, so there is always room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn deadline_is_before_the_callers() {
        let deadline_of = |text: &'static str| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static("grpc-timeout"),
                HeaderValue::from_static(text),
            )]);
            deadline(&headers)
        };
        assert_eq!(deadline_of("500m"), Some(Duration::from_millis(450)));
        assert_eq!(deadline_of("40m"), Some(Duration::from_millis(30)));
        assert_eq!(deadline_of("3S"), Some(Duration::from_millis(2_950)));
        for text in ["", "m", "5", "-1m", "123456789m", "1x", "1.5S"] {
            assert_eq!(deadline_of(text), None, "{text}");
        }
    }

    #[test]
    fn only_one_plain_message_is_read() {
        for body in [
            &b""[..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 0, 0],
        ] {
            assert!(read(body, |_| true).is_err(), "{body:?}");
        }
    }

    #[test]
    fn no_rejection_has_the_status_ok() {
        for status in 100..=999 {
            let status = StatusCode::from_u16(status).unwrap();
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = status;
            if status.is_client_error() || status.is_server_error() {
                let rejection = Rejection::custom(status, "custom", "detail");
                response.extensions_mut().insert(rejection);
            }
            let denied = denied(&response, &About::default());
            assert_ne!(denied.status.unwrap().code, 0, "{status}");
        }
        let ok = HeaderMap::from_iter([(
            HeaderName::from_static(STATUS),
            HeaderValue::from_static("0"),
        )]);
        assert_eq!(grpc_code(&ok), INTERNAL);
    }
}
