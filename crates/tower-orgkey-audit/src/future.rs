use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_orgkey::RejectionKind;
use tower_orgkey::observer::{
    EarlyEnd, ObservedFuture, Observer, OuterObservation, Requirements, ResponseObserver,
};

use crate::body::AuditBody;
use crate::event::{Actor, AuditedRequest, Outcome, Route, bounded_text};
use crate::layer::AuditLayer;

pin_project! {
    /// The response future of [`AuditService`](crate::AuditService).
    pub struct AuditFuture<F> {
        #[pin]
        observed: ObservedFuture<F, RequestAudit>,
    }
}

impl<F> AuditFuture<F> {
    pub(crate) fn new(observed: ObservedFuture<F, RequestAudit>) -> Self {
        Self { observed }
    }
}

impl<F, B, E> Future for AuditFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body,
{
    type Output = Result<Response<AuditBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().observed.poll(cx)
    }
}

impl<F> fmt::Debug for AuditFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditFuture").finish_non_exhaustive()
    }
}

/// The audit of a request that has no response yet.
pub(crate) struct RequestAudit {
    record: Box<AuditedRequest>,
    observation: OuterObservation,
    layer: AuditLayer,
}

impl RequestAudit {
    pub(crate) fn new(
        record: Box<AuditedRequest>,
        observation: OuterObservation,
        layer: AuditLayer,
    ) -> Self {
        Self {
            record,
            observation,
            layer,
        }
    }

    /// Completes the record but for the response. `None` if nothing was to be decided on the request.
    fn close(self, mut outcome: Outcome) -> Option<(Box<AuditedRequest>, AuditLayer)> {
        let leaves_out_names =
            self.layer.options.privacy.is_minimal_outside_home && self.is_outside_home(&outcome);
        let mut record = self.record;
        let privacy = &self.layer.options.privacy;
        let records_undecided = self.layer.options.record_undecided;
        let is_recorded = self.observation.read(|recorded| {
            let caller = recorded.caller();
            let is_being_verified = recorded.is_being_verified();
            if is_being_verified && matches!(outcome, Outcome::Allowed) {
                // A layer in between has dropped the request, and responded itself.
                outcome = Outcome::EndedEarly(EarlyEnd::Dropped);
            }
            let is_undecided =
                caller.is_none() && !is_being_verified && !matches!(outcome, Outcome::Rejected(_));
            record.actor = match caller {
                _ if is_undecided => Actor::Anonymous,
                // What an outer layer let through is not the caller that is verified.
                _ if is_being_verified => Actor::Unknown,
                caller => caller.into(),
            };
            record.requirements = recorded.requirements().clone();
            if let Some(operation) = recorded.operation() {
                record.route = Some(Route::Named(bounded_text(operation)));
            }
            !is_undecided || records_undecided
        });
        if !is_recorded {
            return None;
        }
        if let Some(key) = &privacy.pseudonyms {
            record.actor.pseudonymize(key);
        }
        if leaves_out_names {
            record.request_id = None;
            record.actor = Actor::Unknown;
            record.requirements = Requirements::default();
            record.path = None;
            record.peer = None;
            record.peer_pseudonym = None;
        }
        record.outcome = outcome;
        record.duration = record.arrived.elapsed();
        Some((record, self.layer))
    }

    /// Whether the request was rejected because of its region, whatever a layer in between made of that.
    fn is_outside_home(&self, outcome: &Outcome) -> bool {
        let responded = match outcome {
            Outcome::Rejected(rejection) => Some(rejection.kind()),
            Outcome::Allowed | Outcome::EndedEarly(_) => None,
        };
        let recorded = self.observation.rejection();
        let mut kinds = responded.into_iter().chain(recorded.map(|it| it.kind()));
        kinds.any(|kind| {
            matches!(
                kind,
                RejectionKind::WrongRegion | RejectionKind::RegionUnknown
            )
        })
    }
}

impl Observer for RequestAudit {
    fn ended_early(self, end: EarlyEnd) {
        if let Some((record, layer)) = self.close(Outcome::EndedEarly(end)) {
            layer.options.trail.accept(record);
        }
    }
}

impl<B: http_body::Body> ResponseObserver<B> for RequestAudit {
    type Body = AuditBody<B>;

    fn responded(self, response: Response<B>) -> Response<Self::Body> {
        let response = self.observation.check(response);
        let outcome = match self.observation.rejection_of(&response) {
            Some(rejection) => Outcome::Rejected(rejection),
            None => Outcome::Allowed,
        };
        let Some((mut record, layer)) = self.close(outcome) else {
            return response.map(AuditBody::unrecorded);
        };
        record.status = Some(response.status());
        if has_no_body(&record.method, response.status()) || response.body().is_end_stream() {
            layer.options.trail.accept(record);
            return response.map(AuditBody::unrecorded);
        }
        let announced = announced_length(&response);
        response.map(|body| AuditBody::recorded(body, record, layer, announced))
    }
}

/// Whether a server sends no body, whatever the response holds.
fn has_no_body(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

fn announced_length<B: http_body::Body>(response: &Response<B>) -> Option<u64> {
    response.body().size_hint().exact().or_else(|| {
        let length = response.headers().get(http::header::CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    })
}
