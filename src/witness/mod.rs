//! How the rooms that keep books learn of a request what only the layer and its guards know.
//!
//! A layer that keeps books stands *outside* of [`ApiKeyLayer`](crate::ApiKeyLayer), where it sees refusals too. It puts a
//! [`Witness`] into the request's extensions; the layer and the guards further in tell it what they find, and the response
//! carries the [`Rejection`](crate::Rejection) if there is one. [`watch`] tells how the request ended: answered, failed,
//! or left. Several layers that keep books share one witness.
//!
//! The type is the crate's own, so nothing that a client sends can stand in for it.

mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Extensions;

pub(crate) use self::watch::{Answer, Left, Visit, Watched};
use crate::context::OrgContext;
#[cfg(feature = "audit")]
use crate::scope::ScopePolicy;

/// What is told of one request. Cloning counts a reference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    caller: Option<Caller>,
    #[cfg(feature = "audit")]
    asked: Vec<Asked>,
}

/// Whose the request is, as far as the layer let it in.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// An organization's key.
    Organization {
        context: OrgContext,
        /// Whether the facts were held already, so that the request did not wait for the issuer.
        #[cfg_attr(
            not(feature = "audit"),
            allow(dead_code, reason = "usage counts both alike")
        )]
        cached: bool,
    },
    /// Nobody's: the layer lets requests without a key pass.
    Anonymous,
}

impl Witness {
    /// The request's witness: the one that a layer further out put there, or a new one.
    pub(crate) fn call(extensions: &mut Extensions) -> Self {
        extensions.get_or_insert_default::<Self>().clone()
    }

    /// Whose the request is. `None` before the layer judged it, and where it was refused.
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.told().caller.clone()
    }

    /// Tells the witness of a request, if there is one, that an organization's key was let in.
    #[inline]
    pub(crate) fn tell_organization(extensions: &Extensions, context: &OrgContext, cached: bool) {
        if let Some(witness) = extensions.get::<Self>() {
            let context = context.clone();
            // Of two layers in a row the inner decides, so the last word stands.
            witness.told().caller = Some(Caller::Organization { context, cached });
        }
    }

    /// Tells the witness of a request, if there is one, that it was let in without a key.
    #[inline]
    pub(crate) fn tell_anonymous(extensions: &Extensions) {
        if let Some(witness) = extensions.get::<Self>() {
            witness.told().caller = Some(Caller::Anonymous);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // Every change is one assignment or one push, so what a panic left behind is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A scope policy that a guard or a handler asked for.
#[cfg(feature = "audit")]
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) policy: Policy,
    pub(crate) is_satisfied: bool,
}

/// A policy as whoever asks holds it, so that telling of it copies no name.
#[cfg(feature = "audit")]
#[derive(Clone, Debug)]
pub(crate) enum Policy {
    OfGuard(ScopePolicy),
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "only the extractor has one")
    )]
    OfType(&'static [&'static [&'static str]]),
}

#[cfg(feature = "audit")]
impl Witness {
    /// A request passes so many guards at most that are written down; a retry beneath the layer passes them again.
    const MOST_ASKED: usize = 8;

    /// Tells the witness of a request, if there is one, of a policy that was asked for, and whether the key satisfies it.
    #[inline]
    pub(crate) fn tell_asked(
        extensions: &Extensions,
        is_satisfied: bool,
        policy: impl FnOnce() -> Policy,
    ) {
        if let Some(witness) = extensions.get::<Self>() {
            let mut told = witness.told();
            if told.asked.len() < Self::MOST_ASKED {
                // Nearly always it is the only one.
                told.asked.reserve_exact(1);
                told.asked.push(Asked {
                    policy: policy(),
                    is_satisfied,
                });
            }
        }
    }

    /// The policies that were asked for, in their order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.told().asked.clone()
    }
}
