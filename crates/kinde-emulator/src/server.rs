//! The socket and its connections: listens, accepts, and stops.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::line::{Cutter, Line, reset_on_drop};
use super::service::respond;
use super::shared::{Mode, Shared};
use crate::telemetry::TARGET;

/// How long calls under way may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// Binds the address with a backlog that takes ten thousand clients at once, if the system lets it.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    // As tokio's own `bind` does. On Windows the option means something else.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(16_384)
}

/// Accepts connections until told to stop; then gives the calls under way a moment.
pub(super) async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let accepted = {
            let stop = pin!(mode.wait_for(|mode| *mode == Mode::Stopping));
            match first(stop, listener.accept()).await {
                First::Left(_) => break,
                First::Right(accepted) => accepted,
            }
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                shared.world().calls.connections += 1;
                connections.spawn(connection(stream, peer, tls.clone(), Arc::clone(&shared)));
            }
            // Out of file descriptors, most likely: one will be free in a moment.
            Err(error) => {
                tracing::warn!(target: TARGET, %error, "the emulator cannot accept a connection");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    let ended = timeout(GRACE, async {
        while connections.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        connections.shutdown().await;
    }
    shared.mode.send_replace(Mode::Stopped);
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let mut mode = shared.mode.subscribe();
    if *mode.borrow_and_update() == Mode::Outage {
        reset_on_drop(&stream);
        shared.world().calls.cut_connections += 1;
        return;
    }
    // Answers are small and single; a failure costs nothing but time.
    let _ = stream.set_nodelay(true);
    let (line, cutter) = Line::new(stream);
    let served = {
        let cutter = cutter.clone();
        let shared = Arc::clone(&shared);
        async move {
            match tls {
                None => speak(line, peer, cutter, shared).await,
                Some(acceptor) => match acceptor.accept(line).await {
                    Ok(line) => speak(line, peer, cutter, shared).await,
                    Err(error) => {
                        tracing::debug!(target: TARGET, %error, "no TLS session with the emulator");
                        shared.world().calls.failed_handshakes += 1;
                    }
                },
            }
        }
    };
    let mut served = pin!(served);
    let outage = pin!(mode.wait_for(|mode| *mode == Mode::Outage));
    if let First::Left(Ok(_)) = first(outage, served.as_mut()).await {
        cutter.cut();
        shared.world().calls.cut_connections += 1;
    }
}

async fn speak<L>(line: L, peer: SocketAddr, cutter: Cutter, shared: Arc<Shared>)
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let mut mode = shared.mode.subscribe();
    let service = service_fn(|request| respond(request, peer, cutter.clone(), Arc::clone(&shared)));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(line), service));
    let stopping = {
        let stop = pin!(mode.wait_for(|mode| *mode == Mode::Stopping));
        match first(stop, connection.as_mut()).await {
            First::Left(_) => true,
            // A connection that ends in error was cut on purpose, or by its client.
            First::Right(_) => false,
        }
    };
    if stopping {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

enum First<L, R> {
    Left(L),
    Right(R),
}

/// Whichever ends first; the left one if both have.
async fn first<L: Future + Unpin, R: Future>(mut left: L, right: R) -> First<L::Output, R::Output> {
    let mut right = pin!(right);
    poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut left).poll(cx) {
            return Poll::Ready(First::Left(output));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}
