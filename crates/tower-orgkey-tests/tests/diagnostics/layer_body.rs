use http::{Request, Response};
use tower::Layer;
use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};

fn is_service<S: tower::Service<Request<()>>>(_: S) {}

fn main() {
    let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
    let inner = tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(String::new()))
    });
    is_service(auth.layer(inner));
}
