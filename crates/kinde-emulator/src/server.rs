//! Listens, serves connections, and shuts down.

use std::future::poll_fn;
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
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::TARGET;
use crate::connection::{Connection, ResetHandle, reset_on_drop};
use crate::service::respond;
use crate::shared::{Mode, Shared};
use crate::tls::Acceptor;

/// The time that calls in flight have to complete during shutdown.
const GRACE_PERIOD: Duration = Duration::from_secs(1);

/// Binds the address, with a backlog large enough for 10,000 concurrent clients.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // As `TcpListener::bind` does. On Windows the option has another meaning.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(16_384)
}

/// Accepts connections until the mode is [`Mode::Stopping`], then waits for calls in flight.
pub(crate) async fn run(listener: TcpListener, tls: Option<Acceptor>, shared: Arc<Shared>) {
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
                shared.state().calls.connections += 1;
                connections.spawn(serve(stream, peer, tls.clone(), Arc::clone(&shared)));
            }
            // Most likely the process has no free file descriptor.
            Err(error) => {
                tracing::warn!(target: TARGET, %error, "failed to accept a connection");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    let ended = timeout(GRACE_PERIOD, async {
        while connections.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        connections.shutdown().await;
    }
    shared.mode.send_replace(Mode::Stopped);
}

async fn serve(stream: TcpStream, peer: SocketAddr, tls: Option<Acceptor>, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    if *mode.borrow_and_update() == Mode::Outage {
        reset_on_drop(&stream);
        shared.state().calls.reset_connections += 1;
        return;
    }
    // A failure only adds latency.
    let _ = stream.set_nodelay(true);
    let (connection, reset) = Connection::new(stream);
    let served = {
        let reset = reset.clone();
        let shared = Arc::clone(&shared);
        async move {
            match tls {
                None => serve_http(connection, peer, reset, shared).await,
                Some(acceptor) => match acceptor.accept(connection).await {
                    Ok(connection) => serve_http(connection, peer, reset, shared).await,
                    Err(error) => {
                        tracing::debug!(target: TARGET, %error, "TLS handshake failed");
                        shared.state().calls.failed_tls_handshakes += 1;
                    }
                },
            }
        }
    };
    let mut served = pin!(served);
    let outage = pin!(mode.wait_for(|mode| *mode == Mode::Outage));
    if let First::Left(Ok(_)) = first(outage, served.as_mut()).await {
        reset.reset();
        shared.state().calls.reset_connections += 1;
    }
}

async fn serve_http<C>(connection: C, peer: SocketAddr, reset: ResetHandle, shared: Arc<Shared>)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut mode = shared.mode.subscribe();
    let service = service_fn(|request| respond(request, peer, reset.clone(), Arc::clone(&shared)));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(connection), service);
    let mut connection = pin!(connection);
    let stopping = {
        let stop = pin!(mode.wait_for(|mode| *mode == Mode::Stopping));
        match first(stop, connection.as_mut()).await {
            First::Left(_) => true,
            // An error means that a fault or the client closed the connection.
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

/// Waits for the first of two futures. The left one wins if both are ready.
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
