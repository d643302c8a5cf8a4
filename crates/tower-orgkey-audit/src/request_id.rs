//! The id of a request: the client's if it is valid, or a generated one.

use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::SipHasher13;

/// The longest id of a client that is used, in bytes.
const MAX_LEN: usize = 128;

/// The id of a request. A generated one is part of the event, so it costs no allocation.
#[derive(Clone, Debug)]
pub(crate) enum RequestId {
    /// Hexadecimal digits.
    Generated([u8; 32]),
    Sent(Box<str>),
}

impl RequestId {
    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Generated(digits) => digits,
            Self::Sent(id) => id.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Generated(digits) => std::str::from_utf8(digits).unwrap_or_default(),
            Self::Sent(id) => id,
        }
    }
}

/// Generates ids that cannot be guessed and do not repeat: a keyed hash of a counter.
pub(crate) struct Ids {
    hasher: SipHasher13,
    generated: AtomicU64,
}

impl Ids {
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Self {
            hasher: SipHasher13::new_with_key(&secret),
            generated: AtomicU64::new(0),
        })
    }

    pub(crate) fn generate(&self) -> [u8; 32] {
        let count = self.generated.fetch_add(1, Ordering::Relaxed);
        let id = self.hasher.hash(&count.to_le_bytes()).as_u128();
        let mut digits = [0; 32];
        let eights = digits.as_chunks_mut().0.iter_mut();
        for (eight, four) in eights.zip(id.to_be_bytes().as_chunks().0) {
            *eight = hexadecimal(u32::from_be_bytes(*four));
        }
        digits
    }

    /// Returns the request's id. Its headers hold the id afterwards.
    pub(crate) fn settle(&self, headers: &mut HeaderMap, name: &HeaderName) -> RequestId {
        // Fails for a map that is full.
        let entry = headers.try_entry(name);
        if let Ok(Entry::Occupied(held)) = &entry
            && let Some(id) = client_id(held.iter())
        {
            return RequestId::Sent(id.into());
        }
        let id = self.generate();
        if let Ok(value) = HeaderValue::from_bytes(&id) {
            match entry {
                Ok(Entry::Occupied(mut held)) => {
                    held.insert(value);
                }
                Ok(Entry::Vacant(entry)) => {
                    // Fails as above.
                    let _ = entry.try_insert(value);
                }
                Err(_) => {}
            }
        }
        RequestId::Generated(id)
    }
}

/// Eight digits at once: `format!` costs more than the hash.
fn hexadecimal(number: u32) -> [u8; 8] {
    // One nibble per byte.
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF;
    let spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    let spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    let are_letters = ((spread + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    let from_9_to_a = u64::from(b'a' - b'9' - 1);
    (spread + 0x3030_3030_3030_3030 + are_letters * from_9_to_a).to_be_bytes()
}

/// The id that the client sent, if it is the only one and valid.
fn client_id<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Option<&'a str> {
    let (id, None) = (values.next()?, values.next()) else {
        return None;
    };
    let is_visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
    if id.is_sensitive() || !is_visible || !(1..=MAX_LEN).contains(&id.len()) {
        return None;
    }
    id.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-request-id");

    fn settled(values: &[&[u8]]) -> (String, Vec<HeaderValue>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value).unwrap());
        }
        let id = Ids::draw().unwrap().settle(&mut headers, &NAME);
        let held = headers.get_all(NAME).iter().cloned().collect();
        (id.as_str().to_owned(), held)
    }

    #[test]
    fn a_valid_id_is_used() {
        for id in ["7", "a\"}{,\\b", &"x".repeat(128)] {
            let (taken, held) = settled(&[id.as_bytes()]);
            assert_eq!((taken.as_str(), held.len()), (id, 1));
        }
    }

    #[test]
    fn any_other_id_is_replaced() {
        let long = "x".repeat(129);
        for values in [
            &[][..],
            &[b"".as_slice()],
            &[b"a b"],
            &[b"a\tb"],
            &[b"caf\xc3\xa9"],
            &[long.as_bytes()],
            &[b"one", b"two"],
        ] {
            let (made, held) = settled(values);
            assert_eq!(made.len(), 32);
            assert!(made.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            assert_eq!(held, [made.as_str()]);
        }
    }

    #[test]
    fn a_sensitive_value_is_not_used() {
        let mut value = HeaderValue::from_static("a-secret");
        value.set_sensitive(true);
        let mut headers = HeaderMap::from_iter([(NAME, value)]);
        let id = Ids::draw().unwrap().settle(&mut headers, &NAME);
        assert_ne!(id.as_str(), "a-secret");
    }

    #[test]
    fn numbers_are_hexadecimal() {
        for number in [0, 0x0123_4567, 0x89AB_CDEF, u32::MAX, 0x9A9A_0F0F] {
            assert_eq!(hexadecimal(number), format!("{number:08x}").as_bytes());
        }
    }

    #[test]
    fn generated_ids_do_not_repeat() {
        let ids = Ids::draw().unwrap();
        let made: std::collections::HashSet<_> = (0..1_000).map(|_| ids.generate()).collect();
        assert_eq!(made.len(), 1_000);
        assert_ne!(ids.generate(), Ids::draw().unwrap().generate());
    }
}
