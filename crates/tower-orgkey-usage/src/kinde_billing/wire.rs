//! Kinde's replies about agreements, and the call that records usage.

use serde::{Deserialize, Serialize};

use super::ledger::{HoldReason, View};

#[derive(Deserialize)]
struct Organization {
    billing: Option<Billing>,
}

#[derive(Deserialize)]
struct Billing {
    billing_customer_id: Option<String>,
}

/// Reads the id of the organization's customer.
pub(super) fn customer(body: &[u8]) -> Result<String, HoldReason> {
    let body: Organization = serde_json::from_slice(body).map_err(|_| HoldReason::Unavailable)?;
    let customer = body.billing.and_then(|billing| billing.billing_customer_id);
    customer
        .filter(|id| !id.is_empty())
        .ok_or(HoldReason::NoAgreement)
}

#[derive(Deserialize)]
struct Agreements {
    agreements: Vec<Agreement>,
}

#[derive(Deserialize)]
struct Agreement {
    id: String,
    expires_on: Option<String>,
    current_period_start: Option<String>,
    current_period_end: Option<String>,
}

/// Reads the only agreement that has not expired.
pub(super) fn view(body: &[u8], now: u64) -> Result<View, HoldReason> {
    let body: Agreements = serde_json::from_slice(body).map_err(|_| HoldReason::Unavailable)?;
    let mut current = body.agreements.into_iter().filter(|agreement| {
        let expires = agreement.expires_on.as_deref().and_then(seconds);
        expires.is_none_or(|at| at > now)
    });
    let agreement = current.next().ok_or(HoldReason::NoAgreement)?;
    if current.next().is_some() {
        return Err(HoldReason::SeveralAgreements);
    }
    let time = |text: Option<String>| {
        let time = text.as_deref().and_then(seconds);
        time.ok_or(HoldReason::UnknownPeriod)
    };
    Ok(View {
        agreement: agreement.id,
        starts_at: time(agreement.current_period_start)?,
        ends_at: time(agreement.current_period_end)?,
    })
}

/// Parses a date and time. Kinde documents offsets of hours only, such as `+11`, which RFC 3339 does not allow.
fn seconds(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_second()).ok()
}

/// The body of `POST /api/v1/billing/meter_usage`.
#[derive(Serialize)]
pub(super) struct Usage<'a> {
    pub(super) customer_agreement_id: &'a str,
    pub(super) billing_feature_code: &'a str,
    /// A number in a string.
    pub(super) meter_value: String,
    pub(super) meter_type_code: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_any_offset() {
        for text in [
            "2024-11-18T13:32:03+11",
            "2024-11-18T13:32:03+11:00",
            "2024-11-18T02:32:03Z",
            "2024-11-18T02:32:03.145592+00:00",
        ] {
            assert_eq!(seconds(text), Some(1_731_897_123), "{text}");
        }
        for text in [
            "",
            "soon",
            "2024-11-18",
            "2024-11-18T13:32:03",
            "1731897123",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn one_agreement_has_a_period() {
        let (start, end) = ("1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z");
        let agreement = |expires: &str| {
            format!(
                r#"{{"id":"a","expires_on":{expires},"current_period_start":"{start}","current_period_end":"{end}"}}"#
            )
        };
        let read = |agreements: &[String]| {
            let body = format!(r#"{{"agreements":[{}]}}"#, agreements.join(","));
            view(body.as_bytes(), 100)
        };
        let expected = View {
            agreement: "a".to_owned(),
            starts_at: 0,
            ends_at: 86_400,
        };
        let current = agreement("null");
        let expired = agreement(r#""1970-01-01T00:01:00Z""#);
        assert_eq!(read(std::slice::from_ref(&current)), Ok(expected.clone()));
        assert_eq!(read(&[expired.clone(), current.clone()]), Ok(expected));
        assert_eq!(read(&[expired]), Err(HoldReason::NoAgreement));
        assert_eq!(
            read(&[current.clone(), current.clone()]),
            Err(HoldReason::SeveralAgreements)
        );
        for unknown in [start, end] {
            let null = current.replace(&format!("\"{unknown}\""), "null");
            assert_eq!(read(&[null]), Err(HoldReason::UnknownPeriod));
        }
        for body in ["", "[]", "{}", r#"{"agreements":{}}"#] {
            assert_eq!(view(body.as_bytes(), 100), Err(HoldReason::Unavailable));
        }
    }
}
