//! Settings that are invalidated while they are loaded, on several threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Request, Response};
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};

const LANES: usize = 4;
const RACES: u64 = 20_000;

/// An organization, and the generation of its settings.
struct Plan(OrgCode, u64);

#[test]
fn invalidated_settings_never_return() {
    let truths: Arc<[AtomicU64]> = (0..LANES).map(|_| AtomicU64::new(0)).collect();
    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        let org = code(&key.expose_secret()["k_test_".len()..]);
        Ok(Verification::of_organization(org))
    }));
    let asked = Arc::new(AtomicU64::new(0));
    let loader = {
        let (truths, asked) = (Arc::clone(&truths), Arc::clone(&asked));
        settings_fn(move |org: OrgCode| {
            let lane: usize = org.as_str()["org_".len()..].parse().unwrap();
            let generation = truths[lane].load(Ordering::SeqCst);
            asked.fetch_add(1, Ordering::SeqCst);
            async move {
                for _ in 0..fastrand::u8(0..4) {
                    tokio::task::yield_now().await;
                }
                Ok::<_, SettingsError>(Plan(org, generation))
            }
        })
    };
    let plans = OrgSettingsLayer::new(&auth.handle(), loader);
    let handler = tower::service_fn(async |request: Request<()>| {
        let plan = OrgSettings::<Plan>::of(request.extensions()).unwrap();
        let text = format!("{} {}", plan.0, plan.1);
        Ok::<_, std::convert::Infallible>(Response::new(bytes::Bytes::from(text)))
    });
    let door = auth.layer(plans.layer(handler));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(LANES)
        .enable_time()
        .build()
        .unwrap();
    let overtaken = Arc::new(AtomicU64::new(0));
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (door, truths) = (door.clone(), Arc::clone(&truths));
            let (asked, overtaken) = (Arc::clone(&asked), Arc::clone(&overtaken));
            let (keys, settings) = (auth.handle(), plans.handle());
            runtime.spawn(async move {
                let org = code(&format!("org_{lane}"));
                for race in 0..RACES / LANES as u64 {
                    settings.invalidate_org(&org);
                    let before = asked.load(Ordering::SeqCst);
                    let load = tokio::spawn(see(door.clone(), org.clone()));
                    for _ in 0..fastrand::u8(0..6) {
                        tokio::task::yield_now().await;
                    }
                    let present = truths[lane].fetch_add(1, Ordering::SeqCst) + 1;
                    let was_asked = asked.load(Ordering::SeqCst) > before;
                    match race % 4 {
                        0 => keys.invalidate_org(&org),
                        1 => settings.invalidate_org(&org),
                        2 => settings.invalidate_all(),
                        _ => keys.invalidate_all(),
                    }
                    if was_asked && !load.is_finished() {
                        overtaken.fetch_add(1, Ordering::SeqCst);
                    }
                    let seen = see(door.clone(), org.clone()).await;
                    assert_eq!(seen, present, "an old generation came back");
                    let seen = load.await.unwrap();
                    assert!(seen == present || seen + 1 == present, "{seen} {present}");
                    assert_eq!(see(door.clone(), org.clone()).await, present);
                }
            })
        })
        .collect();
    for lane in lanes {
        runtime.block_on(lane).unwrap();
    }
    let overtaken = overtaken.load(Ordering::SeqCst);
    assert!(
        overtaken > RACES / 100,
        "too few loads were overtaken to have shown anything: {overtaken}"
    );
}

fn code(org: &str) -> OrgCode {
    OrgCode::new(org).unwrap()
}

fn key_of(org: &str) -> String {
    format!("k_test_{org}")
}

/// Returns the generation that a request of this organization gets.
async fn see<S>(door: S, org: OrgCode) -> u64
where
    S: Service<Request<()>, Response = Response<bytes::Bytes>, Error = std::convert::Infallible>,
{
    let request =
        Request::get("/").header("authorization", format!("Bearer {}", key_of(org.as_str())));
    let request = request.body(()).unwrap();
    let Ok(response) = door.oneshot(request).await;
    assert_eq!(response.status(), 200);
    let text = std::str::from_utf8(response.body()).unwrap();
    let (whose, generation) = text.split_once(' ').unwrap();
    assert_eq!(whose, org.as_str(), "another organization's settings");
    generation.parse().unwrap()
}
