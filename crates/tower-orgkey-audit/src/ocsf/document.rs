//! The fields of an event.

use std::io::Write as _;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};

use super::classification::{Caption, Class, Classification};
use super::json::{Field, Json};
use crate::event::{
    Actor, AuditEvent, AuditEventKind, AuditedRequest, Body, BodyEnd, LostEvents, Period,
    SuppressedRejections,
};
use tower_orgkey::Rejection;
use tower_orgkey::observer::Requirements;

/// The constant beginnings of the events of requests, at the index of their classification.
static BEGINNINGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    Classification::all()
        .map(|classification| {
            let action = classification.action();
            beginning(
                classification.class,
                classification.activity(),
                classification.status(),
                classification.severity(),
                &format!(r#""action_id":{},"action":"{}","#, action.0, action.1),
            )
        })
        .collect()
});

/// The fields that follow from the class, and those of `metadata` up to its `uid`. `activity_name` is missing for "other": the
/// source names it.
fn beginning(
    class: Class,
    activity: Caption,
    status: Caption,
    severity: Caption,
    more: &str,
) -> String {
    let category = class.category();
    let (type_name, activity_name) = match activity.0 {
        Caption::OTHER => ("Other", String::new()),
        _ => (activity.1, format!(r#""activity_name":"{}","#, activity.1)),
    };
    format!(
        concat!(
            r#"{{"activity_id":{},{}"category_uid":{},"category_name":"{}","class_uid":{},"class_name":"{}","#,
            r#""type_uid":{},"type_name":"{}: {}","severity_id":{},"severity":"{}","status_id":{},"status":"{}",{}"#,
            // The profile that has `action` and `authorizations`.
            r#""metadata":{{"version":"1.8.0","profiles":["security_control"],"log_name":"audit","product":{{"#,
            r#""name":"tower-orgkey","vendor_name":"tower-orgkey","version":"{}"}},"uid":""#,
        ),
        activity.0,
        activity_name,
        category.0,
        category.1,
        class.uid(),
        class.name(),
        class.uid() * 100 + activity.0,
        class.name(),
        type_name,
        severity.0,
        severity.1,
        status.0,
        status.1,
        more,
        env!("CARGO_PKG_VERSION"),
    )
}

impl AuditEvent {
    /// Appends the event as a JSON object of OCSF 1.8.0 on one line, without a line feed. See the [fields](crate#fields).
    ///
    /// Serializing the event by `serde` gives the same document at several times the cost.
    ///
    /// ```
    /// # use tower_orgkey_audit::AuditEvent;
    /// fn lines(events: &[AuditEvent]) -> Vec<u8> {
    ///     let mut lines = Vec::new();
    ///     for event in events {
    ///         event.write_json(&mut lines);
    ///         lines.push(b'\n');
    ///     }
    ///     lines
    /// }
    /// ```
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.write(&mut Json::new(out));
    }

    pub(super) fn write(&self, json: &mut Json<'_>) {
        match &self.kind {
            AuditEventKind::Request(request) => self.request_document(json, request),
            AuditEventKind::Suppressed(suppressed) => self.suppressed_document(json, suppressed),
            AuditEventKind::Lost(lost) => self.lost_document(json, lost),
        }
        json.raw("}");
    }

    fn request_document(&self, json: &mut Json<'_>, request: &AuditedRequest) {
        let classification = Classification::of(request);
        let class = classification.class;
        json.raw(&BEGINNINGS[classification.index()]);
        self.metadata(json);
        request_id(json, r#","correlation_uid":""#, request);
        json.raw("},");
        if classification.activity().0 == Caption::OTHER {
            json.raw(r#""activity_name":""#);
            json.raw(request.method.as_str());
            json.raw(r#"","#);
        }
        let (since, until) = span(request);
        period(json, since, until);
        json.raw(r#","duration":"#);
        let duration = json.field(Field::Duration, |json| {
            json.number(millis(request.duration))
        });
        json.raw(r#","status_code":""#);
        json.raw(request.code());
        if let Some(rejection) = request.rejection() {
            json.raw(r#"","status_detail":""#);
            json.text(rejection.title());
        }
        json.raw(r#"","src_endpoint":{"#);
        json.field(Field::Endpoint, |json| endpoint(json, request));
        json.raw(r#"},"http_request":{"#);
        http_request(json, request);
        json.raw("}");
        if let Some(status) = request.status {
            json.raw(r#","http_response":{"code":"#);
            json.raw(status.as_str());
            json.raw(r#","latency":"#);
            json.field(Field::Duration, |json| json.again(duration));
            if let Some(body) = request.body {
                json.raw(r#","body_length":"#);
                json.field(Field::BodyLength, |json| json.number(body.bytes));
            }
            json.raw("}");
        }
        authorizations(json, &request.requirements);
        self.subject(json, request, class);
        unmapped(json, request, class);
    }

    fn suppressed_document(&self, json: &mut Json<'_>, suppressed: &SuppressedRejections) {
        self.count_document(
            json,
            &beginning(
                Class::Authentication,
                Caption::LOGON,
                Caption::FAILURE,
                Caption(2, "Low"),
                "",
            ),
            suppressed.period,
            "rejected requests without an event",
            suppressed.count(),
        );
        json.raw(r#","user":"#);
        user(json, &Actor::Unknown);
        self.service(json);
        json.raw(r#","unmapped":{"by_code":"#);
        let mut separator = r#"{""#;
        for (code, count) in suppressed.by_code() {
            json.raw(separator);
            json.raw(code);
            json.raw("\":");
            json.number(count);
            separator = r#",""#;
        }
        json.raw("}}");
    }

    fn lost_document(&self, json: &mut Json<'_>, lost: &LostEvents) {
        self.count_document(
            json,
            &beginning(
                Class::EventLog,
                Caption(Caption::OTHER, "Lost"),
                Caption::FAILURE,
                Caption(4, "High"),
                "",
            ),
            lost.period,
            "lost audit events",
            lost.count,
        );
        json.raw(r#","activity_name":"Lost","log_name":"audit""#);
    }

    /// The fields of an event that reports a count. `message` is plain.
    fn count_document(
        &self,
        json: &mut Json<'_>,
        beginning: &str,
        of: Period,
        message: &str,
        count: u64,
    ) {
        json.raw(beginning);
        self.metadata(json);
        json.raw("},");
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        period(json, since_epoch(of.since), since_epoch(of.until));
        json.raw(r#","message":""#);
        json.raw(message);
        json.raw(r#"","count":"#);
        json.number(count);
    }

    /// The rest of `metadata`, without its brace.
    fn metadata(&self, json: &mut Json<'_>) {
        json.raw(self.uid_start());
        let sequence = json.field(Field::Sequence, |json| json.number(self.sequence));
        json.raw(r#"","sequence":"#);
        json.field(Field::Sequence, |json| json.again(sequence));
    }

    fn service(&self, json: &mut Json<'_>) {
        json.raw(r#","service":{"name":"#);
        json.raw(self.service_json());
        json.raw("}");
    }

    /// Who made the request, and of what: each class has other fields.
    fn subject(&self, json: &mut Json<'_>, request: &AuditedRequest, class: Class) {
        match class {
            Class::Authentication => {
                json.raw(r#","user":"#);
                json.field(Field::User, |json| user(json, &request.actor));
                self.service(json);
                json.raw(concat!(
                    r#","auth_protocol_id":99,"auth_protocol":"API key","#,
                    r#""logon_type_id":3,"logon_type":"Network","is_remote":true"#,
                ));
            }
            Class::ApiActivity | Class::EventLog => {
                json.raw(r#","actor":{"user":"#);
                json.field(Field::User, |json| user(json, &request.actor));
                json.raw(r#"},"api":{"operation":""#);
                operation(json, request);
                json.raw("\"");
                self.service(json);
                if request.request_id.is_some() {
                    request_id(json, r#","request":{"uid":""#, request);
                    json.raw("}");
                }
                if let Some(status) = request.status {
                    response(json, status, request.rejection());
                }
                json.raw("}");
            }
        }
    }
}

/// The id of the request, if it has one, after `label`, which ends with a quote.
fn request_id(json: &mut Json<'_>, label: &str, request: &AuditedRequest) {
    if let Some(id) = request.request_id() {
        json.raw(label);
        json.field(Field::RequestId, |json| json.text(id));
        json.raw("\"");
    }
}

/// The contents of `http_request`.
fn http_request(json: &mut Json<'_>, request: &AuditedRequest) {
    request_id(json, r#""uid":""#, request);
    let mut separator = if request.request_id.is_some() {
        ","
    } else {
        ""
    };
    if is_listed(&request.method) {
        json.raw(separator);
        json.raw(r#""http_method":""#);
        json.raw(request.method.as_str());
        json.raw("\"");
        separator = ",";
    }
    if let Some(path) = request.path() {
        json.raw(separator);
        json.raw(r#""url":{"path":""#);
        json.text(path);
        json.raw(r#""}"#);
    }
}

/// Both since the Unix epoch.
fn period(json: &mut Json<'_>, since: Duration, until: Duration) {
    json.raw(r#""time":"#);
    let since = json.field(Field::Time, |json| json.number(millis(since)));
    json.raw(r#","start_time":"#);
    json.field(Field::Time, |json| json.again(since));
    json.raw(r#","end_time":"#);
    json.field(Field::EndTime, |json| json.number(millis(until)));
}

/// From the arrival to the head of the response, since the Unix epoch.
pub(super) fn span(request: &AuditedRequest) -> (Duration, Duration) {
    // A clock before 1970 is not set.
    let since = request.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since, since.saturating_add(request.duration))
}

fn response(json: &mut Json<'_>, status: StatusCode, rejection: Option<&Rejection>) {
    json.raw(r#","response":{"code":"#);
    json.raw(status.as_str());
    if let Some(rejection) = rejection {
        json.raw(r#","error":""#);
        json.raw(rejection.code());
        json.raw(r#"","error_message":""#);
        json.text(rejection.title());
        json.raw("\"");
    }
    json.raw("}");
}

pub(super) fn user(json: &mut Json<'_>, actor: &Actor) {
    match actor {
        Actor::Unknown | Actor::OtherCredential => {
            json.raw(r#"{"name":"unknown","type_id":0,"type":"Unknown"}"#);
        }
        Actor::Anonymous => json.raw(r#"{"name":"anonymous","type_id":0,"type":"Unknown"}"#),
        Actor::Operator { .. } => json.raw(r#"{"name":"operator","type_id":2,"type":"Admin"}"#),
        Actor::Organization {
            org,
            key_id,
            user_id,
            ..
        } => {
            let key_id = key_id.as_ref().map(AsRef::as_ref);
            json.raw(match user_id.as_deref().or(key_id) {
                Some(_) => r#"{"uid":""#,
                // The schema wants one or the other.
                None => r#"{"name":""#,
            });
            let written = json.text(user_id.as_deref().or(key_id).unwrap_or(org.as_str()));
            json.raw(match user_id {
                Some(_) => r#"","type_id":1,"type":"User","org":{"uid":""#,
                None => r#"","type_id":4,"type":"Service","org":{"uid":""#,
            });
            json.text(org.as_str());
            if let Some(key_id) = key_id {
                json.raw(r#""},"programmatic_credentials":[{"type":"API Key","uid":""#);
                if user_id.is_some() {
                    json.text(key_id);
                } else {
                    json.again(written);
                }
                json.raw(r#""}]}"#);
            } else {
                json.raw(r#""}}"#);
            }
        }
    }
}

fn authorizations(json: &mut Json<'_>, requirements: &Requirements) {
    let mut separator = r#","authorizations":["#;
    for requirement in requirements.iter() {
        json.raw(separator);
        json.raw(if requirement.is_met() {
            r#"{"decision":"allowed","policy":{"#
        } else {
            r#"{"decision":"denied","policy":{"#
        });
        if let Some(any_of) = requirement.scope_alternatives() {
            scopes(json, any_of);
        } else {
            json.raw(r#""type":"Organization","name":""#);
            let parameter = requirement.organization_parameter();
            json.text(parameter.unwrap_or("organization"));
            json.raw("\"");
        }
        json.raw("}}");
        separator = ",";
    }
    if !requirements.is_empty() {
        json.raw("]");
    }
}

fn scopes<'a>(
    json: &mut Json<'_>,
    any_of: impl Iterator<Item = impl Iterator<Item = &'a str>> + Clone,
) {
    json.raw(r#""type":"Scope","name":""#);
    for (n, names) in any_of.clone().enumerate() {
        if n > 0 {
            json.raw(" | ");
        }
        for (n, name) in names.enumerate() {
            if n > 0 {
                json.raw(" ");
            }
            json.text(name);
        }
    }
    json.raw(r#"","data":{"any_of":["#);
    for (n, names) in any_of.enumerate() {
        json.raw(if n > 0 { ",[" } else { "[" });
        for (n, name) in names.enumerate() {
            json.raw(if n > 0 { ",\"" } else { "\"" });
            json.text(name);
            json.raw("\"");
        }
        json.raw("]");
    }
    json.raw("]}");
}

/// The method and the route, without identifiers and quotes.
fn operation(json: &mut Json<'_>, request: &AuditedRequest) {
    // A token, so there is nothing to escape.
    json.raw(request.method.as_str());
    if let Some(route) = request.route() {
        json.raw(" ");
        json.text(route);
    }
}

/// Whether the schema knows the method.
pub(super) fn is_listed(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::PATCH
            | Method::DELETE
            | Method::OPTIONS
            | Method::CONNECT
            | Method::TRACE
    )
}

pub(super) fn endpoint(json: &mut Json<'_>, request: &AuditedRequest) {
    let Some(peer) = request.peer else {
        // The schema requires `ip` or `name`.
        json.raw(r#""name":"unknown""#);
        if let Some(pseudonym) = &request.peer_pseudonym {
            json.raw(r#","uid":""#);
            json.plain(pseudonym);
            json.raw("\"");
        }
        return;
    };
    // Writing to memory does not fail.
    let _ = write!(json.out, r#""ip":"{}""#, peer.ip());
    if let Some(port) = peer.port() {
        json.raw(r#","port":"#);
        json.number(port.into());
    }
}

fn unmapped(json: &mut Json<'_>, request: &AuditedRequest, class: Class) {
    let mut separator = r#","unmapped":{"#;
    let mut begin = |json: &mut Json<'_>, name| {
        json.raw(separator);
        json.raw(name);
        separator = ",";
    };
    if class == Class::Authentication {
        begin(json, r#""operation":""#);
        operation(json, request);
        json.raw("\"");
    }
    if !is_listed(&request.method) {
        begin(json, r#""http_method":""#);
        json.raw(request.method.as_str());
        json.raw("\"");
    }
    if let Some(target) = request.operator_target() {
        begin(json, r#""target":""#);
        json.text(target);
        json.raw("\"");
    }
    if let (Some(is_cached), Some(is_stale)) = (request.is_cached(), request.is_stale()) {
        begin(
            json,
            match (is_cached, is_stale) {
                (true, true) => r#""cached":true,"stale":true"#,
                (true, false) => r#""cached":true,"stale":false"#,
                (false, true) => r#""cached":false,"stale":true"#,
                (false, false) => r#""cached":false,"stale":false"#,
            },
        );
    }
    if let Some(Body { end, after, .. }) = request.body {
        begin(
            json,
            match end {
                BodyEnd::Ended => r#""body_end":"ended","body_duration":"#,
                BodyEnd::Dropped => r#""body_end":"dropped","body_duration":"#,
                BodyEnd::Failed => r#""body_end":"failed","body_duration":"#,
            },
        );
        json.field(Field::BodyDuration, |json| json.number(millis(after)));
    }
    if separator == "," {
        json.raw("}");
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    let seconds = duration.as_secs().saturating_mul(1_000);
    seconds.saturating_add(duration.subsec_millis().into())
}
