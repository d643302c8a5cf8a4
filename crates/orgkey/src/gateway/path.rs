//! Paths that a proxy, the gateway and a service may read differently.
//!
//! The gateway decides about the path in a check request, and the service gets a path from the proxy. If one of them decodes,
//! merges or cuts what another does not, a request that was allowed for one route reaches another.

use percent_encoding::percent_decode_str;

/// As long as the crate `http` allows.
const MAX_LEN: usize = u16::MAX as usize;

/// Returns the path of a request target: all before the query.
pub(super) fn of_target(target: &str) -> &str {
    match target.bytes().position(|byte| byte == b'?') {
        Some(query) => &target[..query],
        None => target,
    }
}

/// Whether a path needs no other check: segments of small letters, digits, `-` and `_`, none of them empty. Most paths are.
pub(super) fn is_plain(path: &str) -> bool {
    let mut before = b'a';
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'/' if before != b'/' => {}
            _ => return false,
        }
        before = byte;
    }
    path.starts_with('/') && before != b'/' && path.len() < MAX_LEN
}

/// Checks that everyone reads this path alike.
///
/// # Errors
///
/// The end of the sentence "the path …".
pub(super) fn check(path: &str, allow_semicolons: bool) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("does not begin with a slash");
    }
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\\' => return Err("has a backslash"),
            b'#' => return Err("has a fragment"),
            b';' if !allow_semicolons => return Err("has a semicolon"),
            b'%' => check_encoded(bytes.get(at + 1..at + 3), allow_semicolons)?,
            0x21..=0x7e => {}
            _ => return Err("has a character that is not visible ASCII"),
        }
    }
    for pair in 1..bytes.len() {
        match (bytes[pair - 1], bytes[pair]) {
            (b'/', b'/') => return Err("has an empty segment"),
            (b'/', b'.' | b'%' | b';') => check_name(&path[pair..])?,
            _ => {}
        }
    }
    if bytes.contains(&b'%') && path.contains("%25") && is_encoded(&decoded(path)) {
        return Err("is encoded twice");
    }
    Ok(())
}

/// Whether a path that is [checked](check) can be that of a URI.
pub(super) fn is_of_uri(path: &str) -> bool {
    let is_excluded = |byte: u8| matches!(byte, b'<' | b'>' | b'`');
    path.len() < MAX_LEN && !path.bytes().any(is_excluded)
}

fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

/// Whether a path has a percent-encoding.
fn is_encoded(path: &[u8]) -> bool {
    let is_encoding = |bytes: &[u8]| {
        bytes[0] == b'%' && bytes[1].is_ascii_hexdigit() && bytes[2].is_ascii_hexdigit()
    };
    path.windows(3).any(is_encoding)
}

fn check_encoded(digits: Option<&[u8]>, allow_semicolons: bool) -> Result<(), &'static str> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let decoded = match digits {
        Some(&[high, low]) => digit(high).zip(digit(low)),
        _ => None,
    };
    match decoded {
        None => Err("has an invalid percent-encoding"),
        Some((0x2, 0xf)) => Err("has an encoded slash"),
        // Decoded before it is cut, it would end the path.
        Some((0x3, 0xf)) => Err("has an encoded question mark"),
        Some((0x2, 0x3)) => Err("has an encoded number sign"),
        Some((0x5, 0xc)) => Err("has an encoded backslash"),
        Some((0x0 | 0x1, _) | (0x7, 0xf)) => Err("has an encoded control character"),
        Some((0x3, 0xb)) if !allow_semicolons => Err("has an encoded semicolon"),
        Some(_) => Ok(()),
    }
}

/// Checks the first segment without its parameters, plain or encoded.
fn check_name(segments: &str) -> Result<(), &'static str> {
    let decoded = decoded(segments.split('/').next().unwrap_or_default());
    match decoded.split(|byte| *byte == b';').next() {
        Some(b"." | b"..") => Err("has a dot segment"),
        // Without its parameters, the segment is empty.
        Some(b"") => Err("has a segment of parameters alone"),
        _ => Ok(()),
    }
}

/// Returns the path as a service may read it that decodes it, ignores case, and ignores a slash at the end.
pub(super) fn folded(path: &str) -> String {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    // By lower case, some read `İ` as `i` and all read `ẞ` as `ß`; by upper case, `ſ` is `s`.
    let lower = decoded.replace('İ', "i").to_lowercase();
    without_last_slash(lower.to_uppercase().to_lowercase())
}

/// Returns a path without the format at its end, as in `/reports.csv`: cut at the first and at the last dot of its last segment.
pub(super) fn without_format(path: &str) -> impl Iterator<Item = &str> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dots = [path[name..].find('.'), path[name..].rfind('.')];
    dots.into_iter()
        .flatten()
        .filter(|dot| *dot > 0)
        .map(move |dot| &path[..name + dot])
}

/// Whether a path is its own [folded](folded) form, and has no parameters.
pub(super) fn is_folded(path: &str) -> bool {
    let is_plain =
        |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase() && !matches!(byte, b'%' | b';');
    path.bytes().all(is_plain) && (path == "/" || !path.ends_with('/'))
}

/// Returns a path without the parameters of its segments, all behind a semicolon.
pub(super) fn without_parameters(path: &str) -> String {
    let name = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    let names: Vec<_> = path.split('/').map(name).collect();
    names.join("/")
}

/// Returns the pattern that matches the [folded](folded) forms of the paths that `pattern` matches.
pub(super) fn folded_pattern(pattern: &str) -> String {
    // Encoded braces are literal; as plain ones they would be parameters.
    let escaped = pattern
        .replace("%7b", "{{")
        .replace("%7B", "{{")
        .replace("%7d", "}}")
        .replace("%7D", "}}");
    folded(&escaped)
}

fn without_last_slash(mut path: String) -> String {
    if path.len() > 1 && path.ends_with('/') {
        path.pop();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ambiguous_paths_are_refused() {
        for path in [
            "",
            "reports",
            "*",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/a/./b",
            "/a/../b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a/%2e",
            "/a%2Fb",
            "/a%2fb",
            "/a%3Fb",
            "/a%23b",
            "/a%252e",
            "/%2561",
            "/%25%36%31dmin",
            "/%256%31dmin",
            "/%25%361dmin",
            "/a/%25%32%65%25%32%65/b",
            "/a%5cb",
            "/a%5Cb",
            "/a%00b",
            "/a%0ab",
            "/a\\b",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%+1",
            "/a;b",
            "/a%3bb",
            "/a b",
            "/a\u{e9}",
            "/a\u{0}",
            "/a#b",
            "/a\tb",
        ] {
            assert!(check(path, false).is_err(), "{path:?}");
        }
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/a/...",
            "/a/.b",
            "/caf%C3%A9",
            "/a%20b",
            "/a:b@c",
            "/%25",
            "/100%25/a",
            "/%25%20a",
        ] {
            assert_eq!(check(path, false), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn semicolons_can_be_allowed() {
        assert_eq!(check("/a;v=1/b%3bc", true), Ok(()));
        assert!(check("/a/..;v=1/b", true).is_err());
        assert!(check("/a/%2e%2e%3bv=1/b", true).is_err());
        for path in ["/;/a", "/;v=1/a", "/a/;v=1", "/%3b/a", "/a/%3Bv=1"] {
            assert!(check(path, true).is_err(), "{path}");
        }
    }

    /// Merges slashes and resolves dot segments, as a proxy or a service may.
    fn normalized(path: &str) -> String {
        let mut segments = Vec::new();
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            match segment {
                "." => {}
                ".." => {
                    segments.pop();
                }
                segment => segments.push(segment),
            }
        }
        let mut path = segments
            .iter()
            .fold(String::new(), |path, segment| path + "/" + segment);
        if path.is_empty() {
            path.push('/');
        }
        path
    }

    #[test]
    fn paths_of_uris_are_those_that_http_accepts() {
        let path = |len: usize| format!("/{}", "a".repeat(len - 1));
        let long = [MAX_LEN - 2, MAX_LEN - 1, MAX_LEN, MAX_LEN + 1].map(path);
        let each = (0x21..=0x7e_u8).map(|byte| format!("/a{}", char::from(byte)));
        for path in each.chain(long).filter(|path| check(path, true).is_ok()) {
            let is_uri = http::Uri::try_from(&path).is_ok();
            assert_eq!(is_of_uri(&path), is_uri, "{}", &path[..3]);
            assert!(is_uri || !is_plain(&path), "{}", &path[..3]);
        }
    }

    proptest! {
        #[test]
        fn accepted_paths_have_one_reading(path in "/[a-c./;%25eEfF5cC0-]{0,12}") {
            if check(&path, true).is_ok() {
                let decoded = percent_decode_str(&path).decode_utf8_lossy().into_owned();
                // Decoding adds no separator, and no reading has a dot segment or an empty one.
                prop_assert_eq!(decoded.matches('/').count(), path.matches('/').count());
                prop_assert!(!is_encoded(decoded.as_bytes()));
                for reading in [without_parameters(&decoded), path, decoded] {
                    let plain = without_last_slash(reading.clone());
                    prop_assert_eq!(normalized(&reading), plain);
                }
            }
        }

        #[test]
        fn plain_paths_pass_the_other_checks(path in "/?[a-c/_09-]{0,8}[A-Z;%.<é/]?") {
            if is_plain(&path) {
                prop_assert_eq!(check(&path, false), Ok(()));
                prop_assert!(is_of_uri(&path) && is_folded(&path));
            }
        }

        #[test]
        fn any_text_is_checked_without_panic(path in any::<String>()) {
            let _ = check(&path, false);
            let _ = folded(&path);
        }

        #[test]
        fn folded_paths_stay_the_same(path in "/[a-cA/;%?4é.]{0,8}") {
            let readings = [folded(&path), without_parameters(&path)];
            prop_assert_eq!(is_folded(&path), readings.iter().all(|reading| *reading == path) && path.is_ascii() && !path.contains('%'));
        }
    }
}
