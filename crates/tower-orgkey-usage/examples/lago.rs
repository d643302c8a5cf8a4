//! A sink for [Lago](https://getlago.com), which rejects a whole batch if it has one event already.
//!
//! ```text
//! LAGO_URL=http://127.0.0.1:3000 LAGO_API_KEY=… cargo run --example lago
//! ```
//!
//! Lago's PostgreSQL store knows each `transaction_id` of a subscription for ever. Its `ClickHouse` store replaces an event with the
//! same `transaction_id` and `timestamp`, so it accepts a repeated push.

use std::collections::BTreeMap;
use std::error::Error;

use reqwest::{Client, Response, StatusCode, redirect};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_orgkey::OrgCode;
use tower_orgkey_usage::{Account, PushError, UsageLayer, UsageRecord, UsageSink};

/// The errors of 100 events have some 10 KB.
const MAX_BODY: usize = 64 * 1024;

pub(crate) struct LagoSink {
    pub(crate) client: Client,
    /// Such as `https://api.getlago.com`.
    pub(crate) origin: String,
    pub(crate) key: String,
    /// The `code` of the billable metric, which sums `requests`.
    pub(crate) metric: String,
    /// The external id of an organization's subscription. `None`: not billed.
    pub(crate) subscription: fn(&OrgCode) -> Option<String>,
}

/// The errors of a batch, by the place of the event and by field.
#[derive(Deserialize)]
struct Problems {
    error_details: BTreeMap<usize, BTreeMap<String, Vec<String>>>,
}

impl UsageSink for LagoSink {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        let is_merged = |place: &usize| batch[*place].account == Account::OtherOrganizations;
        let held: Vec<usize> = (0..batch.len()).filter(is_merged).collect();
        if !held.is_empty() {
            return Err(PushError::park("a record has no subscription", held));
        }
        let event = |(place, record): (usize, &UsageRecord)| Some((place, self.event(record)?));
        // Lago names events by their position, so nothing else may be in this list.
        let mut left: Vec<(usize, Value)> = batch.iter().enumerate().filter_map(event).collect();
        // Each call but the last shows that some events are stored already.
        while !left.is_empty() {
            let number = left.len();
            let result = self.call(&left).await.and_then(|known| {
                if let Some(known) = known {
                    let mut position = 0..;
                    left.retain(|_| position.next().is_some_and(|at| !known.contains(&at)));
                    if left.len() == number {
                        return Err(PushError::permanent("status 422 about unknown events"));
                    }
                } else {
                    left.clear();
                }
                Ok(())
            });
            result.map_err(|error| error.only(left.iter().map(|(place, _)| *place)))?;
        }
        Ok(())
    }

    fn max_batch(&self) -> Option<usize> {
        Some(100)
    }
}

impl LagoSink {
    /// `None` for a record that is not billed.
    fn event(&self, record: &UsageRecord) -> Option<Value> {
        let subscription = record.account.organization().and_then(self.subscription)?;
        Some(json!({
            "transaction_id": record.id,
            "external_subscription_id": subscription,
            "code": self.metric,
            "timestamp": record.minute,
            "properties": { "requests": record.counts.served() },
        }))
    }

    /// Stores these events, or returns the positions of those that Lago has already; then it has stored none.
    async fn call(&self, events: &[(usize, Value)]) -> Result<Option<Vec<usize>>, PushError> {
        let events: Vec<&Value> = events.iter().map(|(_, event)| event).collect();
        let request = self
            .client
            .post(format!("{}/api/v1/events/batch", self.origin));
        let request = request
            .bearer_auth(&self.key)
            .header("content-type", "application/json");
        let response = request
            .body(json!({ "events": events }).to_string())
            .send()
            .await;
        let response = response.map_err(|error| {
            if error.is_connect() {
                PushError::not_stored(error)
            } else {
                PushError::retry(error)
            }
        })?;
        let answer = format!("status {}", response.status().as_u16());
        match response.status() {
            status if status.is_success() => Ok(None),
            StatusCode::UNPROCESSABLE_ENTITY => {
                let body = read(response).await.map_err(PushError::not_stored)?;
                let problems: Problems = serde_json::from_slice(&body)
                    .map_err(|_| PushError::permanent(answer.clone()))?;
                let is_known = |fields: &BTreeMap<String, Vec<String>>| {
                    let texts = fields.get("transaction_id").into_iter().flatten();
                    texts.into_iter().any(|text| text == "value_already_exist")
                };
                let known = problems
                    .error_details
                    .iter()
                    .filter(|(_, fields)| is_known(fields));
                let known: Vec<usize> = known.map(|(place, _)| *place).collect();
                if known.is_empty() {
                    Err(PushError::permanent(answer))
                } else {
                    Ok(Some(known))
                }
            }
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Err(PushError::not_stored(answer)),
            // A proxy may say this about a request that Lago has read.
            StatusCode::REQUEST_TIMEOUT => Err(PushError::retry(answer)),
            status if status.is_client_error() => Err(PushError::permanent(answer)),
            _ => Err(PushError::retry(answer)),
        }
    }
}

/// Reads a body. What is beyond the bound is cut off, and then is no JSON.
async fn read(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY {
            body.truncate(MAX_BODY);
            break;
        }
    }
    Ok(body)
}

pub(crate) fn client() -> Result<Client, reqwest::Error> {
    // A redirect would send the key to another host.
    Client::builder().redirect(redirect::Policy::none()).build()
}

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code)] // The tests use the rest of this file.
async fn main() -> Result<(), Box<dyn Error>> {
    let sink = LagoSink {
        client: client()?,
        origin: std::env::var("LAGO_URL")?,
        key: std::env::var("LAGO_API_KEY")?,
        metric: "requests".to_owned(),
        subscription: |org| Some(format!("sub_{org}")),
    };
    let usage = UsageLayer::new();
    usage.handle().pusher(sink).build()?.run().await;
    Ok(())
}
