use crate::endpoint::Endpoint;

/// The calls that an emulator received since its start or the last [`reset_calls`](crate::KindeEmulator::reset_calls).
///
/// ```
/// # use kinde_emulator::{Endpoint, KindeEmulator};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let emulator = KindeEmulator::start().await?;
/// // … the application under test runs …
/// assert_eq!(emulator.calls().verify.total, 0);
/// assert_eq!(emulator.calls().of(Endpoint::Token).ok, 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// `POST /oauth2/token`.
    pub token: EndpointCalls,
    /// `POST /api/v1/api_keys/verify`.
    pub verify: EndpointCalls,
    /// `GET /api/v1/api_keys`.
    pub list_keys: EndpointCalls,
    /// `GET /api/v1/api_keys/{key_id}`.
    pub get_key: EndpointCalls,
    /// `POST /api/v1/api_keys`.
    pub create_key: EndpointCalls,
    /// `PUT /api/v1/api_keys/{key_id}`.
    pub rotate_key: EndpointCalls,
    /// `DELETE /api/v1/api_keys/{key_id}`.
    pub delete_key: EndpointCalls,
    /// `GET /api/v1/organization`.
    pub get_organization: EndpointCalls,
    /// `GET /api/v1/billing/agreements`.
    pub list_agreements: EndpointCalls,
    /// `POST /api/v1/billing/meter_usage`.
    pub record_usage: EndpointCalls,
    /// Requests to any other path or method.
    pub unrouted: u64,
    /// Accepted TCP connections, including those that were reset.
    pub connections: u64,
    /// Connections whose TLS handshake failed, for example because the client did not trust the certificate.
    pub failed_tls_handshakes: u64,
    /// Connections that an [outage](crate::KindeEmulator::set_outage) reset.
    pub reset_connections: u64,
}

/// The calls of one endpoint.
///
/// `total`, `faulted` and `in_flight` count a call when it arrives. The other fields count the regular reply to it, even when
/// a fault delays or changes that reply. A fault that replaces the reply counts in `faulted` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointCalls {
    /// All calls.
    pub total: u64,
    /// Successful calls. For verify: the key is valid.
    pub ok: u64,
    /// Calls of verify for which the key is invalid, whatever the [reply](crate::InvalidKeyReply).
    pub key_invalid: u64,
    /// Calls with a rejected access token, or at the token endpoint with rejected client credentials.
    pub token_rejected: u64,
    /// Malformed requests.
    pub bad_request: u64,
    /// Calls for an unknown key id or organization.
    pub not_found: u64,
    /// Calls that an injected [`Fault`](crate::Fault) affected.
    pub faulted: u64,
    /// Calls without a reply yet.
    pub in_flight: u64,
    /// The maximum of `in_flight`.
    pub max_in_flight: u64,
}

/// How a call was answered, faults aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    KeyInvalid,
    TokenRejected,
    BadRequest,
    NotFound,
}

impl Calls {
    /// Returns the calls of this endpoint.
    pub fn of(&self, endpoint: Endpoint) -> &EndpointCalls {
        match endpoint {
            Endpoint::Token => &self.token,
            Endpoint::Verify => &self.verify,
            Endpoint::ListKeys => &self.list_keys,
            Endpoint::GetKey => &self.get_key,
            Endpoint::CreateKey => &self.create_key,
            Endpoint::RotateKey => &self.rotate_key,
            Endpoint::DeleteKey => &self.delete_key,
            Endpoint::GetOrganization => &self.get_organization,
            Endpoint::ListAgreements => &self.list_agreements,
            Endpoint::RecordUsage => &self.record_usage,
        }
    }

    /// Returns the number of calls of all endpoints, `unrouted` included.
    pub fn total(&self) -> u64 {
        let routed: u64 = Endpoint::ALL.iter().map(|at| self.of(*at).total).sum();
        routed + self.unrouted
    }

    pub(crate) fn of_mut(&mut self, endpoint: Endpoint) -> &mut EndpointCalls {
        match endpoint {
            Endpoint::Token => &mut self.token,
            Endpoint::Verify => &mut self.verify,
            Endpoint::ListKeys => &mut self.list_keys,
            Endpoint::GetKey => &mut self.get_key,
            Endpoint::CreateKey => &mut self.create_key,
            Endpoint::RotateKey => &mut self.rotate_key,
            Endpoint::DeleteKey => &mut self.delete_key,
            Endpoint::GetOrganization => &mut self.get_organization,
            Endpoint::ListAgreements => &mut self.list_agreements,
            Endpoint::RecordUsage => &mut self.record_usage,
        }
    }

    /// Sets all counts to zero, except those of calls in flight.
    pub(crate) fn reset(&mut self) {
        let mut fresh = Self::default();
        for endpoint in Endpoint::ALL {
            let in_flight = self.of(endpoint).in_flight;
            let counts = fresh.of_mut(endpoint);
            counts.in_flight = in_flight;
            counts.max_in_flight = in_flight;
        }
        *self = fresh;
    }
}

impl EndpointCalls {
    pub(crate) fn count_arrival(&mut self) {
        self.total += 1;
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    pub(crate) fn count_outcome(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Ok => &mut self.ok,
            Outcome::KeyInvalid => &mut self.key_invalid,
            Outcome::TokenRejected => &mut self.token_rejected,
            Outcome::BadRequest => &mut self.bad_request,
            Outcome::NotFound => &mut self.not_found,
        };
        *count += 1;
    }
}
