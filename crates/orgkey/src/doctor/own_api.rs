//! The API that a key was issued for, which the reply of verify does not name.

use serde_json::Value;

use super::client::{Issuer, Reply};
use super::reply::Members;
use super::report::{Level, Report};
use super::token::Token;

/// Looks up the API of the good key, and returns the `api_id` to recommend. If one is configured, nothing else is recommended:
/// other lines would accept keys that the configuration rejects.
pub(super) async fn recommend(
    configured: Option<&str>,
    issuer: &Issuer,
    token: &Token,
    good: &Members,
    replies: &mut Vec<Reply>,
    report: &mut Report,
) -> Option<String> {
    const CHECK: &str = "API of the key";
    const ANY_API: &str = "without api_id, keys of every API of this environment are accepted";
    let Some(key_id) = good.text("key_id") else {
        let (level, means) = match configured {
            Some(_) => (
                Level::Failure,
                "api_id needs a key_id in the reply of verify: with it, all keys get 503",
            ),
            None => (Level::Warning, ANY_API),
        };
        report.add(CHECK, level, "no key_id", means);
        return None;
    };
    let found = match issuer.record(key_id, &token.secret).await {
        Ok(reply) if reply.status == 200 => {
            let api_ids = api_ids(&reply, key_id);
            replies.push(reply);
            api_ids.map_err(|problem| format!("record of the key: {problem}"))
        }
        Ok(reply) => Err(format!("record of the key: {}", reply.status)),
        Err(error) => Err(error),
    };
    let found = found.and_then(|api_ids| {
        // They come from the issuer, and go into lines to copy.
        let is_usable = |id: &String| !id.is_empty() && report.scrubber.is_clean(id);
        if api_ids.iter().all(is_usable) {
            Ok(api_ids)
        } else {
            Err("an API id with unusual characters".to_owned())
        }
    });
    let (level, observed, means, api_id) = match (found, configured) {
        (Err(error), Some(_)) => (
            Level::Failure,
            error,
            "with api_id, keys without a usable record get 503",
            None,
        ),
        (Err(error), None) => (Level::Warning, error, ANY_API, None),
        (Ok(ids), Some(id)) if ids.iter().any(|of| of == id) => (
            Level::Ok,
            ids.join(", "),
            "the API that is configured",
            Some(id.to_owned()),
        ),
        (Ok(ids), Some(_)) => (
            Level::Failure,
            ids.join(", "),
            "the good key is of another API than api_id, so it is invalid. Is it the right key?",
            None,
        ),
        (Ok(ids), None) => (
            Level::Warning,
            ids.join(", "),
            ANY_API,
            ids.first().cloned(),
        ),
    };
    report.add(CHECK, level, observed, means);
    api_id
}

/// Returns the APIs that a record names. Reads it as the verifier does: wrapped into `api_key`, or not.
fn api_ids(reply: &Reply, key_id: &str) -> Result<Vec<String>, &'static str> {
    let mut body = reply.json().ok_or("200 without a JSON object")?;
    let mut record = match body.remove("api_key") {
        Some(Value::Object(record)) => record,
        None => body,
        Some(_) => return Err("200 with an api_key that is no object"),
    };
    if record.get("id").is_some_and(|id| id != key_id) {
        return Err("200 with the record of another key");
    }
    let ids = record.remove("api_ids").unwrap_or_default();
    serde_json::from_value(ids).map_err(|_| "200 without api_ids, an array of strings")
}
