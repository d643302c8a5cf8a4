use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identifier::{KeyId, OrgCode};

/// Whose requests are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Account {
    /// An organization's.
    Organization(#[serde(with = "text")] OrgCode),
    /// Those of organizations that had to make room for others: see [the bounds](crate::usage#what-is-bounded).
    OtherOrganizations,
    /// Requests without a key that [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let pass.
    Anonymous,
    /// Requests of which nobody knows whose they are: refused before an organization was known, or never judged.
    Nobody,
}

impl Account {
    /// The organization, if it is one.
    pub fn organization(&self) -> Option<&OrgCode> {
        match self {
            Self::Organization(org) => Some(org),
            _ => None,
        }
    }
}

/// Which key made the requests that are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyName {
    /// The key of this id. A rotation does not change it.
    Id(#[serde(with = "text")] KeyId),
    /// A key to which the issuer gives no id; for accounts other than an organization, no key.
    Unnamed,
    /// Keys that had to make room for others.
    Other,
}

/// Which route the requests that are counted went to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// The route, as it is written in the router: with names for its parameters, never a path with its ids.
    Template(#[serde(with = "text")] Arc<str>),
    /// No route matched, or none is known where the layer stands.
    Unmatched,
    /// Routes beyond [the bound](crate::usage#what-is-bounded), and those of keys that had to make room.
    Other,
}

/// Identifiers and names as the texts that they are.
mod text {
    use std::borrow::Cow;
    use std::sync::Arc;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::identifier::{KeyId, OrgCode};

    pub(super) trait Text: AsRef<str> + Sized {
        fn read(text: &str) -> Option<Self>;
    }

    impl Text for OrgCode {
        fn read(text: &str) -> Option<Self> {
            Self::new(text).ok()
        }
    }

    impl Text for KeyId {
        fn read(text: &str) -> Option<Self> {
            Self::new(text).ok()
        }
    }

    impl Text for Arc<str> {
        fn read(text: &str) -> Option<Self> {
            Some(text.into())
        }
    }

    pub(super) fn serialize<T: Text, S: Serializer>(
        text: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text.as_ref())
    }

    pub(super) fn deserialize<'de, T: Text, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        T::read(&text).ok_or_else(|| D::Error::custom("not an identifier"))
    }
}
