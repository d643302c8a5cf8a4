use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::calls::Calls;
use crate::endpoint::{Endpoint, Endpoints};
use crate::fault::Fault;
use crate::injected::InjectedFaults;
use crate::issuer::{Call, Issuer};
use crate::late::LateCall;
use crate::recorded::RecordedRequest;

/// The state that the handles, the server and its connections share, and notifications of its changes.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Notified when a call arrives.
    pub(crate) call_arrived: Notify,
    /// Notified when faults are injected or cleared.
    pub(crate) faults_changed: Notify,
    pub(crate) mode: watch::Sender<Mode>,
    /// Whether the control endpoints are served.
    pub(crate) control: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) issuer: Issuer,
    pub(crate) faults: InjectedFaults,
    pub(crate) calls: Calls,
    /// Calls that are carried out later.
    pub(crate) late: Vec<LateCall>,
    pub(crate) last_requests: [Option<RecordedRequest>; Endpoint::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Serving,
    /// All connections are reset.
    Outage,
    /// No connection is accepted. Calls in flight may complete.
    Stopping,
    Stopped,
}

impl Shared {
    pub(crate) fn new(issuer: Issuer, control: bool) -> Self {
        Self {
            state: Mutex::new(State {
                issuer,
                faults: InjectedFaults::default(),
                calls: Calls::default(),
                late: Vec::new(),
                last_requests: Default::default(),
            }),
            call_arrived: Notify::new(),
            faults_changed: Notify::new(),
            mode: watch::Sender::new(Mode::Serving),
            control,
        }
    }

    pub(crate) fn inject(&self, at: Endpoints, fault: &Fault) {
        let mut state = self.state();
        state.faults.inject(at, fault);
        state.carry_out_late_calls();
        drop(state);
        self.faults_changed.notify_waiters();
    }

    pub(crate) fn clear(&self, at: Endpoints) {
        let mut state = self.state();
        state.faults.clear(at);
        state.carry_out_late_calls();
        drop(state);
        self.faults_changed.notify_waiters();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // No user code runs under the lock, and a panic under it leaves the state consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("mode", &*self.mode.borrow())
            .finish_non_exhaustive()
    }
}
