//! The reply to `GET /api/v1/api_keys/{key_id}`.

use http::status::StatusCode;
use serde::Deserialize;
use serde::de::MapAccess;
use serde::de::value::MapAccessDeserializer;

use super::fields::{Content, Field};
use super::verify::is_about_key;
use super::{InvalidBody, Reply, cannot_tell, read_json};
use crate::identifier::{KeyId, OrgCode};
use crate::verify::VerifyError;

/// The meaning of the record of a key that verify accepted.
#[derive(Debug)]
pub(crate) enum KeyReading {
    /// Issued for this API, to the organization that verify named.
    ThisApi,
    /// Issued for another API, to the organization that verify named.
    OtherApi,
    /// No longer active, or issued to another organization.
    Contradicts,
    /// The key has no record, although verify has just accepted it.
    NoRecord,
    /// 401 or 403. The call has no other credential than the access token.
    TokenRejected(StatusCode),
    CannotTell(VerifyError),
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    api_key: Field<Record>,
}

/// The fields of a record that decide.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Record {
    id: Field<String>,
    status: Field<String>,
    organization_id: Field<String>,
    api_ids: Field<Vec<String>>,
}

impl Content for Record {
    fn object<'de, A: MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object)).map(Field::Is)
    }
}

pub(crate) fn read_key(
    reply: &Reply,
    key_id: &KeyId,
    org: Option<&OrgCode>,
    api_id: &str,
) -> KeyReading {
    match reply.status {
        StatusCode::OK => read_body(reply, key_id, org, api_id)
            .unwrap_or_else(|invalid| KeyReading::CannotTell(invalid.about_issuer())),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => KeyReading::TokenRejected(reply.status),
        StatusCode::NOT_FOUND if is_about_key(reply) => KeyReading::NoRecord,
        _ => KeyReading::CannotTell(cannot_tell(reply)),
    }
}

/// Returns whether the reply shows that the key is no longer active: it has no record, or one with another status.
pub(crate) fn shows_no_active_key(reply: &Reply, key_id: &KeyId) -> bool {
    match reply.status {
        StatusCode::OK => read_record(reply, key_id)
            .is_ok_and(|record| matches!(record.status, Field::Is(status) if status != "active")),
        StatusCode::NOT_FOUND => is_about_key(reply),
        _ => false,
    }
}

fn read_record(reply: &Reply, key_id: &KeyId) -> Result<Record, InvalidBody> {
    // Kinde wraps the objects of some endpoints into a member, and has published no example of this reply.
    let record = match read_json::<Body>(reply)?.api_key {
        Field::Is(record) => record,
        Field::Absent => read_json::<Record>(reply)?,
        Field::Null | Field::Mistyped => return Err(InvalidBody("`api_key` is not an object")),
    };
    match &record.id {
        Field::Absent => {}
        Field::Is(id) if *key_id == **id => {}
        _ => return Err(InvalidBody("the record is that of another key")),
    }
    Ok(record)
}

fn read_body(
    reply: &Reply,
    key_id: &KeyId,
    org: Option<&OrgCode>,
    api_id: &str,
) -> Result<KeyReading, InvalidBody> {
    let record = read_record(reply, key_id)?;
    let Field::Is(api_ids) = record.api_ids else {
        return Err(InvalidBody(
            "`api_ids` is missing or not an array of strings",
        ));
    };
    if matches!(record.status, Field::Is(status) if status != "active") {
        return Ok(KeyReading::Contradicts);
    }
    let owner = record.organization_id.text();
    let agree = match (
        owner.map_err(|_| InvalidBody("`organization_id` is not a string"))?,
        org,
    ) {
        (None, None) => true,
        (Some(owner), Some(org)) => *org == *owner,
        _ => {
            return Err(InvalidBody(
                "only one of verify and the record names an organization",
            ));
        }
    };
    Ok(if !agree {
        KeyReading::Contradicts
    } else if api_ids.iter().any(|id| id == api_id) {
        KeyReading::ThisApi
    } else {
        KeyReading::OtherApi
    })
}
