//! The table `[fleet]`.

use std::path::PathBuf;

use toml::Spanned;
use tower_orgkey_fleet::{Fleet, FleetBuilder, FleetSecret};
use url::Url;
use zeroize::Zeroizing;

use super::issuer::{SecretKeys, optional_secret};
use super::section::{Problems, Section};
use super::value;
use super::values::SecretSource;

const PASSWORD: SecretKeys = ["redis_password_file", "redis_password_env"];

/// The other gateways that share results and revocations with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The name of the fleet, the same for all nodes.
    pub name: String,
    /// The URL of the engine, without a password.
    pub redis: String,
    /// The password for it.
    pub password: Option<SecretSource>,
    /// The file with the secret of the fleet, in base64.
    pub secret_file: PathBuf,
    /// The name of this node. Random by default.
    pub node_name: Option<String>,
}

impl FleetConfig {
    /// Returns the builder of the fleet. `None` if the URL cannot have a password.
    pub(in crate::gateway) fn builder(
        &self,
        secret: FleetSecret,
        password: Option<&str>,
    ) -> Option<FleetBuilder> {
        let builder = Fleet::builder(&self.name).secret(secret);
        let builder = match password {
            None => builder.redis(&self.redis),
            Some(password) => {
                let mut url = Url::parse(&self.redis).ok()?;
                url.set_password(Some(password)).ok()?;
                let url = Zeroizing::new(String::from(url));
                builder.redis(&url)
            }
        };
        Some(match &self.node_name {
            Some(name) => builder.node_name(name),
            None => builder,
        })
    }

    /// Whether the password and the names of what is stored cross the network unencrypted.
    pub(super) fn is_plain_and_remote(&self) -> bool {
        let Ok(url) = Url::parse(&self.redis) else {
            return false;
        };
        let host = url.host_str().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
        let is_local = host == "localhost" || ip.is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        url.scheme() == "redis" && !is_local
    }
}

pub(super) fn fleet(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<FleetConfig> {
    let mut section = root.table("fleet", "[fleet]", problems)?;
    let name: Option<Spanned<String>> = section.required("name", problems);
    let redis: Option<Spanned<String>> = section.required("redis", problems);
    let password = optional_secret(&mut section, PASSWORD, problems);
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
        password: password.ok()?,
        secret_file: secret_file?,
        node_name: value(node_name),
    };
    // The message must not show the URL.
    if Url::parse(&fleet.redis).is_ok_and(|url| url.password().is_some()) {
        let message = "[fleet] `redis` has a password: use `redis_password_file`";
        problems.add(&spans.1, message);
        return None;
    }
    // The fleet knows which settings are valid.
    let trial = FleetSecret::new(&[0; 32]).ok()?;
    let unread = fleet.password.as_ref().map(|_| "unread");
    let Some(builder) = fleet.builder(trial, unread) else {
        let message = "[fleet] `redis` must be the URL of a host, to have a password";
        problems.add(&spans.1, message);
        return None;
    };
    if let Err(error) = builder.build() {
        let span = match error.field() {
            "name" => spans.0,
            "redis" => spans.1,
            _ => spans.2,
        };
        problems.add(&span, format!("[fleet] {error}"));
    }
    Some(fleet)
}
