//! Server-sent events and a WebSocket that end when their key becomes invalid.
//!
//! The layer authenticates a request when it arrives. A stream lasts longer, so `OrgContext::until_invalid()` ends it: at once
//! when the key is blocked or invalidated here, and at the hard TTL when no request verifies it. The WebSocket may stay idle for
//! days, so `OrgContext::until_invalid_revalidating()` verifies its key periodically. It ends soon after the key was revoked at
//! the issuer.
//!
//! ```text
//! cargo run --example streams
//! ```

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use axum::routing::get;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tower_orgkey::{ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, verifier_fn};

/// The interval between two events of a stream.
#[derive(Clone, Copy)]
struct Every(Duration);

/// The longest time between two verifications of a WebSocket's key. A revoked key is accepted for this time and one
/// verification.
const PERIOD: Duration = Duration::from_secs(60);

/// The application: two streams behind the layer, which has `revalidation(true)`.
pub(crate) fn app(auth: ApiKeyLayer, every: Duration) -> Router {
    Router::new()
        .route("/events", get(events))
        .route("/socket", get(socket))
        .route_layer(auth)
        .with_state(Every(every))
}

/// Server-sent events. When the key becomes invalid, the body ends between two events.
async fn events(
    State(every): State<Every>,
    org: OrgContext,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let news = news(every, &org).map(|text| Ok(Event::default().data(text)));
    Sse::new(news.take_until(org.until_invalid()))
}

/// A WebSocket. The first poll of `until_invalid_revalidating` also finds what changed before the upgrade.
async fn socket(
    State(every): State<Every>,
    org: OrgContext,
    upgrade: WebSocketUpgrade,
) -> Response {
    let news = news(every, &org);
    let over = org.until_invalid_revalidating(PERIOD);
    upgrade.on_upgrade(move |mut socket| async move {
        let is_over = tokio::select! {
            () = over => true,
            () = converse(&mut socket, news) => false,
        };
        if is_over {
            let close = Message::Close(Some(CloseFrame {
                code: close_code::POLICY,
                reason: "the key is no longer valid".into(),
            }));
            // Best effort: the connection is dropped even if the client does not read the message.
            let _ = tokio::time::timeout(Duration::from_secs(1), socket.send(close)).await;
        }
    })
}

/// Sends messages until the client disconnects.
async fn converse(socket: &mut WebSocket, news: impl Stream<Item = String>) {
    let mut news = pin!(news);
    loop {
        tokio::select! {
            Some(text) = news.next() => {
                if socket.send(text.into()).await.is_err() {
                    return;
                }
            }
            received = socket.recv() => {
                if !matches!(received, Some(Ok(_))) {
                    return;
                }
            }
        }
    }
}

/// The messages for an organization: a counter.
fn news(Every(every): Every, org: &OrgContext) -> impl Stream<Item = String> + Send + use<> {
    let org_code = org.org_code().clone();
    stream::unfold(0_u64, move |number| {
        let text = format!("{org_code} {number}");
        async move {
            tokio::time::sleep(every).await;
            Some((text, number + 1))
        }
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    const KEY: &str = "k_demo_0123456789";

    static IS_REVOKED: AtomicBool = AtomicBool::new(false);

    let verifier = verifier_fn(|key: ApiKey| async move {
        let is_valid = key.expose_secret() == KEY && !IS_REVOKED.load(Ordering::Relaxed);
        Ok(if is_valid {
            Verification::of_organization(OrgCode::from_static("org_1"))
                .with_key_id(KeyId::from_static("api_key_1"))
        } else {
            Verification::invalid()
        })
    });
    let auth = ApiKeyLayer::builder(verifier).revalidation(true).build()?;
    let keys = auth.handle();
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("curl -N -H 'Authorization: Bearer {KEY}' http://127.0.0.1:3000/events");
    println!("websocat -H 'Authorization: Bearer {KEY}' ws://127.0.0.1:3000/socket");
    println!(
        "Press Enter to block the key, and again to unblock it. Enter `revoke` to revoke it at the issuer."
    );
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let key_id = KeyId::from_static("api_key_1");
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "revoke" {
                IS_REVOKED.store(true, Ordering::Relaxed);
                println!("The key is revoked. The WebSocket ends within {PERIOD:?}.");
            } else if keys.unblock_key_id(&key_id) {
                println!("The key is unblocked.");
            } else if keys.block_key_id(&key_id).is_ok() {
                println!("The key is blocked.");
            }
        }
    });
    axum::serve(listener, app(auth, Duration::from_secs(1))).await?;
    Ok(())
}
