//! The tables `[issuer]` and `[[issuer]]`.

use std::iter;

use serde::Deserialize;
use toml::Spanned;
use tower_orgkey::kinde::{KindeVerifier, KindeVerifierBuilder, UnauthorizedMeans};
use tower_orgkey::verify::{BoxVerifier, Organizations};
use tower_orgkey::{ConfigError, PrefixVerifier, Verification, Verifier, verifier_fn};

use super::other_issuers::{Introspection, WithToken};
use super::section::{Problems, Section};
use super::value;
use super::values::SecretSource;
use crate::meaning::Meaning;

/// An issuer of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The name, with several issuers.
    pub name: String,
    /// How its keys begin, with several issuers.
    pub prefixes: Vec<String>,
    /// The issuer itself.
    pub kind: IssuerKind,
}

/// An issuer, and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerKind {
    /// Kinde.
    Kinde(Kinde),
    /// A server with token introspection.
    Introspection(Introspection),
    /// WorkOS or Unkey.
    WithToken(WithToken),
}

/// Reads a secret.
pub(in crate::gateway) type ReadSecret<'a> =
    &'a dyn Fn(&SecretSource) -> Result<zeroize::Zeroizing<String>, String>;

impl IssuerKind {
    /// Returns the verifier.
    ///
    /// # Errors
    ///
    /// The text for an operator. Names the invalid setting, never its value.
    pub(in crate::gateway) fn verifier(&self, read: ReadSecret<'_>) -> Result<BoxVerifier, String> {
        match self {
            Self::Kinde(kinde) => {
                let secret = read(&kinde.client_secret)?;
                let built = kinde.verifier(&secret).build();
                built
                    .map(Verifier::boxed)
                    .map_err(|error| error.to_string())
            }
            Self::Introspection(introspection) => introspection.verifier(read),
            Self::WithToken(issuer) => issuer.verifier(read),
        }
    }
}

/// A Kinde environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinde {
    /// The URL of the issuer.
    pub url: String,
    /// The id of this application at the issuer.
    pub client_id: String,
    /// Where the secret of this application is.
    pub client_secret: SecretSource,
    /// The API that keys must be issued for.
    pub api_id: Option<String>,
    /// The audience of access tokens, unless it is `<url>/api`.
    pub audience: Option<String>,
    /// What a 401 or 403 from verify is about.
    pub unauthorized_means: UnauthorizedMeans,
}

impl Kinde {
    /// Returns the builder of the verifier.
    pub(in crate::gateway) fn verifier(&self, secret: &str) -> KindeVerifierBuilder {
        let mut builder = KindeVerifier::builder(&self.url)
            .client_credentials(&self.client_id, secret)
            .unauthorized_means(self.unauthorized_means);
        if let Some(api_id) = &self.api_id {
            builder = builder.api_id(api_id);
        }
        if let Some(audience) = &self.audience {
            builder = builder.audience(audience);
        }
        builder
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Kinde,
    Introspection,
    Workos,
    Unkey,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sharing {
    Separate,
    Shared,
}

/// Returns the issuers, and whether they have the same organizations.
pub(super) fn issuers(root: &mut Section<'_>, problems: &mut Problems<'_>) -> (Vec<Issuer>, bool) {
    let sections = root.tables("issuer", "[issuer]", problems);
    let organizations: Option<Spanned<Sharing>> = root.optional("organizations", problems);
    let count = sections.len();
    if count == 0 {
        problems.add(&(0..0), "the table [issuer] is missing");
    }
    let last = sections.last().map(|section| section.span.clone());
    let issuers: Vec<_> = sections
        .into_iter()
        .filter_map(|section| issuer(section, count > 1, problems))
        .collect();
    let is_shared = value(organizations).unwrap_or(Sharing::Separate) == Sharing::Shared;
    if let (true, Some(last)) = (count > 1 && issuers.len() == count, last) {
        let invalid = verifier_fn(|_| async { Ok(Verification::invalid()) });
        let trial = prefix_verifier(&issuers, is_shared, iter::repeat(invalid));
        if let Err(error) = trial {
            problems.add(&last, format!("[[issuer]] {error}"));
        }
    }
    (issuers, is_shared)
}

/// Returns the verifier for several issuers, of which `verifiers` has one for each.
pub(in crate::gateway) fn prefix_verifier<V: Verifier>(
    issuers: &[Issuer],
    is_shared: bool,
    verifiers: impl IntoIterator<Item = V>,
) -> Result<PrefixVerifier, ConfigError> {
    let organizations = if is_shared {
        Organizations::Shared
    } else {
        Organizations::Separate
    };
    let pairs = issuers.iter().zip(verifiers);
    let builder = pairs.fold(PrefixVerifier::builder(), |builder, (issuer, verifier)| {
        let prefixes = issuer.prefixes.iter().cloned();
        builder.issuer(issuer.name.as_str(), prefixes, verifier)
    });
    builder.organizations(organizations).build()
}

fn issuer(
    mut section: Section<'_>,
    is_one_of_several: bool,
    problems: &mut Problems<'_>,
) -> Option<Issuer> {
    let (name, prefixes) = if is_one_of_several {
        let name = value(section.required("name", problems));
        (name, value(section.required("prefixes", problems)))
    } else {
        (Some(String::new()), Some(Vec::new()))
    };
    let kind = match section.required::<Kind>("kind", problems)?.into_inner() {
        Kind::Kinde => kinde(section, problems).map(IssuerKind::Kinde),
        Kind::Introspection => {
            Introspection::read(section, problems).map(IssuerKind::Introspection)
        }
        Kind::Workos => WithToken::read_workos(section, problems).map(IssuerKind::WithToken),
        Kind::Unkey => WithToken::read_unkey(section, problems).map(IssuerKind::WithToken),
    };
    Some(Issuer {
        name: name?,
        prefixes: prefixes?,
        kind: kind?,
    })
}

fn kinde(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Kinde> {
    let url: Option<Spanned<String>> = section.required("url", problems);
    let client_id: Option<Spanned<String>> = section.required("client_id", problems);
    let client_secret = required_secret(&mut section, CLIENT_SECRET, problems);
    let api_id: Option<Spanned<String>> = section.optional("api_id", problems);
    let audience: Option<Spanned<String>> = section.optional("audience", problems);
    let means: Option<Spanned<Meaning>> = section.optional("unauthorized_means", problems);
    let texts = [&url, &client_id, &api_id, &audience];
    let spans = texts.map(|text| text.as_ref().map(Spanned::span));
    let at = section.span.clone();
    section.finish(problems);
    let kinde = Kinde {
        url: value(url)?,
        client_id: value(client_id)?,
        client_secret: client_secret?,
        api_id: value(api_id),
        audience: value(audience),
        unauthorized_means: value(means).unwrap_or_default().into(),
    };
    // The verifier knows which values are valid. The secret is read later.
    if let Err(error) = kinde.verifier("unread").build() {
        let [url, client_id, api_id, audience] = spans;
        let span = match error.field() {
            "issuer" => url,
            "client_credentials" => client_id,
            "api_id" => api_id,
            "audience" => audience,
            _ => None,
        };
        problems.add(&span.unwrap_or(at), format!("[issuer] {error}"));
    }
    Some(kinde)
}

/// The keys for the file and the variable of a secret.
pub(super) type SecretKeys = [&'static str; 2];

pub(super) const CLIENT_SECRET: SecretKeys = ["client_secret_file", "client_secret_env"];

pub(super) fn required_secret(
    section: &mut Section<'_>,
    keys: SecretKeys,
    problems: &mut Problems<'_>,
) -> Option<SecretSource> {
    let [file, env] = keys;
    let secret = optional_secret(section, keys, problems).ok()?;
    if secret.is_none() {
        let message = format!("[issuer] needs `{file}` or `{env}`, and not both");
        problems.add(&section.span.clone(), message);
    }
    secret
}

/// An error that was added to the problems.
pub(super) struct Reported;

/// Returns a secret or none. An error if there are both.
pub(super) fn optional_secret(
    section: &mut Section<'_>,
    [file_key, env_key]: SecretKeys,
    problems: &mut Problems<'_>,
) -> Result<Option<SecretSource>, Reported> {
    let file = value(section.optional(file_key, problems));
    let env = value(section.optional(env_key, problems));
    match (file, env) {
        (Some(file), None) => Ok(Some(SecretSource::File(file))),
        (None, Some(variable)) => Ok(Some(SecretSource::Env(variable))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            let message = format!("needs `{file_key}` or `{env_key}`, and not both");
            problems.add(&section.span.clone(), message);
            Err(Reported)
        }
    }
}
