use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::AbortHandle;

use super::builder::KindeEmulatorBuilder;
use super::calls::{Calls, SeenRequest};
use super::endpoint::{Endpoint, Endpoints};
use super::fault::Fault;
use super::issuer::VerifyAccess;
use super::keys::{IssuedKey, KeySpec, KeyStatus};
use super::replies::RejectedAs;
use super::shared::{Mode, Shared};

/// A Kinde-compatible issuer on a socket of its own.
///
/// See the [module's guide](crate::emulator). Clones are handles of the same server, which stops when the last one is
/// dropped, or at [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct KindeEmulator {
    pub(super) _guard: Arc<Guard>,
    pub(super) shared: Arc<Shared>,
    pub(super) issuer_url: Arc<str>,
    pub(super) addr: SocketAddr,
    pub(super) root_certificate: Option<Arc<str>>,
}

/// Stops the server when the last handle goes.
pub(super) struct Guard {
    pub(super) server: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Its connections are tasks that it owns, so they go with it.
        self.server.abort();
    }
}

impl KindeEmulator {
    /// Starts on a free port of `127.0.0.1`, over plain HTTP, on the runtime that this is called on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, and when the operating system has no random numbers.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// A builder for settings of your own.
    pub fn builder() -> KindeEmulatorBuilder {
        KindeEmulatorBuilder::new()
    }

    /// Stops: no connection is accepted any more, and calls under way get a second to end. Comes back when all is over.
    pub async fn shutdown(&self) {
        let mut mode = self.shared.mode.subscribe();
        self.shared.mode.send_if_modified(|mode| {
            let stops = *mode != Mode::Stopped;
            if stops {
                *mode = Mode::Stopping;
            }
            stops
        });
        // The sender is ours, so this ends with the server.
        let _ = mode.wait_for(|mode| *mode == Mode::Stopped).await;
    }
}

/// Where it is, and who may call.
impl KindeEmulator {
    /// `http://127.0.0.1:<port>`, or `https://…`, without a slash at the end.
    pub fn issuer_url(&self) -> &str {
        &self.issuer_url
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate that a client must trust, in PEM; `None` over plain HTTP.
    pub fn root_certificate_pem(&self) -> Option<&str> {
        self.root_certificate.as_deref()
    }

    /// The M2M application's id.
    pub fn client_id(&self) -> String {
        self.shared.world().issuer.application.client_id.clone()
    }

    /// The M2M application's secret.
    pub fn client_secret(&self) -> String {
        self.shared.world().issuer.application.client_secret.clone()
    }

    /// The audience that a token must be asked for: a client that comes through a proxy has to be told.
    pub fn audience(&self) -> String {
        self.shared.world().issuer.application.audience.clone()
    }
}

/// Keys, without the detour over the wire.
impl KindeEmulator {
    /// Issues a key.
    ///
    /// # Panics
    ///
    /// When the secret that the spec names is that of another key.
    #[track_caller]
    pub fn issue_key(&self, spec: KeySpec) -> IssuedKey {
        let issued = self.shared.world().issuer.keys.issue(spec);
        match issued {
            Some(key) => key,
            None => panic!("another key has this secret"),
        }
    }

    /// Revokes a key: it stays listed, as `revoked`.
    ///
    /// # Panics
    ///
    /// When there is no such key.
    #[track_caller]
    pub fn revoke(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Revoked);
    }

    /// Makes a key `inactive`, which no endpoint of Kinde does and its contract still knows.
    ///
    /// # Panics
    ///
    /// When there is no such key.
    #[track_caller]
    pub fn deactivate(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Inactive);
    }

    /// Makes a key `active` again.
    ///
    /// # Panics
    ///
    /// When there is no such key.
    #[track_caller]
    pub fn activate(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Active);
    }

    #[track_caller]
    fn set_status(&self, key_id: &str, status: KeyStatus) {
        let known = self
            .shared
            .world()
            .issuer
            .keys
            .by_id(key_id)
            .map(|key| key.status = status)
            .is_some();
        assert!(known, "there is no key {key_id:?}");
    }

    /// Gives a key a new secret. The old one is unknown at once; the id stays.
    ///
    /// # Panics
    ///
    /// When there is no such key.
    #[track_caller]
    pub fn rotate(&self, key_id: &str) -> IssuedKey {
        let rotated = self.shared.world().issuer.keys.rotate(key_id);
        match rotated {
            Some(key) => key,
            None => panic!("there is no key {key_id:?}"),
        }
    }

    /// Deletes a key: id and secret are unknown at once.
    ///
    /// # Panics
    ///
    /// When there is no such key.
    #[track_caller]
    pub fn delete(&self, key_id: &str) {
        let known = self.shared.world().issuer.keys.delete(key_id);
        assert!(known, "there is no key {key_id:?}");
    }
}

/// How it answers while all is well.
impl KindeEmulator {
    /// How verify answers for a key that is not good.
    pub fn set_rejected_as(&self, how: RejectedAs) {
        self.shared.world().issuer.rejected_as = how;
    }

    /// What verify asks of its caller.
    pub fn set_verify_access(&self, access: VerifyAccess) {
        self.shared.world().issuer.verify_access = access;
    }

    /// The status for a refused token, 401 or 403 say, at every endpoint but the token's. Unless set it is what the
    /// contract declares: 401 at verify and 403 elsewhere.
    pub fn set_refusal_status(&self, status: StatusCode) {
        self.shared.world().issuer.refusal_status = Some(status);
    }

    /// The scopes of the tokens that are issued from now on. With none, tokens are issued and good for nothing, as Kinde's
    /// were for some hours once.
    pub fn set_token_scopes<N: Into<String>>(&self, scopes: impl IntoIterator<Item = N>) {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.shared.world().issuer.application.scopes = scopes;
    }

    /// The lifetime of the tokens that are issued from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.shared.world().issuer.application.lifetime = lifetime;
    }

    /// Revokes every token that was issued, long before it expires. New ones are issued as before.
    pub fn revoke_tokens(&self) {
        self.shared.world().issuer.application.revoke_all();
    }

    /// Changes the M2M application's secret, as an operator does who rotates it. Tokens stay good.
    pub fn set_client_secret(&self, secret: impl Into<String>) {
        self.shared.world().issuer.application.client_secret = secret.into();
    }

    /// A token with these scopes, without a call to the token endpoint.
    pub fn issue_token<N: Into<String>>(&self, scopes: impl IntoIterator<Item = N>) -> String {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.shared.world().issuer.application.issue(scopes)
    }
}

/// What goes wrong.
impl KindeEmulator {
    /// Makes this go wrong from now on, at one endpoint, at several, or at [all](Endpoints::ALL). An endpoint has one fault
    /// at a time: a second takes the place of the first.
    ///
    /// ```
    /// # use tower_orgkey::emulator::{Endpoint, Endpoints, Fault, KindeEmulator};
    /// # fn breaks(emulator: &KindeEmulator) {
    /// emulator.inject(Endpoint::Verify, Fault::status(503));
    /// emulator.inject([Endpoint::ListKeys, Endpoint::GetKey], Fault::refuse_token());
    /// emulator.inject(Endpoints::ALL, Fault::silence());
    /// # }
    /// ```
    #[allow(clippy::needless_pass_by_value)] // It is made where it is passed.
    pub fn inject(&self, at: impl Into<Endpoints>, fault: Fault) {
        self.shared.world().faults.inject(at.into(), &fault);
        self.shared.faults_changed.notify_waiters();
    }

    /// Ends the faults at these endpoints. Calls that a [`Fault::hold`] keeps are answered.
    pub fn clear(&self, at: impl Into<Endpoints>) {
        self.shared.world().faults.clear(at.into());
        self.shared.faults_changed.notify_waiters();
    }

    /// Ends the faults everywhere. An outage goes on.
    pub fn clear_faults(&self) {
        self.clear(Endpoints::ALL);
    }

    /// Begins or ends a total outage: while it lasts, every connection is reset, those that are open included.
    pub fn set_outage(&self, outage: bool) {
        self.shared.mode.send_if_modified(|mode| {
            let (from, to) = if outage {
                (Mode::Up, Mode::Outage)
            } else {
                (Mode::Outage, Mode::Up)
            };
            let changes = *mode == from;
            if changes {
                *mode = to;
            }
            changes
        });
    }

    /// Whether there is a total outage.
    pub fn is_outage(&self) -> bool {
        *self.shared.mode.borrow() == Mode::Outage
    }
}

/// What it saw.
impl KindeEmulator {
    /// How often each endpoint was called, and how it answered.
    pub fn calls(&self) -> Calls {
        self.shared.world().calls.clone()
    }

    /// Counts from zero again.
    pub fn reset_calls(&self) {
        self.shared.world().calls.reset();
    }

    /// Waits until the endpoint was called so often since the start or the last reset. For tests that must act while a call
    /// is under way, in place of a sleep.
    pub async fn reached(&self, endpoint: Endpoint, calls: u64) {
        loop {
            let mut arrived = pin!(self.shared.arrived.notified());
            // Hears of arrivals from here on, so that none is lost between the look and the wait.
            arrived.as_mut().enable();
            if self.shared.world().calls.of(endpoint).total >= calls {
                return;
            }
            arrived.await;
        }
    }

    /// The last request that this endpoint got, without the secrets in it.
    pub fn last_request(&self, endpoint: Endpoint) -> Option<SeenRequest> {
        self.shared.world().seen[endpoint as usize].clone()
    }
}

impl fmt::Debug for KindeEmulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeEmulator")
            .field("issuer_url", &self.issuer_url)
            .field("mode", &*self.shared.mode.borrow())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}
