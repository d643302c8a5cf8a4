//! An API with its OpenAPI document at `/openapi.json`, an emulated set of keys, and a command that tests both.
//!
//! ```sh
//! cargo run -p tower-orgkey-openapi --example reports
//! ```

use std::error::Error;

use tokio::net::TcpListener;

#[path = "reports/api.rs"]
mod api;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/openapi.json", listener.local_addr()?);
    println!("The document: {url}");
    println!(
        "schemathesis run {url} --checks all -H 'Authorization: Bearer {}'",
        api::KEY
    );
    axum::serve(listener, api::app()?).await?;
    Ok(())
}
