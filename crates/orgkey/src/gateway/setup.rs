//! What the gateway is made of: reads secrets, and builds the layer.

use std::path::Path;

use tower_orgkey::ApiKeyLayer;
use zeroize::Zeroizing;

use super::admin::AdminToken;
use super::assertion::Signer;
use super::config::{Config, SecretSource, prefix_verifier};

/// The parts that need secrets.
pub(super) struct Setup {
    pub(super) layer: ApiKeyLayer,
    pub(super) admin_token: Option<AdminToken>,
    pub(super) signer: Option<Signer>,
}

impl Setup {
    /// Reads the secrets of a configuration. Opens no socket and makes no call.
    ///
    /// # Errors
    ///
    /// All errors. None holds a secret.
    pub(super) fn new(config: &Config) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let layer = layer(config, &mut errors);
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

fn layer(config: &Config, errors: &mut Vec<String>) -> Option<ApiKeyLayer> {
    let mut verifiers = Vec::new();
    for issuer in &config.issuers {
        match issuer.kind.verifier(&secret) {
            Ok(verifier) => verifiers.push(verifier),
            Err(error) => errors.push(format!("[issuer] {error}")),
        }
    }
    let built = match (verifiers.as_slice(), config.issuers.as_slice()) {
        ([verifier], [_]) => config.layer(verifier.clone()).build(),
        (_, issuers) if verifiers.len() == issuers.len() => {
            prefix_verifier(issuers, config.shared_organizations, verifiers)
                .and_then(|verifier| config.layer(verifier).build())
        }
        _ => return None,
    };
    built.map_err(|error| errors.push(error.to_string())).ok()
}

/// Reads a secret of an issuer.
fn secret(source: &SecretSource) -> Result<Zeroizing<String>, String> {
    match source {
        SecretSource::File(path) => read(path),
        SecretSource::Env(name) => std::env::var(name)
            .map(Zeroizing::new)
            .map_err(|_| format!("the variable `{name}` is not set")),
    }
}

/// Reads a secret from a file, without the white space at its end.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Zeroizing::new(text.trim_end().to_owned()))
}
