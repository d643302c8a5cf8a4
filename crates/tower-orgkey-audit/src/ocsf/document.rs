//! Fills the fields of an event.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;

use super::classification::{Caption, Class, Classification};
use super::fields::{
    Actor, Alternatives, Api, ApiResponse, Authorization, ByCode, Credential, Document, Endpoint,
    HttpRequest, HttpResponse, Metadata, Named, Organization, Policy, Product, RequestFields, Rest,
    Subject, Uid, Unmapped, Url, User,
};
use crate::event::{
    Actor as EventActor, AuditEvent, AuditedRequest, Body, BodyEnd, LostEvents, Period,
    SuppressedRejections,
};
use tower_orgkey::Rejection;
use tower_orgkey::observer::Requirement;

/// The version of the schema.
const VERSION: &str = "1.8.0";
/// The profile that has `action` and `authorizations`.
const PROFILE: &str = "security_control";
const LOG: &str = "audit";

impl AuditEvent {
    pub(super) fn request_document<'a>(&'a self, request: &'a AuditedRequest) -> Document<'a> {
        let classification = Classification::of(request);
        let service = Named {
            name: &self.source.service,
        };
        let user = user(&request.actor);
        let subject = match classification.class {
            Class::Authentication => Subject::Authentication {
                user,
                service,
                auth_protocol_id: Caption::OTHER,
                auth_protocol: "API key",
                logon_type_id: 3,
                logon_type: "Network",
                is_remote: true,
            },
            Class::ApiActivity | Class::EventLog => Subject::ApiActivity {
                actor: Actor { user },
                api: self.api(request),
            },
        };
        let duration = millis(request.duration);
        let rest = RequestFields {
            duration,
            action_id: classification.action.0,
            action: classification.action.1,
            authorizations: request.requirements.iter().map(authorization).collect(),
            subject,
            src_endpoint: endpoint(request),
            http_request: HttpRequest {
                http_method: is_listed(&request.method).then(|| request.method.as_str()),
                uid: &request.request_id,
                url: request.path().map(|path| Url { path }),
            },
            http_response: request.status.map(|status| HttpResponse {
                code: status.as_u16(),
                latency: duration,
                body_length: request.body.map(|body| body.bytes),
            }),
            unmapped: unmapped(request, classification.class),
        };
        let period = Period {
            since: request.time,
            until: (request.time)
                .checked_add(request.duration)
                .unwrap_or(request.time),
        };
        let rejection = request.rejection();
        Document {
            status_code: Some(request.code()),
            status_detail: rejection.map(Rejection::title),
            // The source names what the schema calls "Other".
            activity_name: match classification.activity.0 {
                Caption::OTHER => request.method.as_str(),
                _ => classification.activity.1,
            },
            metadata: Metadata {
                correlation_uid: Some(&request.request_id),
                ..self.metadata()
            },
            ..self.document(
                classification.class,
                classification.activity,
                classification.status,
                classification.severity,
                period,
                Rest::Request(Box::new(rest)),
            )
        }
    }

    pub(super) fn suppressed_document<'a>(
        &'a self,
        suppressed: &'a SuppressedRejections,
    ) -> Document<'a> {
        let rest = Rest::Suppressed {
            user: user(&EventActor::Unknown),
            service: Named {
                name: &self.source.service,
            },
            unmapped: ByCode {
                by_code: suppressed.by_code().collect(),
            },
        };
        Document {
            message: Some("rejected requests without an event"),
            count: Some(suppressed.count()),
            ..self.document(
                Class::Authentication,
                Caption(1, "Logon"),
                Caption::FAILURE,
                Caption(2, "Low"),
                suppressed.period,
                rest,
            )
        }
    }

    pub(super) fn lost_document(&self, lost: &LostEvents) -> Document<'_> {
        Document {
            message: Some("lost audit events"),
            count: Some(lost.count),
            ..self.document(
                Class::EventLog,
                Caption(Caption::OTHER, "Lost"),
                Caption::FAILURE,
                Caption(4, "High"),
                lost.period,
                Rest::Lost { log_name: LOG },
            )
        }
    }

    fn document<'a>(
        &'a self,
        class: Class,
        activity: Caption,
        status: Caption,
        severity: Caption,
        period: Period,
        rest: Rest<'a>,
    ) -> Document<'a> {
        let category = class.category();
        let type_caption = match activity.0 {
            Caption::OTHER => "Other",
            _ => activity.1,
        };
        Document {
            activity_id: activity.0,
            activity_name: activity.1,
            category_uid: category.0,
            category_name: category.1,
            class_uid: class.uid(),
            class_name: class.name(),
            type_uid: class.uid() * 100 + activity.0,
            type_name: format!("{}: {type_caption}", class.name()),
            time: epoch_millis(period.since),
            start_time: epoch_millis(period.since),
            end_time: epoch_millis(period.until),
            severity_id: severity.0,
            severity: severity.1,
            status_id: status.0,
            status: status.1,
            status_code: None,
            status_detail: None,
            message: None,
            count: None,
            metadata: self.metadata(),
            rest,
        }
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata {
            version: VERSION,
            product: Product {
                name: "tower-orgkey",
                vendor_name: "tower-orgkey",
                version: env!("CARGO_PKG_VERSION"),
            },
            profiles: [PROFILE],
            log_name: LOG,
            uid: self.uid(),
            sequence: self.sequence,
            correlation_uid: None,
        }
    }

    fn api<'a>(&'a self, request: &'a AuditedRequest) -> Api<'a> {
        Api {
            operation: operation(request),
            service: Named {
                name: &self.source.service,
            },
            request: Uid {
                uid: &request.request_id,
            },
            response: request.status.map(|status| ApiResponse {
                code: status.as_u16(),
                error: request.rejection().map(Rejection::code),
                error_message: request.rejection().map(Rejection::title),
            }),
        }
    }
}

fn user(actor: &EventActor) -> User<'_> {
    let unknown = |name| User {
        uid: None,
        name: Some(name),
        type_id: 0,
        r#type: "Unknown",
        org: None,
        programmatic_credentials: None,
    };
    match actor {
        EventActor::Unknown => unknown("unknown"),
        EventActor::Anonymous => unknown("anonymous"),
        EventActor::Operator { .. } => User {
            type_id: 2,
            r#type: "Admin",
            ..unknown("operator")
        },
        EventActor::Organization {
            org,
            key_id,
            user_id,
            ..
        } => {
            let key_id = key_id.as_ref().map(AsRef::as_ref);
            let user_id = user_id.as_deref();
            let (type_id, r#type) = match user_id {
                Some(_) => (1, "User"),
                None => (4, "Service"),
            };
            User {
                uid: user_id.or(key_id),
                // The schema wants one or the other.
                name: user_id.or(key_id).is_none().then_some(org.as_str()),
                type_id,
                r#type,
                org: Some(Organization { uid: org.as_str() }),
                programmatic_credentials: key_id.map(|uid| {
                    [Credential {
                        uid,
                        r#type: "API Key",
                    }]
                }),
            }
        }
    }
}

fn authorization(requirement: &Requirement) -> Authorization<'_> {
    let policy = match requirement.scope_alternatives() {
        Some(any_of) => {
            let names: Vec<String> = any_of.iter().map(|names| names.join(" ")).collect();
            Policy {
                r#type: "Scope",
                name: names.join(" | "),
                data: Some(Alternatives { any_of }),
            }
        }
        None => Policy {
            r#type: "Organization",
            name: match requirement.organization_parameter() {
                Some(parameter) => parameter.to_owned(),
                None => "organization".to_owned(),
            },
            data: None,
        },
    };
    Authorization {
        decision: if requirement.is_met() {
            "allowed"
        } else {
            "denied"
        },
        policy,
    }
}

/// The method and the route, without identifiers.
fn operation(request: &AuditedRequest) -> String {
    let method = request.method.as_str();
    match request.route() {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

/// Whether the schema knows the method.
fn is_listed(method: &Method) -> bool {
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

fn endpoint(request: &AuditedRequest) -> Endpoint {
    match request.peer {
        Some(peer) => Endpoint {
            ip: Some(peer.ip().to_string()),
            port: peer.port(),
            name: None,
        },
        None => Endpoint {
            ip: None,
            port: None,
            name: Some("unknown"),
        },
    }
}

fn unmapped(request: &AuditedRequest, class: Class) -> Unmapped<'_> {
    let end = |body: Body| match body.end {
        BodyEnd::Ended => "ended",
        BodyEnd::Dropped => "dropped",
        BodyEnd::Failed => "failed",
    };
    Unmapped {
        operation: (class == Class::Authentication).then(|| operation(request)),
        http_method: (!is_listed(&request.method)).then(|| request.method.as_str()),
        target: request.operator_target(),
        cached: request.is_cached(),
        stale: request.is_stale(),
        body_end: request.body.map(end),
        body_duration: request.body.map(|body| millis(body.after)),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A clock before 1970 is not set.
fn epoch_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}
