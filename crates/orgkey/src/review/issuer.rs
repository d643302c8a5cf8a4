//! The list of keys, as the issuer has it now.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tower_orgkey_review::{KeyFacts, KeyList, UnixMillis};
use url::Url;

use crate::doctor::client::{Issuer, Reply};
use crate::doctor::secret::Secret;
use crate::doctor::table::File;

/// The most pages of a list: a million keys.
const MAX_PAGES: u32 = 2_000;
/// Between two calls, as the reconciler does it by default.
const PAUSE: Duration = Duration::from_millis(200);

const NOT_ONE: &str = "--config needs one issuer, without a name; with several, use --keys with the keys of all of them, \
                       with ids and organizations as in the audit files";

/// An issuer whose list is read.
pub(super) struct Source {
    issuer: Issuer,
    token: Secret,
}

impl Source {
    /// Reads the configuration, and fetches a token.
    pub(super) async fn connect(config: &Path) -> Result<Self, String> {
        let issuers = File::read_all(config)?;
        // The audit trail has the name of an issuer before ids and organizations.
        let [table] = &issuers[..] else {
            return Err(NOT_ONE.to_owned());
        };
        if table.name.is_some() {
            return Err(NOT_ONE.to_owned());
        }
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
        Ok(Self { issuer, token })
    }

    /// Reads all pages.
    pub(super) async fn list(&self) -> Result<KeyList, String> {
        let listed_at = UnixMillis::now();
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let reply = self.issuer.list(after.as_deref(), &self.token).await?;
            let mut body = ok(&reply, "the list of keys")?;
            let Value::Array(page) = body["api_keys"].take() else {
                return Err("the list of keys has no api_keys".to_owned());
            };
            after = page
                .last()
                .and_then(|key| Some(key["id"].as_str()?.to_owned()));
            keys.extend(page);
            match (body["has_more"].as_bool(), &after) {
                (Some(false), _) => {
                    let text = json!({ "listed_at": listed_at, "api_keys": keys }).to_string();
                    let list = KeyList::from_json(&text, listed_at);
                    return list.map_err(|error| error.to_string());
                }
                (Some(true), Some(_)) => tokio::time::sleep(PAUSE).await,
                _ => return Err("a page of the list of keys is incomplete".to_owned()),
            }
        }
        Err("the list of keys is longer than a million".to_owned())
    }

    /// Asks for the organization of each key that is not known: one call a key.
    pub(super) async fn add_organizations(
        &self,
        list: &mut KeyList,
        is_known: impl Fn(&KeyFacts) -> bool,
    ) -> Result<(), String> {
        for key in &mut list.keys {
            if key.org.is_some() || key.kind != "organization" || is_known(key) {
                continue;
            }
            let reply = self.issuer.record(&key.id, &self.token).await?;
            // It may have been deleted meanwhile.
            if reply.status != 404 {
                let body = ok(&reply, "the record of a key")?;
                // Kinde's reply has the key in a member, or is the key.
                let record = body.get("api_key").unwrap_or(&body);
                key.org = record["organization_id"].as_str().map(str::to_owned);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
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
