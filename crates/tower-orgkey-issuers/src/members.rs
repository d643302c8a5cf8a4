//! Members of JSON objects, read strictly: the organization of a key may be in any of them.

use orgkey_http::Unique;
use serde::de::{Deserialize, Deserializer, Error};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_those_of_an_object() {
        assert!(serde_json::from_str::<Members>("{}").is_ok());
        assert!(serde_json::from_str::<Members>("[]").is_err());
    }
}
