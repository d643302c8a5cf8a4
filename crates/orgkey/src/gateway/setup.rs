//! What the gateway is made of: reads secrets, and builds the layer.

use std::path::Path;

use tower_orgkey::{ApiKeyLayer, ConfigError, Verifier};
use tower_orgkey_audit::PseudonymKey;
use tower_orgkey_fleet::{Fleet, FleetSecret};
use zeroize::Zeroizing;

use super::admin::AdminToken;
use super::assertion::Signer;
use super::config::{Config, SecretSource, prefix_verifier};
use super::decision;
use super::region::Regions;

/// The parts that need secrets.
pub(super) struct Setup {
    pub(super) layer: ApiKeyLayer,
    pub(super) admin_token: Option<AdminToken>,
    pub(super) signer: Option<Signer>,
    pub(super) regions: Option<Regions>,
    pub(super) pseudonyms: Option<PseudonymKey>,
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
        let regions = config.region.as_ref().and_then(|region| {
            let regions = Regions::new(region);
            regions.map_err(|error| errors.push(error)).ok()
        });
        let fleet = fleet(config).unwrap_or_else(|error| {
            errors.push(format!("[fleet] {error}"));
            None
        });
        let layer = layer(config, fleet.as_ref(), regions.as_ref(), &mut errors);
        let pseudonyms = pseudonyms(config).unwrap_or_else(|error| {
            errors.push(format!("`pseudonym_key_file`: {error}"));
            None
        });
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
                regions,
                pseudonyms,
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
    let mut signer = signer.map_err(of_file)?;
    for file in &identity.other_key_files {
        let of_file = |error: &str| format!("`assertion_other_key_files`: {error}");
        let pem = read(file).map_err(|error| of_file(&error))?;
        let added = signer.add_to_key_set(&pem);
        added.map_err(|error| of_file(&format!("{}: {error}", file.display())))?;
    }
    Ok(Some(signer))
}

fn pseudonyms(config: &Config) -> Result<Option<PseudonymKey>, String> {
    let file = config
        .audit
        .as_ref()
        .and_then(|audit| audit.pseudonym_key_file.as_ref());
    let Some(file) = file else {
        return Ok(None);
    };
    let key = PseudonymKey::new(read(file)?.as_bytes());
    key.map(Some).map_err(|error| error.to_string())
}

fn fleet(config: &Config) -> Result<Option<Fleet>, String> {
    let Some(fleet) = &config.fleet else {
        return Ok(None);
    };
    let secret = read(&fleet.secret_file)?;
    let secret = FleetSecret::from_base64(&secret);
    let secret = secret.map_err(|error| format!("`secret_file`: {error}, in base64"))?;
    let read = |source: &Option<SecretSource>| source.as_ref().map(self::secret).transpose();
    let (password, of_sentinels) = (read(&fleet.password)?, read(&fleet.sentinel_password)?);
    let builder = fleet.builder(
        secret,
        password.as_ref().map(|password| password.as_str()),
        of_sentinels.as_ref().map(|password| password.as_str()),
    );
    let builder = builder.ok_or_else(|| "a URL cannot have a password".to_owned())?;
    builder.build().map(Some).map_err(|error| error.to_string())
}

fn layer(
    config: &Config,
    fleet: Option<&Fleet>,
    regions: Option<&Regions>,
    errors: &mut Vec<String>,
) -> Option<ApiKeyLayer> {
    let mut verifiers = Vec::new();
    for issuer in &config.issuers {
        match issuer.kind.verifier(&secret) {
            Ok(verifier) => verifiers.push(verifier),
            Err(error) => errors.push(format!("[issuer] {error}")),
        }
    }
    let built = match (verifiers.as_slice(), config.issuers.as_slice()) {
        ([verifier], [_]) => build(config, fleet, regions, verifier.clone()),
        (_, issuers) if verifiers.len() == issuers.len() => {
            prefix_verifier(issuers, config.shared_organizations, verifiers)
                .and_then(|verifier| build(config, fleet, regions, verifier))
        }
        _ => return None,
    };
    built.map_err(|error| errors.push(error.to_string())).ok()
}

fn build(
    config: &Config,
    fleet: Option<&Fleet>,
    regions: Option<&Regions>,
    verifier: impl Verifier,
) -> Result<ApiKeyLayer, ConfigError> {
    let mut builder = config.layer(verifier).peer_address(decision::client);
    if let Some(regions) = regions {
        builder = builder.reject_before_lookup(regions.hint());
    }
    if let Some(fleet) = fleet {
        builder = builder.fleet(fleet);
    }
    builder.build()
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
