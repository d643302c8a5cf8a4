//! The table `[issuer]` of a configuration: read to know what to ask, and printed with what the answers recommend.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tower_orgkey::ConfigError;
use tower_orgkey::kinde::KindeVerifier;

use super::secret::Secret;
use crate::meaning::Meaning;

/// An issuer of keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuerTable {
    /// With several issuers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// With several issuers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefixes: Option<Vec<String>>,
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) client_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_secret_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_secret_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audience: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unauthorized_means: Option<Meaning>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Kinde,
}

impl IssuerTable {
    /// Returns the origin, without a slash at its end.
    pub(crate) fn origin(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    pub(crate) fn default_audience(&self) -> String {
        format!("{}/api", self.origin())
    }

    pub(crate) fn audience(&self) -> String {
        let audience = self.audience.clone();
        audience.unwrap_or_else(|| self.default_audience())
    }

    /// Reads the client secret. The error names neither the file nor the variable: it may be the secret itself, misplaced.
    pub(crate) fn secret(&self) -> Result<Secret, String> {
        match (&self.client_secret_file, &self.client_secret_env) {
            (Some(path), None) => {
                Secret::of_file(path).map_err(|error| format!("client_secret_file: {error}"))
            }
            (None, Some(name)) => match Secret::of_env(name) {
                Ok(Some(secret)) => Ok(secret),
                Ok(None) => {
                    Err("client_secret_env: the environment variable is not set".to_owned())
                }
                Err(error) => Err(format!("client_secret_env: {error}")),
            },
            _ => Err("either client_secret_file or client_secret_env is required".to_owned()),
        }
    }

    /// Returns whether the gateway sends a key to this issuer, which has the longest prefix of the key among those of all issuers.
    pub(crate) fn is_asked_about(&self, key: &Secret, other_prefixes: &[String]) -> bool {
        let longest = |prefixes: &[String]| {
            let prefixes = prefixes.iter().map(String::as_str);
            let prefixes = prefixes.filter(|prefix| key.expose().starts_with(prefix));
            prefixes.map(str::len).max()
        };
        let own = self.prefixes.as_deref();
        own.is_none_or(|own| longest(own) > longest(other_prefixes))
    }

    /// Returns the verifier that this table describes.
    pub(crate) fn verifier(&self, secret: &Secret) -> Result<KindeVerifier, ConfigError> {
        let mut builder =
            KindeVerifier::builder(&self.url).client_credentials(&self.client_id, secret.expose());
        if let Some(audience) = &self.audience {
            builder = builder.audience(audience);
        }
        if let Some(api_id) = &self.api_id {
            builder = builder.api_id(api_id);
        }
        if let Some(meaning) = self.unauthorized_means {
            builder = builder.unauthorized_means(meaning.into());
        }
        builder.build()
    }

    /// Returns the lines of the configuration.
    pub(crate) fn lines(&self) -> Result<String, toml::ser::Error> {
        #[derive(Serialize)]
        struct File<T> {
            issuer: T,
        }

        if self.name.is_some() {
            toml::to_string(&File { issuer: [self] })
        } else {
            toml::to_string(&File { issuer: self })
        }
    }
}

/// What the doctor reads of a configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct File {
    issuer: OneOrSeveral,
    #[serde(default)]
    organizations: Sharing,
    /// Whether the gateway signs assertions, which are valid for a minute.
    identity: Option<toml::Table>,
}

/// The issuer to examine, and what else of the configuration matters.
pub(crate) struct Selected {
    pub(crate) issuer: IssuerTable,
    /// The prefixes of the keys of all other issuers.
    pub(crate) other_prefixes: Vec<String>,
    /// Whether the gateway signs assertions.
    pub(crate) has_identity: bool,
}

/// Whether several issuers have the same organizations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sharing {
    #[default]
    Separate,
    Shared,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrSeveral {
    // Not the type itself, because its errors would get lost.
    One(toml::Table),
    Several(Vec<toml::Table>),
}

impl File {
    /// Reads the issuer with this URL, or the only one.
    pub(crate) fn read(path: &Path, url: Option<&str>) -> Result<Selected, String> {
        named(path, |text| Self::parse(text, url))
    }

    /// Reads all issuers, and whether they have the same organizations.
    pub(crate) fn read_all(path: &Path) -> Result<(Vec<IssuerTable>, bool), String> {
        named(path, |text| {
            let (issuers, file) = Self::issuers(text)?;
            Ok((issuers, file.organizations == Sharing::Shared))
        })
    }

    fn issuers(text: &str) -> Result<(Vec<IssuerTable>, Self), String> {
        // The message alone: the whole error quotes a line, which may hold a misplaced secret.
        let file: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let tables = match &file.issuer {
            OneOrSeveral::One(table) => std::slice::from_ref(table),
            OneOrSeveral::Several(tables) => tables,
        };
        let issuers = tables.iter().map(|table| {
            let issuer: Result<IssuerTable, _> = table.clone().try_into();
            issuer.map_err(|error| format!("[issuer]: {}", error.message()))
        });
        let issuers = issuers.collect::<Result<Vec<_>, _>>()?;
        Ok((issuers, file))
    }

    fn parse(text: &str, url: Option<&str>) -> Result<Selected, String> {
        let (issuers, file) = Self::issuers(text)?;
        let same = |issuer: &IssuerTable| {
            url.is_none_or(|url| url.trim_end_matches('/') == issuer.origin())
        };
        let (selected, others): (Vec<_>, Vec<_>) = issuers.into_iter().partition(same);
        let mut selected = selected.into_iter();
        match (selected.next(), selected.next()) {
            (Some(issuer), None) => Ok(Selected {
                issuer,
                other_prefixes: others
                    .into_iter()
                    .flat_map(|other| other.prefixes.unwrap_or_default())
                    .collect(),
                has_identity: file.identity.is_some(),
            }),
            (None, _) => Err("there is no such issuer".to_owned()),
            (Some(_), Some(_)) => {
                Err("there are several issuers; --issuer URL selects one".to_owned())
            }
        }
    }
}

/// Reads a file. Errors name it.
fn named<T>(path: &Path, read: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| read(&text))
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"
        [listen]
        checks = "127.0.0.1:8080"
        [issuer]
        kind = "kinde"
        url = "https://a.kinde.com/"
        client_id = "id"
        client_secret_env = "SECRET"
    "#;

    #[test]
    fn only_the_issuer_is_read() {
        let selected = File::parse(ONE, None).unwrap();
        let issuer = selected.issuer;
        assert_eq!(issuer.audience(), "https://a.kinde.com/api");
        assert!(!selected.has_identity);
        let lines = issuer.lines().unwrap();
        assert_eq!(File::parse(&lines, None).unwrap().issuer, issuer);
        let identity = format!("{ONE}\n[identity]\nassertion_audience = \"x\"");
        assert!(File::parse(&identity, None).unwrap().has_identity);
    }

    #[test]
    fn url_selects_one_of_several_issuers() {
        let table = |name: &str| {
            let table = ONE.split("[issuer]").nth(1).unwrap();
            let table = table.replace("a.kinde", &format!("{name}.kinde"));
            format!("[[issuer]]\nname = \"{name}\"\nprefixes = [\"{name}_\"]{table}")
        };
        let two = table("a") + &table("b");
        assert!(File::parse(&two, None).is_err());
        let selected = File::parse(&two, Some("https://b.kinde.com")).unwrap();
        assert_eq!(selected.issuer.name.as_deref(), Some("b"));
        assert!(selected.issuer.lines().unwrap().starts_with("[[issuer]]"));
        assert_eq!(selected.other_prefixes, ["a_"]);
        assert!(File::parse(&two, Some("https://c.kinde.com")).is_err());
    }

    #[test]
    fn longest_prefix_decides_who_is_asked() {
        let mut issuer = File::parse(ONE, None).unwrap().issuer;
        let others = ["k_live_".to_owned(), "x".to_owned()];
        let mut is_asked = |prefixes: Option<&[&str]>, key: &str| {
            let prefixes = prefixes.map(|own| own.iter().map(|&own| own.to_owned()).collect());
            issuer.prefixes = prefixes;
            issuer.is_asked_about(&Secret::new(key), &others)
        };
        assert!(is_asked(None, "any"));
        assert!(is_asked(Some(&["k_"]), "k_test_1"));
        assert!(!is_asked(Some(&["k_"]), "k_live_1"));
        assert!(is_asked(Some(&["k_live_eu_", "k_"]), "k_live_eu_1"));
        assert!(!is_asked(Some(&["k_"]), "other"));
        // An empty prefix matches all keys that no longer prefix matches.
        assert!(is_asked(Some(&[""]), "other"));
        assert!(!is_asked(Some(&[""]), "x1"));
    }

    #[test]
    fn errors_quote_no_value() {
        for wrong in [
            ONE.replace("client_secret_env", "client_secret"),
            ONE.replace("\"SECRET\"", "SECRET"),
        ] {
            let error = File::parse(&wrong, None).err().unwrap();
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}
