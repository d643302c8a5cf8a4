//! How many at once.

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

use crate::*;

/// A body whose frames a test sends, and which ends when the sender is dropped.
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

impl From<Bytes> for Stream {
    fn from(bytes: Bytes) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(Ok(bytes)).unwrap();
        Self(Some(receiver))
    }
}

type Sender = mpsc::UnboundedSender<Result<Bytes, &'static str>>;

/// What a handler does with a request.
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
            panic!("as told")
        }
        async move {
            match does {
                Do::Never => std::future::pending().await,
                Do::Fail => Err("as told"),
                Do::Panic | Do::PanicAtOnce => panic!("as told"),
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

    /// A handler beside it, under the same limit.
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
fn a_place_is_held_until_the_body_has_ended() {
    let mut stage = Stage::one_at_a_time();
    let org = org("org_1");
    let mut response = stage.call(&org).unwrap();
    let stream = stage.streams.try_recv().unwrap();
    assert!(!stage.passes(&org), "the head alone ends nothing");
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
    // The response itself is still there.
    assert!(stage.passes(&org));
    assert_eq!(stage.limit.accounts(), 0, "a body that was dropped unread");
    drop(response);
}

#[test]
fn a_body_that_fails_or_is_dropped_or_is_empty_gives_its_place_back() {
    let mut stage = Stage::one_at_a_time();
    let org = org("org_1");
    let mut failing = stage.call(&org).unwrap();
    stage
        .streams
        .try_recv()
        .unwrap()
        .send(Err("as told"))
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
        "nobody need ask an empty body for a frame"
    );
    assert!(http_body::Body::is_end_stream(empty.body()));
    assert_eq!(http_body::Body::size_hint(empty.body()).exact(), Some(0));
    // What is taken out of its wrapper is nobody's business any more.
    let unwrapped = stage.call(&org).unwrap().into_body().into_inner();
    assert_eq!(stage.limit.accounts(), 0);
    drop((failing, unwrapped));
}

#[test]
fn a_call_that_is_dropped_or_fails_or_panics_gives_its_place_back() {
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
fn the_refusal_is_429_and_one_organization_at_its_limit_costs_another_nothing() {
    let mut stage = Stage::new(OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2)));
    let held = [
        stage.call(&org("org_1")).unwrap(),
        stage.call(&org("org_1")).unwrap(),
    ];
    let refused = stage.call(&org("org_1")).unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()[RETRY_AFTER], "1");
    let kind = refused.extensions().get::<Rejection>().unwrap().kind();
    assert_eq!(kind, RejectionKind::ConcurrencyLimited);
    for _ in 0..2 {
        assert!(held.iter().all(|response| response.status() == 200));
        assert!(stage.passes(&org("org_2")));
    }
    assert_eq!(stage.limit.accounts(), 1, "a refusal holds no place");
}

#[test]
fn limits_are_per_key_where_told_none_is_none_and_of_nothing_nothing_passes() {
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
    assert_eq!(stage.limit.accounts(), 0, "who has no limit is not counted");
}

#[test]
fn a_new_limit_holds_from_the_next_request_on() {
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
async fn never_more_are_under_way_than_may_however_many_try() {
    const MOST: usize = 5;
    let under_way = Arc::new(AtomicUsize::new(0));
    let passed = Arc::new(AtomicUsize::new(0));
    let limit = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(MOST));
    let service = {
        let (under_way, passed) = (Arc::clone(&under_way), Arc::clone(&passed));
        limit.layer(service_fn(move |_: Request<()>| {
            let (under_way, passed) = (Arc::clone(&under_way), Arc::clone(&passed));
            async move {
                let before = under_way.fetch_add(1, Ordering::SeqCst);
                assert!(before < MOST, "{before} were there already");
                tokio::task::yield_now().await;
                under_way.fetch_sub(1, Ordering::SeqCst);
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
    assert!(passed.load(Ordering::SeqCst) > MOST);
    assert_eq!(limit.accounts(), 0);
}
