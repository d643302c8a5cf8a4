#![cfg_attr(docsrs, feature(doc_cfg))]
//! Usage: what each organization and each key did, by route and minute.
//!
//! The issuer's own counters count verifications, of which a cache leaves few. The layer sees every request, so it keeps these
//! books: requests, refusals by reason, requests that got no response, bytes, and how long it all took. They can be read at
//! any time as a [`UsageSnapshot`], and pushed minute by minute to a meter that bills them.
//!
//! # Where it stands
//!
//! *Outside* of [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer), so that it sees what is refused: from the outside in
//! **`UsageLayer`**, `ApiKeyLayer`, guards, handler. On a `Router` the layer that is added last is the outermost.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext};
//! use tower_orgkey_usage::UsageLayer;
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//!
//! async fn report(org: OrgContext) -> String {
//!     format!("a report of {}", org.org_code())
//! }
//!
//! let usage = UsageLayer::new();
//! let books = usage.handle();
//! let app: Router = Router::new()
//!     .route("/reports/{id}", get(report))
//!     .route_layer(auth)
//!     .route_layer(usage);
//!
//! let of_acme = books.snapshot().of_organization(&OrgCode::from_static("org_acme"));
//! println!("{} requests, {} refused", of_acme.requests(), of_acme.refused());
//! ```
//!
//! Beneath `ApiKeyLayer` it would never learn whose a request is: everything there is nobody's.
//!
//! # What is counted, and for whom
//!
//! One request counts once, when its response begins: its answer, its refusal or that it was left, in the minute (UTC) in
//! which that happens, however long before it came.
//!
//! * **Whose**: the organization and key that the layer let in, whether a guard then refused the request or not. A request
//!   that is refused before its organization is known (a bad key, none, a key of no organization) is
//!   [nobody's](Account::Nobody), with its reason; one that was let in without a key is [anonymous](Account::Anonymous).
//! * **Where**: axum's matched path, or what [your function](UsageLayerBuilder::route) says. The layer sees the matched path
//!   where it was added to the `Router` with `layer` or `route_layer`, not where it is wrapped around the `Router`.
//! * **Bytes**: the size of the request's body as declared, by the body itself or by `Content-Length`, read or not; and of the
//!   response's body where it is known when the response begins. Bodies of unknown size, streams above all, count nothing.
//! * **Durations**: from the layer's call to the head of the response, added up and in [fixed buckets](DURATION_BOUNDS_MS).
//! * A request whose future is dropped, whose handler panics or whose service fails counts as that, once.
//!
//! # What is bounded
//!
//! [So many rows](UsageLayerBuilder::capacity) are held of the minute under way, and as many of the totals; a row is an
//! organization, a key and a route. When there is no room for another, a row that was not used for long is *folded*: first
//! into [all other keys](KeyName::Other) of its organization on the same route, when those have to make room into the
//! organization's remainder (other keys, [other routes](Route::Other)), and when there are more
//! [organizations](UsageLayerBuilder::organizations) with a remainder than may be, into that of
//! [other organizations](Account::OtherOrganizations). Counts are never lost on the way, and the sum over an organization is
//! exact as long as its remainder has a place. [`UsageStats::folds`] tells how often it happens; a capacity of as many rows as
//! keys are active in a minute, times their routes, makes it never.
//!
//! The bounds are divided among up to 64 shards, so rows can be folded a little before all of them are taken.
//!
//! # Pushing it
//!
//! A [`UsagePusher`] closes each minute and pushes it to a [`UsageSink`], at least once, in order; [`OpenMeterSink`] (feature
//! `openmeter`) is one.
//!
//! * **A closed minute stays closed.** Its records are final, and each has an id that no other has. What ends after that
//!   counts in the next: if the minute was closed early by [`flush`](UsagePusher::flush), in records of their own for the rest
//!   of it, with ids of their own. A wall clock that steps back changes nothing but the name of the minute: counting goes on in
//!   the latest minute there was, until the clock has passed it again. (So a clock that by mistake jumped ahead keeps that
//!   minute until the process is restarted.)
//! * **Nothing is billed twice** by a sink that counts each id once. Ids are drawn anew in each run of the process, and
//!   records keep theirs in the [file](UnsentFile): they can neither repeat nor clash over restarts, clocks or instances.
//! * **What can be lost**, and is then counted and told, stands [with the pusher](UsagePusher#what-is-lost-and-what-is-not): in
//!   short, with a file the minute under way when the process is killed, and the oldest records when very many wait.
//!
//! # What it costs
//!
//! A request costs two readings of the monotonic clock and one of the wall clock, one small allocation (shared with the audit
//! trail, if that is on), a look-up of its route, and a look-up and some additions under a lock of one of up to 64 shards.
//! Nothing is allocated for a row that is there. The first request of a minute in each shard also adds the shard's last minute to
//! its totals. Without the layer nothing is counted, and nothing costs anything.

mod account;
mod books;
mod caught;
mod counts;
mod future;
mod layer;
mod ledger;
#[cfg(feature = "openmeter")]
mod openmeter;
mod outbox;
mod pusher;
mod record;
mod ring;
mod routes;
mod service;
mod sink;
mod snapshot;
pub mod telemetry;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
mod unsent;
mod wall;

pub use self::account::{Account, KeyName, Route};
pub use self::counts::{Counts, DURATION_BOUNDS_MS};
pub use self::future::ResponseFuture;
pub use self::layer::{UsageHandle, UsageLayer, UsageLayerBuilder, UsageStats};
#[cfg(feature = "openmeter")]
#[cfg_attr(docsrs, doc(cfg(feature = "openmeter")))]
pub use self::openmeter::{OpenMeterSink, OpenMeterSinkBuilder};
pub use self::pusher::{PushReport, UsagePusher, UsagePusherBuilder};
pub use self::record::UsageRecord;
pub use self::service::UsageService;
pub use self::sink::{PushError, PushErrorKind, UsageSink};
pub use self::snapshot::{UsageLine, UsageSnapshot};
pub use self::unsent::{UnsentFile, UnsentFileError};
