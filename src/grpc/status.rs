//! The gRPC status of a rejection, in headers or trailers.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;
use prost_types::Any;

use crate::rejection::{Rejection, RejectionKind};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The domain of the reasons in `ErrorInfo`.
const DOMAIN: &str = "tower-orgkey";

/// Clients limit all metadata together, grpcio to 8 KiB. Longer texts are left out: the challenge has the scopes too.
const MAX_METADATA: usize = 2_048;

/// What a message must not contain unencoded, besides characters that are not ASCII: `Percent-Byte-Unencoded` of the gRPC
/// protocol.
const UNENCODABLE: &AsciiSet = &CONTROLS.add(b'%');

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// `google.rpc.QuotaFailure`.
#[derive(Clone, PartialEq, Message)]
struct QuotaFailure {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, Message)]
struct Violation {
    #[prost(string, tag = "1")]
    subject: String,
    #[prost(string, tag = "2")]
    description: String,
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: message.encode_to_vec(),
    }
}

/// Inserts the status of a rejection.
pub(super) fn insert(headers: &mut HeaderMap, rejection: &Rejection) {
    let code = code(rejection);
    let detail = rejection.detail();
    let message = if detail.len() > MAX_METADATA {
        rejection.title()
    } else {
        detail
    };
    headers.insert(STATUS, HeaderValue::from(code));
    let encoded = utf8_percent_encode(message, UNENCODABLE).to_string();
    if let Ok(message) = HeaderValue::try_from(encoded) {
        headers.insert(MESSAGE, message);
    }
    let status = Status {
        code: code.into(),
        message: message.to_owned(),
        details: details(rejection),
    };
    if let Ok(details) = HeaderValue::try_from(STANDARD_NO_PAD.encode(status.encode_to_vec())) {
        headers.insert(DETAILS, details);
    }
}

fn details(rejection: &Rejection) -> Vec<Any> {
    let mut info = ErrorInfo {
        // AIP-193: upper case, at most 63 characters.
        reason: rejection.code().to_ascii_uppercase().replace('-', "_"),
        domain: DOMAIN.to_owned(),
        metadata: HashMap::new(),
    };
    if let Some(scope) = rejection.required_scope()
        && scope.len() <= MAX_METADATA
    {
        info.metadata.insert("scope".to_owned(), scope.to_owned());
    }
    for (name, value) in [
        ("region", rejection.region()),
        ("base", rejection.region_base()),
    ] {
        if let Some(value) = value.filter(|value| value.len() <= MAX_METADATA) {
            info.metadata.insert(name.to_owned(), value.to_owned());
        }
    }
    let mut details = vec![any("ErrorInfo", &info)];
    if let Some(wait) = rejection.retry_after() {
        let info = RetryInfo {
            retry_delay: Some(delay(wait)),
        };
        details.push(any("RetryInfo", &info));
    }
    if let RejectionKind::RateLimited | RejectionKind::ConcurrencyLimited = rejection.kind() {
        let violation = Violation {
            subject: "organization".to_owned(),
            description: rejection.detail().to_owned(),
        };
        let violations = vec![violation];
        details.push(any("QuotaFailure", &QuotaFailure { violations }));
    }
    details
}

fn delay(wait: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(wait.subsec_nanos()).unwrap_or(0),
    }
}

/// The codes are those of `google.rpc.Code`.
fn code(rejection: &Rejection) -> u16 {
    match rejection.kind() {
        RejectionKind::CredentialMissing
        | RejectionKind::CredentialMalformed
        | RejectionKind::InvalidToken => 16,
        RejectionKind::OrganizationRequired
        | RejectionKind::InsufficientScope
        | RejectionKind::OrganizationMismatch => 7,
        RejectionKind::NotFound => 5,
        RejectionKind::WrongRegion => 9,
        RejectionKind::RateLimited | RejectionKind::ConcurrencyLimited => 8,
        RejectionKind::RegionUnknown
        | RejectionKind::VerifierUnavailable
        | RejectionKind::VerifierMisconfigured
        | RejectionKind::SettingsUnavailable => 14,
        RejectionKind::Internal => 13,
        RejectionKind::Custom => code_of_status(rejection.status()),
    }
}

fn code_of_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 3,
        401 => 16,
        403 => 7,
        404 => 5,
        409 => 10,
        412 | 421 => 9,
        429 => 8,
        501 => 12,
        503 => 14,
        504 => 4,
        500..=599 => 13,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(rejection: &Rejection) -> (HeaderMap, Status) {
        let mut headers = HeaderMap::new();
        insert(&mut headers, rejection);
        let details = STANDARD_NO_PAD.decode(&headers[DETAILS]).unwrap();
        let status = Status::decode(&*details).unwrap();
        (headers, status)
    }

    fn detail<M: Message + Default>(status: &Status, name: &str) -> Option<M> {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        let any = status.details.iter().find(|any| any.type_url == url)?;
        Some(M::decode(&*any.value).unwrap())
    }

    #[test]
    fn every_kind_has_an_error_with_the_same_code() {
        for kind in RejectionKind::ALL {
            let rejection = Rejection::new(*kind);
            let (headers, status) = status_of(&rejection);
            assert_eq!(headers[STATUS], status.code.to_string());
            assert!(![0, 1].contains(&status.code), "{kind:?}");
            let info: ErrorInfo = detail(&status, "ErrorInfo").unwrap();
            assert!(info.reason.len() <= 63, "{kind:?}");
            assert_eq!(
                info.reason.to_lowercase().replace('_', "-"),
                rejection.code()
            );
            assert_eq!(status.message, rejection.detail());
        }
    }

    #[test]
    fn details_name_scopes_waits_and_quotas() {
        let (_, status) = status_of(&Rejection::insufficient_scope(["a:b", "c"]));
        let info: ErrorInfo = detail(&status, "ErrorInfo").unwrap();
        assert_eq!(info.metadata["scope"], "a:b c");
        assert_eq!(detail::<QuotaFailure>(&status, "QuotaFailure"), None);

        let (_, status) = status_of(&Rejection::rate_limited(Duration::from_millis(1_500)));
        let wait: RetryInfo = detail(&status, "RetryInfo").unwrap();
        let wait = wait.retry_delay.unwrap();
        assert_eq!((wait.seconds, wait.nanos), (1, 500_000_000));
        let quota: QuotaFailure = detail(&status, "QuotaFailure").unwrap();
        assert_eq!(quota.violations.len(), 1);
    }

    #[test]
    fn any_detail_is_a_header() {
        let hostile = "100 %\r\ngrpc-status: 0\u{7f} ü";
        let rejection = Rejection::custom(StatusCode::CONFLICT, "no-seat-left", hostile);
        let (headers, status) = status_of(&rejection);
        assert_eq!(headers[STATUS], "10");
        assert_eq!(headers[MESSAGE], "100 %25%0D%0Agrpc-status: 0%7F %C3%BC");
        assert_eq!(status.message, hostile);
        let long = Rejection::custom(StatusCode::CONFLICT, "no-seat-left", "x".repeat(100_000));
        let (headers, _) = status_of(&long);
        assert_eq!(headers[MESSAGE], "Conflict");
        assert!(headers[DETAILS].len() < 4_096);
    }

    #[test]
    fn long_scopes_are_left_out() {
        let long: Vec<String> = (0..1_000).map(|n| format!("scope:{n}")).collect();
        let (headers, _) = status_of(&Rejection::insufficient_scope(&long));
        assert!(headers[DETAILS].len() < 4_096);
    }
}
