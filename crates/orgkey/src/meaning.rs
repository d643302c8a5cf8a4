use serde::{Deserialize, Serialize};
use tower_orgkey::kinde::UnauthorizedMeans;

/// What a 401 or 403 from verify is about, as a configuration says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Meaning {
    #[default]
    Evidence,
    Key,
    AccessToken,
}

impl From<Meaning> for UnauthorizedMeans {
    fn from(meaning: Meaning) -> Self {
        match meaning {
            Meaning::Evidence => Self::Evidence,
            Meaning::Key => Self::Key,
            Meaning::AccessToken => Self::AccessToken,
        }
    }
}
