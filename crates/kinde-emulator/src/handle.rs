use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::AbortHandle;

use crate::billing::{AgreementSpec, PeriodUsage};
use crate::builder::KindeEmulatorBuilder;
use crate::calls::Calls;
use crate::endpoint::{Endpoint, Endpoints};
use crate::fault::Fault;
use crate::issuer::VerifyAccess;
use crate::keys::{IssuedKey, KeySpec, KeyStatus};
use crate::recorded::RecordedRequest;
use crate::replies::{InvalidKeyReply, KeyRecordReply, ValidKeyReply};
use crate::shared::{Mode, Shared};

/// A handle of a running emulator.
///
/// Clones are handles of the same server. The server stops when the last handle is dropped, or at
/// [`shutdown`](Self::shutdown). See the [crate documentation](crate) for an example.
#[derive(Clone)]
pub struct KindeEmulator {
    pub(crate) _guard: Arc<Guard>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) issuer_url: Arc<str>,
    pub(crate) addr: SocketAddr,
    pub(crate) root_certificate: Option<Arc<str>>,
}

/// Stops the server when the last handle is dropped.
pub(crate) struct Guard {
    pub(crate) server: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The server task owns the connection tasks, so they stop too.
        self.server.abort();
    }
}

impl KindeEmulator {
    /// Starts an emulator with default settings: plain HTTP on a free port of `127.0.0.1`.
    ///
    /// It runs on the current tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, and if the operating system's random source fails.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// Returns a builder for an emulator with other settings.
    pub fn builder() -> KindeEmulatorBuilder {
        KindeEmulatorBuilder::new()
    }

    /// Stops accepting connections, waits up to one second for calls in flight, and closes all connections.
    pub async fn shutdown(&self) {
        let mut mode = self.shared.mode.subscribe();
        self.shared.mode.send_if_modified(|mode| {
            let stops = *mode != Mode::Stopped;
            if stops {
                *mode = Mode::Stopping;
            }
            stops
        });
        // This handle keeps the sender alive, so the wait ends with the server.
        let _ = mode.wait_for(|mode| *mode == Mode::Stopped).await;
    }
}

/// Configuration for clients.
impl KindeEmulator {
    /// Returns the base URL, such as `http://127.0.0.1:40321`, without a trailing slash.
    pub fn issuer_url(&self) -> &str {
        &self.issuer_url
    }

    /// Returns the address that the emulator listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the root certificate that clients must trust, in PEM, or `None` if the emulator serves plain HTTP.
    pub fn root_certificate_pem(&self) -> Option<&str> {
        self.root_certificate.as_deref()
    }

    /// Returns the id of the M2M application.
    pub fn client_id(&self) -> String {
        self.shared.state().issuer.application.client_id.clone()
    }

    /// Returns the secret of the M2M application.
    pub fn client_secret(&self) -> String {
        self.shared.state().issuer.application.client_secret.clone()
    }

    /// Returns the audience that token requests must name. A client that uses a proxy has to be configured with it.
    pub fn audience(&self) -> String {
        self.shared.state().issuer.application.audience.clone()
    }
}

/// Management of keys, without HTTP calls.
impl KindeEmulator {
    /// Issues a key.
    ///
    /// # Panics
    ///
    /// Panics if another key has the secret in the spec.
    #[track_caller]
    pub fn issue_key(&self, spec: KeySpec) -> IssuedKey {
        let issued = self.shared.state().issuer.keys.issue(spec);
        match issued {
            Some(key) => key,
            None => panic!("another key has this secret"),
        }
    }

    /// Revokes a key. The list of keys shows it as `revoked`.
    ///
    /// # Panics
    ///
    /// Panics if no key has this id.
    #[track_caller]
    pub fn revoke(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Revoked);
    }

    /// Sets the status of a key to `inactive`. Kinde's contract defines this status, but no endpoint that sets it.
    ///
    /// # Panics
    ///
    /// Panics if no key has this id.
    #[track_caller]
    pub fn deactivate(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Inactive);
    }

    /// Sets the status of a key to `active`.
    ///
    /// # Panics
    ///
    /// Panics if no key has this id.
    #[track_caller]
    pub fn activate(&self, key_id: &str) {
        self.set_status(key_id, KeyStatus::Active);
    }

    #[track_caller]
    fn set_status(&self, key_id: &str, status: KeyStatus) {
        let known = self
            .shared
            .state()
            .issuer
            .keys
            .by_id(key_id)
            .map(|key| key.status = status)
            .is_some();
        assert!(known, "no key has the id {key_id:?}");
    }

    /// Replaces the secret of a key and returns the new one. The id stays the same.
    ///
    /// # Panics
    ///
    /// Panics if no key has this id.
    #[track_caller]
    pub fn rotate(&self, key_id: &str) -> IssuedKey {
        let rotated = self.shared.state().issuer.keys.rotate(key_id);
        match rotated {
            Some(key) => key,
            None => panic!("no key has the id {key_id:?}"),
        }
    }

    /// Deletes a key.
    ///
    /// # Panics
    ///
    /// Panics if no key has this id.
    #[track_caller]
    pub fn delete(&self, key_id: &str) {
        let known = self.shared.state().issuer.keys.delete(key_id);
        assert!(known, "no key has the id {key_id:?}");
    }
}

/// Billing.
impl KindeEmulator {
    /// Adds an organization without an agreement. One that exists is not changed.
    ///
    /// Issuing a key adds no organization: `GET /api/v1/organization` is 404 for one that was not added.
    pub fn add_organization(&self, org_code: impl Into<String>) {
        self.shared
            .state()
            .issuer
            .billing
            .add_organization(org_code.into());
    }

    /// Starts a billing agreement and returns its id. Adds the organization if need be, and cancels its agreement if it has
    /// one, as a change of plan does. Usage of a cancelled agreement is 400.
    ///
    /// ```
    /// # use kinde_emulator::{AgreementSpec, KindeEmulator};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let emulator = KindeEmulator::start().await?;
    /// let id = emulator.start_agreement(AgreementSpec::new("org_1").feature("api_calls"));
    /// assert!(id.starts_with("agreement_"));
    /// assert_eq!(emulator.usage(), []);
    /// # Ok(()) }
    /// ```
    pub fn start_agreement(&self, spec: AgreementSpec) -> String {
        self.shared.state().issuer.billing.start(spec)
    }

    /// Cancels an agreement. Nothing takes its place.
    ///
    /// # Panics
    ///
    /// Panics if no agreement has this id.
    #[track_caller]
    pub fn cancel_agreement(&self, agreement_id: &str) {
        let known = self.shared.state().issuer.billing.cancel(agreement_id);
        assert!(known, "no agreement has the id {agreement_id:?}");
    }

    /// Sets how long the billing periods in replies lag behind those in which usage is recorded; 0 at first.
    ///
    /// Kinde documents that `current_period_end` may be in the past.
    pub fn set_period_lag(&self, lag: Duration) {
        self.shared.state().issuer.billing.lag = lag;
    }

    /// Returns the usage that was recorded, by agreement, feature and billing period. Kinde has no such endpoint.
    pub fn usage(&self) -> Vec<PeriodUsage> {
        self.shared.state().issuer.billing.usage()
    }
}

/// Behavior of the endpoints, and access tokens.
impl KindeEmulator {
    /// Sets the reply to verify for a valid key.
    pub fn set_valid_key_reply(&self, reply: ValidKeyReply) {
        self.shared.state().issuer.valid_key_reply = reply;
    }

    /// Sets the reply to verify for an invalid key.
    pub fn set_invalid_key_reply(&self, reply: InvalidKeyReply) {
        self.shared.state().issuer.invalid_key_reply = reply;
    }

    /// Sets the reply to `GET /api/v1/api_keys/{key_id}`; [`KeyRecordReply::Wrapped`] by default.
    pub fn set_key_record_reply(&self, reply: KeyRecordReply) {
        self.shared.state().issuer.key_record_reply = reply;
    }

    /// Sets the authorization that verify needs.
    pub fn set_verify_access(&self, access: VerifyAccess) {
        self.shared.state().issuer.verify_access = access;
    }

    /// Sets the status for a rejected token, at all endpoints but the token endpoint.
    ///
    /// By default it is the status that the contract declares: 401 for verify, and 403 for the other endpoints.
    pub fn set_rejected_token_status(&self, status: StatusCode) {
        self.shared.state().issuer.rejected_token_status = Some(status);
    }

    /// Sets the scopes of tokens that are issued from now on. A token without scopes is issued but grants nothing.
    pub fn set_token_scopes<N: Into<String>>(&self, scopes: impl IntoIterator<Item = N>) {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.shared.state().issuer.application.scopes = scopes;
    }

    /// Sets the lifetime of tokens that are issued from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.shared.state().issuer.application.lifetime = lifetime;
    }

    /// Revokes all tokens that were issued so far.
    pub fn revoke_tokens(&self) {
        self.shared.state().issuer.application.revoke_all();
    }

    /// Changes the secret of the M2M application. Tokens that were issued stay valid.
    pub fn set_client_secret(&self, secret: impl Into<String>) {
        self.shared.state().issuer.application.client_secret = secret.into();
    }

    /// Sets how far the emulator's clock is ahead of the machine's, in seconds; 0 at first, and negative if it is behind.
    ///
    /// It is the clock of `Date` headers, of the times of keys, of billing periods, and of the claims and the expiry of tokens: moved forward by the
    /// lifetime of a token, the token is expired. Latencies and timeouts do not follow it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let emulator = kinde_emulator::KindeEmulator::start().await?;
    /// emulator.set_clock_offset(3_600); // an hour ahead
    /// assert_eq!(emulator.clock_offset(), 3_600);
    /// # Ok(()) }
    /// ```
    pub fn set_clock_offset(&self, seconds: i32) {
        self.shared.state().issuer.clock.set_offset(seconds);
    }

    /// Returns how far the emulator's clock is ahead of the machine's, in seconds.
    pub fn clock_offset(&self) -> i32 {
        self.shared.state().issuer.clock.offset()
    }

    /// Issues a token with these scopes, without a call of the token endpoint.
    pub fn issue_token<N: Into<String>>(&self, scopes: impl IntoIterator<Item = N>) -> String {
        let scopes = scopes.into_iter().map(Into::into).collect();
        self.shared.state().issuer.application.issue(scopes)
    }
}

/// Fault injection.
impl KindeEmulator {
    /// Injects a fault at one endpoint, at several, or at [all](Endpoints::ALL). It replaces the fault that was there.
    ///
    /// ```
    /// # use kinde_emulator::{Endpoint, Endpoints, Fault, KindeEmulator};
    /// # fn inject(emulator: &KindeEmulator) {
    /// emulator.inject(Endpoint::Verify, Fault::status(503));
    /// emulator.inject([Endpoint::ListKeys, Endpoint::GetKey], Fault::reject_token());
    /// emulator.inject(Endpoints::ALL, Fault::no_response());
    /// # }
    /// ```
    #[allow(clippy::needless_pass_by_value)] // Callers construct the fault in the call.
    pub fn inject(&self, at: impl Into<Endpoints>, fault: Fault) {
        self.shared.inject(at.into(), &fault);
    }

    /// Clears the faults at these endpoints. Calls held by [`Fault::hold`] are answered, and those of [`Fault::late`] carried
    /// out.
    pub fn clear(&self, at: impl Into<Endpoints>) {
        self.shared.clear(at.into());
    }

    /// Clears the faults at all endpoints. It does not end an outage.
    pub fn clear_faults(&self) {
        self.clear(Endpoints::ALL);
    }

    /// Starts or ends an outage. During an outage all connections are reset, open ones included.
    pub fn set_outage(&self, outage: bool) {
        self.shared.mode.send_if_modified(|mode| {
            let (from, to) = if outage {
                (Mode::Serving, Mode::Outage)
            } else {
                (Mode::Outage, Mode::Serving)
            };
            let changes = *mode == from;
            if changes {
                *mode = to;
            }
            changes
        });
    }

    /// Returns whether there is an outage.
    pub fn is_outage(&self) -> bool {
        *self.shared.mode.borrow() == Mode::Outage
    }
}

/// Inspection of the calls that were made.
impl KindeEmulator {
    /// Returns the number of calls of each endpoint, and how they were answered.
    pub fn calls(&self) -> Calls {
        self.shared.state().calls.clone()
    }

    /// Resets all counts to zero, except those of calls in flight.
    pub fn reset_calls(&self) {
        self.shared.state().calls.reset();
    }

    /// Waits until the endpoint has received this many calls since the start or the last reset.
    ///
    /// Tests use it in place of a sleep, to act while a call is in flight.
    pub async fn wait_for_calls(&self, endpoint: Endpoint, calls: u64) {
        loop {
            let mut arrived = pin!(self.shared.call_arrived.notified());
            // Registers before the check, so that an arrival in between is not missed.
            arrived.as_mut().enable();
            if self.shared.state().calls.of(endpoint).total >= calls {
                return;
            }
            arrived.await;
        }
    }

    /// Returns the last request to this endpoint, with its secrets redacted.
    pub fn last_request(&self, endpoint: Endpoint) -> Option<RecordedRequest> {
        self.shared.state().last_requests[endpoint as usize].clone()
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
