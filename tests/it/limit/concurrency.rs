//! Concurrency limits.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::RETRY_AFTER;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tower::ServiceExt;
use tower_orgkey::limit::{OrgConcurrencyLimit, PermitBody};
use tower_orgkey::{OrgConcurrencyLimitLayer, RejectionKind};

use super::*;

/// A body with the frames that a test sends. It ends when the sender is dropped.
#[derive(Debug)]
struct Stream(Option<mpsc::UnboundedReceiver<Result<Bytes, &'static str>>>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match &mut self.0 {
            Some(frames) => frames
                .poll_recv(cx)
                .map(|sent| Some(sent?.map(Frame::data))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.0.is_none() { 0 } else { 7 })
    }
}

/// The body of a rejection.
impl Default for Stream {
    fn default() -> Self {
        Self(None)
    }
}

type Sender = mpsc::UnboundedSender<Result<Bytes, &'static str>>;

/// The behavior of a handler.
#[derive(Clone)]
enum Do {
    Never,
    Fail,
    Panic,
    PanicAtOnce,
    Stream,
    Empty,
}

#[derive(Clone)]
struct Handler {
    does: Do,
    streams: mpsc::UnboundedSender<Sender>,
}

impl Service<Request<()>> for Handler {
    type Response = Response<Stream>;
    type Error = &'static str;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Stream>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let Self { does, streams } = self.clone();
        if let Do::PanicAtOnce = does {
            panic!("on purpose")
        }
        async move {
            match does {
                Do::Never => std::future::pending().await,
                Do::Fail => Err("on purpose"),
                Do::Panic | Do::PanicAtOnce => panic!("on purpose"),
                Do::Empty => Ok(Response::new(Stream(None))),
                Do::Stream => {
                    let (sender, receiver) = mpsc::unbounded_channel();
                    streams.send(sender).unwrap();
                    Ok(Response::new(Stream(Some(receiver))))
                }
            }
        }
        .boxed()
    }
}

struct Stage {
    limit: OrgConcurrencyLimitLayer,
    service: OrgConcurrencyLimit<Handler>,
    streams: mpsc::UnboundedReceiver<Sender>,
}

type Called = Result<Response<PermitBody<Stream>>, &'static str>;

impl Stage {
    fn new(limit: OrgConcurrencyLimitLayer) -> Self {
        let (sender, streams) = mpsc::unbounded_channel();
        let service = limit.layer(Handler {
            does: Do::Stream,
            streams: sender,
        });
        Self {
            limit,
            service,
            streams,
        }
    }

    fn one_at_a_time() -> Self {
        Self::new(OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1)))
    }

    /// Another handler under the same limit.
    fn does(&self, does: Do) -> OrgConcurrencyLimit<Handler> {
        let (streams, _) = mpsc::unbounded_channel();
        self.limit.layer(Handler { does, streams })
    }

    /// Calls a handler that streams.
    fn call(&mut self, context: &OrgContext) -> Called {
        let called = self.service.call(request_of(context)).now_or_never();
        called.expect("nothing waits here")
    }

    fn passes(&mut self, context: &OrgContext) -> bool {
        self.call(context).unwrap().status() == 200
    }
}

#[test]
fn permit_is_held_until_the_body_ends() {
    let mut stage = Stage::one_at_a_time();
    let org = org("org_1");
    let mut response = stage.call(&org).unwrap();
    let stream = stage.streams.try_recv().unwrap();
    assert!(!stage.passes(&org), "the head does not release the permit");
    stream.send(Ok(Bytes::from_static(b"a part"))).unwrap();
    assert!(
        response
            .body_mut()
            .frame()
            .now_or_never()
            .unwrap()
            .is_some()
    );
    assert!(!stage.passes(&org));
    drop(stream);
    assert!(
        response
            .body_mut()
            .frame()
            .now_or_never()
            .unwrap()
            .is_none()
    );
    // The response itself was not dropped yet.
    assert!(stage.passes(&org));
    assert_eq!(stage.limit.accounts(), 0, "a body that was dropped unread");
    drop(response);
}

#[test]
fn ended_body_releases_the_permit() {
    let mut stage = Stage::one_at_a_time();
    let org = org("org_1");
    let mut failing = stage.call(&org).unwrap();
    stage
        .streams
        .try_recv()
        .unwrap()
        .send(Err("on purpose"))
        .unwrap();
    assert!(
        failing
            .body_mut()
            .frame()
            .now_or_never()
            .unwrap()
            .unwrap()
            .is_err()
    );
    let dropped = stage.call(&org).unwrap();
    assert_eq!(dropped.status(), 200);
    assert!(!stage.passes(&org));
    drop(dropped);
    let empty = stage.does(Do::Empty).call(request_of(&org)).now_or_never();
    let empty = empty.unwrap().unwrap();
    assert_eq!(
        stage.limit.accounts(),
        0,
        "an empty body may never be polled"
    );
    assert!(http_body::Body::is_end_stream(empty.body()));
    assert_eq!(http_body::Body::size_hint(empty.body()).exact(), Some(0));
    // `into_inner` releases the permit.
    let unwrapped = stage.call(&org).unwrap().into_body().into_inner();
    assert_eq!(stage.limit.accounts(), 0);
    drop((failing, unwrapped));
}

#[test]
fn ended_call_releases_the_permit() {
    let mut stage = Stage::one_at_a_time();
    let org = org("org_1");
    let mut never = Box::pin(stage.does(Do::Never).call(request_of(&org)));
    assert!(never.as_mut().now_or_never().is_none());
    assert!(!stage.passes(&org));
    drop(never);
    assert_eq!(stage.limit.accounts(), 0);

    let mut failed = Box::pin(stage.does(Do::Fail).call(request_of(&org)));
    assert!(failed.as_mut().now_or_never().unwrap().is_err());
    assert_eq!(stage.limit.accounts(), 0, "before the future is dropped");

    for does in [Do::Panic, Do::PanicAtOnce] {
        let mut service = stage.does(does);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = service.call(request_of(&org)).now_or_never();
        }));
        assert!(panicked.is_err());
        assert_eq!(stage.limit.accounts(), 0);
    }
}

#[test]
fn full_organization_gets_429_alone() {
    let mut stage = Stage::new(OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2)));
    let held = [
        stage.call(&org("org_1")).unwrap(),
        stage.call(&org("org_1")).unwrap(),
    ];
    let rejected = stage.call(&org("org_1")).unwrap();
    assert_eq!(rejected.status(), 429);
    assert_eq!(rejected.headers()[RETRY_AFTER], "1");
    let kind = rejected.extensions().get::<Rejection>().unwrap().kind();
    assert_eq!(kind, RejectionKind::ConcurrencyLimited);
    for _ in 0..2 {
        assert!(held.iter().all(|response| response.status() == 200));
        assert!(stage.passes(&org("org_2")));
    }
    assert_eq!(stage.limit.accounts(), 1, "a rejection holds no permit");
}

#[test]
fn limits_can_be_per_key_none_or_zero() {
    let mut stage = Stage::new(OrgConcurrencyLimitLayer::per_key(|_: &OrgContext| Some(1)));
    let held = stage.call(&key("org_1", "key_1"));
    assert!(!stage.passes(&key("org_1", "key_1")));
    assert!(stage.passes(&key("org_1", "key_2")));
    assert!(stage.passes(&key("org_2", "key_1")));
    drop(held);

    let mut stage = Stage::new(OrgConcurrencyLimitLayer::new(|org: &OrgContext| {
        (org.org_code() != "org_free").then_some(0)
    }));
    let held: Vec<Called> = (0..100).map(|_| stage.call(&org("org_free"))).collect();
    assert!(
        held.iter()
            .all(|called| called.as_ref().unwrap().status() == 200)
    );
    assert!(!stage.passes(&org("org_1")));
    assert_eq!(
        stage.limit.accounts(),
        0,
        "a request without a limit is not counted"
    );
}

#[test]
fn new_limit_applies_to_the_next_request() {
    let most = Arc::new(AtomicUsize::new(3));
    let mut stage = {
        let most = Arc::clone(&most);
        let limit = move |_: &OrgContext| Some(most.load(Ordering::SeqCst));
        Stage::new(OrgConcurrencyLimitLayer::new(limit))
    };
    let org = org("org_1");
    let mut held: Vec<Called> = (0..3).map(|_| stage.call(&org)).collect();
    most.store(1, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(!stage.passes(&org));
        held.pop();
    }
    assert!(stage.passes(&org));
    most.store(2, Ordering::SeqCst);
    let held = [stage.call(&org), stage.call(&org)];
    assert!(
        held.iter()
            .all(|called| called.as_ref().unwrap().status() == 200)
    );
    assert!(!stage.passes(&org));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_requests_never_exceed_the_limit() {
    const MAX: usize = 5;
    let in_flight = Arc::new(AtomicUsize::new(0));
    let passed = Arc::new(AtomicUsize::new(0));
    let limit = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(MAX));
    let service = {
        let (in_flight, passed) = (Arc::clone(&in_flight), Arc::clone(&passed));
        limit.layer(service_fn(move |_: Request<()>| {
            let (in_flight, passed) = (Arc::clone(&in_flight), Arc::clone(&passed));
            async move {
                let before = in_flight.fetch_add(1, Ordering::SeqCst);
                assert!(before < MAX, "{before} in flight");
                tokio::task::yield_now().await;
                in_flight.fetch_sub(1, Ordering::SeqCst);
                passed.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }))
    };
    let context = org("org_1");
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (service, context) = (service.clone(), context.clone());
            tokio::spawn(async move {
                for _ in 0..200 {
                    let called = service.clone().oneshot(request_of(&context)).await;
                    assert!([200, 429].contains(&called.unwrap().status().as_u16()));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(passed.load(Ordering::SeqCst) > MAX);
    assert_eq!(limit.accounts(), 0);
}
