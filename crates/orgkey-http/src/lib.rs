//! The HTTP client of everything here that calls out: pinned, so that it does nothing on its own.
//!
//! It follows no redirect (what is secret would go to another host), reads no proxy from the environment (it would pass
//! through it), retries nothing, decodes no encoding, keeps no cookie and sends no referrer. What the user's other crates
//! switch on in the shared HTTP library is switched off here by name.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, Proxy, redirect, retry};
use url::{Host, Url};

/// Why a client cannot be built, for an error of configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// The name of the builder's method that is at fault.
    pub field: &'static str,
    /// What is wrong.
    pub problem: &'static str,
}

/// The origin that this text names: no path, no query, no user; `http` on loopback only, unless it is allowed.
pub fn origin(text: &str, allow_http: bool) -> Result<Url, &'static str> {
    let Ok(url) = Url::parse(text) else {
        return Err("is no absolute URL");
    };
    if !matches!(url.scheme(), "https" | "http") {
        return Err("must begin with `https://`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password");
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a path, query or fragment");
    }
    match url.scheme() {
        "https" if !cfg!(any(feature = "rustls", feature = "native-tls")) => {
            Err("`https` needs the feature `rustls` or `native-tls`")
        }
        "http" if !allow_http && !is_loopback(&url) => {
            Err("`http` sends secrets in clear; only loopback may have it")
        }
        _ => Ok(url),
    }
}

/// What differs between our clients.
#[derive(Debug)]
pub struct Pinned<'a> {
    /// Where it calls.
    pub origin: &'a Url,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// Roots to trust beside the machine's own, in PEM.
    pub certificates: &'a [Vec<u8>],
    /// A proxy to call through.
    pub proxy: Option<Proxy>,
}

impl BuildError {
    fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }
}

impl Pinned<'_> {
    /// The client.
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
        tls(builder, self.certificates, is_plain)?.build().map_err(|_| {
            if self.certificates.is_empty() {
                BuildError::new(
                    "build",
                    "the TLS library cannot be set up; are there root certificates on this machine?",
                )
            } else {
                not_certificates()
            }
        })
    }
}

#[cfg(any(feature = "rustls", feature = "native-tls"))]
fn tls(
    builder: ClientBuilder,
    pems: &[Vec<u8>],
    is_plain: bool,
) -> Result<ClientBuilder, BuildError> {
    // Both features on, as other crates may have them: the one that is written in Rust.
    #[cfg(feature = "rustls")]
    let builder = builder.tls_backend_rustls();
    #[cfg(not(feature = "rustls"))]
    let builder = builder.tls_backend_native();

    let mut certificates = Vec::new();
    for pem in pems {
        let read = reqwest::Certificate::from_pem_bundle(pem);
        match read {
            Ok(read) if !read.is_empty() => certificates.extend(read),
            _ => return Err(not_certificates()),
        }
    }
    let builder = builder.tls_version_min(reqwest::tls::Version::TLS_1_2);
    // Without TLS there is nobody to trust, so a machine without root certificates need not have them.
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
        Err(BuildError::new(
            "add_root_certificate_pem",
            "needs the feature `rustls` or `native-tls`",
        ))
    }
}

fn not_certificates() -> BuildError {
    BuildError::new("add_root_certificate_pem", "holds no usable certificate")
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
