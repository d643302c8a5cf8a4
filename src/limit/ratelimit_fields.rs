//! `RateLimit` and `RateLimit-Policy`, as draft-ietf-httpapi-ratelimit-headers-11 has them.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::account::Verdict;
use super::quota::Quota;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A policy's name: what may stand between the quotes of a structured field's string, and needs no escape there.
#[derive(Clone, Debug)]
pub(super) struct PolicyName(Arc<str>);

impl PolicyName {
    pub(super) fn new(name: &str) -> Option<Self> {
        let is_plain = |c: u8| matches!(c, b' '..=b'~') && c != b'"' && c != b'\\';
        ((1..=64).contains(&name.len()) && name.bytes().all(is_plain)).then(|| Self(name.into()))
    }
}

/// What a response tells of a quota.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    name: PolicyName,
    quota: Quota,
    verdict: Verdict,
}

impl Fields {
    pub(super) fn new(name: &PolicyName, quota: Quota, verdict: Verdict) -> Self {
        Self {
            name: name.clone(),
            quota,
            verdict,
        }
    }

    /// Adds the fields. Both are lists: other limits may have their say beside this one.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let name = &*self.name.0;
        let window = self.quota.window();
        let window = if window.subsec_nanos() == 0 {
            format!(";w={}", window.as_secs())
        } else {
            // The field knows whole seconds only, and may be left out.
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

    /// So many requests in so many seconds do not meet a refusal, nor use more than the quota gives back meanwhile: who keeps to
    /// it goes on for ever.
    fn service_limit(&self) -> (u32, u64) {
        match self.verdict {
            Verdict::Pass { remaining: 0, next } => (0, seconds(next)),
            Verdict::Pass { remaining, .. } => {
                let given_back = self.quota.period().saturating_mul(u64::from(remaining));
                (remaining, seconds(Duration::from_nanos(given_back)))
            }
            Verdict::Refuse { wait } => (0, seconds(wait)),
        }
    }
}

/// Whole seconds, rounded up; at least one, as `Retry-After` has it.
fn seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(quota: Quota, verdict: Verdict) -> (String, String) {
        let name = PolicyName::new("daily").unwrap();
        let mut headers = HeaderMap::new();
        Fields::new(&name, quota, verdict).write(&mut headers);
        let value = |name: &HeaderName| headers[name].to_str().unwrap().to_owned();
        (value(&RATELIMIT_POLICY), value(&RATELIMIT))
    }

    #[test]
    fn the_fields_are_those_of_the_draft() {
        let pass = |remaining, next| Verdict::Pass {
            remaining,
            next: Duration::from_millis(next),
        };
        let per_minute = Quota::per_minute(100);
        for (quota, verdict, policy, limit) in [
            (
                per_minute,
                pass(50, 0),
                r#""daily";q=100;w=60"#,
                "r=50;t=30",
            ),
            (
                per_minute,
                pass(99, 0),
                r#""daily";q=100;w=60"#,
                "r=99;t=60",
            ),
            (per_minute, pass(0, 1), r#""daily";q=100;w=60"#, "r=0;t=1"),
            (
                Quota::per_second(10).burst(100),
                pass(99, 0),
                r#""daily";q=10;w=1"#,
                "r=99;t=10",
            ),
            (
                Quota::per(5, Duration::from_millis(1_500)),
                Verdict::Refuse {
                    wait: Duration::from_millis(1_001),
                },
                r#""daily";q=5"#,
                "r=0;t=2",
            ),
        ] {
            let expected = (policy.to_owned(), format!("\"daily\";{limit}"));
            assert_eq!(written(quota, verdict), expected);
        }
    }

    #[test]
    fn a_name_is_what_needs_no_escape() {
        for good in ["default", "per minute", "a;b=c", &"x".repeat(64)] {
            assert!(PolicyName::new(good).is_some(), "{good}");
        }
        for bad in ["", "a\"b", "a\\b", "a\nb", "caf\u{e9}", &"x".repeat(65)] {
            assert!(PolicyName::new(bad).is_none(), "{bad}");
        }
    }
}
