use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A JSON value in which no object has two members of one name.
///
/// A reply of another party is read as this, and not as a [`Value`]: with the feature `raw_value` of `serde_json`, which other
/// crates of a program may enable, that one parses the text behind the private name of `RawValue` as another document, with
/// another recursion limit, so that some 64 KiB of nested ones overflow the stack. To this one a private name is a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Unique(pub Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Unique(value))) = map.next_entry()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a duplicate member"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
#[path = "../../../tests/support/nested.rs"]
mod nested;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        let json = r#"{"a":[null,true,-1,1,1.5,"x",{"b":{}}],"c":18446744073709551615}"#;
        let Unique(value) = serde_json::from_str(json).unwrap();
        let expected: Value = serde_json::from_str(json).unwrap();
        assert_eq!(value, expected);
    }

    #[test]
    fn private_names_are_names() {
        let json = r#"{"$serde_json::private::RawValue":"7"}"#;
        let expected: Value = serde_json::from_str(json).unwrap();
        assert_eq!(expected, 7);
        let Unique(value) = serde_json::from_str(json).unwrap();
        assert_eq!(value["$serde_json::private::RawValue"], "7");
        let nested = nested::nested_documents(1024 * 1024);
        assert!(serde_json::from_str::<Unique>(&nested).is_ok());
    }

    #[test]
    fn duplicate_members_are_errors() {
        for json in [
            r#"{"a":1,"a":1}"#,
            r#"{"b":{"a":1,"a":2}}"#,
            r#"{"b":[{"a":1,"a":null}]}"#,
        ] {
            assert!(serde_json::from_str::<Unique>(json).is_err(), "{json}");
        }
    }
}
