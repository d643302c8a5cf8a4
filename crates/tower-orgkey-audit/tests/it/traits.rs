//! The traits of every public type.

use std::convert::Infallible;

use bytes::Bytes;
use http::Response;
use static_assertions::assert_impl_all;
use tower_orgkey_audit::{
    AuditBody, AuditEvent, AuditFuture, AuditLayer, AuditPeer, AuditService, AuditSink, AuditStats,
    AuditTrail, AuditTrailBuilder, FlushError, JsonLines, SinkError, TracingSink,
};

type Ready = std::future::Ready<Result<Response<Bytes>, Infallible>>;

macro_rules! all {
    ($($type:ty: $($trait:path),*;)*) => {
        $(assert_impl_all!($type: Send, Sync, Unpin, std::fmt::Debug $(, $trait)*);)*
    };
}

all! {
    AuditLayer: Clone;
    AuditTrail: Clone;
    AuditTrailBuilder<TracingSink>: ;
    AuditService<axum::Router>: Clone;
    AuditFuture<Ready>: ;
    AuditBody<http_body_util::Full<Bytes>>: http_body::Body;
    AuditEvent: Clone, serde::Serialize;
    AuditPeer: Copy, Eq, std::hash::Hash;
    AuditStats: Copy, Eq;
    FlushError: Copy, Eq, std::error::Error;
    JsonLines<std::fs::File>: AuditSink;
    SinkError: ;
    TracingSink: Copy, AuditSink;
}
