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

use reqwest::{Client, StatusCode, redirect};
use serde::Deserialize;
use serde_json::json;
use tower_orgkey::OrgCode;
use tower_orgkey_usage::{PushError, UsageLayer, UsageRecord, UsageSink};

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
        let is_billed = |place: &usize| batch[*place].account.organization().is_some();
        let mut left: Vec<usize> = (0..batch.len()).filter(is_billed).collect();
        // Each call but the last shows that some events are stored already.
        while !left.is_empty() {
            let known = match self.call(batch, &left).await {
                Ok(known) => known,
                Err(error) => return Err(error.only(left)),
            };
            if known.is_empty() {
                break;
            }
            let mut place = 0..;
            left.retain(|_| place.next().is_some_and(|place| !known.contains(&place)));
        }
        Ok(())
    }

    fn max_batch(&self) -> Option<usize> {
        Some(100)
    }
}

impl LagoSink {
    /// Stores these records, or returns which of them kept Lago from it because it has them.
    async fn call(&self, batch: &[UsageRecord], left: &[usize]) -> Result<Vec<usize>, PushError> {
        let event = |place: &usize| {
            let record = &batch[*place];
            let subscription = record.account.organization().and_then(self.subscription)?;
            Some(json!({
                "transaction_id": record.id,
                "external_subscription_id": subscription,
                "code": self.metric,
                "timestamp": record.minute,
                "properties": { "requests": record.counts.served() },
            }))
        };
        let events: Vec<_> = left.iter().filter_map(event).collect();
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
            status if status.is_success() => Ok(Vec::new()),
            StatusCode::UNPROCESSABLE_ENTITY => {
                let body = response.bytes().await.map_err(PushError::not_stored)?;
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
                    Ok(known)
                }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Err(PushError::not_stored(answer))
            }
            status if status.is_client_error() => Err(PushError::permanent(answer)),
            _ => Err(PushError::retry(answer)),
        }
    }
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
