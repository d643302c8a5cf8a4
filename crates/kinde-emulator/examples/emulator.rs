//! Runs an emulator as a program, for an application on the same machine.
//!
//! ```sh
//! LISTEN_ADDR=127.0.0.1:4000 cargo run -p kinde-emulator --example emulator
//! ```
//!
//! Credentials and keys are the same in every run, so that a development configuration can contain them.

use std::env;
use std::error::Error;
use std::net::SocketAddr;

use kinde_emulator::{KeySpec, KindeEmulator};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:4000".to_owned());
    let emulator = KindeEmulator::builder()
        .addr(addr.parse::<SocketAddr>()?)
        .client_credentials("development", "not-a-secret")
        .start()
        .await?;

    let keys = [
        (
            "org_north: read",
            KeySpec::organization("org_north")
                .scopes(["read:users", "read:reports"])
                .secret("k_live_north_may_read"),
        ),
        (
            "org_south: read and write users",
            KeySpec::organization("org_south")
                .scopes(["read:users", "write:users"])
                .secret("k_live_south_may_write"),
        ),
        (
            "key of a user",
            KeySpec::user("kp_1")
                .scopes(["read:users"])
                .secret("k_live_of_a_user"),
        ),
        (
            "revoked",
            KeySpec::organization("org_north").secret("k_live_revoked"),
        ),
    ];
    println!("Kinde emulator listening on {}.", emulator.issuer_url());
    println!("\nKeys:");
    for (description, spec) in keys {
        let key = emulator.issue_key(spec);
        println!("  {:<24} {description}", key.secret());
        if description == "revoked" {
            emulator.revoke(key.id());
        }
    }

    let (url, id, secret) = (
        emulator.issuer_url(),
        emulator.client_id(),
        emulator.client_secret(),
    );
    println!("\nRun the quickstart of tower-orgkey against it:");
    println!(
        "  KINDE_ISSUER_URL={url} KINDE_CLIENT_ID={id} KINDE_CLIENT_SECRET={secret} cargo run --example quickstart"
    );
    println!("\nCall it with curl:");
    println!(
        "  curl -s {url}/oauth2/token -d grant_type=client_credentials -d client_id={id} -d client_secret={secret} -d audience={}",
        emulator.audience()
    );
    println!(
        "  curl -s {url}/api/v1/api_keys/verify -H \"Authorization: Bearer $TOKEN\" --json '{{\"api_key\":\"k_live_north_may_read\"}}'"
    );
    println!("  curl -s {url}/api/v1/api_keys -H \"Authorization: Bearer $TOKEN\"");
    println!("\nPress Ctrl-C to stop.");

    tokio::signal::ctrl_c().await?;
    emulator.shutdown().await;
    Ok(())
}
