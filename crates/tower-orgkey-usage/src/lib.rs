#![doc = include_str!("../README.md")]
// Without some features, links to their items are broken.
#![cfg_attr(
    not(all(feature = "kinde-billing", feature = "openmeter", feature = "stripe")),
    allow(rustdoc::broken_intra_doc_links)
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
//!
//! # Where the layer goes
//!
//! Outside [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer), so that it sees rejected requests. From the outside in: `UsageLayer`,
//! `ApiKeyLayer`, settings, limits, guards, handler. On a `Router` the layer that is added last is the outermost. Inside an
//! `ApiKeyLayer`, and without another one further in, the layer responds with 500 and logs an error.
//!
//! # What is counted
//!
//! A request is counted once, when its response begins or when it ends without one, in the minute (UTC) of that moment.
//!
//! * **Account and key**: the organization and the key that `ApiKeyLayer` authenticated, even if a guard rejected the request
//!   afterwards. A request that is rejected before its organization is known is
//!   [unauthenticated](Account::Unauthenticated), with the kind of its rejection; one that was let through without a key is
//!   [anonymous](Account::Anonymous).
//! * **Served or rejected**: [`served`](Counts::served) counts the requests that reached the handler, and
//!   [`rejected`](Counts::rejected) those that the layer, a guard, an extractor, a limit or the handler rejected. Bill `served`.
//! * **Route**: axum's matched path, or what [your function](UsageLayerBuilder::route) returns. The layer sees the matched
//!   path if it is added to the `Router` with `layer` or `route_layer`, not if it is wrapped around the `Router`.
//! * **Bytes**: the size of the request's body as declared by the body or by `Content-Length`, whether it is read or not, and
//!   of the response's body if it is known when the response begins. Bodies of unknown size, such as streams, count as 0.
//! * **Durations**: from the call of the layer to the head of the response, as a sum and in
//!   [fixed buckets](DURATION_BOUNDS_MS).
//!
//! # Bounds
//!
//! The layer holds [a bounded number of rows](UsageLayerBuilder::capacity) for the current minute, and as many for the
//! totals. A row is an organization, a key and a route. When there is no room, the least recently used row is merged into the
//! row for [other keys](KeyName::Other) of its organization. When there are more of those rows than
//! [`organizations`](UsageLayerBuilder::organizations) allows, the least recently used one is merged into the row for
//! [other organizations](Account::OtherOrganizations). No count is lost, and the sum of an organization is exact as long as
//! its row for other keys is held. [`UsageStats::merged`] counts the merges. There are none if the capacity is the number of
//! keys that are active in a minute, times their routes.
//!
//! The bounds are divided among up to 64 shards, so rows can be merged shortly before the capacity is reached.
//!
//! # Pushing
//!
//! A [`UsagePusher`] closes each minute and pushes it to a [`UsageSink`], at least once and in order. [`OpenMeterSink`]
//! (feature `openmeter`), [`StripeSink`] (feature `stripe`) and [`KindeBillingSink`] (feature `kinde-billing`) are sinks. A sink of
//! your own that calls a meter over HTTP needs some 50 lines with [`HttpMeter`] (feature `http-meter`).
//!
//! * **A closed minute stays closed.** Its records are final, and each has a unique id. Requests that end later count in the
//!   next minute, or in further records of the same minute if [`flush`](UsagePusher::flush) closed it early. If the wall clock
//!   steps back, requests count in the latest minute so far until the clock has passed it again. If that is more than a minute
//!   away, for example because the clock was hours ahead, a part of it is closed every minute, with the
//!   [minute](UsageRecord::minute) that the clock shows.
//! * **A sink that counts each id once never counts a request twice.** Ids are random per process, and records keep their
//!   ids in the [spool file](SpoolFile).
//! * **A sink that forgets ids says so** in [`remembers`](UsageSink::remembers). A record that it may have stored is then
//!   [parked](ParkedRecords) instead of being counted twice.
//! * **What can be lost** is listed [with the pusher](UsagePusher#what-can-be-lost): with a spool file, if the process is
//!   killed, the current minute and one that ended a moment ago; and, if very many records wait, the oldest of the accounts with
//!   the most, which is counted and logged.
//!
//! # Cost
//!
//! A request costs two readings of the monotonic clock and one of the wall clock, a small allocation (shared with other outer
//! layers that observe the request), and a few additions under the lock of one of up to 64 shards. The first request of a
//! minute in each shard also adds the shard's last minute to its totals.
//!
//! # Log messages
//!
//! Events go through `tracing` under the target `tower_orgkey`.
//!
//! | level | message begins | cause | fix |
//! |---|---|---|---|
//! | warn | `usage push failed, retrying` | `error` says why: unreachable, busy, wrong token | records wait and are pushed again: repair the sink |
//! | info | `usage push recovered` | the sink stores records, and no account fails any more | |
//! | error | `usage record undeliverable` | the sink returned `PushError::permanent` for the record of this `id` | compare the record with what the meter expects |
//! | error | `usage records dropped` | `reason`: more waited than `max_waiting`, the pusher did not run, or it was dropped | a larger `max_waiting`; run the pusher; a spool file |
//! | error | `usage record parked` | `reason`: `maybe_stored` (a push had no clear answer, and the meter has forgotten the id since, or the sink panics on the record), `too_old`, or `held` (no customer, for example); `id` names the record | look it up at the meter and settle it with `ParkedRecords` |
//! | warn | `usage spool file cannot be written` | `error` says why; waiting records would be lost with the process | free space, permissions |
//! | info | `usage spool file is written again` | | |
//! | warn | `usage spool file truncated` | a crash interrupted a write | nothing: the incomplete line was not pushed |
//! | warn | `usage clock was set back` | by `minutes`; usage is pushed every minute all the same | compare the minutes before with the logs |
//! | error | `usage totals missing or older` | the [file of totals](TotalsFile) was lost or restored | [`resume`](KindeBillingSender::resume); nothing on a first start |
//! | warn | `usage total held` | `reason` says why an `organization` is not billed | see [`HoldReason`] |
//! | error | `usage unsettled` | `units` were not answered when their period ended | [`settle`](KindeBillingSender::settle) |
//! | error | `usage records parked: too old` | it is unknown whether `records` were counted for billing | compare with the invoice, and settle them as [billed](Settlement::Billed) |
//! | error | `usage totals store failed` | `error` says why; nothing is sent | repair the store |

mod account;
mod aggregator;
mod backlog;
mod call;
mod catch_unwind;
mod clock_table;
mod counts;
mod future;
#[cfg(feature = "http-meter")]
mod http_meter;
#[cfg(feature = "kinde-billing")]
mod kinde_billing;
mod layer;
#[cfg(feature = "openmeter")]
mod openmeter;
mod parked;
mod pusher;
mod queue;
mod record;
#[cfg(any(feature = "openmeter", feature = "stripe"))]
mod rfc_3339;
mod routes;
mod service;
mod sink;
mod snapshot;
mod spool;
#[cfg(feature = "stripe")]
mod stripe;
mod table;
pub mod telemetry;
#[cfg(feature = "test-util")]
pub mod test_util;
mod wall_clock;

pub use self::account::{Account, KeyName, Route};
pub use self::counts::{Counts, DURATION_BOUNDS_MS};
pub use self::future::ResponseFuture;
#[cfg(feature = "http-meter")]
pub use self::http_meter::{HttpMeter, HttpMeterBuilder, HttpReply};
#[cfg(feature = "kinde-billing")]
pub use self::kinde_billing::{
    HoldReason, KindeBillingBuilder, KindeBillingSender, KindeBillingSink, Ledger, MaybeAdded,
    OrgTotal, PeriodTotal, RecordUnits, ResumeError, SendReport, Totals, TotalsError, TotalsFile,
    TotalsStore, Unsettled,
};
pub use self::layer::{UsageHandle, UsageLayer, UsageLayerBuilder, UsageStats};
#[cfg(feature = "openmeter")]
pub use self::openmeter::{OpenMeterSink, OpenMeterSinkBuilder};
pub use self::parked::{ParkReason, ParkedRecord, Settlement};
pub use self::pusher::{ParkedRecords, PushReport, UsagePusher, UsagePusherBuilder};
pub use self::record::UsageRecord;
pub use self::service::UsageService;
pub use self::sink::{PushError, PushErrorKind, UsageSink};
pub use self::snapshot::{UsageLine, UsageSnapshot};
pub use self::spool::{SpoolFile, SpoolFileError};
#[cfg(feature = "stripe")]
pub use self::stripe::{StripeCustomer, StripeSink, StripeSinkBuilder};
