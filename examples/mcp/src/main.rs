//! Serves [`example_mcp`] with an emulated issuer.
//!
//! ```sh
//! cargo run -p example-mcp
//! ```

use std::error::Error;

use kinde_emulator::{KeySpec, KindeEmulator};
use tokio::net::TcpListener;
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::kinde::KindeVerifier;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = KindeEmulator::start().await?;
    let kinde = KindeVerifier::builder(emulator.issuer_url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .build()?;
    let app = example_mcp::app(ApiKeyLayer::new(kinde))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("MCP server: http://{}/mcp", listener.local_addr()?);
    for (org, scopes) in [
        ("org_reader", &["read:invoices"][..]),
        ("org_writer", &["read:invoices", "write:payments"]),
    ] {
        let spec = KeySpec::organization(org).scopes(scopes.iter().copied());
        println!(
            "{org}: Authorization: Bearer {}",
            emulator.issue_key(spec).secret()
        );
    }
    axum::serve(listener, app).await?;
    Ok(())
}
