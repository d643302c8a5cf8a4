//! Members of JSON objects, read strictly: the organization of a key may be in any of them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tower_orgkey::VerifyError;

/// The members of an object. At any depth, two of one name are an error: another parser may read the other one.
pub(crate) struct Members(pub(crate) Map<String, Value>);

impl Members {
    /// Returns the text at this path. `None` if it is absent or null.
    pub(crate) fn text(&self, path: &[&str]) -> Result<Option<&str>, VerifyError> {
        match self.at(path)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(mistyped()),
        }
    }

    /// Returns the value at this path. `None` if it is absent or null.
    pub(crate) fn at(&self, path: &[&str]) -> Result<Option<&Value>, VerifyError> {
        let Some((last, objects)) = path.split_last() else {
            return Ok(None);
        };
        let mut members = &self.0;
        for name in objects {
            match members.get(*name) {
                None | Some(Value::Null) => return Ok(None),
                Some(Value::Object(inner)) => members = inner,
                Some(_) => return Err(mistyped()),
            }
        }
        Ok(members.get(*last).filter(|value| !value.is_null()))
    }
}

pub(crate) fn mistyped() -> VerifyError {
    VerifyError::invalid_response("a member of the reply has an unexpected type")
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Unique::deserialize(deserializer)? {
            Unique(Value::Object(members)) => Ok(Self(members)),
            Unique(_) => Err(D::Error::custom("not an object")),
        }
    }
}

/// A value without duplicate members.
struct Unique(Value);

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
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        let json = r#"{"a":[null,true,-1,1,1.5,"x",{"b":{}}],"c":18446744073709551615}"#;
        let Members(members) = serde_json::from_str(json).unwrap();
        let expected: Value = serde_json::from_str(json).unwrap();
        assert_eq!(Value::Object(members), expected);
        assert!(serde_json::from_str::<Members>("[]").is_err());
    }

    #[test]
    fn duplicate_members_are_errors() {
        for json in [
            r#"{"a":1,"a":1}"#,
            r#"{"b":{"a":1,"a":2}}"#,
            r#"{"b":[{"a":1,"a":null}]}"#,
        ] {
            assert!(serde_json::from_str::<Members>(json).is_err(), "{json}");
        }
    }
}
