//! The reply to `POST /api/v1/api_keys/verify`.

use http::status::StatusCode;
use serde::Deserialize;

use super::fields::{Content, Field};
use super::{InvalidBody, Reply, cannot_tell, read_json};
use crate::identifier::{KeyId, OrgCode};
use crate::scope::{MAX_SCOPE_LEN, MAX_SCOPES, Scopes};
use crate::verify::{Facts, VerifyError};

/// The meaning of a verify reply.
#[derive(Debug)]
pub(crate) enum VerifyReading {
    Valid(Facts),
    /// The key is invalid, definitively.
    Invalid,
    /// The key is probably invalid; the issuer also sends this status for requests that it does not understand.
    Unconfirmed,
    /// 401 or 403, which is about the key or about the access token.
    KeyOrToken(StatusCode),
    CannotTell(VerifyError),
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    is_valid: Field<bool>,
    #[serde(default)]
    status: Field<String>,
    #[serde(default)]
    key_id: Field<String>,
    #[serde(default)]
    org_code: Field<String>,
    #[serde(default)]
    user_id: Field<String>,
    #[serde(default)]
    scopes: Field<Vec<String>>,
}

pub(crate) fn read_verify(reply: &Reply) -> VerifyReading {
    match reply.status {
        StatusCode::OK => read_body(reply)
            .unwrap_or_else(|invalid| VerifyReading::CannotTell(invalid.about_key())),
        StatusCode::BAD_REQUEST => VerifyReading::Unconfirmed,
        StatusCode::NOT_FOUND if is_about_key(reply) => VerifyReading::Unconfirmed,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => VerifyReading::KeyOrToken(reply.status),
        _ => VerifyReading::CannotTell(cannot_tell(reply)),
    }
}

/// Reads the body of a 200. Every property is optional in the published contract, and the example in Kinde's guide has
/// neither `is_valid` nor `status`.
fn read_body(reply: &Reply) -> Result<VerifyReading, InvalidBody> {
    let body: Body = read_json(reply)?;
    match (&body.is_valid, &body.status) {
        (Field::Is(false), _) => return Ok(VerifyReading::Invalid),
        (_, Field::Is(status)) if status != "active" => return Ok(VerifyReading::Invalid),
        (_, Field::Mistyped) => return Err(InvalidBody("`status` is not a string")),
        (Field::Mistyped, _) => return Err(InvalidBody("`is_valid` is not a boolean")),
        (Field::Is(true), _) => {}
        (Field::Absent | Field::Null, _) => read_code(reply)?,
    }
    read_facts(body).map(VerifyReading::Valid)
}

/// Checks that the code of a reply without `is_valid` says that the key was verified.
fn read_code(reply: &Reply) -> Result<(), InvalidBody> {
    const VERIFIED: &str = "API_KEY_VERIFIED";

    match read_json::<Coded>(reply)?.code {
        Field::Is(code) if code == VERIFIED => Ok(()),
        _ => Err(InvalidBody(
            "the reply has no `is_valid`, and its `code` is not `API_KEY_VERIFIED`",
        )),
    }
}

fn read_facts(body: Body) -> Result<Facts, InvalidBody> {
    let text = |field: Field<String>, mistyped| field.text().map_err(|_| InvalidBody(mistyped));
    let org = text(body.org_code, "`org_code` is not a string")?;
    let key_id = text(body.key_id, "`key_id` is not a string")?;
    let user = text(body.user_id, "`user_id` is not a string")?;
    let org = org.map(OrgCode::new).transpose();
    let key_id = key_id.map(KeyId::new).transpose();
    Ok(Facts {
        org: org.map_err(|_| InvalidBody("`org_code` is outside its grammar"))?,
        key_id: key_id.map_err(|_| InvalidBody("`key_id` is outside its grammar"))?,
        user: user.map(|user| Box::new(user.into())),
        scopes: read_scopes(body.scopes)?,
        expires_at: None,
    })
}

fn read_scopes(scopes: Field<Vec<String>>) -> Result<Scopes, InvalidBody> {
    let names = match scopes {
        Field::Absent | Field::Null => return Ok(Scopes::none()),
        Field::Is(names) => names,
        Field::Mistyped => return Err(InvalidBody("`scopes` is not an array of strings")),
    };
    if names.len() > MAX_SCOPES || names.iter().any(|name| name.len() > MAX_SCOPE_LEN) {
        return Err(InvalidBody("`scopes` has too many or too long scopes"));
    }
    Ok(Scopes::from_names(names))
}

/// Returns whether a 404 has a code other than that of a missing route. A 404 without a code comes from a proxy or another
/// host.
pub(super) fn is_about_key(reply: &Reply) -> bool {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Field<Codes>,
    }

    match read_json(reply) {
        Ok(Body {
            errors: Field::Is(Codes(codes)),
        }) => !codes.is_empty() && codes.iter().all(|code| code != "ROUTE_NOT_FOUND"),
        _ => false,
    }
}

/// The codes of `errors`, which is an object on some endpoints and an array of objects on others.
struct Codes(Vec<String>);

/// An object that has a code: an error, or a reply.
#[derive(Deserialize)]
struct Coded {
    #[serde(default)]
    code: Field<String>,
}

impl Content for Codes {
    fn list<'de, A: serde::de::SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        let mut codes = Vec::new();
        while let Some(error) = list.next_element::<Coded>()? {
            codes.extend(error.code.text().ok().flatten());
        }
        Ok(Field::Is(Self(codes)))
    }

    fn object<'de, A: serde::de::MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        let error = Coded::deserialize(serde::de::value::MapAccessDeserializer::new(object))?;
        Ok(Field::Is(Self(
            error.code.text().ok().flatten().into_iter().collect(),
        )))
    }
}
