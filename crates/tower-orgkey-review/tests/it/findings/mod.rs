//! Each finding, and what it takes not to be one.

mod coverage;
mod decisions;
mod keys;
mod previous;
mod scopes;
mod shared;
mod unused;

use tower_orgkey_review::{Evidence, FindingKind, KeyFacts, Review, ReviewPolicy, ReviewReport};

use crate::lines::{Line, heartbeat, numbered};
use crate::{fold, key, list};

/// A trail without gaps over 100 days, with these lines among its own.
fn whole(more: impl IntoIterator<Item = Line>) -> Evidence {
    let mut lines = heartbeat(100, 0);
    lines.extend(more);
    lines.sort_by_key(|line| line.time);
    fold(&numbered(1, 0, lines))
}

fn policy() -> ReviewPolicy {
    ReviewPolicy::new().rotation_days(10_000)
}

fn report(keys: impl IntoIterator<Item = KeyFacts>, evidence: &Evidence) -> ReviewReport {
    Review::of(&list(keys), evidence, &policy()).report()
}

fn unused() -> KeyFacts {
    key("key_1", "org_1", &["beat"])
}

#[test]
fn every_kind_has_its_name() {
    for kind in FindingKind::ALL {
        let json = serde_json::to_value(kind).unwrap();
        assert_eq!(json, kind.as_str());
    }
}
