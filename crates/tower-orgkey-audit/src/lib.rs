#![cfg_attr(docsrs, feature(doc_cfg))]
//! The audit trail: one event for each request that was decided on, in the fields of [OCSF] 1.8.0.
//!
//! Who called what, with which key, was it let in, and what became of it: the layer that judges keys is the one place that
//! knows all of it, for refused requests too. [`AuditLayer`] writes it down, and an [`AuditTrail`] brings it to a
//! [sink](AuditSink): a file of JSON lines, `tracing`, or one of your own.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, routing::get};
//! use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};
//! use tower_orgkey::{ApiKeyLayer, OrgContext, require_scope};
//! # use tower_orgkey::{Verification, verifier_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
//! # let path = std::env::temp_dir().join(format!("orgkey-doc-{}.jsonl", std::process::id()));
//! // Starts a thread, on which the sink lives.
//! let trail = AuditTrail::builder()
//!     .sink(JsonLines::append(&path)?)
//!     .service("reports-api")
//!     .start()?;
//!
//! let app: Router = Router::new()
//!     .route("/reports", get(|org: OrgContext| async move { org.org_code().to_string() })
//!         .route_layer(require_scope("read:reports")))
//!     .route_layer(ApiKeyLayer::new(verifier))
//!     // The last one is the outermost: it sees refusals too.
//!     .route_layer(AuditLayer::new(&trail));
//!
//! // Serve it; then, when the connections are drained:
//! trail.shutdown(Duration::from_secs(5)).await?;
//! # std::fs::remove_file(path)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is an event
//!
//! Every request that an [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer) beneath decided on, once: allowed, let in without a key, or
//! refused, by the layer, by a guard, an extractor or a limit beneath it. A request that nothing was decided on is none: a
//! fallback outside of the layer, or a client that hung up while its key was verified.
//!
//! An event is complete when the body of the response has ended, so that a stream is told of when it is over. Where the
//! request's future is dropped, or the handler panics or fails, the event says so instead.
//!
//! # What stands where
//!
//! | field | holds |
//! |---|---|
//! | `class_uid` | 6003, API Activity, for what was let in or was refused for its scope, organization, limit or settings; 3002, Authentication, for what was refused before its organization was known |
//! | `time`, `start_time` | when the request arrived, in milliseconds since 1970 |
//! | `duration`, `end_time`, `http_response.latency` | up to the head of the response, in milliseconds |
//! | `unmapped.body_duration`, `unmapped.body_end` | up to the end of the body; `ended`, `dropped` or `failed` |
//! | `metadata.uid`, `metadata.sequence` | the event's own identifier and its place in the trail |
//! | `metadata.correlation_uid`, `http_request.uid`, `api.request.uid` (6003) | the request's id, [taken over or made](AuditLayer::request_id_header) |
//! | `actor.user` (6003), `user` (3002) | `org.uid`: the organization; `programmatic_credentials[0].uid`: the key's id; `uid`: the user's if the key acts for one, else the key's id. Without an organization `name` is `anonymous` or `unknown` |
//! | `activity_id` | what the method stands for: 1 create, 2 read, 3 update, 4 delete, 99 anything else |
//! | `api.operation` (6003), `unmapped.operation` (3002) | the method and the matched route; never the path with its identifiers |
//! | `action`, `status_code` | `Allowed` or `Denied`; `allowed`, `anonymous`, the [code](tower_orgkey::Rejection::code) of the refusal, or `failed`, `dropped`, `panicked` where there is no response |
//! | `status_id` | 1 success, 2 failure (refused, failed, or a status of 400 and more), 99 the client left |
//! | `authorizations` | the scope policies that were asked for (`policy.data.any_of`), and the `decision` |
//! | `http_response.code`, `.body_length` | the status; the bytes of the body that were taken |
//! | `src_endpoint` | the peer, if [`peer`](AuditLayer::peer) tells; else its `name` is `unknown` |
//! | `unmapped.cached`, `unmapped.stale` | whether the key's facts were held already, and whether they were past their soft TTL |
//! | `http_request.url.path` | only with [`record_path`](AuditLayer::record_path) |
//!
//! No event holds a key, a digest of one, a query or a header other than the request's id.
//!
//! # What is bounded
//!
//! A request never waits for the sink. What it costs is an allocation for the event, a few small ones for its parts, and a
//! place in a queue under a lock that is never held for long; JSON is made on the trail's thread.
//!
//! * The queue holds [8,192 events](AuditTrailBuilder::capacity), and those without an organization at most half of it. An
//!   event that finds no room is lost: counted in [`AuditStats::lost`], in the metric
//!   [`AUDIT_EVENTS`](crate::telemetry::AUDIT_EVENTS), and in an event of its own as soon as the sink works again (class 1008,
//!   Event Log Activity, with `count`).
//! * A sink that fails is tried again until it works; one that panics loses the batch it panicked over. See [`AuditSink`].
//! * Refused requests without a known organization have [10 events a second](AuditTrailBuilder::refusals_per_second) after a
//!   first hundred. The others are told of by one event a second at most (class 3002, with `count`, and
//!   `unmapped.by_code`). Whoever floods an API with junk does not flood its audit trail.
//!
//! # What may be missing
//!
//! After [`flush`](AuditTrail::flush) or [`shutdown`](AuditTrail::shutdown) returned `Ok`, nothing that was accepted before. If the
//! process is killed: what was accepted since, at most the queue and one batch; and the requests under way. A line that was
//! being written may be torn: it does not end in a line feed and is no JSON.
//!
//! An event may be there twice if the sink failed halfway; its `metadata.uid` is the same.
//!
//! [OCSF]: https://schema.ocsf.io/1.8.0

mod body;
mod event;
mod future;
mod json_lines;
mod layer;
mod left_out;
mod ocsf;
mod peer;
mod queue;
mod request_id;
mod service;
mod sink;
pub mod telemetry;
mod tracing_sink;
mod trail;
mod writer;

pub use self::body::AuditBody;
pub use self::event::{
    AuditEvent, AuditEventKind, AuditedRequest, BodyEnd, LeftOutRefusals, LostEvents,
};
pub use self::future::AuditFuture;
pub use self::json_lines::JsonLines;
pub use self::layer::AuditLayer;
pub use self::peer::AuditPeer;
pub use self::service::AuditService;
pub use self::sink::{AuditSink, SinkError};
pub use self::tracing_sink::TracingSink;
pub use self::trail::{AuditIncomplete, AuditStats, AuditTrail, AuditTrailBuilder};
