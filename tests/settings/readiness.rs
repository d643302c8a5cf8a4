//! Readiness belongs to an instance, and nobody holds one while waiting for a load.

use futures_util::FutureExt;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::settings::{OrgSettingsLayer, ResponseFuture, SettingsError, settings_fn};
use tower_orgkey::test_util::OrgContextBuilder;

use crate::auth;
use crate::probe::Probe;
use crate::store::{Mood, Plan, Store};

fn request(org: &'static str) -> http::Request<()> {
    let mut request = http::Request::new(());
    let context = OrgContextBuilder::new(org).build();
    request.extensions_mut().insert(context);
    request
}

async fn ready<S: Service<http::Request<()>>>(service: &mut S) {
    assert!(
        ServiceExt::<http::Request<()>>::ready(service)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn on_a_hit_the_very_instance_that_was_made_ready_is_called() {
    let store = Store::default();
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store).layer(probe);
    ready(&mut service).await;
    service.call(request("one")).await.unwrap();
    let clones = seen.clones();
    for _ in 0..3 {
        ready(&mut service).await;
        assert_eq!(seen.ready(), 1);
        service.call(request("one")).await.unwrap();
        assert_eq!(seen.ready(), 0);
    }
    assert_eq!((seen.clones(), seen.violations()), (clones, 0));
    assert_eq!(seen.called()[1..], [seen.called()[1]; 3]);
}

#[tokio::test(start_paused = true)]
async fn on_a_miss_the_ready_instance_is_let_go_and_a_clone_is_made_ready_after_the_load() {
    let store = Store::default();
    let gate = store.hold();
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store.clone()).layer(probe);
    ready(&mut service).await;
    let polls = seen.polls();
    let mut response = Box::pin(service.call(request("one")));
    assert_eq!(seen.ready(), 0, "held while the loader is asked");
    assert!(response.as_mut().now_or_never().is_none());
    tokio::task::yield_now().await;
    assert_eq!((store.calls(), seen.polls()), (1, polls));
    // The settings are there, and the inner service is not.
    seen.hold();
    gate.add_permits(1);
    while store.finished() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert!(response.as_mut().now_or_never().is_none());
    assert_eq!((seen.polls(), seen.called().len()), (polls + 1, 0));
    seen.release();
    response.await.unwrap();
    assert_eq!((seen.called().len(), seen.violations()), (1, 0));
    assert_ne!(seen.called(), [0], "the instance that was made ready first");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_cancels_the_inner_call_and_nothing_else() {
    let probe = Probe::new();
    let seen = probe.seen();
    let store = Store::default();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store.clone()).layer(probe);
    for cancelled in 1..3 {
        ready(&mut service).await;
        service.call(request("one")).await.unwrap();
        ready(&mut service).await;
        let mut response = Box::pin(service.call(request("one")));
        assert!(response.as_mut().now_or_never().is_none());
        drop(response);
        assert_eq!((seen.cancelled(), seen.violations()), (cancelled, 0));
    }
    assert_eq!(store.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_never_calls_the_inner_service() {
    let store = Store::default();
    store.fails(Mood::Broken);
    let probe = Probe::new();
    let seen = probe.seen();
    let mut service = OrgSettingsLayer::<Plan>::new(&auth().0.handle(), store).layer(probe);
    ready(&mut service).await;
    let response = service.call(request("one")).await.unwrap();
    assert_eq!(response.status(), 503);
    ready(&mut service).await;
    let response = service.call(http::Request::new(())).await.unwrap();
    assert_eq!(response.status(), 500);
    assert!(seen.called().is_empty());
}

#[test]
fn neither_building_nor_layering_needs_a_runtime_and_the_types_are_what_their_parts_are() {
    struct NotClone;

    let keys = tower_orgkey::ApiKeyLayer::new(crate::support::Issuer::new()).handle();
    let loader = settings_fn(|_| async { Ok::<_, SettingsError>(NotClone) });
    let layer = OrgSettingsLayer::new(&keys, loader);
    let service = layer.clone().layer(Probe::new());
    let shown = format!("{layer:?} {:?} {:?}", service.clone(), layer.handle());
    assert!(shown.contains("NotClone"), "{shown}");

    static_assertions::assert_impl_all!(OrgSettingsLayer<NotClone>: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(tower_orgkey::OrgSettings<NotClone>: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(tower_orgkey::OrgSettingsHandle: Clone, Send, Sync, Unpin);
    static_assertions::assert_impl_all!(SettingsError: Clone, std::error::Error, Send, Sync);
    static_assertions::assert_impl_all!(ResponseFuture<Probe, NotClone, ()>: Send, Unpin, std::fmt::Debug);
}
