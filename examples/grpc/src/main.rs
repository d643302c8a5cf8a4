//! Serves [`example_grpc`] with an emulated issuer, and calls it.
//!
//! ```sh
//! cargo run -p example-grpc
//! ```

use std::error::Error;

use example_grpc::proto::ListRequest;
use example_grpc::proto::reports_client::ReportsClient;
use example_grpc::{ReportsService, auth, server};
use kinde_emulator::{KeySpec, KindeEmulator};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::kinde::KindeVerifier;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = KindeEmulator::start().await?;
    let kinde = KindeVerifier::builder(emulator.issuer_url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .build()?;
    let server = server(auth(ApiKeyLayer::builder(kinde))?, ReportsService).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let reader = emulator.issue_key(KeySpec::organization("org_1").scopes(["read:reports"]));
    let other = emulator.issue_key(KeySpec::organization("org_2").scopes(["read:users"]));
    let mut client = ReportsClient::connect(url).await?;
    for key in [reader.secret(), other.secret(), "k_live_unknown"] {
        let mut request = Request::new(ListRequest {});
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {key}").parse()?);
        match client.list(request).await {
            Ok(reply) => println!("{:?}", reply.into_inner().reports),
            Err(status) => println!("{:?}: {}", status.code(), status.message()),
        }
    }
    Ok(())
}
