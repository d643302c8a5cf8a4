//! The names of endpoints and replies in control requests.

use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::issuer;
use crate::replies;

/// Returns the name of an endpoint.
pub(super) fn of(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Token => "token",
        Endpoint::Verify => "verify",
        Endpoint::ListKeys => "list_keys",
        Endpoint::GetKey => "get_key",
        Endpoint::CreateKey => "create_key",
        Endpoint::RotateKey => "rotate_key",
        Endpoint::DeleteKey => "delete_key",
        Endpoint::GetOrganization => "get_organization",
        Endpoint::ListAgreements => "list_agreements",
        Endpoint::RecordUsage => "record_usage",
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InvalidKeyReply {
    IsValidFalse,
    IsValidFalseWithNulls,
    NotActive,
    BadRequest,
    Unauthorized,
    RouteNotFound,
    KeyNotFound,
}

impl From<InvalidKeyReply> for replies::InvalidKeyReply {
    fn from(reply: InvalidKeyReply) -> Self {
        match reply {
            InvalidKeyReply::IsValidFalse => Self::IsValidFalse,
            InvalidKeyReply::IsValidFalseWithNulls => Self::IsValidFalseWithNulls,
            InvalidKeyReply::NotActive => Self::NotActive,
            InvalidKeyReply::BadRequest => Self::BadRequest,
            InvalidKeyReply::Unauthorized => Self::Unauthorized,
            InvalidKeyReply::RouteNotFound => Self::RouteNotFound,
            InvalidKeyReply::KeyNotFound => Self::KeyNotFound,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ValidKeyReply {
    AllFields,
    GuideExample,
}

impl From<ValidKeyReply> for replies::ValidKeyReply {
    fn from(reply: ValidKeyReply) -> Self {
        match reply {
            ValidKeyReply::AllFields => Self::AllFields,
            ValidKeyReply::GuideExample => Self::GuideExample,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyRecordReply {
    Wrapped,
    Unwrapped,
}

impl From<KeyRecordReply> for replies::KeyRecordReply {
    fn from(reply: KeyRecordReply) -> Self {
        match reply {
            KeyRecordReply::Wrapped => Self::Wrapped,
            KeyRecordReply::Unwrapped => Self::Unwrapped,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VerifyAccess {
    TokenWithScope,
    Token,
    Public,
}

impl From<VerifyAccess> for issuer::VerifyAccess {
    fn from(access: VerifyAccess) -> Self {
        match access {
            VerifyAccess::TokenWithScope => Self::TokenWithScope,
            VerifyAccess::Token => Self::Token,
            VerifyAccess::Public => Self::Public,
        }
    }
}
