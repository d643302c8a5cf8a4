#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
//!
//! # Which requests have an event
//!
//! Every request that an [`ApiKeyLayer`](tower_orgkey::ApiKeyLayer) beneath the [`AuditLayer`] decided on has one event:
//! requests that were allowed, let through without a key, or rejected by the layer, or by a guard, extractor or limit
//! beneath it. So has a request that ended during the verification of its key, because the client disconnected or a timeout
//! expired: it is denied, and no caller is known. A request that was not to be decided on has none: one that a fallback outside
//! `ApiKeyLayer` answered.
//!
//! Inside an `ApiKeyLayer`, and without another one further in, the layer responds with 500 and logs an error.
//!
//! To record that a request timed out here, put the layer that enforces the timeout inside the `AuditLayer`: tower-http's
//! `TimeoutLayer` responds with 408, or with the status that it is given. Outside, it drops the future of the request, which
//! looks as if the client had disconnected.
//!
//! The event is complete when the body of the response ends, so a stream is recorded when it is over. If the request's
//! future is dropped, or the handler panics or fails, the event says so.
//!
//! # Fields
//!
//! | field | value |
//! |---|---|
//! | `class_uid` | 6003, API Activity, for allowed requests and for rejections because of a scope, organization, limit or settings; 3002, Authentication, for rejections and ends before the organization is known |
//! | `time`, `start_time` | when the request arrived, in milliseconds since 1970 |
//! | `duration`, `end_time`, `http_response.latency` | until the head of the response, in milliseconds |
//! | `unmapped.body_duration`, `unmapped.body_end` | until the end of the body; `ended`, `dropped` or `failed` |
//! | `metadata.uid`, `metadata.sequence` | the identifier of the event and its position in the trail |
//! | `metadata.correlation_uid`, `http_request.uid`, `api.request.uid` (6003) | the request's id, if [its header](AuditLayer::request_id_header) holds one |
//! | `actor.user` (6003), `user` (3002) | `org.uid`: the organization; `programmatic_credentials[0].uid`: the key's id; `uid`: the user's id if the key acts for a user, else the key's id. Without an organization `name` is `anonymous` or `unknown` |
//! | `activity_id` | by method: 1 create, 2 read, 3 update, 4 delete, 99 other |
//! | `api.operation` (6003), `unmapped.operation` (3002) | the method and the matched route, never the path with its identifiers |
//! | `action`, `status_code` | `Allowed` or `Denied`; `allowed`, `anonymous`, `other-credential` (passed to another authentication), the [code](tower_orgkey::Rejection::code) of the rejection, `timed-out` for any other response with the status 408 or 504; or `failed`, `dropped`, `panicked` if there is no response of the inner service |
//! | `status_id` | 1 success, 2 failure (rejected, failed, or a status of 400 or more), 99 the client disconnected |
//! | `authorizations` | what guards required, and the `decision`: scope policies (`policy.data.any_of`), and the path parameter that names the organization |
//! | `http_response.code`, `.body_length` | the status; how many bytes of the body the server took |
//! | `src_endpoint` | the peer, if [`peer`](AuditLayer::peer) is set; else its `name` is `unknown`. With [`pseudonymize`](AuditLayer::pseudonymize) its `uid` is a pseudonym |
//! | `unmapped.cached`, `unmapped.stale` | whether the verification result was cached, and whether it was past its soft TTL |
//! | `unmapped.target` | what an operator changed, see [`record_operator_action`](AuditTrail::record_operator_action) |
//! | `http_request.url.path` | only with [`record_path`](AuditLayer::record_path) |
//!
//! No event contains a key, a digest of a key, a query, or a header other than the request's id.
//!
//! # Bounds
//!
//! A request never waits for the sink. It costs four allocations (the event, the body, and two for what other outer layers
//! observe as well), a fifth if it has an id, and a push into a bounded queue; JSON is written on the trail's thread. That thread
//! collects events for at most two milliseconds before it writes them.
//!
//! * The queue holds [8,192 events](AuditTrailBuilder::capacity) of organizations and operators, and a separate one half as
//!   many others. An event that finds its queue full is lost. It is counted in [`AuditStats::lost`] and in the metric
//!   [`AUDIT_EVENTS`](telemetry::AUDIT_EVENTS), and an event of class 1008 (Event Log Activity) reports the `count` as soon
//!   as the sink works again.
//! * If the sink fails, it is retried until it works. If it panics, the batch is lost. See [`AuditSink`].
//! * Requests without a known organization that were rejected, or ended during the verification, are sampled:
//!   [10 per second](AuditTrailBuilder::rejections_per_second) have an event, after a burst of 100. The others are
//!   summarized in at most one event per second (class 3002, with `count` and `unmapped.by_code`).
//!
//! # What can be missing
//!
//! After [`flush`](AuditTrail::flush) or [`shutdown`](AuditTrail::shutdown) returned `Ok`, no event that was accepted before
//! is missing. If the process is killed, these are missing: events accepted since then, at most the queues and one batch,
//! and requests in flight. The line that was being written can be cut off: it does not end in a line feed and is not JSON.
//!
//! If the sink failed halfway, an event can be written twice, with the same `metadata.uid`.

mod body;
mod event;
mod exporter;
mod future;
mod json_lines;
mod layer;
mod ocsf;
mod peer;
mod pseudonym;
mod queue;
mod request_id;
mod sampling;
mod service;
mod sink;
pub mod telemetry;
mod tracing_sink;
mod trail;

pub use self::body::AuditBody;
pub use self::event::{
    AuditEvent, AuditEventKind, AuditedRequest, BodyEnd, LostEvents, SuppressedRejections,
};
pub use self::exporter::AuditStats;
pub use self::future::AuditFuture;
pub use self::json_lines::JsonLines;
pub use self::layer::AuditLayer;
pub use self::peer::AuditPeer;
pub use self::pseudonym::PseudonymKey;
pub use self::service::AuditService;
pub use self::sink::{AuditSink, SinkError};
pub use self::tracing_sink::TracingSink;
pub use self::trail::{AuditTrail, AuditTrailBuilder, FlushError};
