//! Fields that deserialize from any JSON value.
//!
//! With `#[serde(default)]` a missing field is `Absent`. A value of another type does not fail the whole reply, because a reply
//! with `"is_valid": false` means that the key is invalid, whatever its other fields.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

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

/// The type of a [`Field`].
pub(super) trait Content: Sized {
    fn bool(_: bool) -> Field<Self> {
        Field::Mistyped
    }

    fn number(_: f64) -> Field<Self> {
        Field::Mistyped
    }

    fn text(_: &str) -> Field<Self> {
        Field::Mistyped
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Field<Self>, A::Error> {
        skip_list(list)
    }

    fn object<'de, A: MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        skip_object(object)
    }
}

impl Content for bool {
    fn bool(is: bool) -> Field<Self> {
        Field::Is(is)
    }
}

impl Content for f64 {
    fn number(number: f64) -> Field<Self> {
        Field::Is(number)
    }
}

impl Content for String {
    fn text(text: &str) -> Field<Self> {
        Field::Is(text.to_owned())
    }
}

/// An array of strings only.
impl Content for Vec<String> {
    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        let mut texts = Vec::new();
        while let Some(item) = list.next_element::<Field<String>>()? {
            let Field::Is(text) = item else {
                return skip_list(list);
            };
            texts.push(text);
        }
        Ok(Field::Is(texts))
    }
}

fn skip_list<'de, T, A: SeqAccess<'de>>(mut list: A) -> Result<Field<T>, A::Error> {
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(Field::Mistyped)
}

fn skip_object<'de, T, A: MapAccess<'de>>(mut object: A) -> Result<Field<T>, A::Error> {
    while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(Field::Mistyped)
}

impl<'de, T: Content> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<'de, T: Content> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Self::Value, E> {
        Ok(T::bool(is))
    }

    #[allow(clippy::cast_precision_loss)] // Numbers are lifetimes far below 2^53.
    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(T::number(number as f64))
    }

    #[allow(clippy::cast_precision_loss)] // As above.
    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(T::number(number as f64))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(T::number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::text(text))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Field::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        T::object(object)
    }
}
