//! A process of the fleet.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tower::{Layer, ServiceExt};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, KeyId};
use tower_orgkey_fleet::{Fleet, FleetSecret};

/// Requests of cold keys at the same time.
const AT_ONCE: usize = 16;
/// More than all keys of a table.
const CAPACITY: u64 = 200_000;
/// Requests of a load are made this often, as many as the rate requires.
const TICK: Duration = Duration::from_millis(4);

struct Node {
    fleet: Fleet,
    auth: ApiKeyLayer,
    keys: Arc<Vec<String>>,
    load: Option<Arc<Load>>,
}

#[derive(Default)]
struct Load {
    requests: AtomicU64,
    rejected: AtomicU64,
    ended: AtomicBool,
}

/// Answers commands until the input ends.
pub(crate) fn serve(settings: &[&str]) {
    let &[name, engine, issuer, client, secret, soft_ttl] = settings else {
        panic!("six settings");
    };
    let soft_ttl = Duration::from_secs(soft_ttl.parse().expect("seconds"));
    let kinde = KindeVerifier::builder(issuer)
        .client_credentials(client, secret)
        .build()
        .expect("a verifier");
    let fleet = Fleet::builder("bench")
        .secret(FleetSecret::new(&[7; 32]).expect("a secret"))
        .redis(engine)
        .node_name(name)
        .build()
        .expect("a fleet");
    let auth = ApiKeyLayer::builder(kinde)
        .fleet(&fleet)
        .capacity(CAPACITY)
        .soft_ttl(soft_ttl)
        .build()
        .expect("a layer");
    let mut node = Node {
        fleet,
        auth,
        keys: Arc::default(),
        load: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::spawn(node.fleet.run());
        let mut commands = BufReader::new(tokio::io::stdin()).lines();
        while let Some(command) = commands.next_line().await.expect("a command") {
            println!("{}", node.answer(&command).await);
        }
    });
}

async fn status(auth: &ApiKeyLayer, key: &str) -> StatusCode {
    let handler = tower::service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let request = Request::get("/")
        .header("authorization", format!("Bearer {key}"))
        .body(())
        .expect("a request");
    let Ok(response) = auth.layer(handler).oneshot(request).await;
    response.status()
}

impl Node {
    async fn answer(&mut self, command: &str) -> String {
        let (command, argument) = command.split_once(' ').unwrap_or((command, ""));
        let number = || argument.parse::<usize>().expect("a number");
        match command {
            "follow" => {
                self.until(|status| status.is_followed() && status.nodes.len() >= number())
                    .await;
            }
            "keys" => self.keys = Arc::new(argument.split(' ').map(str::to_owned).collect()),
            "get" => return self.accepted(argument).await,
            "hits" => return self.hits(number()).await,
            "request" => return self.request().await,
            "load" => self.begin_load(number()),
            "stop" => return self.end_load(),
            "revoke" => return self.revoke(argument).await,
            "invalidate" => self.invalidate(number()).await,
            "position" => return self.fleet.status().position.to_string(),
            _ => panic!("unknown command {command}"),
        }
        "0".to_owned()
    }

    async fn until(&self, holds: impl Fn(&tower_orgkey_fleet::FleetStatus) -> bool) {
        while !holds(&self.fleet.status()) {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn request(&self) -> String {
        let begin = Instant::now();
        let requests = self.keys.iter().map(|key| status(&self.auth, key));
        let rejected = stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .filter(|status| std::future::ready(*status != StatusCode::OK))
            .count()
            .await;
        format!("{} {rejected}", begin.elapsed().as_micros())
    }

    /// Sends requests of a key, and returns how many were accepted.
    async fn accepted(&self, argument: &str) -> String {
        let (requests, key) = argument.split_once(' ').expect("a number and a key");
        let mut accepted = 0;
        for _ in 0..requests.parse::<usize>().expect("a number") {
            accepted += usize::from(status(&self.auth, key).await == StatusCode::OK);
        }
        accepted.to_string()
    }

    /// Returns the times of requests in nanoseconds, 50 % and 99 %, and how many were rejected.
    async fn hits(&self, count: usize) -> String {
        let (mut took, mut rejected) = (Vec::with_capacity(count), 0);
        for key in self.keys.iter().cycle().take(count) {
            let begin = Instant::now();
            // Other tasks of the thread delay a request.
            tokio::task::yield_now().await;
            rejected += usize::from(status(&self.auth, key).await != StatusCode::OK);
            took.push(begin.elapsed().as_nanos());
        }
        took.sort_unstable();
        format!("{} {} {rejected}", took[count / 2], took[count / 100 * 99])
    }

    fn begin_load(&mut self, rate: usize) {
        let load = Arc::new(Load::default());
        self.load = Some(Arc::clone(&load));
        let (auth, keys) = (self.auth.clone(), Arc::clone(&self.keys));
        let at_once = rate * usize::try_from(TICK.as_millis()).expect("a short time") / 1_000;
        tokio::spawn(async move {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut keys = keys.iter().cycle();
            while !load.ended.load(Ordering::Relaxed) {
                ticks.tick().await;
                for key in keys.by_ref().take(at_once) {
                    load.requests.fetch_add(1, Ordering::Relaxed);
                    let is_rejected = status(&auth, key).await != StatusCode::OK;
                    load.rejected
                        .fetch_add(u64::from(is_rejected), Ordering::Relaxed);
                }
            }
        });
    }

    fn end_load(&mut self) -> String {
        let load = self.load.take().expect("a load");
        load.ended.store(true, Ordering::Relaxed);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!("{} {}", read(&load.requests), read(&load.rejected))
    }

    async fn revoke(&self, id: &str) -> String {
        let id = KeyId::new(id).expect("a key id");
        let begin = Instant::now();
        let reach = self.auth.handle().spread().invalidate_key_id(&id).await;
        let took = begin.elapsed().as_micros();
        let applied = reach.map_or(0, |reach| {
            if reach.is_complete() {
                reach.applied.len()
            } else {
                0
            }
        });
        format!("{took} {applied}")
    }

    async fn invalidate(&self, count: usize) {
        let handle = self.auth.handle();
        for n in 0..count {
            handle.invalidate_key_id(&KeyId::new(format!("id_{n}")).expect("a key id"));
            if n % 1_000 == 999 {
                self.until(|status| status.unsent == 0).await;
            }
        }
        self.until(|status| status.unsent == 0 && status.position >= count as u64)
            .await;
    }
}
