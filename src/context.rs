//! What a handler sees: [`OrgContext`], the trusted answer to "whose call is this?".
//!
//! A context is made by the layer alone, from the issuer's answer, and always names an organization. Nothing a client
//! sends can put one there: the layer writes over whatever stood in the request's extensions before it.
//!
//! With axum it is an extractor; in a plain Tower service it stands in the request's extensions:
//!
//! ```
//! use tower_orgkey::OrgContext;
//!
//! fn organization<B>(request: &http::Request<B>) -> Option<&str> {
//!     Some(request.extensions().get::<OrgContext>()?.org_code().as_str())
//! }
//! ```

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use crate::cache::{Entry, Standing};
use crate::clock::Tick;
use crate::observer::RequestObservation;
use crate::rejection::Rejection;
use crate::scope::Scopes;

/// The longest organization code or key id, in bytes.
pub const MAX_IDENTIFIER_LEN: usize = 255;

/// The text is not an identifier: empty, longer than 255 bytes, or not visible ASCII throughout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier: expected 1 to 255 visible ASCII characters")]
pub struct InvalidIdentifier(());

fn is_identifier(text: &str) -> bool {
    (1..=MAX_IDENTIFIER_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes 1 to 255 visible ASCII characters.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidIdentifier> {
                let text = text.into();
                if is_identifier(&text) { Ok(Self(text)) } else { Err(InvalidIdentifier(())) }
            }

            /// [`new`](Self::new) for a name written in code.
            ///
            /// # Panics
            ///
            /// When the text is not 1 to 255 visible ASCII characters.
            #[track_caller]
            pub fn from_static(text: &'static str) -> Self {
                match Self::new(text) {
                    Ok(identifier) => identifier,
                    Err(error) => panic!("{error}"),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

identifier! {
    /// An organization's code at the issuer: 1 to 255 visible ASCII characters, compared byte for byte.
    ///
    /// ```
    /// use tower_orgkey::OrgCode;
    ///
    /// let org = OrgCode::new("org_1234567890")?;
    /// assert_eq!(org, "org_1234567890");
    /// assert!(OrgCode::new(" ").is_err());
    /// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
    /// ```
    OrgCode
}

impl OrgCode {
    /// How many hold this copy of it.
    pub(crate) fn references(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

identifier! {
    /// A key's identifier at the issuer: 1 to 255 visible ASCII characters. Not a secret, and stable over a rotation.
    ///
    /// ```
    /// use tower_orgkey::KeyId;
    ///
    /// assert_eq!(KeyId::new("api_key_0001")?, "api_key_0001");
    /// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
    /// ```
    KeyId
}

/// Whose call this is: the organization, the key and its scopes, as the issuer said.
///
/// Cloning counts a reference. Only the layer makes one (and, for unit tests, the test kit of the feature `test-util`).
///
/// As an extractor it answers 500 where no layer stands in front of the route, and 401 where
/// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let a request without a key pass;
/// `Option<OrgContext>` is `None` for such a request.
#[derive(Clone)]
pub struct OrgContext {
    /// Has an organization: `new` looked.
    entry: Arc<Entry>,
    judged_at: Tick,
    /// What an outer layer attached to the request, so that guards need not search for it.
    observation: Option<RequestObservation>,
}

impl OrgContext {
    /// The context of an entry, if it has an organization.
    #[inline]
    pub(crate) fn new(entry: Arc<Entry>, judged_at: Tick) -> Option<Self> {
        entry.facts.org.is_some().then_some(Self {
            entry,
            judged_at,
            observation: None,
        })
    }

    /// The organization that the key belongs to.
    pub fn org_code(&self) -> &OrgCode {
        let Some(org) = &self.entry.facts.org else {
            unreachable!("`new` makes no context without an organization")
        };
        org
    }

    /// The key's identifier, if the issuer gives its keys one (Kinde does). For logs and audits.
    pub fn key_id(&self) -> Option<&KeyId> {
        self.entry.facts.key_id.as_ref()
    }

    /// The scopes that the key holds.
    pub fn scopes(&self) -> &Scopes {
        &self.entry.facts.scopes
    }

    /// The user that the key acts for: only with [`allow_user_keys`](crate::ApiKeyLayerBuilder::allow_user_keys).
    pub fn user_id(&self) -> Option<&str> {
        self.entry.facts.user()
    }

    /// How old the facts were when this request was judged: the time since the call to the issuer was sent.
    pub fn age(&self) -> Duration {
        self.judged_at.since(self.entry.sent_at)
    }

    /// Whether the facts were past their soft TTL when this request was judged: served while a refresh is under way,
    /// or because the issuer does not answer.
    pub fn is_stale(&self) -> bool {
        self.judged_at >= self.entry.fresh_until()
    }
}

impl OrgContext {
    /// Waits until the key of this request may no longer be used. For responses that stay open for long.
    ///
    /// Completes when the key is blocked or invalidated through the [`ApiKeyHandle`](crate::ApiKeyHandle), when the issuer says
    /// that it is invalid, when it expires, and when its result passes the hard TTL without a newer successful verification.
    /// A stream never re-verifies its key; only other requests with the same key refresh it. So a stream whose key is not used
    /// otherwise ends at the hard TTL, 15 min unless set; its client then connects again and is verified.
    ///
    /// Independent of the lifetime of the request, of this context and of the layer: after the layer was dropped, it completes at
    /// the hard TTL or the expiry of the key. Never completes for a context of the test kit.
    ///
    /// ```
    /// use tower_orgkey::OrgContext;
    ///
    /// async fn stream(org: OrgContext) {
    ///     let mut over = std::pin::pin!(org.until_invalid());
    ///     loop {
    ///         tokio::select! {
    ///             () = &mut over => break,
    ///             () = next_event() => { /* send it */ }
    ///         }
    ///     }
    /// }
    /// # async fn next_event() {}
    /// ```
    pub fn until_invalid(&self) -> impl Future<Output = ()> + Send + use<> {
        let entry = Arc::clone(&self.entry);
        entry.ended()
    }

    /// Checks again that the key may be used: to be called after a request has waited, right before it goes on.
    ///
    /// Rejects with 401 if the key was blocked, has expired, or was invalid by a later answer of the issuer, and with 503 if the
    /// result is past its hard TTL, or a newer one differs. An invalidation alone applies to later requests.
    #[cold]
    pub(crate) fn recheck(&self) -> Result<(), Rejection> {
        // The next request is verified if it has to be, so there is nothing to wait for.
        const RETRY_AFTER: Duration = Duration::from_secs(1);

        match self.entry.recheck() {
            Standing::Valid => Ok(()),
            Standing::Invalid => Err(Rejection::invalid_token()),
            Standing::Unknown => Err(Rejection::verifier_unavailable(RETRY_AFTER)),
        }
    }

    /// What stands for the key itself where its issuer gives it no id.
    #[cfg(feature = "limit")]
    pub(crate) fn key_digest(&self) -> crate::key::KeyDigest {
        self.entry.digest
    }

    /// Returns the context that the layer put into a request's extensions.
    ///
    /// The error is the rejection to answer with: 401 for a request that
    /// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let through without a key, and 500, with an event
    /// in the log, where no [`ApiKeyLayer`](crate::ApiKeyLayer) is in front of the service.
    ///
    /// ```
    /// use http::Request;
    /// use tower_orgkey::{OrgContext, Rejection};
    ///
    /// fn organization<B>(request: &Request<B>) -> Result<&str, Rejection> {
    ///     Ok(OrgContext::of(request.extensions())?.org_code().as_str())
    /// }
    /// ```
    pub fn of(extensions: &Extensions) -> Result<&Self, Rejection> {
        Self::required_by(extensions, "a service")
    }

    /// Returns the observation that a layer outside [`ApiKeyLayer`](crate::ApiKeyLayer) attached to the request, if one
    /// did. For guards outside this crate, see the [module `observer`](crate::observer).
    #[inline]
    pub fn observation(&self) -> Option<&RequestObservation> {
        self.observation.as_ref()
    }

    pub(crate) fn with_observation(self, observation: RequestObservation) -> Self {
        Self {
            observation: Some(observation),
            ..self
        }
    }

    /// [`of`](Self::of), naming in the log who asks for the context.
    #[inline]
    pub(crate) fn required_by<'a>(
        extensions: &'a Extensions,
        who_asks: &str,
    ) -> Result<&'a Self, Rejection> {
        match extensions.get::<Self>() {
            Some(context) => Ok(context),
            None if extensions.get::<Anonymous>().is_some() => Err(Rejection::missing_credential()),
            None => Err(Rejection::layer_missing(who_asks)),
        }
    }
}

impl fmt::Debug for OrgContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgContext")
            .field("org_code", self.org_code())
            .field("key_id", &self.key_id())
            .field("scopes", self.scopes())
            .field("user_id", &self.user_id())
            .field("age", &self.age())
            .finish()
    }
}

/// Stands in the extensions of a request that the layer let pass without a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anonymous;

#[cfg(feature = "axum")]
mod extract {
    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;

    use super::{Anonymous, OrgContext};
    use crate::rejection::Rejection;

    impl<S: Send + Sync> FromRequestParts<S> for OrgContext {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Self::required_by(&parts.extensions, "the extractor `OrgContext`").cloned()
        }
    }

    impl<S: Send + Sync> OptionalFromRequestParts<S> for OrgContext {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
            match parts.extensions.get::<Self>() {
                Some(context) => Ok(Some(context.clone())),
                None if parts.extensions.get::<Anonymous>().is_some() => Ok(None),
                None => Err(Rejection::layer_missing(
                    "the extractor `Option<OrgContext>`",
                )),
            }
        }
    }
}
