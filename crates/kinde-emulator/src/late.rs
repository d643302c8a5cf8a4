//! Calls that are carried out when their fault is cleared, after their connections were closed.

use std::fmt;

use bytes::Bytes;
use http::request::Parts;

use crate::endpoint::Endpoint;
use crate::injected::InjectionId;
use crate::issuer::Call;
use crate::shared::State;

pub(crate) struct LateCall {
    pub(crate) endpoint: Endpoint,
    pub(crate) injection: InjectionId,
    pub(crate) key_id: Option<String>,
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
    pub(crate) peer_ip: String,
}

impl State {
    /// Carries out the calls whose fault is no longer there, in the order of their arrival.
    pub(crate) fn carry_out_late_calls(&mut self) {
        let faults = &self.faults;
        let is_due = |call: &mut LateCall| !faults.is_active(call.endpoint, call.injection);
        let due: Vec<LateCall> = self.late.extract_if(.., is_due).collect();
        for call in due {
            let (_, outcome) = self.issuer.answer(&Call {
                endpoint: call.endpoint,
                key_id: call.key_id.as_deref(),
                parts: &call.parts,
                body: &call.body,
                peer_ip: call.peer_ip,
            });
            self.calls.of_mut(call.endpoint).count_outcome(outcome);
        }
    }
}

impl fmt::Debug for LateCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateCall")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
