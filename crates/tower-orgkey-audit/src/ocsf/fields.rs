//! The fields, in the order in which they are written.

use std::collections::BTreeMap;

use serde::Serialize;

/// The fields of all classes.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    pub(super) activity_id: u32,
    pub(super) activity_name: &'a str,
    pub(super) category_uid: u32,
    pub(super) category_name: &'static str,
    pub(super) class_uid: u32,
    pub(super) class_name: &'static str,
    pub(super) type_uid: u32,
    pub(super) type_name: String,
    pub(super) time: u64,
    pub(super) start_time: u64,
    pub(super) end_time: u64,
    pub(super) severity_id: u32,
    pub(super) severity: &'static str,
    pub(super) status_id: u32,
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_detail: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<u64>,
    pub(super) metadata: Metadata<'a>,
    #[serde(flatten)]
    pub(super) rest: Rest<'a>,
}

#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    pub(super) version: &'static str,
    pub(super) product: Product,
    pub(super) profiles: [&'static str; 1],
    pub(super) log_name: &'static str,
    pub(super) uid: String,
    pub(super) sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation_uid: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Product {
    pub(super) name: &'static str,
    pub(super) vendor_name: &'static str,
    pub(super) version: &'static str,
}

/// The other fields of a class.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Rest<'a> {
    Request(Box<RequestFields<'a>>),
    Suppressed {
        user: User<'a>,
        service: Named<'a>,
        unmapped: ByCode,
    },
    Lost {
        log_name: &'static str,
    },
}

#[derive(Serialize)]
pub(super) struct ByCode {
    pub(super) by_code: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
pub(super) struct RequestFields<'a> {
    pub(super) duration: u64,
    pub(super) action_id: u32,
    pub(super) action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) authorizations: Vec<Authorization<'a>>,
    #[serde(flatten)]
    pub(super) subject: Subject<'a>,
    pub(super) src_endpoint: Endpoint,
    pub(super) http_request: HttpRequest<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_response: Option<HttpResponse>,
    #[serde(skip_serializing_if = "Unmapped::is_empty")]
    pub(super) unmapped: Unmapped<'a>,
}

/// Who made the request: each class has other fields.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Subject<'a> {
    ApiActivity {
        actor: Actor<'a>,
        api: Api<'a>,
    },
    Authentication {
        user: User<'a>,
        service: Named<'a>,
        auth_protocol_id: u32,
        auth_protocol: &'static str,
        logon_type_id: u32,
        logon_type: &'static str,
        is_remote: bool,
    },
}

#[derive(Serialize)]
pub(super) struct Actor<'a> {
    pub(super) user: User<'a>,
}

#[derive(Serialize)]
pub(super) struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) type_id: u32,
    pub(super) r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) org: Option<Organization<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) programmatic_credentials: Option<[Credential<'a>; 1]>,
}

#[derive(Serialize)]
pub(super) struct Organization<'a> {
    pub(super) uid: &'a str,
}

#[derive(Serialize)]
pub(super) struct Credential<'a> {
    pub(super) uid: &'a str,
    pub(super) r#type: &'static str,
}

#[derive(Serialize)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
}

#[derive(Serialize)]
pub(super) struct Authorization<'a> {
    pub(super) decision: &'static str,
    pub(super) policy: Policy<'a>,
}

#[derive(Serialize)]
pub(super) struct Policy<'a> {
    pub(super) r#type: &'static str,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Alternatives<'a>>,
}

#[derive(Serialize)]
pub(super) struct Alternatives<'a> {
    pub(super) any_of: Vec<Vec<&'a str>>,
}

#[derive(Serialize)]
pub(super) struct Api<'a> {
    pub(super) operation: String,
    pub(super) service: Named<'a>,
    pub(super) request: Uid<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response: Option<ApiResponse>,
}

#[derive(Serialize)]
pub(super) struct Uid<'a> {
    pub(super) uid: &'a str,
}

#[derive(Serialize)]
pub(super) struct ApiResponse {
    pub(super) code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_message: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct Endpoint {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    /// The schema requires `ip` or `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct HttpRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_method: Option<&'a str>,
    pub(super) uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Url<'a>>,
}

#[derive(Serialize)]
pub(super) struct Url<'a> {
    pub(super) path: &'a str,
}

#[derive(Serialize)]
pub(super) struct HttpResponse {
    pub(super) code: u16,
    pub(super) latency: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_length: Option<u64>,
}

#[derive(Default, PartialEq, Serialize)]
pub(super) struct Unmapped<'a> {
    /// Where the class has no `api`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operation: Option<String>,
    /// A method that the schema does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http_method: Option<&'a str>,
    /// What an operator changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stale: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_end: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_duration: Option<u64>,
}

impl Unmapped<'_> {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
