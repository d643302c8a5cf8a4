//! The tables `[issuer]` and `[[issuer]]`.

use std::iter;

use serde::Deserialize;
use toml::Spanned;
use tower_orgkey::kinde::{KindeVerifier, KindeVerifierBuilder, UnauthorizedMeans};
use tower_orgkey::verify::Organizations;
use tower_orgkey::{ConfigError, PrefixVerifier, Verification, Verifier, verifier_fn};

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
    pub kinde: Kinde,
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
    let kind = section.required::<Kind>("kind", problems);
    let url: Option<Spanned<String>> = section.required("url", problems);
    let client_id: Option<Spanned<String>> = section.required("client_id", problems);
    let client_secret = secret(&mut section, problems);
    let api_id: Option<Spanned<String>> = section.optional("api_id", problems);
    let audience: Option<Spanned<String>> = section.optional("audience", problems);
    let means: Option<Spanned<Meaning>> = section.optional("unauthorized_means", problems);
    let (name, prefixes) = if is_one_of_several {
        let name = value(section.required("name", problems));
        (name, value(section.required("prefixes", problems)))
    } else {
        (Some(String::new()), Some(Vec::new()))
    };
    let texts = [&url, &client_id, &api_id, &audience];
    let spans = texts.map(|text| text.as_ref().map(Spanned::span));
    let at = section.span.clone();
    section.finish(problems);
    let kinde = match kind?.into_inner() {
        Kind::Kinde => Kinde {
            url: value(url)?,
            client_id: value(client_id)?,
            client_secret: client_secret?,
            api_id: value(api_id),
            audience: value(audience),
            unauthorized_means: value(means).unwrap_or_default().into(),
        },
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
    Some(Issuer {
        name: name?,
        prefixes: prefixes?,
        kinde,
    })
}

fn secret(section: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<SecretSource> {
    let file = value(section.optional("client_secret_file", problems));
    let env = value(section.optional("client_secret_env", problems));
    match (file, env) {
        (Some(file), None) => Some(SecretSource::File(file)),
        (None, Some(variable)) => Some(SecretSource::Env(variable)),
        _ => {
            let message =
                "[issuer] needs `client_secret_file` or `client_secret_env`, and not both";
            problems.add(&section.span.clone(), message);
            None
        }
    }
}
