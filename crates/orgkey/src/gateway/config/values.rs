//! The values that a configuration has beside numbers and texts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err("a unix socket needs an absolute path, as in `unix:/run/orgkey.sock`"),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "expected an IP address and a port, or `unix:` and a path"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    pub(super) fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// Returns whether only processes of this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

/// How a proxy sends its check requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// The `auth_request` of nginx, at `/v1/nginx`.
    Nginx,
    /// The `ForwardAuth` of Traefik and the `forward_auth` of Caddy, at `/v1/forward-auth`.
    ForwardAuth,
    /// The `ext_authz` of Envoy, over HTTP at `/v1/envoy/…` and over gRPC.
    Envoy,
}

impl Dialect {
    /// All dialects.
    pub const ALL: [Self; 3] = [Self::Nginx, Self::ForwardAuth, Self::Envoy];
}

/// A duration in the form `90s`, `15m` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|_| "expected a duration such as `60s` or `15m`")
    }
}

/// The header with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyHeader {
    /// `Authorization: Bearer <key>`.
    #[default]
    Authorization,
    /// `X-Api-Key: <key>`.
    XApiKey,
}

/// The name of a header, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Header(pub(super) http::HeaderName);

impl TryFrom<String> for Header {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
            .map(Self)
            .map_err(|_| "expected the name of a header")
    }
}

/// Where a secret is. A configuration never holds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file. White space at its end is not a part of the secret.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
}
