use std::sync::Arc;

use http::Response;
use http_body::Body;
use tokio::time::Instant;
use tower_orgkey::observer::{EarlyEnd, Observer, OuterObservation, ResponseObserver};

use crate::aggregator::Aggregator;
use crate::counts::{Ended, How};
use crate::routes::{KnownRoute, RouteId};

/// What a service shares with its clones and its requests.
pub(crate) struct Shared {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) route: KnownRoute,
}

/// A request in flight.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) observation: OuterObservation,
    pub(crate) began: Instant,
    pub(crate) route: RouteId,
    pub(crate) request_bytes: u64,
}

impl Call {
    #[inline]
    fn count(&self, how: How, response_bytes: u64) {
        let ended = Ended {
            took: self.began.elapsed(),
            how,
            request_bytes: self.request_bytes,
            response_bytes,
        };
        let aggregator = &self.shared.aggregator;
        aggregator.count(&self.observation, self.route, ended);
    }
}

impl Observer for Call {
    #[cold]
    fn ended_early(self, end: EarlyEnd) {
        self.count(How::EndedEarly(end), 0);
    }
}

impl<B: Body> ResponseObserver<B> for Call {
    type Body = B;

    #[inline]
    fn responded(self, response: Response<B>) -> Response<B> {
        let response = self.observation.check(response);
        let rejection = self.observation.rejection_of(&response);
        let size = response.body().size_hint().exact().unwrap_or(0);
        self.count(
            How::Answered(rejection.map(|rejection| rejection.kind())),
            size,
        );
        response
    }
}
