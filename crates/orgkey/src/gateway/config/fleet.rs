//! The table `[fleet]`.

use std::num::NonZeroUsize;
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
const SENTINEL_PASSWORD: SecretKeys = ["sentinel_password_file", "sentinel_password_env"];

/// The other gateways that share results and revocations with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// The name of the fleet, the same for all nodes.
    pub name: String,
    /// The URL of the engine, without a password. With sentinels, its host is the name that they have for the primary.
    pub redis: String,
    /// The password for it.
    pub password: Option<SecretSource>,
    /// The URLs of sentinels, without passwords. Empty if `redis` has the host of the engine.
    pub sentinels: Vec<String>,
    /// The password of all sentinels.
    pub sentinel_password: Option<SecretSource>,
    /// The file with the secret of the fleet, in base64.
    pub secret_file: PathBuf,
    /// The name of this node. Random by default.
    pub node_name: Option<String>,
    /// How many nodes the fleet has, this one included. `None` if that is not known.
    pub expected_nodes: Option<NonZeroUsize>,
}

impl FleetConfig {
    /// Returns the builder of the fleet. `None` if a URL cannot have its password.
    pub(in crate::gateway) fn builder(
        &self,
        secret: FleetSecret,
        password: Option<&str>,
        sentinel_password: Option<&str>,
    ) -> Option<FleetBuilder> {
        let builder = Fleet::builder(&self.name).secret(secret);
        let redis = with_password(&self.redis, password)?;
        let builder = if self.sentinels.is_empty() {
            builder.redis(&redis)
        } else {
            let sentinels = self.sentinels.iter();
            let sentinels = sentinels.map(|url| with_password(url, sentinel_password));
            let sentinels = sentinels.collect::<Option<Vec<_>>>()?;
            builder.redis_with_sentinels(&redis, sentinels.iter().map(|url| url.as_str()))
        };
        Some(match &self.node_name {
            Some(name) => builder.node_name(name),
            None => builder,
        })
    }

    /// Whether the password and the names of what is stored cross the network unencrypted.
    pub(super) fn is_plain_and_remote(&self) -> bool {
        let is_plain = |url: &String| url.starts_with("redis:");
        // Only the sentinels know where the engine is.
        let is_remote = !self.sentinels.is_empty() || !is_local(&self.redis);
        let of_sentinel = |url: &String| is_plain(url) && !is_local(url);
        is_remote && is_plain(&self.redis) || self.sentinels.iter().any(of_sentinel)
    }
}

fn is_local(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else {
        return true;
    };
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || ip.is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn with_password(url: &str, password: Option<&str>) -> Option<Zeroizing<String>> {
    let Some(password) = password else {
        return Some(Zeroizing::new(url.to_owned()));
    };
    let mut url = Url::parse(url).ok()?;
    url.set_password(Some(password)).ok()?;
    Some(Zeroizing::new(String::from(url)))
}

fn has_password(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.password().is_some())
}

pub(super) fn fleet(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<FleetConfig> {
    let mut section = root.table("fleet", "[fleet]", problems)?;
    let name: Option<Spanned<String>> = section.required("name", problems);
    let redis: Option<Spanned<String>> = section.required("redis", problems);
    let password = optional_secret(&mut section, PASSWORD, problems);
    let sentinels: Option<Spanned<Vec<String>>> = section.optional("sentinels", problems);
    let sentinel_password = optional_secret(&mut section, SENTINEL_PASSWORD, problems);
    let secret_file = value(section.required("secret_file", problems));
    let node_name: Option<Spanned<String>> = section.optional("node_name", problems);
    let expected_nodes = value(section.optional("expected_nodes", problems));
    let at = |span: Option<std::ops::Range<usize>>| span.unwrap_or(section.span.clone());
    let spans = (
        at(name.as_ref().map(Spanned::span)),
        at(redis.as_ref().map(Spanned::span)),
        at(node_name.as_ref().map(Spanned::span)),
        at(sentinels.as_ref().map(Spanned::span)),
    );
    if sentinels
        .as_ref()
        .is_some_and(|urls| urls.get_ref().is_empty())
    {
        problems.add(&spans.3, "[fleet] `sentinels` must not be empty");
    }
    if sentinels.is_none() && matches!(sentinel_password, Ok(Some(_))) {
        let message =
            "[fleet] `sentinel_password_file` and `sentinel_password_env` need `sentinels`";
        problems.add(&section.span, message);
    }
    section.finish(problems);
    let fleet = FleetConfig {
        name: value(name)?,
        redis: value(redis)?,
        password: password.ok()?,
        sentinels: value(sentinels).unwrap_or_default(),
        sentinel_password: sentinel_password.ok()?,
        secret_file: secret_file?,
        node_name: value(node_name),
        expected_nodes,
    };
    // The messages must not show the URLs.
    if has_password(&fleet.redis) {
        let message = "[fleet] `redis` has a password: use `redis_password_file`";
        problems.add(&spans.1, message);
        return None;
    }
    if fleet.sentinels.iter().any(|url| has_password(url)) {
        let message = "[fleet] `sentinels` have a password: use `sentinel_password_file`";
        problems.add(&spans.3, message);
        return None;
    }
    // The fleet knows which settings are valid.
    let trial = FleetSecret::new(&[0; 32]).ok()?;
    let unread = |source: &Option<SecretSource>| source.as_ref().map(|_| "unread");
    let passwords = (unread(&fleet.password), unread(&fleet.sentinel_password));
    let Some(builder) = fleet.builder(trial, passwords.0, passwords.1) else {
        let message = "[fleet] `redis` and `sentinels` must be URLs of hosts, to have a password";
        problems.add(&spans.1, message);
        return None;
    };
    if let Err(error) = builder.build() {
        let span = match error.field() {
            "name" => spans.0,
            "redis" => spans.1,
            "sentinels" => spans.3,
            _ => spans.2,
        };
        problems.add(&span, format!("[fleet] {error}"));
    }
    Some(fleet)
}
