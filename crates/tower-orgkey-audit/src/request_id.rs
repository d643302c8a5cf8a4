//! The id of a request, from a header.

use http::header::{HeaderMap, HeaderName};

const MAX_LEN: usize = 128;

/// The id in this header. `None` if there are several, or one that is not 1 to 128 visible ASCII characters.
pub(crate) fn sent_id(headers: &HeaderMap, name: &HeaderName) -> Option<Box<str>> {
    let mut values = headers.get_all(name).iter();
    let (id, None) = (values.next()?, values.next()) else {
        return None;
    };
    let is_visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
    if id.is_sensitive() || !is_visible || !(1..=MAX_LEN).contains(&id.len()) {
        return None;
    }
    id.to_str().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-request-id");

    fn id_of(values: &[&[u8]]) -> Option<Box<str>> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value).unwrap());
        }
        sent_id(&headers, &NAME)
    }

    #[test]
    fn a_valid_id_is_used() {
        for id in ["7", "a\"}{,\\b", &"x".repeat(128)] {
            assert_eq!(id_of(&[id.as_bytes()]).as_deref(), Some(id));
        }
    }

    #[test]
    fn any_other_id_is_ignored() {
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
            assert_eq!(id_of(values), None);
        }
    }

    #[test]
    fn a_sensitive_value_is_ignored() {
        let mut value = HeaderValue::from_static("a-secret");
        value.set_sensitive(true);
        let headers = HeaderMap::from_iter([(NAME, value)]);
        assert_eq!(sent_id(&headers, &NAME), None);
    }
}
