//! Streams end with their key: the application of the example, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it did not expect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::StatusCode;
use http::header::AUTHORIZATION;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode, Verification, verifier_fn};

#[allow(dead_code)] // Its `main`.
#[path = "../../examples/streams.rs"]
mod example;

const OURS: &str = "k_test_of_org_a";
const THEIRS: &str = "k_test_of_org_b";

/// Only a failing test waits this long.
const HANG: Duration = Duration::from_secs(20);

async fn serve() -> (SocketAddr, ApiKeyHandle) {
    serve_with(TestClock::new(), Arc::default()).await
}

async fn serve_with(clock: TestClock, revoked: Arc<AtomicBool>) -> (SocketAddr, ApiKeyHandle) {
    let verifier = verifier_fn(move |key: ApiKey| {
        let is_revoked = revoked.load(Ordering::SeqCst);
        async move {
            let (org, key_id) = match key.expose_secret() {
                OURS if !is_revoked => ("org_a", "api_key_a"),
                THEIRS => ("org_b", "api_key_b"),
                _ => return Ok(Verification::invalid()),
            };
            Ok(Verification::of_organization(OrgCode::from_static(org))
                .with_key_id(KeyId::from_static(key_id)))
        }
    });
    let auth = ApiKeyLayer::builder(verifier)
        .revalidation(true)
        .test_clock(clock)
        .build()
        .unwrap();
    let keys = auth.handle();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = example::app(auth, Duration::from_millis(5));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, keys)
}

async fn get_events(address: SocketAddr, key: &str) -> reqwest::Response {
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .get(format!("http://{address}/events"))
        .bearer_auth(key)
        .send()
        .await
        .unwrap()
}

/// Reads the body as text, chunk by chunk, up to its end.
fn events(response: reqwest::Response) -> impl Stream<Item = String> + Unpin {
    Box::pin(futures_util::stream::unfold(
        response,
        |mut response| async {
            let chunk = response.chunk().await.unwrap()?;
            Some((String::from_utf8(chunk.to_vec()).unwrap(), response))
        },
    ))
}

async fn open_socket(
    address: SocketAddr,
    key: &str,
) -> Result<WebSocketStream<TcpStream>, StatusCode> {
    use tokio_tungstenite::tungstenite::Error;

    let mut request = format!("ws://{address}/socket")
        .into_client_request()
        .unwrap();
    let value = format!("Bearer {key}").parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, value);
    let tcp = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, tcp).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(response.status()),
        Err(error) => panic!("{error}"),
    }
}

/// Waits until the stream produces.
async fn is_alive<T>(stream: &mut (impl Stream<Item = T> + Unpin)) {
    for _ in 0..3 {
        tokio::time::timeout(HANG, stream.next())
            .await
            .expect("the stream produces")
            .expect("the stream goes on");
    }
}

/// Reads to the end.
async fn rest<T>(stream: impl Stream<Item = T>) -> Vec<T> {
    tokio::time::timeout(HANG, stream.collect())
        .await
        .expect("the stream ends")
}

/// Opens all streams, updates the key of the first organization, and checks which of them end.
async fn ends_only_ours(take_away: impl FnOnce(&ApiKeyHandle)) {
    let (address, keys) = serve().await;
    let mut our_events = events(get_events(address, OURS).await);
    let mut their_events = events(get_events(address, THEIRS).await);
    let mut our_socket = open_socket(address, OURS).await.unwrap();
    let mut their_socket = open_socket(address, THEIRS).await.unwrap();
    is_alive(&mut our_events).await;
    is_alive(&mut our_socket).await;
    is_alive(&mut their_events).await;
    is_alive(&mut their_socket).await;

    take_away(&keys);

    rest(our_events).await;
    let last = rest(our_socket).await.pop().unwrap().unwrap();
    let Message::Close(Some(close)) = last else {
        panic!("a socket ends with a close frame: {last:?}")
    };
    assert_eq!(u16::from(close.code), 1008);
    // More than what was already sent.
    for _ in 0..20 {
        is_alive(&mut their_events).await;
        is_alive(&mut their_socket).await;
    }
}

#[tokio::test]
async fn fault_58_blocked_secret_ends_its_streams() {
    ends_only_ours(|keys| keys.block_key(&ApiKey::parse(OURS).unwrap()).unwrap()).await;
}

#[tokio::test]
async fn fault_58_blocked_key_id_ends_its_streams() {
    ends_only_ours(|keys| {
        keys.block_key_id(&KeyId::from_static("api_key_a")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn fault_58_blocked_organization_ends_its_streams() {
    ends_only_ours(|keys| keys.block_org(&OrgCode::from_static("org_a")).unwrap()).await;
}

#[tokio::test]
async fn fault_58_invalidated_key_ends_its_streams() {
    let revoked = Arc::<AtomicBool>::default();
    let (address, keys) = serve_with(TestClock::new(), Arc::clone(&revoked)).await;
    let key_id = KeyId::from_static("api_key_a");
    let mut our_events = events(get_events(address, OURS).await);
    let mut our_socket = open_socket(address, OURS).await.unwrap();
    let mut their_events = events(get_events(address, THEIRS).await);
    is_alive(&mut our_events).await;
    is_alive(&mut our_socket).await;
    is_alive(&mut their_events).await;
    keys.invalidate_key_id(&key_id);
    rest(our_events).await;
    // The socket verifies its key instead.
    for _ in 0..20 {
        is_alive(&mut our_socket).await;
        is_alive(&mut their_events).await;
    }
    revoked.store(true, Ordering::SeqCst);
    keys.invalidate_key_id(&key_id);
    rest(our_socket).await;
    is_alive(&mut their_events).await;
}

#[tokio::test]
async fn fault_58_blocked_key_opens_no_stream() {
    let (address, keys) = serve().await;
    keys.block_key_id(&KeyId::from_static("api_key_a")).unwrap();
    let rejected = get_events(address, OURS).await;
    assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED);
    let rejected = open_socket(address, OURS).await.unwrap_err();
    assert_eq!(rejected, StatusCode::UNAUTHORIZED);
    assert!(open_socket(address, THEIRS).await.is_ok());
}

#[tokio::test]
async fn fault_114_revoked_key_ends_its_socket() {
    let (clock, revoked) = (TestClock::new(), Arc::<AtomicBool>::default());
    let (address, _keys) = serve_with(clock.clone(), Arc::clone(&revoked)).await;
    let mut ours = open_socket(address, OURS).await.unwrap();
    let mut theirs = open_socket(address, THEIRS).await.unwrap();
    is_alive(&mut ours).await;
    // A valid key is verified, and its socket stays open.
    for _ in 0..20 {
        clock.jump(Duration::from_secs(61));
        is_alive(&mut ours).await;
        is_alive(&mut theirs).await;
    }
    revoked.store(true, Ordering::SeqCst);
    clock.jump(Duration::from_secs(61));
    let last = rest(ours).await.pop().unwrap().unwrap();
    assert!(matches!(last, Message::Close(Some(_))), "{last:?}");
    is_alive(&mut theirs).await;
}
