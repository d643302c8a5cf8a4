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

use serde_json::{Value, json};
use tower_orgkey::{ConfigError, OrgCode};
use tower_orgkey_usage::{HttpMeter, PushError, UsageLayer, UsageRecord, UsageSink};

pub(crate) struct LagoSink {
    meter: HttpMeter,
    /// The external id of an organization's subscription. `None`: not billed.
    subscription: fn(&OrgCode) -> Option<String>,
}

/// The errors of a batch, by the position of the event and by field.
#[derive(serde::Deserialize)]
struct Problems {
    error_details: BTreeMap<usize, BTreeMap<String, Vec<String>>>,
}

impl UsageSink for LagoSink {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        PushError::park_other_organizations(batch)?;
        let mut events: Vec<Value> = batch
            .iter()
            .filter_map(|record| self.event(record))
            .collect();
        while !events.is_empty() {
            let reply = self.meter.post_json(&json!({ "events": events })).await?;
            let result = reply.result();
            if reply.status() != 422 {
                return result;
            }
            // Lago has stored nothing, because it has some of these events. The others are sent again.
            let Some(problems) = reply.json::<Problems>().await? else {
                return result;
            };
            let number = events.len();
            let new = events
                .into_iter()
                .enumerate()
                .filter(|(at, _)| !problems.is_known(*at));
            events = new.map(|(_, event)| event).collect();
            if events.len() == number {
                return result;
            }
        }
        Ok(())
    }

    fn max_batch(&self) -> Option<usize> {
        Some(100)
    }
}

impl LagoSink {
    pub(crate) fn new(
        origin: &str,
        key: &str,
        subscription: fn(&OrgCode) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let meter = HttpMeter::builder(origin, "/api/v1/events/batch")
            .token(key)
            .build()?;
        Ok(Self {
            meter,
            subscription,
        })
    }

    /// Returns `None` for a record that is not billed.
    fn event(&self, record: &UsageRecord) -> Option<Value> {
        Some(json!({
            "transaction_id": record.id,
            "external_subscription_id": record.account.organization().and_then(self.subscription)?,
            // A billable metric that sums `requests`.
            "code": "requests",
            "timestamp": record.minute,
            "properties": { "requests": record.counts.served() },
        }))
    }
}

impl Problems {
    fn is_known(&self, position: usize) -> bool {
        let texts = self
            .error_details
            .get(&position)
            .and_then(|fields| fields.get("transaction_id"));
        texts.is_some_and(|texts| texts.iter().any(|text| text == "value_already_exist"))
    }
}

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code)] // The tests use the rest of this file.
async fn main() -> Result<(), Box<dyn Error>> {
    let (url, key) = (std::env::var("LAGO_URL")?, std::env::var("LAGO_API_KEY")?);
    let sink = LagoSink::new(&url, &key, |org| Some(format!("sub_{org}")))?;
    let usage = UsageLayer::new();
    usage.handle().pusher(sink).build()?.run().await;
    Ok(())
}
