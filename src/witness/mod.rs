//! How the rooms that keep books learn of a request what only the layer and its guards know.
//!
//! A layer that keeps books stands *outside* of [`ApiKeyLayer`](crate::ApiKeyLayer), where it sees refusals too. It puts a
//! [`Witness`] into the request's extensions; the layer and the guards further in tell it what they find, and the response
//! carries the [`Rejection`](crate::Rejection) if there is one. [`watch`] tells how the request ended: answered, failed,
//! or left. Several layers that keep books share one witness.
//!
//! The type is the crate's own, so nothing that a client sends can stand in for it.

mod watch;

use std::sync::{Arc, OnceLock};

use http::Extensions;

pub(crate) use self::watch::{Answer, Left, Visit, Watched};
use crate::context::OrgContext;

/// What is told of one request. Cloning counts a reference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<OnceLock<Caller>>);

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
    pub(crate) fn caller(&self) -> Option<&Caller> {
        self.0.get()
    }

    /// Tells the witness of a request, if there is one, that an organization's key was let in.
    #[inline]
    pub(crate) fn tell_organization(extensions: &Extensions, context: &OrgContext, cached: bool) {
        if let Some(Self(caller)) = extensions.get() {
            let context = context.clone();
            // A service that is called twice for one request, by a retry say, judges twice: the first stands.
            let _ = caller.set(Caller::Organization { context, cached });
        }
    }

    /// Tells the witness of a request, if there is one, that it was let in without a key.
    #[inline]
    pub(crate) fn tell_anonymous(extensions: &Extensions) {
        if let Some(Self(caller)) = extensions.get() {
            let _ = caller.set(Caller::Anonymous);
        }
    }
}
