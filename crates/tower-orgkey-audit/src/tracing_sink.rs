use std::time::Duration;

use tower_orgkey::{KeyId, OrgCode};

use crate::event::{AuditEvent, AuditEventKind, AuditedRequest};
use crate::ocsf::{Class, Classification};
use crate::sink::{AuditSink, SinkError};
use crate::telemetry::AUDIT_TARGET;

/// Emits each event through [`tracing`], under the target [`AUDIT_TARGET`]: the default sink.
///
/// The fields have their OCSF names, for instance `actor.user.org.uid`, as far as they are single values. Requests have the
/// level `info`; counts of suppressed and lost events have the level `warn`.
///
/// Events are emitted on the trail's thread, so a subscriber that is set for one thread does not see them. A subscriber
/// does not report whether an event was stored, so [`flush`](crate::AuditTrail::flush) cannot either: write a trail that
/// has to be complete to a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingSink;

impl AuditSink for TracingSink {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        for event in events {
            match event.kind() {
                AuditEventKind::Request(request) => emit(event, request),
                AuditEventKind::Suppressed(suppressed) => tracing::warn!(
                    target: AUDIT_TARGET,
                    class_uid = Class::Authentication.uid(),
                    metadata.uid = event.uid(),
                    count = suppressed.count(),
                    by_code = ?suppressed.by_code,
                    "rejected requests without an event"
                ),
                AuditEventKind::Lost(lost) => tracing::warn!(
                    target: AUDIT_TARGET,
                    class_uid = Class::EventLog.uid(),
                    metadata.uid = event.uid(),
                    count = lost.count(),
                    "lost audit events"
                ),
            }
        }
        Ok(())
    }
}

fn emit(event: &AuditEvent, request: &AuditedRequest) {
    let classification = Classification::of(request);
    tracing::info!(
        target: AUDIT_TARGET,
        class_uid = classification.class.uid(),
        activity_id = classification.activity().0,
        action = classification.action().1,
        status = classification.status().1,
        status_code = request.code(),
        actor.user.org.uid = request.org_code().map(OrgCode::as_str),
        actor.user.credential = request.key_id().map(KeyId::as_str),
        actor.user.uid = request.user_id(),
        actor.user.name = request.operator_target().map(|_| "operator"),
        api.request.uid = request.request_id(),
        http_request.http_method = request.method().as_str(),
        // `debug` escapes control characters.
        route = request.route().map(tracing::field::debug),
        path = request.path().map(tracing::field::debug),
        http_response.code = request.status().map(|status| status.as_u16()),
        duration = millis(request.duration()),
        body_duration = request.body_duration().map(millis),
        src_endpoint.ip = request.peer().map(|peer| tracing::field::display(peer.ip())),
        src_endpoint.uid = request.peer_pseudonym(),
        unmapped.target = request.operator_target().map(tracing::field::debug),
        cached = request.is_cached(),
        stale = request.is_stale(),
        metadata.uid = event.uid(),
        "request"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
