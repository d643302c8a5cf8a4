//! Identifiers of organizations and keys.

use std::fmt;
use std::sync::Arc;

/// The maximum length of an organization code or key id, in bytes.
pub const MAX_IDENTIFIER_LEN: usize = 255;

/// The text is not an identifier: empty, longer than 255 bytes, or not visible ASCII throughout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier: expected 1 to 255 visible ASCII characters")]
pub struct InvalidIdentifier(());

fn is_identifier(text: &str) -> bool {
    (1..=MAX_IDENTIFIER_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Eq, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        /// Compares references first: results of one organization refer to the same text.
        impl PartialEq for $name {
            #[inline]
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl std::hash::Hash for $name {
            #[inline]
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl $name {
            /// Creates an identifier of 1 to 255 visible ASCII characters.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidIdentifier> {
                let text = text.into();
                if is_identifier(&text) { Ok(Self(text)) } else { Err(InvalidIdentifier(())) }
            }

            /// Like [`new`](Self::new), for an identifier written in code.
            ///
            /// # Panics
            ///
            /// If the text is not 1 to 255 visible ASCII characters.
            #[track_caller]
            pub fn from_static(text: &'static str) -> Self {
                match Self::new(text) {
                    Ok(identifier) => identifier,
                    Err(error) => panic!("{error}"),
                }
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

identifier! {
    /// An organization's code at the issuer: 1 to 255 visible ASCII characters, compared byte for byte.
    ///
    /// ```
    /// use tower_orgkey::OrgCode;
    ///
    /// let org = OrgCode::new("org_1234567890")?;
    /// assert_eq!(org, "org_1234567890");
    /// assert!(OrgCode::new(" ").is_err());
    /// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
    /// ```
    OrgCode
}

impl OrgCode {
    /// The number of references to this allocation.
    pub(crate) fn references(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

identifier! {
    /// A key's identifier at the issuer: 1 to 255 visible ASCII characters. Not a secret; a rotation does not change it.
    ///
    /// ```
    /// use tower_orgkey::KeyId;
    ///
    /// assert_eq!(KeyId::new("api_key_0001")?, "api_key_0001");
    /// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
    /// ```
    KeyId
}
