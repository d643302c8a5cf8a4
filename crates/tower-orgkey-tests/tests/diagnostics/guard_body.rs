use http::{Request, Response};
use tower::Layer;

struct NoDefault;

fn is_service<S: tower::Service<Request<()>>>(_: S) {}

fn main() {
    let inner = tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(NoDefault))
    });
    is_service(tower_orgkey::require_scope("read").layer(inner));
}
