//! The customers of organizations, which are looked up together and kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tower_orgkey::OrgCode;

use super::{BoxError, CustomerOf, StripeCustomer};

/// At most so many organizations are kept.
const CAPACITY: u64 = 100_000;
const TTL: Duration = Duration::from_secs(10 * 60);
/// Leaves time for the call to Stripe within the pusher's timeout of 10 s.
const DEADLINE: Duration = Duration::from_secs(3);
/// After so long, a customer that cannot be looked up is unknown, so that somebody settles its records.
const FAILS_AT_MOST: Duration = Duration::from_secs(60 * 60);

pub(super) struct Customers {
    lookup: CustomerOf,
    known: Cache<OrgCode, StripeCustomer>,
    /// Since when the look-ups of an organization fail.
    failing: Cache<OrgCode, Instant>,
}

impl Customers {
    pub(super) fn new(lookup: CustomerOf) -> Self {
        Self {
            lookup,
            known: Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_live(TTL)
                .build(),
            // Without a time, a failure of last week would count for one of today.
            failing: Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_idle(FAILS_AT_MOST)
                .build(),
        }
    }

    /// Returns the customers of these organizations, and the error of those that are missing.
    pub(super) async fn find<'a>(
        &self,
        orgs: impl Iterator<Item = &'a OrgCode>,
    ) -> (HashMap<OrgCode, StripeCustomer>, Option<BoxError>) {
        let mut found = HashMap::new();
        let mut missing = HashSet::new();
        let mut lookups = JoinSet::new();
        for org in orgs {
            if found.contains_key(org) {
                continue;
            }
            if let Some(customer) = self.known.get(org) {
                found.insert(org.clone(), customer);
            } else if missing.insert(org.clone()) {
                let org = org.clone();
                let lookup = Arc::clone(&self.lookup);
                // In the task, so that a panic is about this organization only.
                lookups.spawn(async move {
                    let customer = lookup(org.clone()).await;
                    (org, customer)
                });
            }
        }
        let end = Instant::now() + DEADLINE;
        let mut error = None;
        while !lookups.is_empty() {
            match timeout_at(end, lookups.join_next()).await {
                Ok(Some(Ok((org, Ok(customer))))) => {
                    missing.remove(&org);
                    self.failing.invalidate(&org);
                    if customer != StripeCustomer::Unknown {
                        self.known.insert(org.clone(), customer.clone());
                    }
                    found.insert(org, customer);
                }
                Ok(Some(Ok((_, Err(failed))))) => error = Some(failed),
                Ok(Some(Err(_))) => error = Some("a look-up panicked".into()),
                Ok(None) => break,
                Err(_) => {
                    error = Some("the look-up of customers timed out".into());
                    break;
                }
            }
        }
        for org in missing {
            let since = self.failing.get_with(org.clone(), Instant::now);
            if since.elapsed() >= FAILS_AT_MOST {
                found.insert(org, StripeCustomer::Unknown);
            }
        }
        (found, error)
    }
}
