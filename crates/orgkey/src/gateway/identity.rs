//! The headers that tell a service which organization sent a request.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};
use papaya::Equivalent;
use tower_orgkey::scope::Scope;
use tower_orgkey::{KeyId, OrgCode, OrgContext, Scopes};

use super::assertion::{REUSE, Signer};
use super::once_per_second::OncePerSecond;

pub(super) const ORG_CODE: HeaderName = HeaderName::from_static("x-org-code");
pub(super) const KEY_ID: HeaderName = HeaderName::from_static("x-org-key-id");
pub(super) const SCOPES: HeaderName = HeaderName::from_static("x-org-scopes");
pub(super) const ASSERTION: HeaderName = HeaderName::from_static("x-org-assertion");

/// The names of all headers of an identity.
pub(super) const NAMES: [HeaderName; 4] = [ORG_CODE, KEY_ID, SCOPES, ASSERTION];

/// The most bytes that the names and values may have. nginx reads the head of a response into a buffer of 4 KiB.
pub(super) const MAX_LEN: usize = 3 * 1_024;

/// The most callers whose headers are kept.
const CAPACITY: usize = 10_000;

/// Makes the headers of responses that allow a request, once per caller and audience, and with an assertion every 30 s.
#[derive(Default)]
pub(super) struct Identities {
    signer: Option<Signer>,
    made: papaya::HashMap<Caller, Made, foldhash::fast::RandomState>,
    logged: OncePerSecond,
}

/// What headers say. All of it is hashed, as by [`CallerRef`]: a client chooses its scopes, and the map cannot hold many equal hashes.
#[derive(PartialEq, Eq, Hash)]
struct Caller {
    org_code: OrgCode,
    key_id: Option<KeyId>,
    scopes: Scopes,
    audience: Option<Arc<str>>,
}

/// A caller that is looked up.
#[derive(Hash)]
struct CallerRef<'a> {
    org_code: &'a OrgCode,
    key_id: Option<&'a KeyId>,
    scopes: &'a Scopes,
    audience: Option<&'a Arc<str>>,
}

impl Equivalent<Caller> for CallerRef<'_> {
    fn equivalent(&self, caller: &Caller) -> bool {
        *self.org_code == caller.org_code
            && self.key_id == caller.key_id.as_ref()
            && *self.scopes == caller.scopes
            && self.audience == caller.audience.as_ref()
    }
}

impl CallerRef<'_> {
    fn to_owned(&self) -> Caller {
        Caller {
            org_code: self.org_code.clone(),
            key_id: self.key_id.cloned(),
            scopes: self.scopes.clone(),
            audience: self.audience.cloned(),
        }
    }
}

struct Made {
    /// In seconds. 0 without an assertion.
    at: u64,
    headers: HeaderMap,
}

impl Identities {
    /// With signed ones, if there is a signer.
    pub(super) fn new(signer: Option<Signer>) -> Self {
        Self {
            signer,
            ..Self::default()
        }
    }

    /// Returns the headers about a caller, for a service with its own audience or the common one. `None`, and a log message, if
    /// they cannot be passed on.
    pub(super) fn of(
        &self,
        context: &OrgContext,
        audience: Option<&Arc<str>>,
    ) -> Option<HeaderMap> {
        let now = match &self.signer {
            Some(_) => SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs(),
            None => 0,
        };
        self.of_at(now, context, audience)
    }

    fn of_at(
        &self,
        now: u64,
        context: &OrgContext,
        audience: Option<&Arc<str>>,
    ) -> Option<HeaderMap> {
        let caller = CallerRef {
            org_code: context.org_code(),
            key_id: context.key_id(),
            scopes: context.scopes(),
            audience,
        };
        let known = self.made.pin();
        if let Some(made) = known.get(&caller)
            && (made.at..made.at + REUSE).contains(&now)
        {
            return Some(made.headers.clone());
        }
        let headers = self.make(context, audience, now);
        let headers = headers
            .map_err(|unusable| self.log(context, &unusable))
            .ok()?;
        // All at once: what is made again costs little beside the call that verified its key.
        if known.len() >= CAPACITY {
            known.clear();
        }
        let made = Made {
            at: now,
            headers: headers.clone(),
        };
        known.insert(caller.to_owned(), made);
        Some(headers)
    }

    fn make(
        &self,
        context: &OrgContext,
        audience: Option<&Arc<str>>,
        now: u64,
    ) -> Result<HeaderMap, Unusable> {
        let mut headers = without_caller();
        headers.insert(ORG_CODE, value(context.org_code().as_str())?);
        if let Some(id) = context.key_id() {
            headers.insert(KEY_ID, value(id.as_str())?);
        }
        let scopes: Vec<&str> = context.scopes().iter().map(Scope::as_str).collect();
        if !scopes.is_empty() {
            headers.insert(SCOPES, value(&scopes.join(" "))?);
        }
        if let Some(signer) = &self.signer {
            let assertion = signer.sign(context, audience, now);
            headers.insert(ASSERTION, assertion.ok_or(Unusable::NotSigned)?);
        }
        let len = present(&headers)
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if len > MAX_LEN {
            return Err(Unusable::TooLong(len));
        }
        Ok(headers)
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

fn value(text: &str) -> Result<HeaderValue, Unusable> {
    HeaderValue::from_str(text).map_err(|_| Unusable::NotText)
}

/// Returns the headers of a response that allows a request without a caller.
pub(super) fn without_caller() -> HeaderMap {
    // All headers of a caller, and one that removes others.
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// Returns the headers of the identity that are set.
pub(super) fn present(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
    NAMES.into_iter().filter_map(|name| {
        let value = headers.get(&name)?;
        Some((name, value))
    })
}

/// Returns the headers of the identity that are removed from the request of the client.
pub(super) fn absent(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    NAMES.into_iter().filter(|name| !headers.contains_key(name))
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
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use tower_orgkey::test_util::OrgContextBuilder;

    use super::*;

    fn caller(org_code: &str, key_id: &str, scopes: &[&str]) -> OrgContext {
        OrgContextBuilder::new(org_code)
            .key_id(key_id)
            .scopes(scopes.iter().copied())
            .build()
    }

    #[test]
    fn kept_headers_are_those_of_the_caller() {
        let identities = Identities::default();
        let callers = [
            ("org_1", "key_1", &["a", "b"][..], Some("a b")),
            ("org_1", "key_1", &["a"], Some("a")),
            ("org_1", "key_1", &[], None),
            ("org_1", "key_2", &["a"], Some("a")),
            ("org_2", "key_1", &["a"], Some("a")),
        ];
        for (org_code, key_id, scopes, expected) in callers.iter().chain(&callers) {
            let headers = identities.of(&caller(org_code, key_id, scopes), None);
            let headers = headers.unwrap();
            assert_eq!(headers[ORG_CODE], org_code);
            assert_eq!(headers[KEY_ID], key_id);
            let scopes = headers.get(SCOPES).map(|scopes| scopes.to_str().unwrap());
            assert_eq!(scopes, *expected);
        }
        assert_eq!(identities.made.pin().len(), callers.len());
    }

    #[test]
    fn kept_callers_are_bounded() {
        let identities = Identities::default();
        for number in 0..CAPACITY + 10 {
            let headers = identities.of(&caller("org_1", &format!("key_{number}"), &[]), None);
            assert!(headers.is_some());
        }
        assert_eq!(identities.made.pin().len(), 10);
    }

    #[test]
    fn kept_callers_of_one_organization_are_bounded() {
        // On a thread, because a map with many equal hashes is never cleared.
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let identities = Identities::default();
            for number in 0..CAPACITY + 10 {
                let scope = format!("scope_{number}");
                let caller = OrgContextBuilder::new("org_1").scopes([scope.as_str()]);
                assert!(identities.of(&caller.build(), None).is_some());
            }
            let _ = done.send(identities.made.pin().len());
        });
        let kept = is_done.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(kept, Ok(10));
    }

    #[test]
    fn assertions_are_signed_again_after_30_s() {
        // As OpenSSL writes it.
        let key = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
        let key = BASE64_STANDARD.encode([&key[..], &[7; 32]].concat());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
        let signer = Signer::new(&pem, "orgkey".to_owned(), "api").unwrap();
        let identities = Identities::new(Some(signer));
        let caller = caller("org_1", "key_1", &[]);
        let at = |now, audience: Option<&Arc<str>>| {
            let headers = identities.of_at(now, &caller, audience).unwrap();
            headers[ASSERTION].clone()
        };
        let first = at(1_000, None);
        assert_eq!(at(1_029, None), first);
        // For another service, and by a clock that was set back.
        assert_ne!(at(1_000, Some(&"other".into())), first);
        let second = at(1_030, None);
        assert_ne!(second, first);
        assert_ne!(at(1_029, None), second);
    }

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
