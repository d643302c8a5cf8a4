use std::sync::Arc;

use serde::{Deserialize, Serialize};

use tower_orgkey::{KeyId, OrgCode};

/// The account that requests are counted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Account {
    /// An organization.
    Organization(#[serde(with = "text")] OrgCode),
    /// All organizations that have no row: see [the bounds](crate#bounds).
    OtherOrganizations,
    /// Requests without a key that [`allow_anonymous`](tower_orgkey::ApiKeyLayerBuilder::allow_anonymous) let through.
    Anonymous,
    /// Requests that were rejected before the organization was known, or that no `ApiKeyLayer` decided on.
    Unauthenticated,
}

impl Account {
    /// Returns the organization, if it is one.
    pub fn organization(&self) -> Option<&OrgCode> {
        match self {
            Self::Organization(org) => Some(org),
            _ => None,
        }
    }
}

/// The key that requests are counted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyName {
    /// The key with this id. A rotation does not change the id.
    Id(#[serde(with = "text")] KeyId),
    /// A key without an id; for accounts other than organizations, no key.
    Unnamed,
    /// All keys of the organization that have no row: see [the bounds](crate#bounds).
    Other,
}

/// The route that requests are counted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// The route as it is written in the router, with the names of its parameters.
    Template(#[serde(with = "text")] Arc<str>),
    /// No route matched, or the layer does not see it.
    Unmatched,
    /// Routes beyond [the bound](crate::UsageLayerBuilder::routes), and the routes of merged rows.
    Other,
}

/// Serializes identifiers and names as strings.
mod text {
    use std::borrow::Cow;
    use std::sync::Arc;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use tower_orgkey::{KeyId, OrgCode};

    pub(crate) trait Text: AsRef<str> + Sized {
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

    pub(crate) fn serialize<T: Text, S: Serializer>(
        text: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text.as_ref())
    }

    pub(crate) fn deserialize<'de, T: Text, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        T::read(&text).ok_or_else(|| D::Error::custom("not an identifier"))
    }
}
