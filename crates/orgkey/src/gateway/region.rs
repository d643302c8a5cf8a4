//! Which organizations are served here: their homes from a file, and the prefixes of keys of other regions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tower_orgkey::region::{Home, RegionLayer};
use tower_orgkey::{ApiKey, OrgCode, Rejection, RequestHead};

use super::config::Region;

/// The homes of organizations.
type Homes = HashMap<OrgCode, Home>;

/// The regions of a gateway.
pub(super) struct Regions {
    pub(super) layer: RegionLayer,
    homes: Arc<ArcSwap<Homes>>,
    prefixes: Arc<[(String, String)]>,
}

impl Regions {
    /// Reads the homes of organizations.
    pub(super) fn new(region: &Region) -> Result<Self, String> {
        let homes = Arc::new(ArcSwap::from_pointee(read(region)?));
        let layer = if region.homes_file.is_some() {
            let homes = Arc::clone(&homes);
            region.layer(move |org, _| match homes.load().get(org.org_code()) {
                Some(home) => home.clone(),
                None => Home::Unknown,
            })
        } else {
            region.layer(|_, _| Home::Here)
        };
        let prefixes = region.others.iter().flat_map(|other| {
            let prefixes = other.key_prefixes.iter();
            prefixes.map(|prefix| (prefix.clone(), other.name.clone()))
        });
        Ok(Self {
            layer: layer.map_err(|error| format!("[region] {error}"))?,
            homes,
            prefixes: prefixes.collect(),
        })
    }

    /// Returns what rejects the keys of other regions before the issuer is called.
    pub(super) fn hint(
        &self,
    ) -> impl Fn(RequestHead<'_>, &ApiKey) -> Option<Rejection> + Send + Sync + 'static {
        let (layer, prefixes) = (self.layer.clone(), Arc::clone(&self.prefixes));
        move |_, key| {
            let key = key.expose_secret();
            let is_of = |(prefix, _): &&(String, String)| key.starts_with(prefix.as_str());
            let (_, region) = prefixes
                .iter()
                .filter(is_of)
                .max_by_key(|(prefix, _)| prefix.len())?;
            Some(layer.wrong_region(region))
        }
    }

    /// Reads the homes of organizations again. Returns what applies them.
    pub(super) fn reload(&self, region: &Region) -> Result<impl FnOnce(), String> {
        let read = read(region)?;
        Ok(|| self.homes.store(Arc::new(read)))
    }
}

/// Reads the file of homes: a TOML table of organizations and their regions.
fn read(region: &Region) -> Result<Homes, String> {
    let Some(path) = &region.homes_file else {
        return Ok(Homes::new());
    };
    let of_file = |error: String| format!("`homes_file`: {}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| of_file(error.to_string()))?;
    let table: BTreeMap<String, String> =
        toml::from_str(&text).map_err(|error| of_file(error.to_string()))?;
    if table.is_empty() && region.unknown_is_here {
        // All organizations would be served here. The file may be being written.
        return Err(of_file("it has no organization".to_owned()));
    }
    let mut homes = Homes::with_capacity(table.len());
    for (org, name) in table {
        let code = OrgCode::new(org.as_str())
            .map_err(|error| of_file(format!("`{}`: {error}", org.escape_debug())))?;
        let is_declared = region.others.iter().any(|other| other.name == name);
        let home = if name == region.here {
            Home::Here
        } else if is_declared {
            Home::At(name.into())
        } else {
            let name = name.escape_debug();
            return Err(of_file(format!(
                "`{code}` is in `{name}`, which [region] does not declare"
            )));
        };
        homes.insert(code, home);
    }
    Ok(homes)
}
