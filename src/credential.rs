//! Extracts the API key of a request.
//!
//! By default, the key is in `Authorization: Bearer <key>` (RFC 6750 §2.1): the scheme in any case, one or more spaces, the
//! key. A configured header replaces it and has only the key as its value. Keys in query parameters or bodies (RFC 6750 §2.2,
//! §2.3) are not supported, because these are often logged.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::key::{ApiKey, DEFAULT_MAX_KEY_LEN, MIN_KEY_LEN};

/// The header with the key, and the credentials that are keys.
#[derive(Debug)]
pub(crate) struct CredentialSource {
    header: CredentialHeader,
    rules: KeyRules,
}

#[derive(Debug)]
pub(crate) enum CredentialHeader {
    AuthorizationBearer,
    Custom(HeaderName),
}

/// The credentials that are keys.
#[derive(Debug)]
pub(crate) struct KeyRules {
    pub(crate) max_len: usize,
    /// `None` if all credentials are keys. Boxed, so that this common case is one comparison.
    pub(crate) filter: Option<Box<KeyFilter>>,
    /// Whether other credentials are passed to the inner service.
    pub(crate) passes_others: bool,
}

impl Default for KeyRules {
    fn default() -> Self {
        Self {
            max_len: DEFAULT_MAX_KEY_LEN,
            filter: None,
            passes_others: false,
        }
    }
}

type Accepts = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Accepts credentials with one of the prefixes, and those for which one of the functions returns true.
#[derive(Default)]
pub(crate) struct KeyFilter {
    pub(crate) prefixes: Vec<String>,
    pub(crate) functions: Vec<Accepts>,
}

impl KeyFilter {
    #[inline(never)]
    fn accepts(&self, credential: &[u8]) -> bool {
        let has_prefix = |prefix: &String| credential.starts_with(prefix.as_bytes());
        self.prefixes.iter().any(has_prefix)
            || std::str::from_utf8(credential)
                .is_ok_and(|credential| self.functions.iter().any(|accepts| accepts(credential)))
    }
}

impl_debug!(KeyFilter);

/// The credential of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// None.
    Absent,
    /// One of another scheme, which another middleware may handle.
    OtherScheme,
    /// Not a key by the filter. Its length and grammar are not checked.
    Other,
    /// Repeated, empty, or not a key by its length.
    Malformed,
    /// Has the length of a key. The grammar is checked later, and only if the digest is not cached: a value outside the grammar
    /// is never cached.
    Presented(&'a [u8]),
}

impl CredentialSource {
    pub(crate) fn new(header: CredentialHeader, rules: KeyRules) -> Self {
        Self { header, rules }
    }

    /// Whether credentials that are not keys are passed to the inner service.
    pub(crate) fn passes_others(&self) -> bool {
        self.rules.passes_others
    }

    pub(crate) fn header(&self) -> &HeaderName {
        match &self.header {
            CredentialHeader::AuthorizationBearer => &AUTHORIZATION,
            CredentialHeader::Custom(name) => name,
        }
    }

    /// Extracts the credential and marks its header as sensitive, so that `Debug` of the headers does not show it.
    #[inline]
    pub(crate) fn read<'a>(&self, headers: &'a mut HeaderMap) -> Credential<'a> {
        // With as many values as names, no header is repeated and one look-up suffices.
        let may_repeat = headers.len() != headers.keys_len();
        if may_repeat && headers.get_all(self.header()).iter().nth(1).is_some() {
            return Credential::Malformed;
        }
        // Separate look-ups, so that one has a constant name.
        match &self.header {
            CredentialHeader::AuthorizationBearer => match headers.get_mut(AUTHORIZATION) {
                Some(value) => self.rules.bearer(mark_sensitive(value)),
                None => Credential::Absent,
            },
            CredentialHeader::Custom(name) => match headers.get_mut(name) {
                Some(value) => self.rules.presented(mark_sensitive(value)),
                None => Credential::Absent,
            },
        }
    }
}

impl CredentialSource {
    /// Removes the credential that [`read`](Self::read) found and returns its key. Another credential is kept.
    pub(crate) fn remove(&self, headers: &mut HeaderMap) -> Option<ApiKey> {
        let Credential::Presented(key) = self.find(headers)? else {
            return None;
        };
        let key = ApiKey::from_bytes(key);
        headers.remove(self.header());
        key.ok()
    }

    /// Returns the key that [`read`](Self::read) found.
    pub(crate) fn key(&self, headers: &HeaderMap) -> Option<ApiKey> {
        match self.find(headers)? {
            Credential::Presented(key) => ApiKey::from_bytes(key).ok(),
            _ => None,
        }
    }

    fn find<'a>(&self, headers: &'a HeaderMap) -> Option<Credential<'a>> {
        let value = headers.get(self.header())?.as_bytes();
        Some(match &self.header {
            CredentialHeader::AuthorizationBearer => self.rules.bearer(value),
            CredentialHeader::Custom(_) => self.rules.presented(value),
        })
    }
}

/// Marks a value as sensitive and returns its bytes.
#[inline]
fn mark_sensitive(value: &mut HeaderValue) -> &[u8] {
    value.set_sensitive(true);
    value.as_bytes()
}

impl KeyRules {
    #[inline]
    fn bearer<'a>(&self, value: &'a [u8]) -> Credential<'a> {
        // The usual form: the scheme, one space, the key.
        if let Some((&[b, e, a, r, er @ .., b' '], rest)) = value.split_first_chunk::<7>() {
            // Setting this bit turns upper into lower case, and no other byte into a letter.
            let is_scheme = u32::from_le_bytes([b, e, a, r]) | 0x2020_2020
                == u32::from_le_bytes(*b"bear")
                && u16::from_le_bytes(er) | 0x2020 == u16::from_le_bytes(*b"er");
            if is_scheme && rest.first() != Some(&b' ') {
                return self.presented(rest);
            }
        }
        self.unusual_bearer(value)
    }

    /// Another scheme, several spaces, or a malformed credential.
    #[cold]
    fn unusual_bearer<'a>(&self, value: &'a [u8]) -> Credential<'a> {
        const SCHEME: &[u8] = b"bearer";

        let scheme_end = value.iter().position(|&b| b == b' ').unwrap_or(value.len());
        let (scheme, rest) = value.split_at(scheme_end);
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return if is_token(scheme) {
                Credential::OtherScheme
            } else {
                Credential::Malformed
            };
        }
        let spaces = rest.iter().take_while(|&&b| b == b' ').count();
        self.presented(&rest[spaces..])
    }

    #[inline]
    fn presented<'a>(&self, bytes: &'a [u8]) -> Credential<'a> {
        if let Some(filter) = &self.filter
            && !bytes.is_empty()
            && !filter.accepts(bytes)
        {
            return Credential::Other;
        }
        if (MIN_KEY_LEN..=self.max_len).contains(&bytes.len()) {
            Credential::Presented(bytes)
        } else {
            Credential::Malformed
        }
    }
}

/// Checks for an RFC 9110 §5.6.2 `token`, the grammar of a scheme.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// Returns the value of the `Vary` header for the credential's header.
pub(crate) fn vary_on(name: &HeaderName) -> HeaderValue {
    HeaderValue::from(name.clone())
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;
    use crate::key::is_key;

    fn bearer_source(rules: KeyRules) -> CredentialSource {
        CredentialSource::new(CredentialHeader::AuthorizationBearer, rules)
    }

    fn header_source(name: &HeaderName) -> CredentialSource {
        CredentialSource::new(CredentialHeader::Custom(name.clone()), KeyRules::default())
    }

    fn read(headers: &mut HeaderMap) -> Credential<'_> {
        read_from(&bearer_source(KeyRules::default()), headers)
    }

    /// Checks the grammar too, as the layer does for keys that are not cached.
    fn read_from<'a>(source: &CredentialSource, headers: &'a mut HeaderMap) -> Credential<'a> {
        match source.read(headers) {
            Credential::Presented(key) if !is_key(key) => Credential::Malformed,
            read => read,
        }
    }

    fn with(value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        headers
    }

    #[test]
    fn scheme_has_any_case_and_any_spaces() {
        for value in [
            "Bearer 12345678",
            "bearer 12345678",
            "BEARER 12345678",
            "BeArEr   12345678",
        ] {
            assert_eq!(
                read(&mut with(value.as_bytes())),
                Credential::Presented(b"12345678"),
                "{value}"
            );
        }
    }

    #[test]
    fn another_scheme_is_not_absent() {
        assert_eq!(read(&mut HeaderMap::new()), Credential::Absent);
        for value in [
            "Basic YWxhZGRpbjpvcGVu",
            "Bearerx 12345678",
            "Negotiate",
            "DPoP abc",
            "Basic \u{e9}",
            "Basic  YWxhZGRpbjpvcGVu",
            "DPoP a b",
        ] {
            assert_eq!(
                read(&mut with(value.as_bytes())),
                Credential::OtherScheme,
                "{value}"
            );
        }
    }

    #[test]
    fn every_letter_of_the_scheme_is_compared() {
        for at in 0..6 {
            for byte in 0x21..=0x7E {
                let mut scheme = *b"Bearer";
                scheme[at] = byte;
                let expected = if scheme.eq_ignore_ascii_case(b"bearer") {
                    Credential::Presented(b"12345678")
                } else if is_token(&scheme) {
                    Credential::OtherScheme
                } else {
                    Credential::Malformed
                };
                let mut headers = with(&[&scheme[..], b" 12345678"].concat());
                assert_eq!(read(&mut headers), expected, "{scheme:?}");
            }
        }
    }

    #[test]
    fn empty_and_repeated_values_are_malformed() {
        let values: [&[u8]; 14] = [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer    ",
            b"Bearer 1234567",
            b"Bearer\t12345678",
            b"Bearer 12345678, Bearer 12345679",
            b"Bearer 12345678,Bearer 12345679",
            b"Bearer 12345678 ",
            b"Bearer \xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9",
            b"\xff\xff 12345678",
            b",Bearer 12345678",
            b" Bearer 12345678",
            b"Bearer ========",
        ];
        for value in values {
            assert_eq!(read(&mut with(value)), Credential::Malformed, "{value:?}");
        }
        let mut twice = with(b"Bearer 12345678");
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer 12345678"));
        assert_eq!(read(&mut twice), Credential::Malformed);
        let mut with_basic = with(b"Bearer 12345678");
        with_basic.append(AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(read(&mut with_basic), Credential::Malformed);
    }

    #[test]
    fn length_is_checked_before_the_digest() {
        let own = header_source(&HeaderName::from_static("x-api-key"));
        for (len, is_presented) in [(7, false), (8, true), (512, true), (513, false)] {
            let key = vec![b'k'; len];
            let mut headers = with(&[b"Bearer ", key.as_slice()].concat());
            headers.insert(own.header(), HeaderValue::from_bytes(&key).unwrap());
            for source in [&bearer_source(KeyRules::default()), &own] {
                let expected = if is_presented {
                    Credential::Presented(&key)
                } else {
                    Credential::Malformed
                };
                assert_eq!(source.read(&mut headers), expected, "{len}");
            }
        }
    }

    #[test]
    fn maximum_length_is_configurable() {
        let rules = KeyRules {
            max_len: 8_192,
            ..KeyRules::default()
        };
        let source = bearer_source(rules);
        for (len, is_presented) in [(513, true), (8_192, true), (8_193, false)] {
            let mut headers = with(&[b"Bearer ", vec![b'k'; len].as_slice()].concat());
            let credential = read_from(&source, &mut headers);
            assert_eq!(
                matches!(credential, Credential::Presented(_)),
                is_presented,
                "{len}"
            );
        }
    }

    #[test]
    fn filter_precedes_length_and_grammar() {
        let filter = KeyFilter {
            prefixes: vec!["k_live_".into(), "k_test_".into()],
            functions: vec![Box::new(|credential| credential.ends_with("-ours"))],
        };
        let source = bearer_source(KeyRules {
            filter: Some(Box::new(filter)),
            ..KeyRules::default()
        });
        let long = "x".repeat(10_000);
        for (value, is_key) in [
            ("k_live_1", Some(true)),
            ("k_test_1", Some(true)),
            ("12345678-ours", Some(true)),
            ("K_LIVE_1", Some(false)),
            ("xk_live_1", Some(false)),
            ("a", Some(false)),
            ("a b,c", Some(false)),
            (&long, Some(false)),
            ("k_live_", None),
            ("k_live_ 1", None),
            ("", None),
        ] {
            let mut headers = with(format!("Bearer {value}").as_bytes());
            let read = match read_from(&source, &mut headers) {
                Credential::Presented(_) => Some(true),
                Credential::Other => Some(false),
                other => {
                    assert_eq!(other, Credential::Malformed);
                    None
                }
            };
            assert_eq!(read, is_key, "{value}");
        }
        let mut headers = with(b"Bearer \xff\xff\xff\xff\xff\xff\xff\xff-ours");
        assert_eq!(read_from(&source, &mut headers), Credential::Other);
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer other"));
        assert_eq!(read_from(&source, &mut headers), Credential::Malformed);
    }

    #[test]
    fn configured_header_has_only_the_key() {
        let name = HeaderName::from_static("x-api-key");
        let source = header_source(&name);
        let mut headers = with(b"Bearer 12345678");
        assert_eq!(read_from(&source, &mut headers), Credential::Absent);
        headers.insert(&name, HeaderValue::from_static("Bearer 12345678"));
        assert_eq!(read_from(&source, &mut headers), Credential::Malformed);
        headers.insert(&name, HeaderValue::from_static(""));
        assert_eq!(read_from(&source, &mut headers), Credential::Malformed);
        headers.insert(&name, HeaderValue::from_static("12345678"));
        assert_eq!(
            read_from(&source, &mut headers),
            Credential::Presented(b"12345678")
        );
        headers.append(&name, HeaderValue::from_static("12345678"));
        assert_eq!(read_from(&source, &mut headers), Credential::Malformed);
    }

    #[test]
    fn other_headers_may_be_repeated() {
        let mut headers = with(b"Bearer 12345678");
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(read(&mut headers), Credential::Presented(b"12345678"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer 12345678"));
        assert_eq!(read(&mut headers), Credential::Malformed);
    }

    #[test]
    fn read_credential_is_not_in_debug_output() {
        let mut headers = with(b"Bearer 12345678");
        read(&mut headers);
        let shown = format!("{headers:?}");
        assert!(!shown.contains("12345678"), "{shown}");
    }
}
