use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::handle::{Guard, KindeEmulator};
use super::issuer::{Issuer, VerifyAccess};
use super::keys::Keys;
use super::replies::RejectedAs;
use super::server;
use super::shared::Shared;
use super::tls::{self, CertificateSpec};
use super::tokens::Application;

/// Starts a [`KindeEmulator`] with settings of your own.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::emulator::{KindeEmulator, RejectedAs};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let emulator = KindeEmulator::builder()
///     .tls()
///     .token_lifetime(Duration::from_secs(60))
///     .rejected_as(RejectedAs::Unauthorized)
///     .start()
///     .await?;
/// assert!(emulator.issuer_url().starts_with("https://"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct KindeEmulatorBuilder {
    addr: SocketAddr,
    certificate: Option<CertificateSpec>,
    client: Option<(String, ClientSecret)>,
    audience: Option<String>,
    token_lifetime: Option<Duration>,
    token_scopes: Option<Vec<String>>,
    rejected_as: RejectedAs,
    verify_access: VerifyAccess,
}

#[derive(Clone)]
struct ClientSecret(String);

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

impl KindeEmulatorBuilder {
    pub(super) fn new() -> Self {
        Self {
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            certificate: None,
            client: None,
            audience: None,
            token_lifetime: None,
            token_scopes: None,
            rejected_as: RejectedAs::default(),
            verify_access: VerifyAccess::default(),
        }
    }

    /// The address to listen on; a free port of `127.0.0.1` unless set.
    pub fn addr(mut self, addr: impl Into<SocketAddr>) -> Self {
        self.addr = addr.into();
        self
    }

    /// Speaks HTTPS, with a certificate for `localhost`, `127.0.0.1` and `::1` that is made at the start. Clients have to
    /// trust [`root_certificate_pem`](KindeEmulator::root_certificate_pem).
    pub fn tls(mut self) -> Self {
        self.certificate.get_or_insert_default();
        self
    }

    /// Speaks HTTPS with a certificate for other names, none of which need be the one that a client calls.
    pub fn tls_for<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.certificate.get_or_insert_default().names =
            names.into_iter().map(Into::into).collect();
        self
    }

    /// Speaks HTTPS with a certificate that expired years ago.
    pub fn tls_expired(mut self) -> Self {
        self.certificate.get_or_insert_default().expired = true;
        self
    }

    /// The M2M application's credentials; random unless set.
    pub fn client(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.client = Some((id.into(), ClientSecret(secret.into())));
        self
    }

    /// The audience that a token must be asked for; `<issuer>/api` unless set.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// How long a token lives, in whole seconds as `expires_in` says it; 24 h unless set, which is Kinde's default.
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = Some(lifetime);
        self
    }

    /// The scopes that the M2M application has; `read:`, `create:`, `update:` and `delete:api_keys` unless set.
    pub fn token_scopes<N: Into<String>>(mut self, scopes: impl IntoIterator<Item = N>) -> Self {
        self.token_scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// How verify answers for a key that is not good; [`RejectedAs::Invalid`] unless set.
    pub fn rejected_as(mut self, how: RejectedAs) -> Self {
        self.rejected_as = how;
        self
    }

    /// What verify asks of its caller; [`VerifyAccess::TokenWithScope`] unless set.
    pub fn verify_access(mut self, access: VerifyAccess) -> Self {
        self.verify_access = access;
        self
    }

    /// Verify needs no token: [`VerifyAccess::Public`].
    pub fn verify_without_token(self) -> Self {
        self.verify_access(VerifyAccess::Public)
    }

    /// Binds the address and begins to serve, on the runtime that this is called on.
    ///
    /// An error if the address is in use, or if no certificate can be made for the names.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, and when the operating system has no random numbers.
    #[allow(clippy::unused_async)] // It needs a runtime, and may one day have to wait for one of its parts.
    pub async fn start(self) -> io::Result<KindeEmulator> {
        let listener = server::listen(self.addr)?;
        let addr = listener.local_addr()?;
        let (acceptor, root_certificate) = match &self.certificate {
            Some(spec) => {
                let (acceptor, root) = tls::acceptor(spec)?;
                (Some(acceptor), Some(root))
            }
            None => (None, None),
        };
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let issuer_url = format!("{scheme}://{addr}");
        let audience = self.audience.unwrap_or_else(|| format!("{issuer_url}/api"));
        let mut application = Application::new(issuer_url.clone(), audience);
        if let Some((id, ClientSecret(secret))) = self.client {
            application.client_id = id;
            application.client_secret = secret;
        }
        if let Some(lifetime) = self.token_lifetime {
            application.lifetime = lifetime;
        }
        if let Some(scopes) = self.token_scopes {
            application.scopes = scopes;
        }
        let shared = Arc::new(Shared::new(Issuer {
            keys: Keys::default(),
            application,
            rejected_as: self.rejected_as,
            verify_access: self.verify_access,
            refusal_status: None,
        }));
        let server = tokio::spawn(server::run(listener, acceptor, Arc::clone(&shared)));
        Ok(KindeEmulator {
            _guard: Arc::new(Guard {
                server: server.abort_handle(),
            }),
            shared,
            issuer_url: issuer_url.into(),
            addr,
            root_certificate: root_certificate.map(Into::into),
        })
    }
}
