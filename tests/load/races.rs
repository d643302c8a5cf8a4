//! Races on real threads: a result that is invalidated during its lookup never returns.
//!
//! In each race a request verifies a key while, on another thread, the issuer changes the key and the handle blocks or
//! invalidates it. The next request must not get the earlier result. A million races; ten million with `TOWER_ORGKEY_FULL=1`.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot do without.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode, OrgContext, Scopes, Verification, Verifier,
    VerifyError,
};

/// The number of concurrent races. Each has its own key and organization.
const LANES: usize = 8;
/// More threads than cores, so that the scheduler interrupts them anywhere.
const THREADS: usize = 4;

const IDLE: u8 = 0;
const ASKED: u8 = 1;
const SERVED: u8 = 2;

/// One key at the issuer. Each race is a generation, which is part of its result.
#[derive(Default)]
struct Truth {
    generation: AtomicU64,
    /// The progress of the lookup.
    load: AtomicU8,
}

struct Issuer(Arc<[Truth]>);

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let lane: usize = key.expose_secret()["k_race_".len()..].parse().unwrap();
        let truth = &self.0[lane];
        let generation = truth.generation.load(Ordering::SeqCst);
        truth
            .load
            .compare_exchange(IDLE, ASKED, Ordering::SeqCst, Ordering::SeqCst)
            .ok();
        // The answer is decided, but may arrive later.
        for _ in 0..fastrand::u8(0..4) {
            tokio::task::yield_now().await;
        }
        Ok(Verification::of_organization(org(lane))
            .with_key_id(key_id(lane))
            .with_scopes(Scopes::from_names([generation.to_string()])))
    }
}

fn org(lane: usize) -> OrgCode {
    OrgCode::new(format!("org_{lane}")).unwrap()
}

fn key_id(lane: usize) -> KeyId {
    KeyId::new(format!("id_{lane}")).unwrap()
}

/// The update of a key in a race.
#[derive(Clone, Copy, Debug)]
enum Means {
    InvalidateKey,
    InvalidateKeyId,
    InvalidateOrg,
    InvalidateAll,
    BlockKey,
    BlockKeyId,
    BlockOrg,
}

const MEANS: [Means; 7] = [
    Means::InvalidateKey,
    Means::InvalidateKeyId,
    Means::InvalidateOrg,
    Means::InvalidateAll,
    Means::BlockKey,
    Means::BlockKeyId,
    Means::BlockOrg,
];

struct Lane {
    number: usize,
    key: ApiKey,
    key_id: KeyId,
    org: OrgCode,
    handle: ApiKeyHandle,
}

impl Lane {
    fn take_away(&self, means: Means) {
        match means {
            Means::InvalidateKey => self.handle.invalidate_key(&self.key),
            Means::InvalidateKeyId => self.handle.invalidate_key_id(&self.key_id),
            Means::InvalidateOrg => self.handle.invalidate_org(&self.org),
            Means::InvalidateAll => self.handle.invalidate_all(),
            Means::BlockKey => self.handle.block_key(&self.key).unwrap(),
            Means::BlockKeyId => self.handle.block_key_id(&self.key_id).unwrap(),
            Means::BlockOrg => self.handle.block_org(&self.org).unwrap(),
        }
    }

    /// Removes the block, if it was one.
    fn give_back(&self, means: Means) -> bool {
        match means {
            Means::BlockKey => self.handle.unblock_key(&self.key),
            Means::BlockKeyId => self.handle.unblock_key_id(&self.key_id),
            Means::BlockOrg => self.handle.unblock_org(&self.org),
            _ => false,
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    races: AtomicU64,
    /// The update came after the issuer had decided and before the response.
    overlapped: AtomicU64,
    resurrected: AtomicU64,
    passed_a_block: AtomicU64,
    /// Neither served nor blocked, which must not occur.
    other: AtomicU64,
}

type Answer = Response<Bytes>;

/// The generation of a response.
fn generation(response: &Answer) -> Option<u64> {
    std::str::from_utf8(response.body()).ok()?.parse().ok()
}

async fn handler(request: Request<()>) -> Result<Answer, Infallible> {
    let context = request.extensions().get::<OrgContext>();
    let generation = context.and_then(|context| context.scopes().iter().next());
    Ok(Response::new(generation.map_or(Bytes::new(), |scope| {
        Bytes::copy_from_slice(scope.as_str().as_bytes())
    })))
}

#[test]
fn fault_26_invalidated_results_never_return() {
    let is_full = std::env::var_os("TOWER_ORGKEY_FULL").is_some_and(|full| full == "1");
    let races: u64 = if is_full { 10_000_000 } else { 1_000_000 };
    let truths: Arc<[Truth]> = (0..LANES).map(|_| Truth::default()).collect();
    let auth = ApiKeyLayer::new(Issuer(Arc::clone(&truths)));
    let tally = Arc::new(Tally::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_time()
        .build()
        .unwrap();
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            let lane = Lane {
                number,
                key: ApiKey::parse(&format!("k_race_{number:02}")).unwrap(),
                key_id: key_id(number),
                org: org(number),
                handle: auth.handle(),
            };
            let door = auth.layer(tower::service_fn(handler));
            runtime.spawn(run(
                lane,
                door,
                Arc::clone(&truths),
                Arc::clone(&tally),
                races,
            ))
        })
        .collect();
    for lane in lanes {
        runtime.block_on(lane).unwrap();
    }
    println!("{tally:?}");
    let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert_eq!(read(&tally.resurrected), 0, "{tally:?}");
    assert_eq!(read(&tally.passed_a_block), 0, "{tally:?}");
    assert_eq!(read(&tally.other), 0, "{tally:?}");
    assert!(
        read(&tally.overlapped) > races / 20,
        "too few loads were overtaken to have shown anything: {tally:?}"
    );
}

async fn run<S>(lane: Lane, door: S, truths: Arc<[Truth]>, tally: Arc<Tally>, races: u64)
where
    S: Service<Request<()>, Response = Answer, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let truth = &truths[lane.number];
    let request = || {
        Request::get("/")
            .header(
                "authorization",
                format!("Bearer {}", lane.key.expose_secret()),
            )
            .body(())
            .unwrap()
    };
    while tally.races.fetch_add(1, Ordering::Relaxed) < races {
        // Each race begins with a key that has to be verified.
        lane.handle.invalidate_key(&lane.key);
        truth.load.store(IDLE, Ordering::SeqCst);
        let load = {
            let door = door.clone();
            let request = request();
            let truths = Arc::clone(&truths);
            let number = lane.number;
            tokio::spawn(async move {
                let Ok(_) = door.oneshot(request).await;
                truths[number].load.store(SERVED, Ordering::SeqCst);
            })
        };
        for _ in 0..fastrand::u8(0..6) {
            tokio::task::yield_now().await;
        }
        let means = MEANS[fastrand::usize(..MEANS.len())];
        let present = truth.generation.fetch_add(1, Ordering::SeqCst) + 1;
        lane.take_away(means);
        if truth.load.load(Ordering::SeqCst) == ASKED {
            tally.overlapped.fetch_add(1, Ordering::Relaxed);
        }
        let is_block = matches!(means, Means::BlockKey | Means::BlockKeyId | Means::BlockOrg);
        let Ok(next) = door.clone().oneshot(request()).await;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match (is_block, next.status().as_u16()) {
            (true, 401) => {}
            (true, 200) => {
                count(&tally.passed_a_block);
            }
            (false, 200) if generation(&next) == Some(present) => {}
            (false, 200) => {
                count(&tally.resurrected);
            }
            _ => {
                count(&tally.other);
            }
        }
        let Ok(()) = load.await else {
            panic!("the load panicked")
        };
        if is_block {
            // The lookup's result must not return after the block.
            assert!(lane.give_back(means));
            let Ok(after) = door.clone().oneshot(request()).await;
            if generation(&after) != Some(present) {
                count(&tally.resurrected);
            }
        }
    }
}
