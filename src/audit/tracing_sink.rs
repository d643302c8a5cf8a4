use super::event::{AuditEvent, AuditEventKind, AuditedRequest};
use super::ocsf::{Class, Verdict};
use super::sink::{AuditSink, SinkError};
use crate::identifier::{KeyId, OrgCode};
use crate::telemetry::AUDIT_TARGET;

/// Writes each event through [`tracing`], under the target [`AUDIT_TARGET`]: the default sink.
///
/// The fields have the names that they have in OCSF, `actor.user.org.uid` for instance, as far as they are single values.
/// Requests are at level `info`, counts of what was left out or lost at `warn`.
///
/// Events are emitted on the trail's own thread: a subscriber that is set for one thread only does not see them. And a
/// subscriber says nothing about what becomes of an event, so neither does [`flush`](super::AuditTrail::flush) then. A trail
/// that has to be complete goes to a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingSink;

impl AuditSink for TracingSink {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        for event in events {
            match event.kind() {
                AuditEventKind::Request(request) => tell(event, request),
                AuditEventKind::LeftOut(left_out) => tracing::warn!(
                    target: AUDIT_TARGET,
                    class_uid = Class::Authentication.uid(),
                    metadata.uid = event.uid(),
                    count = left_out.count(),
                    by_code = ?left_out.by_code,
                    "refused requests of nobody's were left out"
                ),
                AuditEventKind::Lost(lost) => tracing::warn!(
                    target: AUDIT_TARGET,
                    class_uid = Class::EventLog.uid(),
                    metadata.uid = event.uid(),
                    count = lost.count(),
                    "audit events were lost"
                ),
            }
        }
        Ok(())
    }
}

fn tell(event: &AuditEvent, request: &AuditedRequest) {
    let verdict = Verdict::of(request);
    tracing::info!(
        target: AUDIT_TARGET,
        class_uid = verdict.class.uid(),
        activity_id = verdict.activity.0,
        action = verdict.action.1,
        status = verdict.status.1,
        status_code = request.code(),
        actor.user.org.uid = request.org_code().map(OrgCode::as_str),
        actor.user.credential = request.key_id().map(KeyId::as_str),
        actor.user.uid = request.user_id(),
        api.request.uid = request.request_id(),
        http_request.http_method = request.method().as_str(),
        // With their control characters escaped.
        route = request.route().map(tracing::field::debug),
        path = request.path().map(tracing::field::debug),
        http_response.code = request.status().map(|status| status.as_u16()),
        duration = millis(request.duration()),
        body_duration = request.body_duration().map(millis),
        src_endpoint.ip = request.peer().map(|peer| tracing::field::display(peer.ip())),
        cached = request.is_cached(),
        stale = request.is_stale(),
        metadata.uid = event.uid(),
        "request decided on"
    );
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
