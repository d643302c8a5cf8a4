//! Reads which tool a JSON-RPC message calls.
//!
//! The server behind reads the same bytes with another parser, so whatever two parsers could read differently is an error:
//! members that occur twice or have a private name of `serde_json`, text behind the message, and headers that contradict the body.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The method that calls a tool.
const CALL: &str = "tools/call";

/// A request or a notification has a method, a response a result or an error.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "present")]
    result: bool,
    #[serde(default, deserialize_with = "present")]
    error: bool,
}

/// Returns true for a member that is there, also for null.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// What the private names of `serde_json` begin with.
const PRIVATE_NAMES: &str = "$serde_json::private::";

/// The name of a member. Copied only if it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// What the parameters of a call, a prompt or a resource name.
#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    uri: Option<Cow<'a, str>>,
}

/// Why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not a message, or one that two parsers could read differently.
    Body,
    /// A header contradicts the body, or occurs twice.
    Header,
}

/// Returns the name of the tool that a body calls. A batch is malformed: the protocol has none since 2025-06-18.
pub(crate) fn called_tool(headers: &HeaderMap, body: &[u8]) -> Result<Option<String>, Malformed> {
    let message: &RawValue = serde_json::from_slice(body).map_err(|_| Malformed::Body)?;
    check_names(message.get())?;
    let message: Message<'_> = object(message)?;
    let method = message.method.as_deref();
    if method.is_none() && !message.result && !message.error {
        // Neither a call nor a response.
        return Err(Malformed::Body);
    }
    // The methods for which the header `Mcp-Name` is defined.
    let named = match method {
        Some(CALL | "prompts/get" | "resources/read") => {
            let params: Params<'_> = object(message.params.ok_or(Malformed::Body)?)?;
            let is_resource = method == Some("resources/read");
            let name = if is_resource { params.uri } else { params.name };
            Some(name.ok_or(Malformed::Body)?.into_owned())
        }
        _ => None,
    };
    agrees(headers, "mcp-method", method)?;
    agrees(headers, "mcp-name", named.as_deref())?;
    Ok(named.filter(|_| method == Some(CALL)))
}

/// Checks that no object of the JSON, at any depth, has a member with a private name. `serde_json::Value` would parse the text
/// behind that of `RawValue` as another document, with another recursion limit: some 64 KiB of nested ones overflow the stack.
///
/// The JSON is scanned: with the feature `arbitrary_precision`, a visitor sees each number as an object with a private name.
fn check_names(json: &str) -> Result<(), Malformed> {
    let mut rest = json;
    while let Some(start) = rest.find('"') {
        let (text, after) = split_string(&rest[start..]).ok_or(Malformed::Body)?;
        if after.trim_ascii_start().starts_with(':') {
            let Name(name) = serde_json::from_str(text).map_err(|_| Malformed::Body)?;
            if name.starts_with(PRIVATE_NAMES) {
                return Err(Malformed::Body);
            }
        }
        rest = after;
    }
    Ok(())
}

/// Splits the string that JSON begins with, with its quotes, from what follows.
fn split_string(json: &str) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    let is_end = |byte: &u8| {
        let is_quote = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_quote
    };
    let length = json.as_bytes().iter().skip(1).position(is_end)?;
    json.split_at_checked(length + 2)
}

/// Reads an object. Serde would read a structure from an array too.
fn object<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Result<T, Malformed> {
    if !value.get().starts_with('{') {
        return Err(Malformed::Body);
    }
    serde_json::from_str(value.get()).map_err(|_| Malformed::Body)
}

/// Checks that a header is absent, or has this value once.
fn agrees(headers: &HeaderMap, header: &str, expected: Option<&str>) -> Result<(), Malformed> {
    let mut values = headers.get_all(header).iter();
    let Some(value) = values.next() else {
        return Ok(());
    };
    let value = decoded(value.as_bytes()).ok_or(Malformed::Header)?;
    let is_equal = expected.is_some_and(|expected| expected.as_bytes() == &*value);
    if is_equal && values.next().is_none() {
        Ok(())
    } else {
        Err(Malformed::Header)
    }
}

/// Decodes `=?base64?…?=`, the form of names that are not ASCII.
fn decoded(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let encoded = value
        .strip_prefix(b"=?base64?")
        .and_then(|rest| rest.strip_suffix(b"?="));
    match encoded {
        Some(encoded) => STANDARD.decode(encoded).ok().map(Cow::Owned),
        None => Some(Cow::Borrowed(value)),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn tool(body: &str) -> Result<Option<String>, Malformed> {
        called_tool(&HeaderMap::new(), body.as_bytes())
    }

    fn with_headers(
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> Result<Option<String>, Malformed> {
        let headers = headers.iter().map(|&(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        called_tool(&map, body.as_bytes())
    }

    const REFUND: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"refund","arguments":{}}}"#;

    /// With the feature `raw_value` of `serde_json`, which this crate enables, `Value` reads the text in it instead.
    const PRIVATE: &str = r#"{"$serde_json::private::RawValue":"{\"method\":\"tools/call\",\"params\":{\"name\":\"refund\"}}"}"#;

    #[test]
    fn value_reads_the_text_of_a_private_name() {
        let value: serde_json::Value = serde_json::from_str(PRIVATE).unwrap();
        assert_eq!(value["method"], CALL);
    }

    #[test]
    fn calls_are_found() {
        assert_eq!(tool(REFUND).unwrap().as_deref(), Some("refund"));
        // Escapes are decoded.
        let escaped = r#"{"\u006dethod":"tools\/call","params":{"n\u0061me":"re\u0066und"}}"#;
        assert_eq!(tool(escaped).unwrap().as_deref(), Some("refund"));
        for other in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            r#"{"method":"tools/list","params":{"name":"refund"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#,
            r#"{"method":"tools/call2","params":[1]}"#,
        ] {
            assert_eq!(tool(other).unwrap(), None, "{other}");
        }
    }

    #[test]
    fn fault_118_ambiguous_bodies_are_rejected() {
        for body in [
            "",
            "null",
            "7",
            r#""tools/call""#,
            "{",
            r#"{"method":7}"#,
            r#"{"method":"ping","method":"tools/call","params":{"name":"refund"}}"#,
            r#"{"method":"tools/call","params":{"name":"a"},"params":{"name":"refund"}}"#,
            r#"{"method":"tools/call","params":{"name":"a","name":"refund"}}"#,
            r#"{"method":"tools/call","params":{"name":["refund"]}}"#,
            r#"{"method":"tools/call","params":["refund"]}"#,
            r#"{"method":"tools/call"}"#,
            r#"{"method":"ping"}{"method":"tools/call"}"#,
            "\u{feff}{\"method\":\"ping\"}",
            "[]",
            r#"[{"method":"ping"}]"#,
            r#"[["tools/call",{"name":"refund"}]]"#,
            "{}",
            r#"{"jsonrpc":"2.0","id":1}"#,
            PRIVATE,
        ] {
            assert_eq!(tool(body), Err(Malformed::Body), "{body}");
        }
    }

    #[test]
    fn headers_must_agree_with_the_body() {
        let call = ("mcp-method", "tools/call");
        for headers in [
            &[][..],
            &[call],
            &[call, ("mcp-name", "refund")],
            &[("mcp-name", "=?base64?cmVmdW5k?=")],
        ] {
            assert_eq!(
                with_headers(headers, REFUND).unwrap().as_deref(),
                Some("refund"),
                "{headers:?}"
            );
        }
        for headers in [
            &[("mcp-method", "ping")][..],
            &[("mcp-method", "Tools/Call")],
            &[call, call],
            &[call, ("mcp-name", "list")],
            &[("mcp-name", "refund"), ("mcp-name", "refund")],
            &[("mcp-name", "=?base64?!?=")],
        ] {
            assert_eq!(
                with_headers(headers, REFUND),
                Err(Malformed::Header),
                "{headers:?}"
            );
        }
        for (body, name) in [
            (r#"{"method":"prompts/get","params":{"name":"a"}}"#, "a"),
            (r#"{"method":"resources/read","params":{"uri":"b"}}"#, "b"),
        ] {
            assert_eq!(with_headers(&[("mcp-name", name)], body), Ok(None));
            let other = with_headers(&[("mcp-name", "c")], body);
            assert_eq!(other, Err(Malformed::Header), "{body}");
        }
        let ping = r#"{"method":"ping"}"#;
        assert_eq!(
            with_headers(&[("mcp-name", "refund")], ping),
            Err(Malformed::Header)
        );
        let response = r#"{"id":1,"result":{}}"#;
        assert_eq!(with_headers(&[call], response), Err(Malformed::Header));
    }

    #[test]
    fn fault_210_private_names_are_rejected_at_any_depth() {
        let around = |value: &str| {
            [
                format!(r#"{{"method":"x/y","params":{{"a":{value}}}}}"#),
                format!(r#"{{"method":"x/y","params":[[],[1,{value}]]}}"#),
                format!(
                    r#"{{"method":"tools/call","params":{{"name":"a","arguments":{{"b":"","c":{value}}}}}}}"#
                ),
                format!(r#"{{"id":1,"result":{value}}}"#),
                format!(r#"[{{"method":"x/y","params":{value}}}]"#),
            ]
        };
        for value in [
            r#"{"$serde_json::private::RawValue":"1"}"#,
            r#"{"$serde_json::private::RawValue" : "1"}"#,
            r#"{"\u0024serde_json:\u003aprivate::RawValue":"1"}"#,
            r#"{"a\"b\\":1,"$serde_json::private::RawValue":"1"}"#,
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"\ud800":1}"#,
        ] {
            for body in around(value) {
                assert_eq!(tool(&body), Err(Malformed::Body), "{body}");
            }
        }
        // A text that is no name is none.
        for value in [
            r#""$serde_json::private::RawValue""#,
            r#"{"a":"$serde_json::private::RawValue"}"#,
            r#"{"a":"\",\"$serde_json::private::RawValue\":1"}"#,
            r#"{"a\\":"\\","$serde_json":[1,-1.5e3]}"#,
            r#"{"$serde_json::private":"1"}"#,
        ] {
            for body in &around(value)[..4] {
                assert!(tool(body).is_ok(), "{body}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_as_serde_reads_it(body in r#"[\[\]{}":,a-z/\\ ]{0,60}"#) {
            // A value that another parser reads as a call is a call here, or an error.
            let other: Option<serde_json::Value> = serde_json::from_str(&body).ok();
            let calls = other.as_ref().is_some_and(|value| value["method"] == CALL);
            if calls {
                prop_assert!(tool(&body).map_or(true, |tool| tool.is_some()));
            }
        }
    }
}
