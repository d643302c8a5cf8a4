//! The id of a request: the client's if it is valid, or a generated one.

use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::SipHasher13;

/// The longest id of a client that is used, in bytes.
const MAX_LEN: usize = 128;

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

    pub(crate) fn generate(&self) -> String {
        let count = self.generated.fetch_add(1, Ordering::Relaxed);
        let id = self.hasher.hash(&count.to_le_bytes()).as_u128();
        format!("{id:032x}")
    }

    /// Returns the request's id. Its headers hold the id afterwards.
    pub(crate) fn settle(&self, headers: &mut HeaderMap, name: &HeaderName) -> Box<str> {
        if let Some(id) = client_id(headers, name) {
            return id.into();
        }
        let id = self.generate();
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert(name, value);
        }
        id.into()
    }
}

/// The id that the client sent, if it is the only one and valid.
fn client_id<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
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
        (id.into(), held)
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
            assert!(made.bytes().all(|b| b.is_ascii_hexdigit()));
            assert_eq!(held, [made.as_str()]);
        }
    }

    #[test]
    fn a_sensitive_value_is_not_used() {
        let mut value = HeaderValue::from_static("a-secret");
        value.set_sensitive(true);
        let mut headers = HeaderMap::from_iter([(NAME, value)]);
        let id = Ids::draw().unwrap().settle(&mut headers, &NAME);
        assert_ne!(&*id, "a-secret");
    }

    #[test]
    fn generated_ids_do_not_repeat() {
        let ids = Ids::draw().unwrap();
        let made: std::collections::HashSet<String> = (0..1_000).map(|_| ids.generate()).collect();
        assert_eq!(made.len(), 1_000);
        assert_ne!(ids.generate(), Ids::draw().unwrap().generate());
    }
}
