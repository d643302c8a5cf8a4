//! The headers that tell a service which organization sent a request.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use tower_orgkey::OrgContext;

use super::assertion::Signer;
use super::once_per_second::OncePerSecond;

pub(super) const ORG_CODE: HeaderName = HeaderName::from_static("x-org-code");
pub(super) const KEY_ID: HeaderName = HeaderName::from_static("x-org-key-id");
pub(super) const SCOPES: HeaderName = HeaderName::from_static("x-org-scopes");
pub(super) const ASSERTION: HeaderName = HeaderName::from_static("x-org-assertion");

/// The names of all headers of an identity.
pub(super) const NAMES: [HeaderName; 4] = [ORG_CODE, KEY_ID, SCOPES, ASSERTION];

/// The most bytes that the names and values may have. nginx reads the head of a response into a buffer of 4 KiB.
pub(super) const MAX_LEN: usize = 3 * 1_024;

/// The headers of an identity. What has no value is removed from the request of the client.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    values: [Option<HeaderValue>; 4],
}

/// Makes the identities of callers.
#[derive(Default)]
pub(super) struct Identities {
    signer: Option<Signer>,
    logged: OncePerSecond,
}

impl Identities {
    /// With signed ones, if there is a signer.
    pub(super) fn new(signer: Option<Signer>) -> Self {
        Self {
            signer,
            logged: OncePerSecond::default(),
        }
    }

    /// Returns the identity of a caller, for a service with its own audience or the common one. `None`, and a log message, if
    /// it cannot be passed on.
    pub(super) fn of(&self, context: &OrgContext, audience: Option<&Arc<str>>) -> Option<Identity> {
        let made = match &self.signer {
            None => Identity::new(context, None),
            Some(signer) => match signer.assertion(context, audience) {
                None => Err(Unusable::NotSigned),
                assertion => Identity::new(context, assertion),
            },
        };
        made.map_err(|unusable| self.log(context, &unusable)).ok()
    }

    fn log(&self, context: &OrgContext, unusable: &Unusable) {
        if !self.logged.first() {
            return;
        }
        let org_code = context.org_code().as_str();
        match unusable {
            Unusable::TooLong(bytes) => {
                tracing::error!(org_code, bytes, "identity is too long for headers");
            }
            Unusable::NotSigned => tracing::error!(org_code, "assertion cannot be signed"),
            Unusable::NotText => {
                tracing::error!(org_code, "identity has characters that headers cannot have");
            }
        }
    }
}

/// An identity that headers cannot hold.
#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    TooLong(usize),
    NotText,
    NotSigned,
}

impl Identity {
    fn new(context: &OrgContext, assertion: Option<HeaderValue>) -> Result<Self, Unusable> {
        let code = HeaderValue::from_str(context.org_code().as_str());
        let key_id = context
            .key_id()
            .map(|id| HeaderValue::from_str(id.as_str()));
        let mut names = BytesMut::new();
        for scope in context.scopes() {
            if !names.is_empty() {
                names.put_u8(b' ');
            }
            names.put_slice(scope.as_str().as_bytes());
        }
        let names: Bytes = names.freeze();
        let scopes = (!names.is_empty()).then(|| HeaderValue::from_maybe_shared(names));
        let not_text = |_| Unusable::NotText;
        let identity = Self {
            values: [
                Some(code.map_err(not_text)?),
                key_id.transpose().map_err(not_text)?,
                scopes.transpose().map_err(not_text)?,
                assertion,
            ],
        };
        let len = identity
            .present()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if len > MAX_LEN {
            return Err(Unusable::TooLong(len));
        }
        Ok(identity)
    }

    /// Returns the headers that are set.
    pub(super) fn present(&self) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
        let headers = NAMES.into_iter().zip(&self.values);
        headers.filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }

    /// Returns the headers that are removed.
    pub(super) fn absent(&self) -> impl Iterator<Item = HeaderName> {
        let headers = NAMES.into_iter().zip(&self.values);
        headers
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name)
    }
}

/// Returns the other spellings of the headers' names, which some services read as the same name: `_` or `.` instead of `-`.
pub(super) fn aliases() -> impl Iterator<Item = String> {
    NAMES.into_iter().flat_map(|name| {
        let name = name.as_str();
        let parts: Vec<_> = name.split('-').collect();
        let spellings = parts[1..]
            .iter()
            .fold(vec![parts[0].to_owned()], |spellings, part| {
                let next = spellings.iter();
                next.flat_map(|head| {
                    ["-", "_", "."].map(|separator| format!("{head}{separator}{part}"))
                })
                .collect()
            });
        let own = name.to_owned();
        spellings
            .into_iter()
            .filter(move |spelling| *spelling != own)
    })
}

/// Whether a header could be read as one of an identity.
pub(super) fn is_reserved(name: &str) -> bool {
    let folded = |byte: u8| {
        // Some servers read every other character as `_`.
        if byte.is_ascii_alphanumeric() {
            byte.to_ascii_lowercase()
        } else {
            b'-'
        }
    };
    name.bytes().map(folded).take(6).eq(*b"x-org-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_reserved_names() {
        let aliases: Vec<_> = aliases().collect();
        assert_eq!(aliases.len(), 8 + 26 + 8 + 8);
        for alias in ["x_org_code", "x-org_code", "x.org.code", "x_org-key.id"] {
            assert!(aliases.iter().any(|known| known == alias), "{alias}");
        }
        assert!(aliases.iter().all(|alias| is_reserved(alias)));
        assert!(NAMES.iter().all(|name| is_reserved(name.as_str())));
        assert!(!is_reserved("x-organization"));
    }
}
