use tower_orgkey::VerifyError;

use super::claims::Claims;

/// Where a server has the organization of a token.
///
/// Each preset follows the documentation and the source code of its server. **All are untested against the server itself.**
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// Zitadel, at `https://<instance>/oauth/v2/introspect`, with the credentials of an API application. Untested against the
    /// server.
    ///
    /// The organization is that of the service user. Its personal access tokens need the scope
    /// `urn:zitadel:iam:user:resourceowner`, and [`service_accounts`](super::IntrospectionVerifierBuilder::service_accounts), because
    /// their subject is the service user. Zitadel answers `active: false` to any internal error, so set a
    /// [canary](super::IntrospectionVerifierBuilder::canary).
    Zitadel,
    /// Ory Hydra, at `http://<admin>/admin/oauth2/introspect`, without credentials: keep this port private. Untested against
    /// the server.
    ///
    /// The organization is `ext.org`, which your consent application or token hook sets. Hydra answers `active: false` to any
    /// internal error, so set a [canary](super::IntrospectionVerifierBuilder::canary).
    Hydra,
    /// Keycloak 26, at `https://<host>/realms/<realm>/protocol/openid-connect/token/introspect`, with the credentials of a
    /// confidential client. Untested against the server.
    ///
    /// The organization is the alias in the claim `organization`, which needs the scope `organization`. A token of several
    /// organizations belongs to none.
    Keycloak,
}

impl Preset {
    pub(super) fn organization(self, claims: &Claims) -> Result<Option<String>, VerifyError> {
        let code = match self {
            Self::Zitadel => claims.text(&["urn:zitadel:iam:user:resourceowner:id"])?,
            Self::Hydra => claims.text(&["ext", "org"])?,
            Self::Keycloak => match claims.names(&["organization"])?.as_slice() {
                [alias] => Some(*alias),
                _ => None,
            },
        };
        Ok(code.map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_find_the_organization() {
        use Preset::{Hydra, Keycloak, Zitadel};
        let zitadel = r#"{"urn:zitadel:iam:user:resourceowner:id":"org_1"}"#;
        for (preset, json, organization) in [
            (Zitadel, zitadel, Some("org_1")),
            (Hydra, r#"{"ext":{"org":"org_1"}}"#, Some("org_1")),
            (Keycloak, r#"{"organization":{"org_1":{}}}"#, Some("org_1")),
            (Keycloak, r#"{"organization":["org_1"]}"#, Some("org_1")),
            (Zitadel, "{}", None),
            (Hydra, r#"{"ext":null,"org":"org_1"}"#, None),
            (Keycloak, r#"{"organization":{"a":{},"b":{}}}"#, None),
            (Keycloak, r#"{"organization":{}}"#, None),
        ] {
            let claims: Claims = serde_json::from_str(json).unwrap();
            let found = preset.organization(&claims).unwrap();
            assert_eq!(found.as_deref(), organization, "{preset:?} {json}");
        }
        for (preset, json) in [
            (Keycloak, r#"{"organization":["org_1",{"org_2":{}}]}"#),
            (Hydra, r#"{"ext":{"org":5}}"#),
            (Hydra, r#"{"ext":"org_1"}"#),
        ] {
            let claims: Claims = serde_json::from_str(json).unwrap();
            assert!(preset.organization(&claims).is_err(), "{preset:?} {json}");
        }
    }
}
