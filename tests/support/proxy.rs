//! A TCP proxy between a client and a server that injects faults.
//!
//! It does not support TLS, and of HTTP it finds only the start of a response body. When [`FaultProxy::inject`] returns, the
//! fault applies to open and new connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A fault between the client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// New connections are refused and open ones reset. The proxy cannot count refused connections: see
    /// [`FaultProxy::is_refusing`].
    Refuse,
    /// New connections are accepted and reset at once; open ones are reset.
    HangUp,
    /// The server gets the request, but the client gets no response.
    Silence,
    /// The response head, this many bytes of the body, and a reset.
    Reset { body: usize },
    /// The response head, this many bytes of the body, and an orderly close.
    Truncate { body: usize },
    /// The response head, then the body byte by byte at this interval.
    Trickle { apart: Duration },
    /// New connections go to another server; open ones are reset.
    Divert(SocketAddr),
}

pub(crate) struct FaultProxy {
    addr: SocketAddr,
    /// Bound without listening, which reserves the port while connections to it are refused.
    _port: TcpSocket,
    listening: Option<JoinHandle<()>>,
    line: Arc<Line>,
}

struct Line {
    server: SocketAddr,
    fault: watch::Sender<Option<Fault>>,
    injected: AtomicUsize,
}

impl FaultProxy {
    /// Starts a proxy to this address on the current runtime.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let port = socket("127.0.0.1:0".parse().unwrap());
        let addr = port.local_addr().unwrap();
        let line = Arc::new(Line {
            server,
            fault: watch::Sender::new(None),
            injected: AtomicUsize::new(0),
        });
        let mut proxy = Self {
            addr,
            _port: port,
            listening: None,
            line,
        };
        proxy.listen();
        proxy
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Injects this fault in place of any other.
    pub(crate) async fn inject(&mut self, fault: Fault) {
        if fault == Fault::Refuse
            && let Some(listening) = self.listening.take()
        {
            listening.abort();
            // Only its end matters; the result is always `Cancelled`.
            let _ = listening.await;
        } else {
            self.listen();
        }
        self.line.injected.store(0, Ordering::SeqCst);
        self.line.fault.send_replace(Some(fault));
    }

    /// Removes the fault.
    pub(crate) fn heal(&mut self) {
        self.line.fault.send_replace(None);
        self.listen();
    }

    /// The number of connections or responses that the last fault affected.
    pub(crate) fn injected(&self) -> usize {
        self.line.injected.load(Ordering::SeqCst)
    }

    /// Connects, and returns whether the connection is refused.
    pub(crate) async fn is_refusing(&self) -> bool {
        let tried = TcpStream::connect(self.addr).await;
        tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    fn listen(&mut self) {
        if self.listening.is_none() {
            let listener = socket(self.addr).listen(1024).unwrap();
            let accepting = accept(listener, Arc::clone(&self.line));
            self.listening = Some(tokio::spawn(accepting));
        }
    }
}

/// A socket at this address, which may be shared.
fn socket(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    #[cfg(unix)]
    socket.set_reuseport(true).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    socket
}

async fn accept(listener: TcpListener, line: Arc<Line>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        tokio::spawn(Arc::clone(&line).carry(client));
    }
}

impl Line {
    fn count(&self) {
        self.injected.fetch_add(1, Ordering::SeqCst);
    }

    async fn carry(self: Arc<Self>, mut client: TcpStream) {
        let mut faults = self.fault.subscribe();
        let fault = *faults.borrow_and_update();
        let server = match fault {
            Some(Fault::HangUp) => {
                self.count();
                return reset(client);
            }
            Some(Fault::Divert(elsewhere)) => {
                self.count();
                elsewhere
            }
            _ => self.server,
        };
        let is_diverted = server != self.server;
        let Ok(mut server) = TcpStream::connect(server).await else {
            return reset(client);
        };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();

        let (mut from_client, mut from_server) = ([0; 4096], [0; 4096]);
        let mut answer = Answer::default();
        loop {
            tokio::select! {
                // Checks the fault before bytes that arrived after it.
                biased;
                changed = faults.changed() => {
                    let fault = *faults.borrow();
                    if changed.is_err() || is_diverted || fault.is_some_and(Fault::cuts) {
                        return reset(client);
                    }
                }
                read = client.read(&mut from_client) => {
                    let read = read.unwrap_or(0);
                    if read == 0 || server.write_all(&from_client[..read]).await.is_err() {
                        return;
                    }
                    answer = Answer::default();
                }
                read = server.read(&mut from_server) => {
                    let read = read.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    let fault = *faults.borrow();
                    answer.bytes.extend_from_slice(&from_server[..read]);
                    match self.give(&mut client, &mut answer, fault).await {
                        After::GoOn => {}
                        After::End => return,
                        After::Reset => return reset(client),
                    }
                }
            }
        }
    }

    /// Sends the client the part of the response that the fault permits.
    async fn give(
        &self,
        client: &mut TcpStream,
        answer: &mut Answer,
        fault: Option<Fault>,
    ) -> After {
        match fault {
            Some(Fault::Silence) => {
                self.count_answer(answer);
                After::GoOn
            }
            Some(Fault::Reset { body } | Fault::Truncate { body }) => {
                let cut = answer.body_begins().map(|begin| begin + body);
                let Some(cut) = cut.filter(|cut| *cut < answer.bytes.len()) else {
                    return After::GoOn;
                };
                self.count();
                if answer.give(client, cut).await.is_err() {
                    return After::End;
                }
                match fault {
                    Some(Fault::Reset { .. }) => After::Reset,
                    _ => After::End,
                }
            }
            Some(Fault::Trickle { apart }) => {
                let Some(begin) = answer.body_begins() else {
                    return After::GoOn;
                };
                self.count_answer(answer);
                for end in begin.max(answer.given)..=answer.bytes.len() {
                    if answer.give(client, end).await.is_err() {
                        return After::End;
                    }
                    tokio::time::sleep(apart).await;
                }
                After::GoOn
            }
            None | Some(Fault::Refuse | Fault::HangUp | Fault::Divert(_)) => {
                match answer.give(client, answer.bytes.len()).await {
                    Ok(()) => After::GoOn,
                    Err(_) => After::End,
                }
            }
        }
    }

    /// Counts a response once, even if it arrives in pieces.
    fn count_answer(&self, answer: &mut Answer) {
        if !answer.is_counted {
            answer.is_counted = true;
            self.count();
        }
    }
}

impl Fault {
    /// Whether the fault resets open connections.
    fn cuts(self) -> bool {
        matches!(self, Self::Refuse | Self::HangUp | Self::Divert(_))
    }
}

enum After {
    GoOn,
    End,
    Reset,
}

/// The server's response since the last request, and how much of it was sent to the client.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
    given: usize,
    is_counted: bool,
}

impl Answer {
    fn body_begins(&self) -> Option<usize> {
        let end = b"\r\n\r\n";
        let mut windows = self.bytes.windows(end.len());
        windows
            .position(|window| window == end)
            .map(|at| at + end.len())
    }

    async fn give(&mut self, client: &mut TcpStream, end: usize) -> std::io::Result<()> {
        client.write_all(&self.bytes[self.given..end]).await?;
        self.given = end;
        Ok(())
    }
}

/// Ends the connection by a reset.
fn reset(client: TcpStream) {
    client.set_zero_linger().unwrap();
    drop(client);
}
