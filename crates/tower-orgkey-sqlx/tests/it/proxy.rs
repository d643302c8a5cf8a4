//! A TCP proxy that delays what it passes on, so that a dropped future leaves a statement or a reply on the way, and that can
//! replace bytes of the client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Proxy {
    addr: SocketAddr,
    replaced: Arc<AtomicUsize>,
}

/// What the proxy does to each piece that it reads.
#[derive(Clone, Copy)]
pub(crate) enum Effect {
    /// Waits for up to this many milliseconds.
    Delay(u64),
    /// Replaces bytes that the client sends by others of the same length.
    Replace(&'static [u8], &'static [u8]),
    /// Passes nothing on once the client has sent these bytes.
    Stall(&'static [u8]),
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr, effect: Effect) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let replaced = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&replaced);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                let of_server = match effect {
                    Effect::Delay(most) => Effect::Delay(most),
                    Effect::Replace(..) | Effect::Stall(_) => Effect::Delay(0),
                };
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.unwrap();
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let to_client = carry(from_server, to_client, of_server, &count);
                    let to_server = carry(from_client, to_server, effect, &count);
                    // Both ends close when one does.
                    tokio::select! { () = to_client => (), () = to_server => () }
                });
            }
        });
        Self { addr, replaced }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How often bytes were replaced.
    pub(crate) fn replaced(&self) -> usize {
        self.replaced.load(Ordering::SeqCst)
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    effect: Effect,
    replaced: &AtomicUsize,
) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let bytes = &mut bytes[..read];
        match effect {
            Effect::Delay(most) => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..=most))).await;
            }
            Effect::Replace(old, new) => {
                assert_eq!(old.len(), new.len());
                while let Some(at) = bytes.windows(old.len()).position(|found| found == old) {
                    bytes[at..at + new.len()].copy_from_slice(new);
                    replaced.fetch_add(1, Ordering::SeqCst);
                }
            }
            Effect::Stall(last) => {
                if bytes.windows(last.len()).any(|found| found == last) {
                    std::future::pending::<()>().await;
                }
            }
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
