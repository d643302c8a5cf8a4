//! What a review finds fault with.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::keys::KeyFacts;
use crate::name::NameTemplate;
use crate::time::{DAY, UnixMillis, day};

type NameRule = Box<dyn Fn(&KeyFacts) -> Result<(), String> + Send + Sync>;

/// What a [`Review`](crate::Review) looks for.
///
/// ```
/// use tower_orgkey_review::{KeyFacts, ReviewPolicy};
///
/// let policy = ReviewPolicy::new()
///     .window_days(60)
///     .rotation_days(180)
///     .nodes(3)
///     .name_template("{org}-{env}-{purpose}".parse().unwrap())
///     .organizations(["org_1", "org_2"]);
/// let other = ReviewPolicy::new().name_rule(|key: &KeyFacts| match key.name.len() {
///     0 => Err("the name is empty".to_owned()),
///     _ => Ok(()),
/// });
/// ```
#[must_use]
pub struct ReviewPolicy {
    pub(crate) window_days: u32,
    pub(crate) rotation_days: u32,
    pub(crate) nodes: Option<u32>,
    pub(crate) max_silence: Duration,
    pub(crate) revocation_bound: Duration,
    pub(crate) rejected_percent: u32,
    pub(crate) rejected_at_least: u64,
    pub(crate) name_rule: Option<NameRule>,
    pub(crate) organizations: Option<BTreeSet<String>>,
}

impl Default for ReviewPolicy {
    fn default() -> Self {
        Self {
            window_days: 90,
            rotation_days: 90,
            nodes: None,
            max_silence: Duration::from_secs(24 * 60 * 60),
            revocation_bound: Duration::from_secs(15 * 60),
            rejected_percent: 10,
            rejected_at_least: 20,
            name_rule: None,
            organizations: None,
        }
    }
}

impl ReviewPolicy {
    /// Returns a policy with the defaults, without a convention for names and without a list of organizations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many days before the list are reviewed. 1 to 3,650; 90 by default. Others are the nearest of these.
    pub fn window_days(mut self, days: u32) -> Self {
        self.window_days = days.clamp(1, 3_650);
        self
    }

    /// Returns when the window begins, for a list of this time: at midnight in UTC. Earlier requests need not be
    /// [folded](crate::EvidenceBuilder::since).
    pub fn window_start(&self, listed_at: UnixMillis) -> UnixMillis {
        let first = day(listed_at.0).saturating_sub(self.window_days);
        UnixMillis(u64::from(first) * DAY)
    }

    /// Sets the days after which a secret must be rotated. 90 by default.
    pub fn rotation_days(mut self, days: u32) -> Self {
        self.rotation_days = days;
        self
    }

    /// Sets how many nodes recorded requests at every moment of the window, at least 1. A day of which fewer did is not
    /// [whole](crate::Coverage::whole_days). Without it, a node whose files are missing is not noticed while another one has events.
    ///
    /// A trail that begins within [`max_silence`](Self::max_silence) of the end of another one may be the same node after a
    /// restart, and counts as that. Nodes are counted, and not identified: where nodes come and go, one of those may stand for one
    /// that always runs and whose files are missing. For `max_silence` after its last event, a node counts as recording.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = Some(nodes.max(1));
        self
    }

    /// Sets for how long after its last event a trail without events counts as recorded. 24 h by default. A service that is
    /// called rarely needs more; a longer time hides that a node's audit files are missing.
    pub fn max_silence(mut self, silence: Duration) -> Self {
        self.max_silence = silence;
        self
    }

    /// Sets how long a key may be accepted after its revocation. 15 min by default, the layer's default hard TTL.
    pub fn revocation_bound(mut self, bound: Duration) -> Self {
        self.revocation_bound = bound;
        self
    }

    /// Sets from which share of its requests (10 % by default), and from which number (20 by default), a key is often rejected.
    pub fn often_rejected(mut self, percent: u32, at_least: u64) -> Self {
        self.rejected_percent = percent;
        self.rejected_at_least = at_least;
        self
    }

    /// Sets the convention for names.
    pub fn name_template(self, template: NameTemplate) -> Self {
        self.name_rule(move |key| {
            if template.is_met(&key.name, key.org.as_deref()) {
                Ok(())
            } else {
                Err(format!("the name does not follow {}", template.as_str()))
            }
        })
    }

    /// Sets the convention for names as a function, which says what is wrong. The key has its organization, if it is known.
    pub fn name_rule(
        mut self,
        rule: impl Fn(&KeyFacts) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.name_rule = Some(Box::new(rule));
        self
    }

    /// Sets the organizations that there are. Without them, no organization counts as gone.
    pub fn organizations<N: Into<String>>(mut self, codes: impl IntoIterator<Item = N>) -> Self {
        self.organizations = Some(codes.into_iter().map(Into::into).collect());
        self
    }
}

impl fmt::Debug for ReviewPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewPolicy")
            .field("window_days", &self.window_days)
            .field("rotation_days", &self.rotation_days)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
