use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::billing::Billing;
use crate::clock::Clock;
use crate::handle::{Guard, KindeEmulator};
use crate::issuer::{Issuer, VerifyAccess};
use crate::keys::Keys;
use crate::replies::{InvalidKeyReply, KeyRecordReply, ValidKeyReply};
use crate::server;
use crate::shared::Shared;
use crate::tls::{self, CertificateSpec};
use crate::tokens::Application;

/// Configures and starts a [`KindeEmulator`].
///
/// ```
/// use std::time::Duration;
/// use kinde_emulator::{InvalidKeyReply, KindeEmulator};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let emulator = KindeEmulator::builder()
///     .client_credentials("my-application", "my-secret")
///     .token_lifetime(Duration::from_secs(60))
///     .invalid_key_reply(InvalidKeyReply::Unauthorized)
///     .start()
///     .await?;
/// assert_eq!(emulator.client_id(), "my-application");
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
    valid_key_reply: ValidKeyReply,
    invalid_key_reply: InvalidKeyReply,
    verify_access: VerifyAccess,
    control: bool,
}

#[derive(Clone)]
struct ClientSecret(String);

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

impl KindeEmulatorBuilder {
    pub(crate) fn new() -> Self {
        Self {
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            certificate: None,
            client: None,
            audience: None,
            token_lifetime: None,
            token_scopes: None,
            valid_key_reply: ValidKeyReply::default(),
            invalid_key_reply: InvalidKeyReply::default(),
            verify_access: VerifyAccess::default(),
            control: false,
        }
    }

    /// Sets the address to listen on; by default a free port of `127.0.0.1`.
    pub fn addr(mut self, addr: impl Into<SocketAddr>) -> Self {
        self.addr = addr.into();
        self
    }

    /// Sets the id and secret of the M2M application; random by default.
    pub fn client_credentials(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.client = Some((id.into(), ClientSecret(secret.into())));
        self
    }

    /// Sets the audience that token requests must name; `<issuer>/api` by default.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// Sets the lifetime of tokens; 24 h by default, as at Kinde. `expires_in` reports it in whole seconds.
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = Some(lifetime);
        self
    }

    /// Sets the scopes of the M2M application; by default `read:`, `create:`, `update:` and `delete:api_keys`,
    /// `read:organizations`, `read:billing_agreements` and `create:meter_usage`.
    pub fn token_scopes<N: Into<String>>(mut self, scopes: impl IntoIterator<Item = N>) -> Self {
        self.token_scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the reply to verify for a valid key; [`ValidKeyReply::AllFields`] by default.
    pub fn valid_key_reply(mut self, reply: ValidKeyReply) -> Self {
        self.valid_key_reply = reply;
        self
    }

    /// Sets the reply to verify for an invalid key; [`InvalidKeyReply::IsValidFalse`] by default.
    pub fn invalid_key_reply(mut self, reply: InvalidKeyReply) -> Self {
        self.invalid_key_reply = reply;
        self
    }

    /// Sets the authorization that verify needs; [`VerifyAccess::TokenWithScope`] by default.
    pub fn verify_access(mut self, access: VerifyAccess) -> Self {
        self.verify_access = access;
        self
    }

    /// Sets [`VerifyAccess::Public`]: verify needs no token.
    pub fn verify_without_token(self) -> Self {
        self.verify_access(VerifyAccess::Public)
    }

    /// Serves `/_emulator` too: HTTP endpoints that issue, rotate and revoke keys, inject faults and move the clock, for tests in
    /// other languages. Not served by default.
    ///
    /// Everything that reaches the address can then read the client secret and issue keys, so listen on loopback only. The
    /// README of the crate lists the endpoints.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use serde_json::{Value, json};
    /// let emulator = kinde_emulator::KindeEmulator::builder().control_endpoints().start().await?;
    /// let issued: Value = reqwest::Client::new()
    ///     .post(format!("{}/_emulator/keys", emulator.issuer_url()))
    ///     .json(&json!({ "org_code": "org_1", "scopes": ["read:reports"] }))
    ///     .send()
    ///     .await?
    ///     .json()
    ///     .await?;
    /// assert!(issued["key"].is_string());
    /// # Ok(()) }
    /// ```
    pub fn control_endpoints(mut self) -> Self {
        self.control = true;
        self
    }

    /// Binds the address and starts to serve on the current tokio runtime.
    ///
    /// Returns an error if the address is in use, or if no certificate can be generated for the configured names.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, and if the operating system's random source fails.
    #[allow(clippy::unused_async)] // Needs a runtime, and may have to wait in a later version.
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
        let clock = Clock::new();
        let mut application = Application::new(issuer_url.clone(), audience, clock.clone());
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
        let issuer = Issuer {
            keys: Keys::new(clock.clone()),
            billing: Billing::default(),
            clock,
            application,
            valid_key_reply: self.valid_key_reply,
            invalid_key_reply: self.invalid_key_reply,
            key_record_reply: KeyRecordReply::default(),
            verify_access: self.verify_access,
            rejected_token_status: None,
        };
        let shared = Arc::new(Shared::new(issuer, self.control));
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

/// HTTPS, with the feature `tls`.
#[cfg(feature = "tls")]
impl KindeEmulatorBuilder {
    /// Serves HTTPS, with a certificate for `localhost`, `127.0.0.1` and `::1` that is generated at start.
    ///
    /// Clients have to trust [`root_certificate_pem`](KindeEmulator::root_certificate_pem).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let emulator = kinde_emulator::KindeEmulator::builder().tls().start().await?;
    /// assert!(emulator.issuer_url().starts_with("https://"));
    /// assert!(emulator.root_certificate_pem().is_some());
    /// # Ok(()) }
    /// ```
    pub fn tls(mut self) -> Self {
        self.certificate.get_or_insert_default();
        self
    }

    /// Serves HTTPS, with a certificate for these names only.
    pub fn tls_for_names<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.certificate.get_or_insert_default().names =
            names.into_iter().map(Into::into).collect();
        self
    }

    /// Serves HTTPS, with a certificate that expired in 2021.
    pub fn tls_expired(mut self) -> Self {
        self.certificate.get_or_insert_default().expired = true;
        self
    }
}
