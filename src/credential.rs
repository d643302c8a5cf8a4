//! Extracts the API key of a request.
//!
//! By default, the key is in `Authorization: Bearer <key>` (RFC 6750 §2.1): the scheme in any case, one or more spaces, the
//! key. A configured header replaces it and has only the key as its value. Keys in query parameters or bodies (RFC 6750 §2.2,
//! §2.3) are not supported, because these are often logged.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::key::{ApiKey, MAX_KEY_LEN, MIN_KEY_LEN};

/// The header with the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CredentialSource {
    AuthorizationBearer,
    Header(HeaderName),
}

/// The credential of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// None, or one of another scheme, which another middleware may handle.
    Absent,
    /// Repeated, or not a key by its length or prefix.
    Malformed,
    /// Has the length of a key. The grammar is checked later, and only if the digest is not cached: a value outside the grammar
    /// is never cached.
    Presented(&'a [u8]),
}

impl CredentialSource {
    pub(crate) fn header(&self) -> &HeaderName {
        match self {
            Self::AuthorizationBearer => &AUTHORIZATION,
            Self::Header(name) => name,
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
        match self {
            Self::AuthorizationBearer => match headers.get_mut(AUTHORIZATION) {
                Some(value) => bearer(mark_sensitive(value)),
                None => Credential::Absent,
            },
            Self::Header(name) => match headers.get_mut(name) {
                Some(value) => presented(mark_sensitive(value)),
                None => Credential::Absent,
            },
        }
    }
}

impl CredentialSource {
    /// Removes the credential that [`read`](Self::read) found and returns its key. A credential of another scheme is kept.
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
            Credential::Absent | Credential::Malformed => None,
        }
    }

    fn find<'a>(&self, headers: &'a HeaderMap) -> Option<Credential<'a>> {
        let value = headers.get(self.header())?.as_bytes();
        Some(match self {
            Self::AuthorizationBearer => bearer(value),
            Self::Header(_) => presented(value),
        })
    }
}

/// Marks a value as sensitive and returns its bytes.
#[inline]
fn mark_sensitive(value: &mut HeaderValue) -> &[u8] {
    value.set_sensitive(true);
    value.as_bytes()
}

#[inline]
fn bearer(value: &[u8]) -> Credential<'_> {
    // The usual form: the scheme, one space, the key.
    if let Some((&[b, e, a, r, er @ .., b' '], rest)) = value.split_first_chunk::<7>() {
        // Setting this bit turns upper into lower case, and no other byte into a letter.
        let is_scheme = u32::from_le_bytes([b, e, a, r]) | 0x2020_2020
            == u32::from_le_bytes(*b"bear")
            && u16::from_le_bytes(er) | 0x2020 == u16::from_le_bytes(*b"er");
        if is_scheme && rest.first() != Some(&b' ') {
            return presented(rest);
        }
    }
    unusual_bearer(value)
}

/// Another scheme, several spaces, or a malformed credential.
#[cold]
fn unusual_bearer(value: &[u8]) -> Credential<'_> {
    const SCHEME: &[u8] = b"bearer";

    let scheme_end = value.iter().position(|&b| b == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return if is_token(scheme) {
            Credential::Absent
        } else {
            Credential::Malformed
        };
    }
    let spaces = rest.iter().take_while(|&&b| b == b' ').count();
    presented(&rest[spaces..])
}

#[inline]
fn presented(bytes: &[u8]) -> Credential<'_> {
    if (MIN_KEY_LEN..=MAX_KEY_LEN).contains(&bytes.len()) {
        Credential::Presented(bytes)
    } else {
        Credential::Malformed
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

    fn read(headers: &mut HeaderMap) -> Credential<'_> {
        read_from(&CredentialSource::AuthorizationBearer, headers)
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
    fn no_or_another_scheme_is_absent() {
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
                Credential::Absent,
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
                    Credential::Absent
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
        let own = CredentialSource::Header(HeaderName::from_static("x-api-key"));
        for (len, is_presented) in [(7, false), (8, true), (512, true), (513, false)] {
            let key = vec![b'k'; len];
            let mut headers = with(&[b"Bearer ", key.as_slice()].concat());
            headers.insert(own.header(), HeaderValue::from_bytes(&key).unwrap());
            for source in [&CredentialSource::AuthorizationBearer, &own] {
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
    fn configured_header_has_only_the_key() {
        let name = HeaderName::from_static("x-api-key");
        let source = CredentialSource::Header(name.clone());
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
