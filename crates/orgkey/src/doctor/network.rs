//! The way to the issuer: its URL, its addresses, a connection, and its certificate.

use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Duration, timeout};
use url::Url;

use super::client::{Issuer, Reply};
use super::report::{Level, Report};
use super::table::IssuerTable;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn url(table: &IssuerTable, report: &mut Report) -> Option<Url> {
    match orgkey_http::origin(&table.url, false) {
        Ok(url) => {
            let host = url.host_str().unwrap_or_default();
            let is_kinde = host.ends_with(".kinde.com") || url.scheme() == "http";
            let (level, means) = if is_kinde {
                (Level::Ok, "")
            } else {
                (
                    Level::Warning,
                    "with a custom domain, use the kinde.com host: its tokens are not interchangeable",
                )
            };
            report.add("URL", level, table.origin(), means);
            Some(url)
        }
        Err(problem) => {
            // The URL is not repeated: it may hold a password.
            report.add("URL", Level::Failure, format!("url {problem}"), "");
            None
        }
    }
}

pub(super) async fn resolve(url: &Url, report: &mut Report) -> Option<Vec<SocketAddr>> {
    const CHECK: &str = "name resolution";
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(443);
    // Brackets surround an IPv6 address in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = match lookup_host((host, port)).await {
        Ok(found) => found.collect(),
        Err(error) => {
            report.add(
                CHECK,
                Level::Failure,
                error.to_string(),
                "the host of url has no address",
            );
            return None;
        }
    };
    let found: Vec<SocketAddr> = found;
    let shown: Vec<_> = found.iter().map(|addr| addr.ip().to_string()).collect();
    let level = if found.is_empty() {
        Level::Failure
    } else {
        Level::Ok
    };
    report.add(CHECK, level, shown.join(", "), "");
    Some(found).filter(|found| !found.is_empty())
}

pub(super) async fn connect(addresses: &[SocketAddr], report: &mut Report) -> Option<SocketAddr> {
    const CHECK: &str = "connection";
    let connected = timeout(CONNECT_DEADLINE, TcpStream::connect(addresses)).await;
    let peer = match connected {
        Ok(Ok(stream)) => stream.peer_addr().map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", CONNECT_DEADLINE.as_secs())),
    };
    match peer {
        Ok(peer) => {
            report.add(CHECK, Level::Ok, peer.to_string(), "");
            Some(peer)
        }
        Err(error) => {
            let means =
                "the issuer cannot be reached from here; proxies of the environment are not used";
            report.add(CHECK, Level::Failure, error, means);
            None
        }
    }
}

pub(super) fn client(url: &Url, report: &mut Report) -> Option<Issuer> {
    match Issuer::new(url.clone()) {
        Ok(issuer) => Some(issuer),
        Err(problem) => {
            report.add("TLS", Level::Failure, problem, "no client can be made");
            None
        }
    }
}

/// Sends the first request, without a credential, which verifies the certificate.
pub(super) async fn tls(url: &Url, issuer: &Issuer, report: &mut Report) -> Option<Reply> {
    let is_https = url.scheme() == "https";
    match issuer.hello().await {
        Ok(hello) if (300..400).contains(&hello.status) => {
            let location = hello.header("location").unwrap_or_default();
            let observed = format!("{} to {location}", hello.status);
            let means = "the client follows no redirects: set url to the host that answers itself";
            report.add("TLS", Level::Failure, observed, means);
            None
        }
        Ok(hello) => {
            let (observed, means) = if is_https {
                ("certificate verified, TLS 1.2 or later", "")
            } else {
                ("plain HTTP", "permitted on loopback only")
            };
            report.add("TLS", Level::Ok, observed, means);
            Some(hello)
        }
        Err(error) => {
            let means = if is_https {
                "no verified connection; no secret was sent. Is the certificate's authority trusted on this machine?"
            } else {
                "no HTTP server; no secret was sent"
            };
            report.add("TLS", Level::Failure, error, means);
            None
        }
    }
}
