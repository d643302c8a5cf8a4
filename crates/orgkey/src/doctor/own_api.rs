//! The API that a key was issued for, which the reply of verify does not name.

use serde_json::Value;

use super::client::{Issuer, Reply};
use super::reply::Members;
use super::report::{Level, Report};
use super::token::Token;

/// Looks up the API of the good key, and returns the `api_id` to recommend.
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
                Level::Change,
                "api_id needs a key_id in the reply of verify: with it, all keys get 503",
            ),
            None => (Level::Warning, ANY_API),
        };
        report.add(CHECK, level, "no key_id", means);
        return None;
    };
    let found = match issuer.record(key_id, &token.secret).await {
        Ok(reply) if reply.status == 200 => {
            let api_ids = api_ids(&reply);
            replies.push(reply);
            Ok(api_ids)
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
            "api_id needs the records of keys: grant the scope read:api_keys",
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
            Level::Change,
            ids.join(", "),
            "the good key is of another API than api_id, so it is invalid. Is it the right key?",
            ids.first().cloned(),
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

fn api_ids(record: &Reply) -> Vec<String> {
    let mut body = record.json().unwrap_or_default();
    let ids = body
        .get_mut("api_key")
        .and_then(|key| key.get_mut("api_ids"))
        .map(Value::take);
    match ids {
        Some(Value::Array(ids)) => ids
            .iter()
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}
