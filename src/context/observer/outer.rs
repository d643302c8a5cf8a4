use std::ops::Deref;

use http::{Extensions, Response};

use super::RequestObservation;
use crate::context::remove_decision;
use crate::rejection::Rejection;
use crate::telemetry;

/// The observation of a layer that must be outside [`ApiKeyLayer`](crate::ApiKeyLayer), for example because it records
/// rejected requests. Dereferences to [`RequestObservation`].
///
/// [`attach`](Self::attach) detects that an outer `ApiKeyLayer` has already decided on the request. It removes that decision,
/// so that guards and extractors beneath reject the request, unless another `ApiKeyLayer` beneath decides again.
/// [`check`](Self::check) turns the response to a request without a new decision into 500, and logs the name of the layer.
///
/// ```
/// use http::{Request, Response};
/// use tower_orgkey::observer::OuterObservation;
/// # use tower::{Service, ServiceExt};
///
/// async fn recorded<S, B, C>(service: S, mut request: Request<B>) -> Result<Response<C>, S::Error>
/// where
///     S: Service<Request<B>, Response = Response<C>>,
/// {
///     let observation = OuterObservation::attach(request.extensions_mut(), "RecordLayer");
///     let response = observation.check(service.oneshot(request).await?);
///     println!("{:?}", observation.caller());
///     Ok(response)
/// }
/// ```
#[derive(Debug)]
pub struct OuterObservation {
    observation: RequestObservation,
    layer: &'static str,
    /// The number of decisions before, if the layer is inside an `ApiKeyLayer`.
    decisions_outside: Option<u32>,
}

/// In the extensions of a request from which an [`OuterObservation`] removed a decision.
#[derive(Clone, Copy)]
struct RemovedDecision;

impl OuterObservation {
    /// Attaches an observation to a request. `layer` is the name of the layer in the log.
    #[inline]
    pub fn attach(extensions: &mut Extensions, layer: &'static str) -> Self {
        let observation = RequestObservation::attach(extensions);
        let decisions = observation.decisions();
        let is_inside = decisions > 0 && remove_decision(extensions);
        if is_inside {
            extensions.insert(RemovedDecision);
        }
        Self {
            observation,
            layer,
            decisions_outside: is_inside.then_some(decisions),
        }
    }

    /// Returns the response, or 500 if the layer is inside an `ApiKeyLayer` and none beneath it decided on the request.
    ///
    /// The outer `ApiKeyLayer` renders the body of the 500.
    #[inline]
    pub fn check<B>(&self, mut response: Response<B>) -> Response<B> {
        if self.is_misplaced() {
            let rejection = self.misplaced();
            *response.status_mut() = rejection.status();
            response.extensions_mut().insert(rejection);
        }
        response
    }

    #[cold]
    fn misplaced(&self) -> Rejection {
        telemetry::layer_inside(self.layer);
        Rejection::internal()
    }

    fn is_misplaced(&self) -> bool {
        self.decisions_outside
            .is_some_and(|before| before == self.observation.decisions())
    }

    pub(crate) fn has_removed_decision(extensions: &Extensions) -> bool {
        extensions.get::<RemovedDecision>().is_some()
    }
}

impl Deref for OuterObservation {
    type Target = RequestObservation;

    fn deref(&self) -> &RequestObservation {
        &self.observation
    }
}
