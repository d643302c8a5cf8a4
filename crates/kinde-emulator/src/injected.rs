//! The faults that are injected at each endpoint.

use crate::endpoint::{Endpoint, Endpoints};
use crate::fault::Fault;

/// At most one fault per endpoint.
#[derive(Debug, Default)]
pub(crate) struct InjectedFaults {
    at: [Option<Injected>; Endpoint::ALL.len()],
    last: InjectionId,
}

/// Identifies one call of `inject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InjectionId(u64);

#[derive(Debug)]
struct Injected {
    fault: Fault,
    id: InjectionId,
    calls: u64,
    affected: u64,
}

impl InjectedFaults {
    pub(crate) fn inject(&mut self, at: Endpoints, fault: &Fault) {
        self.last.0 += 1;
        for endpoint in Endpoint::ALL {
            if at.contains(endpoint) {
                self.at[endpoint as usize] = Some(Injected {
                    fault: fault.clone(),
                    id: self.last,
                    calls: 0,
                    affected: 0,
                });
            }
        }
    }

    pub(crate) fn clear(&mut self, at: Endpoints) {
        for endpoint in Endpoint::ALL {
            if at.contains(endpoint) {
                self.at[endpoint as usize] = None;
            }
        }
    }

    /// Counts a call, and returns the fault that affects it.
    pub(crate) fn next(&mut self, at: Endpoint) -> Option<(Fault, InjectionId)> {
        let injected = self.at[at as usize].as_mut()?;
        injected.calls += 1;
        let spent = injected
            .fault
            .times
            .is_some_and(|times| injected.affected >= times);
        if spent || injected.calls % injected.fault.every != 0 {
            return None;
        }
        injected.affected += 1;
        Some((injected.fault.clone(), injected.id))
    }

    pub(crate) fn is_active(&self, at: Endpoint, id: InjectionId) -> bool {
        self.at[at as usize]
            .as_ref()
            .is_some_and(|injected| injected.id == id)
    }
}
