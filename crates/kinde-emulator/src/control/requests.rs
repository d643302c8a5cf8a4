//! The bodies of control requests. An unknown member is an error, because it is most likely a misspelled one.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::names::{self, InvalidKeyReply, KeyRecordReply, ValidKeyReply, VerifyAccess};
use crate::billing::AgreementSpec;
use crate::endpoint::{Endpoint, Endpoints};
use crate::keys::KeySpec;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A key of an organization, of a user, of a user in an organization, or of the environment.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IssueKey {
    org_code: Option<String>,
    user_id: Option<String>,
    name: Option<String>,
    api_id: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    /// The secret.
    key: Option<String>,
}

impl IssueKey {
    pub(super) fn spec(self) -> KeySpec {
        let mut spec = match (self.org_code, self.user_id) {
            (Some(org), Some(user)) => KeySpec::user(user).in_organization(org),
            (Some(org), None) => KeySpec::organization(org),
            (None, Some(user)) => KeySpec::user(user),
            (None, None) => KeySpec::environment(),
        };
        if let Some(name) = self.name {
            spec = spec.name(name);
        }
        if let Some(api_id) = self.api_id {
            spec = spec.api_id(api_id);
        }
        if let Some(key) = self.key {
            spec = spec.secret(key);
        }
        spec.scopes(self.scopes)
    }
}

/// Selects a key by its id or by its secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SelectKey {
    pub(super) key_id: Option<String>,
    pub(super) key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetScopes {
    key_id: Option<String>,
    key: Option<String>,
    pub(super) scopes: Vec<String>,
}

impl SetScopes {
    pub(super) fn key(&self) -> SelectKey {
        SelectKey {
            key_id: self.key_id.clone(),
            key: self.key.clone(),
        }
    }
}

/// Changes of the M2M application.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Application {
    pub(super) scopes: Option<Vec<String>>,
    pub(super) token_lifetime_s: Option<u64>,
    pub(super) client_secret: Option<String>,
    #[serde(default)]
    pub(super) revoke_tokens: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Behavior {
    pub(super) invalid_key_reply: Option<InvalidKeyReply>,
    pub(super) valid_key_reply: Option<ValidKeyReply>,
    pub(super) key_record_reply: Option<KeyRecordReply>,
    pub(super) verify_access: Option<VerifyAccess>,
    pub(super) rejected_token_status: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InjectFault {
    pub(super) at: At,
    pub(super) fault: FaultKind,
    #[serde(default)]
    pub(super) after_ms: u64,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    pub(super) every: Option<u64>,
    pub(super) times: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FaultKind {
    /// The regular reply, for `after_ms` and `headers`.
    None,
    Status(u16),
    RouteNotFound,
    Reply {
        status: u16,
        content_type: String,
        body: String,
    },
    Redirect(String),
    RejectToken,
    WithMember {
        name: String,
        value: Value,
    },
    WithoutMember(String),
    Truncate,
    ResetMidBody,
    TrickleMs(u64),
    Hold,
    NoResponse,
    Close,
    Reset,
    LoseReply,
    Late,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClearFaults {
    pub(super) at: Option<At>,
}

/// One endpoint, several, or `all`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum At {
    One(String),
    Several(Vec<String>),
}

impl At {
    pub(super) fn endpoints(&self) -> Result<Endpoints, String> {
        let names = match self {
            Self::One(all) if all == "all" => return Ok(Endpoints::ALL),
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        names.iter().try_fold(Endpoints::NONE, |set, name| {
            let endpoint = Endpoint::ALL.into_iter().find(|at| names::of(*at) == name);
            let endpoint = endpoint.ok_or_else(|| {
                let known = Endpoint::ALL.map(names::of).join(", ");
                format!("unknown endpoint in at, expected all or any of {known}")
            })?;
            Ok(set.with(endpoint))
        })
    }
}

/// An agreement of an organization, with billing periods that begin at `starts_at_s` (since the Unix epoch).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StartAgreement {
    org_code: String,
    plan_code: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    pub(super) starts_at_s: Option<u32>,
    pub(super) period_s: Option<u32>,
}

impl StartAgreement {
    pub(super) fn spec(self) -> AgreementSpec {
        let mut spec = AgreementSpec::new(self.org_code);
        if let Some(plan) = self.plan_code {
            spec = spec.plan(plan);
        }
        self.features.into_iter().fold(spec, AgreementSpec::feature)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveClock {
    pub(super) offset_s: Option<i32>,
    pub(super) advance_s: Option<i32>,
}
