//! The reply to `GET /api/v1/api_keys`: one page of the list of keys.

use http::status::StatusCode;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess};

use super::fields::{Content, Field};
use super::{InvalidBody, Reply, cannot_tell, read_json};
use crate::identifier::KeyId;
use crate::verify::VerifyError;

/// The meaning of a list reply.
#[derive(Debug)]
pub(crate) enum ListReading {
    Page(Page),
    /// 401 or 403. The call has no other credential than the access token.
    TokenRejected,
    CannotTell(VerifyError),
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) keys: Vec<ListedKey>,
    pub(crate) has_more: bool,
}

#[derive(Debug)]
pub(crate) struct ListedKey {
    pub(crate) id: KeyId,
    /// Has another status than the requested `active`.
    pub(crate) is_inactive: bool,
    /// The last characters of the secret, if the reply has them.
    pub(crate) suffix: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    api_keys: Field<Records>,
    #[serde(default)]
    has_more: Field<bool>,
}

struct Records(Vec<Record>);

impl Content for Records {
    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        let mut records = Vec::new();
        while let Some(record) = list.next_element::<Field<Record>>()? {
            // A record without an id is rejected below.
            records.push(match record {
                Field::Is(record) => record,
                _ => Record::default(),
            });
        }
        Ok(Field::Is(Self(records)))
    }
}

/// The fields of a record that are compared.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Record {
    id: Field<String>,
    status: Field<String>,
    key_suffix: Field<String>,
}

impl Content for Record {
    fn object<'de, A: MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(object)).map(Field::Is)
    }
}

pub(crate) fn read_list(reply: &Reply) -> ListReading {
    match reply.status {
        StatusCode::OK => match read_page(reply) {
            Ok(page) => ListReading::Page(page),
            Err(invalid) => ListReading::CannotTell(invalid.about_issuer()),
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ListReading::TokenRejected,
        _ => ListReading::CannotTell(cannot_tell(reply)),
    }
}

/// Parses a page strictly: a key that is missing from the list is invalidated.
fn read_page(reply: &Reply) -> Result<Page, InvalidBody> {
    let body: Body = read_json(reply)?;
    let Field::Is(Records(records)) = body.api_keys else {
        return Err(InvalidBody("`api_keys` is missing or not an array"));
    };
    let Field::Is(has_more) = body.has_more else {
        return Err(InvalidBody("`has_more` is missing or not a boolean"));
    };
    let keys = records
        .into_iter()
        .map(read_record)
        .collect::<Result<_, _>>()?;
    Ok(Page { keys, has_more })
}

fn read_record(record: Record) -> Result<ListedKey, InvalidBody> {
    let Field::Is(id) = record.id else {
        return Err(InvalidBody("a listed key has no id"));
    };
    let id =
        KeyId::new(id).map_err(|_| InvalidBody("the id of a listed key is outside its grammar"))?;
    let is_inactive = match record.status {
        Field::Is(status) => status != "active",
        Field::Absent | Field::Null => false,
        Field::Mistyped => return Err(InvalidBody("the status of a listed key is not a string")),
    };
    let suffix = match record.key_suffix {
        Field::Is(suffix) => Some(suffix),
        _ => None,
    };
    Ok(ListedKey {
        id,
        is_inactive,
        suffix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinde::wire::reply;

    fn page(body: &str) -> Option<Page> {
        match read_list(&reply(200, body)) {
            ListReading::Page(page) => Some(page),
            _ => None,
        }
    }

    #[test]
    fn page_has_ids_statuses_and_suffixes() {
        let page = page(
            r#"{"code":"OK","has_more":true,"next":[1,{}],"api_keys":[
                {"id":"a","status":"active","key_suffix":"wxyz","created_by":{"name":1}},
                {"id":"b","status":"revoked","key_suffix":null},
                {"id":"c","key_suffix":7}]}"#,
        )
        .unwrap();
        assert!(page.has_more);
        let read: Vec<_> = page
            .keys
            .iter()
            .map(|key| (key.id.as_str(), key.is_inactive, key.suffix.as_deref()))
            .collect();
        let expected = [
            ("a", false, Some("wxyz")),
            ("b", true, None),
            ("c", false, None),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn invalid_pages_are_rejected() {
        assert!(page(r#"{"api_keys":[],"has_more":false}"#).is_some());
        for body in [
            "{}",
            "[]",
            r#"{"api_keys":[]}"#,
            r#"{"has_more":false}"#,
            r#"{"api_keys":null,"has_more":false}"#,
            r#"{"api_keys":{},"has_more":false}"#,
            r#"{"api_keys":[],"has_more":null}"#,
            r#"{"api_keys":[],"has_more":"false"}"#,
            r#"{"api_keys":[null],"has_more":false}"#,
            r#"{"api_keys":["a"],"has_more":false}"#,
            r#"{"api_keys":[{}],"has_more":false}"#,
            r#"{"api_keys":[{"id":null}],"has_more":false}"#,
            r#"{"api_keys":[{"id":""}],"has_more":false}"#,
            r#"{"api_keys":[{"id":"a b"}],"has_more":false}"#,
            r#"{"api_keys":[{"id":"a","id":"b"}],"has_more":false}"#,
            r#"{"api_keys":[{"id":"a","status":1}],"has_more":false}"#,
            r#"{"api_keys":[],"api_keys":[],"has_more":false}"#,
            r#"{"api_keys":[{"id":"a"}],"has_more":fal"#,
        ] {
            assert!(page(body).is_none(), "{body}");
        }
    }

    #[test]
    fn other_statuses_have_no_page() {
        let body = r#"{"api_keys":[],"has_more":false}"#;
        for status in [201, 204, 302, 400, 404, 429, 500, 503] {
            let reading = read_list(&reply(status, body));
            assert!(matches!(reading, ListReading::CannotTell(_)), "{status}");
        }
        for status in [401, 403] {
            let reading = read_list(&reply(status, body));
            assert!(matches!(reading, ListReading::TokenRejected), "{status}");
        }
    }
}
