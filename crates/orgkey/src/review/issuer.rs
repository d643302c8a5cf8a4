//! The list of keys, as the issuers have it now.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tower_orgkey_review::{KeyFacts, KeyList, UnixMillis};
use url::Url;

use crate::doctor::client::{Issuer, Reply};
use crate::doctor::secret::Secret;
use crate::doctor::table::{File, IssuerTable};

/// The most pages of a list: a million keys.
const MAX_PAGES: u32 = 2_000;
/// Between two calls, as the reconciler does it by default.
const PAUSE: Duration = Duration::from_millis(200);

/// The issuers of a configuration.
pub(super) struct Issuers(Vec<Source>);

/// An issuer whose list is read.
struct Source {
    issuer: Issuer,
    token: Secret,
    namespace: Option<Namespace>,
}

/// What an issuer of several adds to its identifiers, as the audit trail has them.
struct Namespace {
    /// The name of the issuer and a colon.
    prefix: String,
    /// Whether organizations have it too.
    of_organizations: bool,
}

impl Issuers {
    /// Reads the configuration, and fetches a token of each issuer.
    pub(super) async fn connect(config: &Path) -> Result<Self, String> {
        let (tables, is_shared) = File::read_all(config)?;
        let mut names = BTreeSet::new();
        let is_one = tables.len() == 1;
        let mut sources = Vec::new();
        for table in &tables {
            let namespace = match &table.name {
                _ if is_one => None,
                Some(name) if names.insert(name) => Some(Namespace {
                    prefix: format!("{name}:"),
                    of_organizations: !is_shared,
                }),
                _ => return Err("each [[issuer]] needs a name of its own".to_owned()),
            };
            let prefix = namespace.as_ref().map(|it| it.prefix.clone());
            let source = Source::connect(table, namespace).await;
            sources.push(source.map_err(|error| of_issuer(prefix.as_deref(), &error))?);
        }
        Ok(Self(sources))
    }

    /// Fails if a recorded key does not have the name of an issuer as listed keys do. Its requests may be those of a listed key,
    /// from before the configuration changed, and that one must not be called unused.
    pub(super) fn check<'a>(
        &self,
        recorded: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), String> {
        let is_of = |id: &str| {
            self.0.iter().any(|source| match &source.namespace {
                Some(_) => source.own_id(id).is_some(),
                None => !id.contains(':'),
            })
        };
        if recorded.into_iter().all(is_of) {
            return Ok(());
        }
        let problem = "the audit files have keys of issuers that the configuration does not name";
        Err(format!(
            "{problem}, as before it was changed: review a window without them, or use --keys"
        ))
    }

    /// Reads the lists of all issuers as one.
    pub(super) async fn list(&self) -> Result<KeyList, String> {
        let mut list = KeyList::new(UnixMillis::now());
        for source in &self.0 {
            let read = source.add_keys(&mut list).await;
            read.map_err(|error| source.error(&error))?;
        }
        Ok(list)
    }

    /// Asks for the organization of each key that is not known: one call a key.
    pub(super) async fn add_organizations(
        &self,
        list: &mut KeyList,
        is_known: impl Fn(&KeyFacts) -> bool,
    ) -> Result<(), String> {
        for at in 0..list.len() {
            let key = list.get(at);
            if key.org.is_some() || key.kind != "organization" || is_known(&key) {
                continue;
            }
            let of = self
                .0
                .iter()
                .find_map(|source| Some((source, source.own_id(&key.id)?)));
            let Some((source, id)) = of else { continue };
            let org = source.organization(id).await;
            let org = org.map_err(|error| source.error(&error))?;
            if let Some(org) = org {
                list.set_org(at, org);
            }
        }
        Ok(())
    }
}

impl Source {
    async fn connect(table: &IssuerTable, namespace: Option<Namespace>) -> Result<Self, String> {
        let secret = table.secret()?;
        let origin = Url::parse(&table.url).map_err(|_| "[issuer] url is no URL".to_owned())?;
        // The verifier knows which URLs a secret may be sent to.
        table.verifier(&secret).map_err(|error| error.to_string())?;
        let issuer = Issuer::new(origin)?;
        let reply = issuer
            .token(&table.client_id, &secret, &table.audience())
            .await?;
        let body = ok(&reply, "the token endpoint")?;
        let token = body["access_token"].as_str();
        let token = token
            .map(Secret::new)
            .ok_or("the issuer sent no access token")?;
        Ok(Self {
            issuer,
            token,
            namespace,
        })
    }

    /// Returns the id that the issuer itself uses, if the key is one of its keys.
    fn own_id<'a>(&self, id: &'a str) -> Option<&'a str> {
        match &self.namespace {
            Some(namespace) => id.strip_prefix(&namespace.prefix),
            None => Some(id),
        }
    }

    /// Adds the name of the issuer to an error.
    fn error(&self, error: &str) -> String {
        let namespace = self.namespace.as_ref();
        of_issuer(namespace.map(|it| it.prefix.as_str()), error)
    }

    fn organization_name(&self, code: &str) -> String {
        match &self.namespace {
            Some(namespace) if namespace.of_organizations => format!("{}{code}", namespace.prefix),
            _ => code.to_owned(),
        }
    }

    /// Adds the name of the issuer.
    fn named(&self, mut key: KeyFacts) -> KeyFacts {
        if let Some(namespace) = &self.namespace {
            key.id.insert_str(0, &namespace.prefix);
        }
        key.org = key.org.map(|code| self.organization_name(&code));
        key
    }

    /// Reads all pages.
    async fn add_keys(&self, list: &mut KeyList) -> Result<(), String> {
        let mut after: Option<String> = None;
        for page_number in 1..=MAX_PAGES {
            let reply = self.issuer.list(after.as_deref(), &self.token).await?;
            let mut body = ok(&reply, "the list of keys")?;
            let Value::Array(page) = body["api_keys"].take() else {
                return Err("the list of keys has no api_keys".to_owned());
            };
            after = page
                .last()
                .and_then(|key| Some(key["id"].as_str()?.to_owned()));
            let keys = KeyList::from_deserializer(Value::Array(page), list.listed_at);
            let keys = keys.map_err(|error| format!("page {page_number}: {error}"))?;
            list.extend(keys.iter().map(|key| self.named(key)));
            match (body["has_more"].as_bool(), &after) {
                (Some(false), _) => return Ok(()),
                (Some(true), Some(_)) => tokio::time::sleep(PAUSE).await,
                _ => return Err("a page of the list of keys is incomplete".to_owned()),
            }
        }
        Err("the list of keys is longer than a million".to_owned())
    }

    /// Asks for the organization of a key.
    async fn organization(&self, id: &str) -> Result<Option<String>, String> {
        let reply = self.issuer.record(id, &self.token).await?;
        tokio::time::sleep(PAUSE).await;
        // It may have been deleted meanwhile.
        if reply.status == 404 {
            return Ok(None);
        }
        let body = ok(&reply, "the record of a key")?;
        // Kinde's reply has the key in a member, or is the key.
        let record = body.get("api_key").unwrap_or(&body);
        let code = record["organization_id"].as_str();
        Ok(code.map(|code| self.organization_name(code)))
    }
}

/// Adds which of several issuers an error is about.
fn of_issuer(prefix: Option<&str>, error: &str) -> String {
    match prefix {
        Some(prefix) => format!("issuer {prefix} {error}"),
        None => error.to_owned(),
    }
}

/// Returns the body of a reply with the status 200. The error quotes nothing of it.
fn ok(reply: &Reply, what: &str) -> Result<Value, String> {
    match (reply.status, reply.json()) {
        (200, Some(body)) => Ok(Value::Object(body)),
        (200, None) => Err(format!("{what}: the reply is no JSON object")),
        (status @ (401 | 403), _) => Err(format!(
            "{what}: status {status}; the application needs the scope read:api_keys"
        )),
        (status, _) => Err(format!("{what}: status {status}")),
    }
}
