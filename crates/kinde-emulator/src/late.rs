//! Calls that are carried out when their fault is cleared, after their connections were closed.

use std::fmt;

use bytes::Bytes;
use http::request::Parts;

use crate::endpoint::Endpoint;
use crate::injected::InjectionId;

pub(crate) struct LateCall {
    pub(crate) endpoint: Endpoint,
    pub(crate) injection: InjectionId,
    pub(crate) key_id: Option<String>,
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
    pub(crate) peer_ip: String,
}

impl fmt::Debug for LateCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateCall")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
