//! Invalidations of settings.

use tower::{Layer, ServiceExt};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer};
use tower_orgkey::{ApiKeyHandle, OrgCode};

use super::store::{Fault, Plan, Store};
use super::{App, MINUTE, auth, code, key_of, plan, settle};
use crate::support::probe::Probe;
use crate::support::service::request;

type Invalidate = fn(&App, &OrgCode);

/// Every way to invalidate the settings of organization `one`, and whether those of others stay.
const MEANS: [(&str, Invalidate, bool); 4] = [
    ("keys' org", |app, org| app.keys.invalidate_org(org), true),
    ("keys' all", |app, _| app.keys.invalidate_all(), false),
    (
        "settings' org",
        |app, org| app.layer.handle().invalidate_org(org),
        true,
    ),
    (
        "settings' all",
        |app, _| app.layer.handle().invalidate_all(),
        false,
    ),
];

#[tokio::test(start_paused = true)]
async fn invalidated_settings_are_loaded_again() {
    for (name, invalidate, spares_others) in MEANS {
        let app = App::new();
        for org in ["one", "two"] {
            assert_eq!(app.get(org).await, plan(org, 0));
            app.store.change(org);
            assert_eq!(app.get(org).await, plan(org, 0), "remembered");
        }
        invalidate(&app, &code("one"));
        assert_eq!(app.get("one").await, plan("one", 1), "{name}");
        let others = u64::from(!spares_others);
        assert_eq!(app.get("two").await, plan("two", others), "{name}");
        assert_eq!(app.store.calls_for("two") as u64, 1 + others, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_load_is_discarded() {
    for (name, invalidate, spares_others) in MEANS {
        let app = App::new();
        let gate = app.store.hold();
        let early: Vec<_> = (0..10).map(|_| app.begin("one")).collect();
        let other = app.begin("two");
        settle().await;
        // Both loads have read the store, and are not complete.
        assert_eq!(app.store.calls(), 2);
        app.store.change("one");
        app.store.change("two");
        invalidate(&app, &code("one"));
        let late = app.begin("one");
        settle().await;
        assert_eq!(app.store.calls_for("one"), 2, "{name}");
        let others = usize::from(!spares_others);
        assert_eq!(app.store.calls_for("two"), 1 + others, "{name}");
        // The older loads complete first.
        gate.add_permits(10);
        assert_eq!(late.await.unwrap(), plan("one", 1), "{name}");
        for early in early {
            assert_eq!(early.await.unwrap(), plan("one", 1), "{name}");
        }
        assert_eq!(app.get("one").await, plan("one", 1), "{name}");
        assert_eq!(other.await.unwrap(), plan("two", others as u64), "{name}");
        assert_eq!(app.store.finished(), app.store.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_refresh_is_discarded() {
    for (name, invalidate, _) in MEANS {
        let app = App::new();
        assert_eq!(app.get("one").await, plan("one", 0));
        app.clock.jump(MINUTE);
        let gate = app.store.hold();
        assert_eq!(app.get("one").await, plan("one", 0));
        settle().await;
        assert_eq!(app.store.calls(), 2);
        app.store.change("one");
        invalidate(&app, &code("one"));
        gate.add_permits(1);
        settle().await;
        assert_eq!(app.store.finished(), 2);
        gate.add_permits(1);
        assert_eq!(app.get("one").await, plan("one", 1), "{name}");
        assert_eq!(app.store.calls(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn invalidated_settings_are_503_while_loads_fail() {
    for (name, invalidate, _) in MEANS {
        let app = App::new();
        assert_eq!(app.get("one").await, plan("one", 0));
        app.store.fails(Fault::Unavailable);
        invalidate(&app, &code("one"));
        assert!(app.get("one").await.is_unavailable(), "{name}");
        assert!(app.store.failures() > 0);
    }
}

/// Returns the revision that the layer adds to a request of this organization.
async fn given(layer: &OrgSettingsLayer<Plan>, keys: &tower_orgkey::ApiKeyLayer, org: &str) -> u64 {
    let handler = tower::service_fn(async |request: http::Request<()>| {
        let plan = OrgSettings::<Plan>::of(request.extensions()).unwrap();
        let revision = plan.revision.to_string();
        Ok::<_, std::convert::Infallible>(http::Response::new(bytes::Bytes::from(revision)))
    });
    let service = keys.layer(layer.layer(handler));
    let Ok(response) = service.oneshot(request(&key_of(org))).await;
    String::from_utf8(response.body().to_vec())
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn key_invalidations_apply_to_settings_layers() {
    let (auth, _) = auth();
    let stores = [Store::default(), Store::default()];
    let keys: ApiKeyHandle = auth.handle();
    let first = OrgSettingsLayer::new(&keys, stores[0].clone());
    assert_eq!(given(&first, &auth, "one").await, 0);
    keys.invalidate_org(&code("one"));
    drop(OrgSettingsLayer::new(&keys, Store::default()).layer(Probe::new()));
    let second = OrgSettingsLayer::new(&auth.handle(), stores[1].clone());
    assert_eq!(given(&second, &auth, "one").await, 0);
    for store in &stores {
        store.change("one");
    }
    keys.clone().invalidate_org(&code("one"));
    for layer in [&first, &second, &first.clone()] {
        assert_eq!(given(layer, &auth, "one").await, 1);
    }
    // The layers share nothing else.
    for store in &stores {
        store.change("one");
    }
    first.handle().invalidate_org(&code("one"));
    assert_eq!(given(&first, &auth, "one").await, 2);
    assert_eq!(given(&second, &auth, "one").await, 1);
}

#[tokio::test(start_paused = true)]
async fn other_keys_do_not_invalidate_settings() {
    let (auth, _) = auth();
    let (others, _) = super::auth();
    let store = Store::default();
    let layer = OrgSettingsLayer::new(&auth.handle(), store.clone());
    assert_eq!(given(&layer, &auth, "one").await, 0);
    others.handle().invalidate_all();
    assert_eq!(given(&layer, &auth, "one").await, 0);
    assert_eq!(store.calls(), 1);
}
