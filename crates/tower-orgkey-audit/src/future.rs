use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Response, StatusCode};
use pin_project_lite::pin_project;

use super::body::AuditBody;
use super::event::{AuditedRequest, Outcome};
use super::trail::AuditTrail;
use tower_orgkey::observer::{
    EarlyEnd, ObservedFuture, Observer, RequestObservation, ResponseObserver,
};

pin_project! {
    /// The response future of [`AuditService`](super::AuditService).
    pub struct AuditFuture<F> {
        #[pin]
        observed: ObservedFuture<F, Open>,
    }
}

impl<F> AuditFuture<F> {
    pub(super) fn new(observed: ObservedFuture<F, Open>) -> Self {
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

/// A request that has no response yet.
pub(super) struct Open {
    /// Empty once it is told.
    record: Option<Box<AuditedRequest>>,
    observation: RequestObservation,
    trail: AuditTrail,
}

impl Open {
    pub(super) fn new(
        record: AuditedRequest,
        observation: RequestObservation,
        trail: AuditTrail,
    ) -> Self {
        Self {
            record: Some(Box::new(record)),
            observation,
            trail,
        }
    }

    /// The record as it stands at the end, if anything was decided on the request.
    fn close(&mut self, outcome: Outcome) -> Option<Box<AuditedRequest>> {
        let mut record = self.record.take()?;
        let caller = self.observation.caller();
        if caller.is_none() && !matches!(outcome, Outcome::Refused(_)) {
            return None;
        }
        record.who = caller.into();
        record.requirements = self.observation.requirements();
        record.outcome = outcome;
        record.duration = record.arrived.elapsed();
        Some(record)
    }

    fn end_early(&mut self, end: EarlyEnd) {
        if let Some(record) = self.close(Outcome::EndedEarly(end)) {
            self.trail.accept(record);
        }
    }
}

impl Observer for Open {
    fn ended_early(mut self, end: EarlyEnd) {
        self.end_early(end);
    }
}

/// What was opened and never watched: the inner service panicked before it had made a future.
impl Drop for Open {
    fn drop(&mut self) {
        self.end_early(if std::thread::panicking() {
            EarlyEnd::Panicked
        } else {
            EarlyEnd::Dropped
        });
    }
}

impl<B: http_body::Body> ResponseObserver<B> for Open {
    type Body = AuditBody<B>;

    fn responded(mut self, response: Response<B>) -> Response<Self::Body> {
        let outcome = match self.observation.rejection_of(&response) {
            Some(rejection) => Outcome::Refused(rejection),
            None => Outcome::LetIn,
        };
        let Some(mut record) = self.close(outcome) else {
            return response.map(AuditBody::untold);
        };
        record.status = Some(response.status());
        if has_no_body(&record.method, response.status()) || response.body().is_end_stream() {
            self.trail.accept(record);
            return response.map(AuditBody::untold);
        }
        let announced = announced(&response);
        let trail = self.trail.clone();
        response.map(|body| AuditBody::told(body, record, trail, announced))
    }
}

/// Responses whose bodies no server sends, whatever they hold.
fn has_no_body(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// How many bytes the body has, where that is known beforehand.
fn announced<B: http_body::Body>(response: &Response<B>) -> Option<u64> {
    response.body().size_hint().exact().or_else(|| {
        let length = response.headers().get(http::header::CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    })
}
