//! What the gateway is made of: reads secrets, and builds the layer.

use std::path::Path;

use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, ConfigError, Verifier};
use tower_orgkey_fleet::{Fleet, FleetSecret};
use zeroize::Zeroizing;

use super::admin::AdminToken;
use super::assertion::Signer;
use super::config::{Config, Issuer, SecretSource, prefix_verifier};

/// The parts that need secrets.
pub(super) struct Setup {
    pub(super) layer: ApiKeyLayer,
    pub(super) admin_token: Option<AdminToken>,
    pub(super) signer: Option<Signer>,
    pub(super) fleet: Option<Fleet>,
}

impl Setup {
    /// Reads the secrets of a configuration. Opens no socket and makes no call.
    ///
    /// # Errors
    ///
    /// All errors. None holds a secret.
    pub(super) fn new(config: &Config) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let fleet = fleet(config).unwrap_or_else(|error| {
            errors.push(format!("[fleet] {error}"));
            None
        });
        let layer = layer(config, fleet.as_ref(), &mut errors);
        let admin_token = match &config.listen.admin_token_file {
            None => None,
            Some(path) => match read(path).and_then(AdminToken::new) {
                Ok(token) => Some(token),
                Err(error) => {
                    errors.push(format!("`admin_token_file`: {error}"));
                    None
                }
            },
        };
        let signer = signer(config).unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        match layer {
            Some(layer) if errors.is_empty() => Ok(Self {
                layer,
                admin_token,
                signer,
                fleet,
            }),
            _ => Err(errors),
        }
    }
}

/// Returns what signs assertions, if the configuration has them.
pub(super) fn signer(config: &Config) -> Result<Option<Signer>, String> {
    let Some(identity) = &config.identity else {
        return Ok(None);
    };
    let of_file = |error: &str| format!("`assertion_key_file`: {error}");
    let pem = read(&identity.key_file).map_err(|error| of_file(&error))?;
    let signer = Signer::new(&pem, identity.issuer.clone(), &identity.audience);
    signer.map(Some).map_err(of_file)
}

fn fleet(config: &Config) -> Result<Option<Fleet>, String> {
    let Some(fleet) = &config.fleet else {
        return Ok(None);
    };
    let secret = read(&fleet.secret_file)?;
    let secret = FleetSecret::from_base64(&secret);
    let secret = secret.map_err(|error| format!("`secret_file`: {error}, in base64"))?;
    let built = fleet.builder(secret).build();
    built.map(Some).map_err(|error| error.to_string())
}

fn layer(config: &Config, fleet: Option<&Fleet>, errors: &mut Vec<String>) -> Option<ApiKeyLayer> {
    let mut verifiers = Vec::new();
    for issuer in &config.issuers {
        match verifier(issuer) {
            Ok(verifier) => verifiers.push(verifier),
            Err(error) => errors.push(format!("[issuer] {error}")),
        }
    }
    let built = match (verifiers.as_slice(), config.issuers.as_slice()) {
        ([verifier], [_]) => build(config, fleet, verifier.clone()),
        (_, issuers) if verifiers.len() == issuers.len() => {
            prefix_verifier(issuers, config.shared_organizations, verifiers)
                .and_then(|verifier| build(config, fleet, verifier))
        }
        _ => return None,
    };
    built.map_err(|error| errors.push(error.to_string())).ok()
}

fn build(
    config: &Config,
    fleet: Option<&Fleet>,
    verifier: impl Verifier,
) -> Result<ApiKeyLayer, ConfigError> {
    let builder = config.keys.layer(verifier);
    match fleet {
        Some(fleet) => builder.fleet(fleet).build(),
        None => builder.build(),
    }
}

fn verifier(issuer: &Issuer) -> Result<KindeVerifier, String> {
    let secret = match &issuer.kinde.client_secret {
        SecretSource::File(path) => read(path)?,
        SecretSource::Env(name) => Zeroizing::new(
            std::env::var(name).map_err(|_| format!("the variable `{name}` is not set"))?,
        ),
    };
    let builder = issuer.kinde.verifier(&secret);
    builder.build().map_err(|error| error.to_string())
}

/// Reads a secret from a file, without the white space at its end.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Zeroizing::new(text.trim_end().to_owned()))
}
