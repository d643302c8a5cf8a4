//! The table `[region]`.

use std::path::PathBuf;

use http::Extensions;
use serde::Deserialize;
use toml::Spanned;
use tower_orgkey::region::{Home, RegionLayer};
use tower_orgkey::{ConfigError, OrgContext};

use super::section::{Problems, Section};
use super::value;

/// Which organizations are served here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The region of this gateway.
    pub here: String,
    /// The other regions.
    pub others: Vec<OtherRegion>,
    /// The file with the region of each organization. Without it, all organizations are at home here.
    pub homes_file: Option<PathBuf>,
    /// Whether organizations that the file does not have are served.
    pub unknown_is_here: bool,
    /// Whether a request for another region gets 403 instead of 421.
    pub is_forbidden: bool,
    /// Whether the audit events of such requests leave out the organization, key, user and address.
    pub minimal_audit: bool,
}

/// A region that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherRegion {
    /// The name of the region.
    pub name: String,
    /// The address of the API there.
    pub base: Option<String>,
    /// How the keys of its organizations begin. They are rejected before the issuer is called.
    pub key_prefixes: Vec<String>,
}

impl Region {
    /// Returns the layer for this table.
    pub(in crate::gateway) fn layer(
        &self,
        home: impl Fn(&OrgContext, &Extensions) -> Home + Send + Sync + 'static,
    ) -> Result<RegionLayer, ConfigError> {
        let mut builder = RegionLayer::builder(self.here.clone(), home);
        for other in &self.others {
            let name = other.name.clone();
            builder = match other.base.clone() {
                Some(base) => builder.region(name, base),
                None => builder.region_without_base(name),
            };
        }
        if self.unknown_is_here {
            builder = builder.unknown_is_here();
        }
        if self.is_forbidden {
            builder = builder.with_forbidden();
        }
        builder.build()
    }
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Unknown {
    Reject,
    Here,
}

pub(super) fn region(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Region> {
    let mut section = root.table("region", "[region]", problems)?;
    let here = value(section.required("here", problems));
    let homes_file = value(section.optional("homes_file", problems));
    let unknown = value(section.optional("unknown", problems)).unwrap_or(Unknown::Reject);
    let status: Option<Spanned<u16>> = section.optional("status", problems);
    if let Some(status) = &status
        && ![403, 421].contains(status.get_ref())
    {
        problems.add(&status.span(), "`status` must be 421 or 403");
    }
    let minimal_audit = value(section.optional("minimal_audit", problems)).unwrap_or_default();
    let others: Vec<_> = section
        .tables("other", "[[region.other]]", problems)
        .into_iter()
        .filter_map(|section| other(section, problems))
        .collect();
    let at = section.span.clone();
    section.finish(problems);
    let region = Region {
        here: here?,
        others,
        homes_file,
        unknown_is_here: unknown == Unknown::Here,
        is_forbidden: value(status) == Some(403),
        minimal_audit,
    };
    // The layer knows which names and addresses are valid.
    if let Err(error) = region.layer(|_, _| Home::Here) {
        problems.add(&at, format!("[region] {error}"));
    }
    let mut prefixes: Vec<_> = region
        .others
        .iter()
        .flat_map(|other| &other.key_prefixes)
        .collect();
    prefixes.sort();
    if prefixes.windows(2).any(|pair| pair[0] == pair[1]) {
        problems.add(&at, "[region] has a prefix of keys twice");
    }
    let has_prefixes = |other: &OtherRegion| !other.key_prefixes.is_empty();
    if region.homes_file.is_none() && !region.others.iter().any(has_prefixes) {
        problems.add(
            &at,
            "[region] needs `homes_file`, or `key_prefixes` of another region",
        );
    }
    Some(region)
}

fn other(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<OtherRegion> {
    let name = value(section.required("name", problems));
    let base = value(section.optional("base", problems));
    let prefixes: Option<Spanned<Vec<String>>> = section.optional("key_prefixes", problems);
    if let Some(prefixes) = &prefixes
        && prefixes.get_ref().iter().any(String::is_empty)
    {
        problems.add(
            &prefixes.span(),
            "a prefix of `key_prefixes` must not be empty",
        );
    }
    section.finish(problems);
    Some(OtherRegion {
        name: name?,
        base,
        key_prefixes: value(prefixes).unwrap_or_default(),
    })
}
