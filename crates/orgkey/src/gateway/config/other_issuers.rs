//! The settings of issuers other than Kinde.

use std::ops::Range;

use serde::Deserialize;
use tower_orgkey::Verifier;
use tower_orgkey::verify::BoxVerifier;
use tower_orgkey_issuers::introspection::{IntrospectionVerifier, Preset};
use tower_orgkey_issuers::unkey::UnkeyVerifier;
use tower_orgkey_issuers::workos::WorkOsVerifier;
use tower_orgkey_issuers::{Endpoint, EndpointBuilder};
use zeroize::Zeroizing;

use super::issuer::{CLIENT_SECRET, ReadSecret, SecretKeys, optional_secret, required_secret};
use super::section::{Problems, Section};
use super::value;
use super::values::SecretSource;

const CANARY: SecretKeys = ["canary_file", "canary_env"];
const TOKEN: SecretKeys = ["token_file", "token_env"];

/// A server with token introspection (RFC 7662).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspection {
    /// The URL of the introspection endpoint.
    pub url: String,
    /// The id and the secret of this service, if the server wants them.
    pub client: Option<(String, SecretSource)>,
    /// The audience that tokens must have. `None` for any.
    pub audience: Option<String>,
    /// Where the organization is.
    pub organization: OrganizationSource,
    /// Whether tokens may have no `token_type`.
    pub allow_missing_token_type: bool,
    /// Whether subjects are service accounts, and no users.
    pub service_accounts: bool,
    /// A token that is always active.
    pub canary: Option<SecretSource>,
    /// The environment of the issuer, for a fleet.
    pub environment: Option<String>,
}

/// Where an introspection reply has the organization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrganizationSource {
    /// In this member.
    Claim(String),
    /// Where this server has it.
    Preset(Preset),
}

/// The name of a preset.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PresetName {
    Zitadel,
    Hydra,
    Keycloak,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::Zitadel => Self::Zitadel,
            PresetName::Hydra => Self::Hydra,
            PresetName::Keycloak => Self::Keycloak,
        }
    }
}

impl Introspection {
    pub(super) fn read(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        let at = section.span.clone();
        let url = value(section.required("url", problems));
        let client_id: Option<String> = value(section.optional("client_id", problems));
        let client_secret = optional_secret(&mut section, CLIENT_SECRET, problems);
        let audience = value(section.optional("audience", problems));
        let any_audience = value(section.optional("any_audience", problems)).unwrap_or(false);
        let claim = value(section.optional("organization_claim", problems));
        let preset: Option<PresetName> = value(section.optional("preset", problems));
        let allow_missing_token_type =
            value(section.optional("allow_missing_token_type", problems)).unwrap_or(false);
        let service_accounts =
            value(section.optional("service_accounts", problems)).unwrap_or(false);
        let canary = optional_secret(&mut section, CANARY, problems);
        let environment = value(section.optional("environment", problems));
        section.finish(problems);

        let client = match (client_id, client_secret.ok()?) {
            (Some(id), Some(secret)) => Some((id, secret)),
            (None, None) => None,
            _ => {
                let message = "[issuer] needs both `client_id` and a client secret, or neither";
                problems.add(&at, message);
                return None;
            }
        };
        if any_audience == audience.is_some() {
            problems.add(
                &at,
                "[issuer] needs `audience` or `any_audience = true`, and not both",
            );
            return None;
        }
        let organization = match (claim, preset) {
            (Some(claim), None) => OrganizationSource::Claim(claim),
            (None, Some(preset)) => OrganizationSource::Preset(preset.into()),
            _ => {
                problems.add(
                    &at,
                    "[issuer] needs `organization_claim` or `preset`, and not both",
                );
                return None;
            }
        };
        let introspection = Self {
            url: url?,
            client,
            audience,
            organization,
            allow_missing_token_type,
            service_accounts,
            canary: canary.ok()?,
            environment,
        };
        check(|read| introspection.verifier(read), &at, problems);
        Some(introspection)
    }

    pub(super) fn verifier(&self, read: ReadSecret<'_>) -> Result<BoxVerifier, String> {
        let mut endpoint = endpoint(&self.url, self.environment.as_ref());
        if let Some((id, secret)) = &self.client {
            endpoint = endpoint.client_credentials(id, read(secret)?.as_str());
        }
        let endpoint = endpoint.build().map_err(|error| error.to_string())?;
        let builder = IntrospectionVerifier::builder(endpoint);
        let mut builder = match &self.audience {
            Some(audience) => builder.audience(audience),
            None => builder.any_audience(),
        };
        builder = match &self.organization {
            OrganizationSource::Claim(name) => builder.organization_claim(name),
            OrganizationSource::Preset(preset) => builder.preset(*preset),
        };
        if self.allow_missing_token_type {
            builder = builder.allow_missing_token_type();
        }
        if self.service_accounts {
            builder = builder.service_accounts();
        }
        if let Some(canary) = &self.canary {
            builder = builder.canary(read(canary)?.as_str());
        }
        let built = builder.build();
        built
            .map(Verifier::boxed)
            .map_err(|error| error.to_string())
    }
}

/// An issuer that is called with one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithToken {
    /// The vendor.
    pub vendor: Vendor,
    /// The URL of its endpoint, if it is not the vendor's.
    pub url: Option<String>,
    /// The secret key of WorkOS, or the root key of Unkey.
    pub token: SecretSource,
    /// The environment of the issuer, for a fleet.
    pub environment: Option<String>,
}

/// A vendor, and what only this one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// WorkOS.
    WorkOs,
    /// Unkey, and the member of `meta` with the organization.
    Unkey(Option<String>),
}

impl WithToken {
    pub(super) fn read_workos(section: Section<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        Self::read(section, Vendor::WorkOs, problems)
    }

    pub(super) fn read_unkey(
        mut section: Section<'_>,
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let member = value(section.optional("organization_in_meta", problems));
        Self::read(section, Vendor::Unkey(member), problems)
    }

    fn read(mut section: Section<'_>, vendor: Vendor, problems: &mut Problems<'_>) -> Option<Self> {
        let url = value(section.optional("url", problems));
        let token = required_secret(&mut section, TOKEN, problems);
        let environment = value(section.optional("environment", problems));
        let at = section.span.clone();
        section.finish(problems);
        let issuer = Self {
            vendor,
            url,
            token: token?,
            environment,
        };
        check(|read| issuer.verifier(read), &at, problems);
        Some(issuer)
    }

    pub(super) fn verifier(&self, read: ReadSecret<'_>) -> Result<BoxVerifier, String> {
        let token = read(&self.token)?;
        let vendors = match self.vendor {
            Vendor::WorkOs => WorkOsVerifier::URL,
            Vendor::Unkey(_) => UnkeyVerifier::URL,
        };
        let url = self.url.as_deref().unwrap_or(vendors);
        let endpoint = endpoint(url, self.environment.as_ref()).bearer_token(token.as_str());
        let endpoint = endpoint.build().map_err(|error| error.to_string())?;
        Ok(match &self.vendor {
            Vendor::WorkOs => WorkOsVerifier::with_endpoint(endpoint).boxed(),
            Vendor::Unkey(None) => UnkeyVerifier::with_endpoint(endpoint).boxed(),
            Vendor::Unkey(Some(member)) => UnkeyVerifier::with_endpoint(endpoint)
                .organization_in_meta(member.as_str())
                .boxed(),
        })
    }
}

fn endpoint(url: &str, environment: Option<&String>) -> EndpointBuilder {
    let endpoint = Endpoint::builder(url);
    match environment {
        Some(environment) => endpoint.environment(environment),
        None => endpoint,
    }
}

/// Reports what is wrong with a verifier, which knows which values are valid. Its secrets are read later.
fn check(
    build: impl FnOnce(ReadSecret<'_>) -> Result<BoxVerifier, String>,
    at: &Range<usize>,
    problems: &mut Problems<'_>,
) {
    let unread = |_: &SecretSource| Ok(Zeroizing::new("unread-secret".to_owned()));
    if let Err(error) = build(&unread) {
        problems.add(at, format!("[issuer] {error}"));
    }
}
