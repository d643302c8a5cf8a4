//! Conversions of identifiers and scopes from and to text, and with the feature `serde` their serialization.

use std::str::FromStr;

use crate::identifier::{InvalidIdentifier, KeyId, OrgCode};
use crate::scope::{InvalidScope, InvalidScopes, MAX_SCOPES, Scope, Scopes};

macro_rules! from_text {
    ($name:ident, $error:ty) => {
        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = $error;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }
    };
}

from_text!(OrgCode, InvalidIdentifier);
from_text!(KeyId, InvalidIdentifier);
from_text!(Scope, InvalidScope);

/// Reads a `scope` parameter: names separated by one or more spaces (RFC 6749, section 3.3). Unlike
/// [`Scopes::from_names`], an invalid name is an error.
impl FromStr for Scopes {
    type Err = InvalidScopes;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = text.split(' ').filter(|name| !name.is_empty());
        strict(names.map(Scope::new))
    }
}

impl TryFrom<&str> for Scopes {
    type Error = InvalidScopes;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for Scopes {
    type Error = InvalidScopes;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Fails at the first invalid name, and at more names than [`MAX_SCOPES`].
fn strict(
    names: impl Iterator<Item = Result<Scope, InvalidScope>>,
) -> Result<Scopes, InvalidScopes> {
    let mut scopes = Vec::new();
    for name in names {
        if scopes.len() == MAX_SCOPES {
            return Err(InvalidScopes::TooMany);
        }
        scopes.push(name?);
    }
    Ok(scopes.into_iter().collect())
}

#[cfg(feature = "serde")]
mod serde_impls {
    use std::fmt;

    use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::{Serialize, Serializer};

    use super::{KeyId, MAX_SCOPES, OrgCode, Scope, Scopes};

    macro_rules! as_text {
        ($name:ident) => {
            /// Serializes as a string.
            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(self.as_str())
                }
            }

            /// Deserializes a string; text outside the grammar is an error.
            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let text = String::deserialize(deserializer)?;
                    Self::new(&*text).map_err(D::Error::custom)
                }
            }
        };
    }

    as_text!(OrgCode);
    as_text!(KeyId);
    as_text!(Scope);

    /// Serializes as a sequence of strings, sorted.
    impl Serialize for Scopes {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(self)
        }
    }

    /// Deserializes a sequence of strings; an invalid scope, and more than [`MAX_SCOPES`] of them, are errors.
    impl<'de> Deserialize<'de> for Scopes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Names;

            impl<'de> Visitor<'de> for Names {
                type Value = Scopes;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(f, "a sequence of at most {MAX_SCOPES} scopes")
                }

                fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Scopes, A::Error> {
                    let mut scopes = Vec::<Scope>::new();
                    while let Some(scope) = names.next_element()? {
                        // Before the rest is read.
                        if scopes.len() == MAX_SCOPES {
                            return Err(A::Error::invalid_length(MAX_SCOPES + 1, &self));
                        }
                        scopes.push(scope);
                    }
                    Ok(scopes.into_iter().collect())
                }
            }

            deserializer.deserialize_seq(Names)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_outside_the_grammar_is_an_error() {
        assert_eq!("org_1".parse::<OrgCode>().unwrap(), "org_1");
        assert!("org 1".parse::<OrgCode>().is_err());
        assert!(KeyId::try_from(String::new()).is_err());
        assert_eq!(KeyId::try_from("k").unwrap(), "k");
        assert!(Scope::try_from("a b").is_err());
        assert_eq!("read".parse::<Scope>().unwrap().as_str(), "read");
    }

    #[test]
    fn a_scope_parameter_is_read_strictly() {
        assert_eq!(
            " b  a b ".parse::<Scopes>().unwrap(),
            Scopes::from_names(["a", "b"])
        );
        assert!("".parse::<Scopes>().unwrap().is_empty());
        assert!(matches!(
            Scopes::try_from("a \u{e9}"),
            Err(InvalidScopes::Scope(_))
        ));
        let most = vec!["a"; MAX_SCOPES].join(" ");
        assert!(Scopes::try_from(most.clone()).is_ok());
        assert_eq!(
            Scopes::try_from(most + " a").unwrap_err(),
            InvalidScopes::TooMany
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_round_trips_and_is_checked() {
        let org = OrgCode::from_static("org_1");
        assert_eq!(
            serde_json::json!({ "org": org }).to_string(),
            r#"{"org":"org_1"}"#
        );
        assert_eq!(
            serde_json::from_str::<OrgCode>(r#""org_1""#).unwrap(),
            "org_1"
        );
        for bad in [r#""""#, r#""a b""#, "1", "null", r#"["a"]"#] {
            assert!(serde_json::from_str::<OrgCode>(bad).is_err(), "{bad}");
            assert!(serde_json::from_str::<KeyId>(bad).is_err(), "{bad}");
            assert!(serde_json::from_str::<Scope>(bad).is_err(), "{bad}");
        }
        let scopes = Scopes::from_names(["b", "a"]);
        let json = serde_json::to_string(&scopes).unwrap();
        assert_eq!(json, r#"["a","b"]"#);
        assert_eq!(serde_json::from_str::<Scopes>(&json).unwrap(), scopes);
        assert!(serde_json::from_str::<Scopes>(r#"["a b"]"#).is_err());
        let too_many = serde_json::to_string(&vec!["a"; MAX_SCOPES + 1]).unwrap();
        assert!(serde_json::from_str::<Scopes>(&too_many).is_err());
    }
}
