//! Fields that deserialize from any JSON value.
//!
//! With `#[serde(default)]` a missing field is `Absent`. A value of another type does not fail the whole reply, because a reply
//! with `"is_valid": false` means that the key is invalid, whatever its other fields.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A field of type `T`.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Null,
    Is(T),
    Mistyped,
}

impl Field<String> {
    /// Returns the string, or `None` if it is absent, null or blank.
    pub(super) fn text(self) -> Result<Option<String>, Mistyped> {
        match self {
            Self::Is(text) if !text.trim().is_empty() => Ok(Some(text)),
            Self::Is(_) | Self::Absent | Self::Null => Ok(None),
            Self::Mistyped => Err(Mistyped),
        }
    }
}

/// A field has a value of another type.
#[derive(Debug)]
pub(super) struct Mistyped;

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?.get();
        if value == "null" {
            return Ok(Self::Null);
        }
        match serde_json::from_str(value) {
            Ok(value) => Ok(Self::Is(value)),
            Err(error) if error.is_data() => Ok(Self::Mistyped),
            Err(error) => Err(D::Error::custom(error)),
        }
    }
}

/// A struct that deserializes from an object only. A derived `Deserialize` also takes an array.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(object)).map(Object)
    }
}
