//! The table `[fleet]`.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use tower_orgkey_fleet::{Fleet, FleetBuilder, FleetSecret};

use super::section::{Problems, Section};
use super::value;

/// The other gateways that share results and revocations with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The name of the fleet, the same for all nodes.
    pub name: String,
    /// The URL of the engine.
    pub redis: EngineUrl,
    /// The file with the secret of the fleet, in base64.
    pub secret_file: PathBuf,
    /// The name of this node. Random by default.
    pub node_name: Option<String>,
}

/// A URL that may contain a password, so `Debug` prints `EngineUrl(…)`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct EngineUrl(String);

impl fmt::Debug for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineUrl(…)")
    }
}

impl FleetConfig {
    /// Returns the builder of the fleet.
    pub(in crate::gateway) fn builder(&self, secret: FleetSecret) -> FleetBuilder {
        let builder = Fleet::builder(&self.name)
            .redis(&self.redis.0)
            .secret(secret);
        match &self.node_name {
            Some(name) => builder.node_name(name),
            None => builder,
        }
    }
}

pub(super) fn fleet(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<FleetConfig> {
    let mut section = root.table("fleet", "[fleet]", problems)?;
    let name: Option<Spanned<String>> = section.required("name", problems);
    let redis: Option<Spanned<EngineUrl>> = section.required("redis", problems);
    let secret_file = value(section.required("secret_file", problems));
    let node_name: Option<Spanned<String>> = section.optional("node_name", problems);
    let at = |span: Option<std::ops::Range<usize>>| span.unwrap_or(section.span.clone());
    let spans = (
        at(name.as_ref().map(Spanned::span)),
        at(redis.as_ref().map(Spanned::span)),
        at(node_name.as_ref().map(Spanned::span)),
    );
    section.finish(problems);
    let fleet = FleetConfig {
        name: value(name)?,
        redis: value(redis)?,
        secret_file: secret_file?,
        node_name: value(node_name),
    };
    // The fleet knows which settings are valid.
    let trial = FleetSecret::new(&[0; 32]).ok()?;
    if let Err(error) = fleet.builder(trial).build() {
        let span = match error.field() {
            "name" => spans.0,
            "redis" => spans.1,
            _ => spans.2,
        };
        problems.add(&span, format!("[fleet] {error}"));
    }
    Some(fleet)
}
