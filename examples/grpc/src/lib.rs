//! A gRPC API with tonic: scopes by method, rejections as statuses, and streams that end with their key.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use tower::layer::util::{Identity, Stack};
use tower_orgkey::auth::ApiKeyLayerBuilder;
use tower_orgkey::grpc::{EndStreamsLayer, GrpcMethods, GrpcRejectionResponse};
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{ApiKeyLayer, ConfigError, OrgContext};

/// The generated service.
#[allow(missing_docs, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("reports.v1");
}

use proto::reports_server::{Reports, ReportsServer};
use proto::{ListReply, ListRequest, Report, UploadReply};

/// The descriptor set that `build.rs` wrote.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reports.bin"));

/// The layer of this API.
pub type Auth = ApiKeyLayer<GrpcRejectionResponse>;

/// Builds the layer. Open methods need `allow_anonymous`; [`methods`] requires a key for all others.
///
/// # Errors
///
/// If a setting of the builder is invalid.
pub fn auth(builder: ApiKeyLayerBuilder) -> Result<Auth, ConfigError> {
    let auth = builder.allow_anonymous().build()?;
    Ok(auth.with_rejection_response(GrpcRejectionResponse::new()))
}

/// Returns the scopes of each method. A method of the service that is not listed fails the start.
///
/// # Errors
///
/// If the methods are not those of the service.
pub fn methods() -> Result<GrpcMethods, ConfigError> {
    let read = || ScopePolicy::new([["read:reports"]]);
    let write = || ScopePolicy::new([["write:reports"]]);
    GrpcMethods::builder()
        .method("/reports.v1.Reports/List", read())
        .method("/reports.v1.Reports/Watch", read())
        .method("/reports.v1.Reports/Upload", write())
        .method("/reports.v1.Reports/Sync", write())
        .open_health()
        .descriptor_set(DESCRIPTOR_SET)
        .build()
}

/// The layers of the server. The first is the outermost.
type Layers = Stack<EndStreamsLayer, Stack<GrpcMethods, Stack<Auth, Identity>>>;

/// Returns the server.
///
/// # Errors
///
/// See [`methods`].
pub async fn server(auth: Auth, service: ReportsService) -> Result<Router<Layers>, ConfigError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ReportsServer<ReportsService>>().await;
    Ok(Server::builder()
        .layer(auth)
        .layer(methods()?)
        .layer(EndStreamsLayer::new())
        .add_service(health_service)
        .add_service(ReportsServer::new(service)))
}

/// The service. Watchers get reports from `events`.
#[derive(Clone, Debug, Default)]
pub struct ReportsService;

/// Returns the organization of a request. The layers reject requests without one.
fn organization<T>(request: &Request<T>) -> Result<OrgContext, Status> {
    let context = request.extensions().get::<OrgContext>();
    context
        .cloned()
        .ok_or_else(|| Status::internal("no organization"))
}

fn report(org: &OrgContext, title: impl Into<String>) -> Report {
    Report {
        title: title.into(),
        org_code: org.org_code().to_string(),
    }
}

type ReportStream = Pin<Box<dyn Stream<Item = Result<Report, Status>> + Send>>;

#[tonic::async_trait]
impl Reports for ReportsService {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let org = organization(&request)?;
        let reports = vec![report(&org, "sales"), report(&org, "costs")];
        Ok(Response::new(ListReply { reports }))
    }

    type WatchStream = ReportStream;

    async fn watch(&self, request: Request<ListRequest>) -> Result<Response<ReportStream>, Status> {
        let org = organization(&request)?;
        let now = tokio_stream::iter([Ok(report(&org, "sales"))]);
        // No new report is created here, so the stream stays open until its key becomes invalid.
        Ok(Response::new(Box::pin(now.chain(tokio_stream::pending()))))
    }

    async fn upload(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<UploadReply>, Status> {
        let mut reports = request.into_inner();
        let mut count = 0;
        while reports.message().await?.is_some() {
            count += 1;
        }
        Ok(Response::new(UploadReply { count }))
    }

    type SyncStream = ReportStream;

    async fn sync(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<ReportStream>, Status> {
        let org = organization(&request)?;
        let mut reports = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        // A task of the service reads the request: it ends with an error when the key becomes invalid.
        tokio::spawn(async move {
            loop {
                let next = match reports.message().await {
                    Ok(Some(next)) => Ok(report(&org, next.title)),
                    Ok(None) => break,
                    Err(status) => Err(status),
                };
                let is_last = next.is_err();
                if sender.send(next).await.is_err() || is_last {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
