//! The HTTP client of the tower-orgkey crates. Internal: this crate promises no stable interface.
//!
//! The client does nothing on its own. It follows no redirect (a redirect would send secrets to another host), reads no
//! proxy from the environment, retries nothing, decodes no content encoding, keeps no cookies and sends no referrer. Each
//! is switched off by name, because other crates of a program can switch features of `reqwest` on for all of them.

mod json;
mod reply;

use std::fmt;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Proxy, redirect, retry};
use url::{Host, Url};

pub use self::json::Unique;
pub use self::reply::{bearer, is_json, read_body, retry_after};

/// Parses an origin: no path, query or user, and `http` for loopback only unless `allow_http` is set.
///
/// The error says what is wrong with the text, without repeating it.
pub fn origin(text: &str, allow_http: bool) -> Result<Url, &'static str> {
    let url = endpoint(text, allow_http)?;
    if url.path() == "/" {
        Ok(url)
    } else {
        Err("must not have a path, query or fragment")
    }
}

/// Parses the URL of an endpoint: like [`origin`], with any path.
pub fn endpoint(text: &str, allow_http: bool) -> Result<Url, &'static str> {
    let Ok(url) = Url::parse(text) else {
        return Err("is no absolute URL");
    };
    if !matches!(url.scheme(), "https" | "http") {
        return Err("must begin with `https://`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a query or fragment");
    }
    match url.scheme() {
        "https" if !cfg!(any(feature = "rustls", feature = "native-tls")) => {
            Err("`https` needs the feature `rustls` or `native-tls`")
        }
        "http" if !allow_http && !is_loopback(&url) => {
            Err("`http` sends secrets in clear text; only loopback may use it")
        }
        _ => Ok(url),
    }
}

/// A client that cannot be built. Both texts are for a configuration error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// The name of the builder's method that is at fault.
    pub field: &'static str,
    /// What is wrong.
    pub problem: &'static str,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.problem)
    }
}

impl std::error::Error for BuildError {}

/// The settings in which the clients of these crates differ.
#[derive(Debug)]
pub struct Pinned<'a> {
    /// The origin that is called.
    pub origin: &'a Url,
    /// How long a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// Root certificates to trust in addition to the machine's own, in PEM.
    pub certificates: &'a [Vec<u8>],
    /// A proxy to call through.
    pub proxy: Option<Proxy>,
}

impl Pinned<'_> {
    /// Builds the client.
    pub fn build(self) -> Result<Client, BuildError> {
        let mut builder = Client::builder()
            .user_agent(concat!("tower-orgkey/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(retry::never())
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connection_verbose(false)
            .https_only(self.origin.scheme() == "https")
            .connect_timeout(self.connect_timeout);
        let is_plain = self.origin.scheme() == "http" && self.proxy.is_none();
        if let Some(proxy) = self.proxy {
            builder = builder.proxy(proxy);
        }
        tls(builder, self.certificates, is_plain)?
            .build()
            .map_err(|_| {
                if self.certificates.is_empty() {
                    BuildError {
                        field: "build",
                        problem: "the TLS library cannot be set up; are there root certificates on this machine?",
                    }
                } else {
                    NOT_CERTIFICATES
                }
            })
    }
}

const NOT_CERTIFICATES: BuildError = BuildError {
    field: "add_root_certificate_pem",
    problem: "holds no usable certificate",
};

#[cfg(any(feature = "rustls", feature = "native-tls"))]
fn tls(
    builder: ClientBuilder,
    pems: &[Vec<u8>],
    is_plain: bool,
) -> Result<ClientBuilder, BuildError> {
    // rustls if other crates of the program switch both features on.
    #[cfg(feature = "rustls")]
    let builder = builder.tls_backend_rustls();
    #[cfg(not(feature = "rustls"))]
    let builder = builder.tls_backend_native();

    let mut certificates = Vec::new();
    for pem in pems {
        match reqwest::Certificate::from_pem_bundle(pem) {
            Ok(read) if !read.is_empty() => certificates.extend(read),
            _ => return Err(NOT_CERTIFICATES),
        }
    }
    let builder = builder.tls_version_min(reqwest::tls::Version::TLS_1_2);
    // A client that uses no TLS does not need root certificates on the machine.
    Ok(if is_plain && certificates.is_empty() {
        builder.tls_certs_only([])
    } else {
        builder.tls_certs_merge(certificates)
    })
}

#[cfg(not(any(feature = "rustls", feature = "native-tls")))]
fn tls(builder: ClientBuilder, pems: &[Vec<u8>], _: bool) -> Result<ClientBuilder, BuildError> {
    if pems.is_empty() {
        Ok(builder)
    } else {
        Err(BuildError {
            field: "add_root_certificate_pem",
            problem: "needs the feature `rustls` or `native-tls`",
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
