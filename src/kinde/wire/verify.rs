//! The reply to `POST /api/v1/api_keys/verify`.

use http::status::StatusCode;
use serde::Deserialize;

use super::fields::{Content, Field};
use super::{Reply, cannot_tell, nonsense, read_json};
use crate::context::{KeyId, OrgCode};
use crate::scope::{MAX_SCOPE_LEN, MAX_SCOPES, Scopes};
use crate::verify::{Extra, Facts, VerifyError};

/// What verify says.
#[derive(Debug)]
pub(crate) enum VerifyReading {
    Yes(Facts),
    /// A no about this key and nothing else.
    No,
    /// A no, in a way that the issuer also uses for requests that it does not understand.
    Unconfirmed,
    /// 401 or 403: a no about the key, or about our token.
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
        StatusCode::OK => read_body(reply).unwrap_or_else(VerifyReading::CannotTell),
        StatusCode::BAD_REQUEST => VerifyReading::Unconfirmed,
        StatusCode::NOT_FOUND if names_no_route(reply) => VerifyReading::Unconfirmed,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => VerifyReading::KeyOrToken(reply.status),
        _ => VerifyReading::CannotTell(cannot_tell(reply)),
    }
}

fn read_body(reply: &Reply) -> Result<VerifyReading, VerifyError> {
    let body: Body = read_json(reply)?;
    // A no stands, whatever else is there or missing.
    if body.is_valid == Field::Is(false) {
        return Ok(VerifyReading::No);
    }
    match (&body.status, &body.is_valid) {
        (Field::Is(status), _) if status != "active" => Ok(VerifyReading::No),
        (Field::Is(_), Field::Is(true)) => read_facts(body).map(VerifyReading::Yes),
        (_, Field::Is(true)) => Err(nonsense("`status` is missing or no text")),
        _ => Err(nonsense("`is_valid` is missing or neither true nor false")),
    }
}

fn read_facts(body: Body) -> Result<Facts, VerifyError> {
    let mistyped = |_| nonsense("a field holds a value of another type");
    let outside = |_| nonsense("an identifier is outside its grammar");
    let org = body.org_code.text().map_err(mistyped)?;
    let key_id = body.key_id.text().map_err(mistyped)?;
    let user = body.user_id.text().map_err(mistyped)?;
    Ok(Facts {
        org: org.map(OrgCode::new).transpose().map_err(outside)?,
        key_id: key_id.map(KeyId::new).transpose().map_err(outside)?,
        extra: user.map(|user| Box::new(Extra::User(user.into()))),
        scopes: read_scopes(body.scopes)?,
        expires_at: None,
    })
}

fn read_scopes(scopes: Field<Vec<String>>) -> Result<Scopes, VerifyError> {
    let names = match scopes {
        Field::Absent | Field::Null => return Ok(Scopes::none()),
        Field::Is(names) => names,
        Field::Mistyped => return Err(nonsense("`scopes` is no list of texts")),
    };
    if names.len() > MAX_SCOPES || names.iter().any(|name| name.len() > MAX_SCOPE_LEN) {
        return Err(nonsense("`scopes` holds too many scopes, or too long ones"));
    }
    Ok(Scopes::from_names(names))
}

/// Whether a 404 carries a code, and another one than that of a route that does not exist. One without a code comes from
/// somebody who does not know what a key is: a proxy, another host.
pub(super) fn names_no_route(reply: &Reply) -> bool {
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

/// The codes of `errors`, which is one object on some endpoints and a list of them on others.
struct Codes(Vec<String>);

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: Field<String>,
}

impl Content for Codes {
    fn list<'de, A: serde::de::SeqAccess<'de>>(mut list: A) -> Result<Field<Self>, A::Error> {
        let mut codes = Vec::new();
        while let Some(error) = list.next_element::<ErrorBody>()? {
            codes.extend(error.code.text().ok().flatten());
        }
        Ok(Field::Is(Self(codes)))
    }

    fn object<'de, A: serde::de::MapAccess<'de>>(object: A) -> Result<Field<Self>, A::Error> {
        let error = ErrorBody::deserialize(serde::de::value::MapAccessDeserializer::new(object))?;
        Ok(Field::Is(Self(
            error.code.text().ok().flatten().into_iter().collect(),
        )))
    }
}
