//! The fields `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-11.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::account::Decision;
use super::quota::Quota;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The name of a policy: a string of a structured field that needs no escapes.
#[derive(Clone, Debug)]
pub(super) struct PolicyName(Arc<str>);

impl PolicyName {
    pub(super) fn new(name: &str) -> Option<Self> {
        let is_plain = |c: u8| matches!(c, b' '..=b'~') && c != b'"' && c != b'\\';
        ((1..=64).contains(&name.len()) && name.bytes().all(is_plain)).then(|| Self(name.into()))
    }
}

/// The fields of one response.
#[derive(Clone, Debug)]
pub(super) struct RateLimitFields {
    name: PolicyName,
    quota: Quota,
    decision: Decision,
}

impl RateLimitFields {
    pub(super) fn new(name: &PolicyName, quota: Quota, decision: Decision) -> Self {
        Self {
            name: name.clone(),
            quota,
            decision,
        }
    }

    /// Appends the fields. Both are lists, so other limits can append to them too.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let name = &*self.name.0;
        let window = self.quota.window();
        let window = if window.subsec_nanos() == 0 {
            format!(";w={}", window.as_secs())
        } else {
            // The parameter is optional and has whole seconds.
            String::new()
        };
        let policy = format!("\"{name}\";q={}{window}", self.quota.requests());
        let (remaining, time) = self.service_limit();
        let limit = format!("\"{name}\";r={remaining};t={time}");
        for (header, value) in [(RATELIMIT_POLICY, policy), (RATELIMIT, limit)] {
            // Printable ASCII throughout.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(header, value);
            }
        }
    }

    /// The number of requests that pass within a number of seconds, which is the time in which they refill. A client that keeps
    /// to it is never rejected.
    fn service_limit(&self) -> (u32, u64) {
        match self.decision {
            Decision::Allow { remaining: 0, next } => (0, seconds(next)),
            Decision::Allow { remaining, .. } => {
                let refill = self.quota.period().saturating_mul(u64::from(remaining));
                (remaining, seconds(Duration::from_nanos(refill)))
            }
            Decision::Reject { wait } => (0, seconds(wait)),
        }
    }
}

/// Whole seconds, rounded up, at least one, like `Retry-After`.
fn seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(quota: Quota, decision: Decision) -> (String, String) {
        let name = PolicyName::new("daily").unwrap();
        let mut headers = HeaderMap::new();
        RateLimitFields::new(&name, quota, decision).write(&mut headers);
        let value = |name: &HeaderName| headers[name].to_str().unwrap().to_owned();
        (value(&RATELIMIT_POLICY), value(&RATELIMIT))
    }

    #[test]
    fn fields_follow_the_draft() {
        let allow = |remaining, next| Decision::Allow {
            remaining,
            next: Duration::from_millis(next),
        };
        let per_minute = Quota::per_minute(100);
        for (quota, decision, policy, limit) in [
            (
                per_minute,
                allow(50, 0),
                r#""daily";q=100;w=60"#,
                "r=50;t=30",
            ),
            (
                per_minute,
                allow(99, 0),
                r#""daily";q=100;w=60"#,
                "r=99;t=60",
            ),
            (per_minute, allow(0, 1), r#""daily";q=100;w=60"#, "r=0;t=1"),
            (
                Quota::per_second(10).burst(100),
                allow(99, 0),
                r#""daily";q=10;w=1"#,
                "r=99;t=10",
            ),
            (
                Quota::per(5, Duration::from_millis(1_500)),
                Decision::Reject {
                    wait: Duration::from_millis(1_001),
                },
                r#""daily";q=5"#,
                "r=0;t=2",
            ),
        ] {
            let expected = (policy.to_owned(), format!("\"daily\";{limit}"));
            assert_eq!(written(quota, decision), expected);
        }
    }

    #[test]
    fn policy_name_needs_no_escapes() {
        for valid in ["default", "per minute", "a;b=c", &"x".repeat(64)] {
            assert!(PolicyName::new(valid).is_some(), "{valid}");
        }
        for invalid in ["", "a\"b", "a\\b", "a\nb", "caf\u{e9}", &"x".repeat(65)] {
            assert!(PolicyName::new(invalid).is_none(), "{invalid}");
        }
    }
}
