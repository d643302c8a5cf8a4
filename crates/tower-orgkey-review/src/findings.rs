//! What a reviewer has to decide on, key by key.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::coverage::Coverage;
use crate::keys::KeyFacts;
use crate::policy::ReviewPolicy;
use crate::report::{ASK, Finding, FindingKind, KeyReview};
use crate::seen::Seen;
use crate::time::UnixMillis;

pub(crate) struct Judge<'a> {
    pub(crate) policy: &'a ReviewPolicy,
    pub(crate) coverage: &'a Coverage,
    /// Since when keys are known to be inactive or gone.
    pub(crate) revoked: HashMap<&'a str, UnixMillis>,
    pub(crate) seen: &'a Seen<'a>,
    pub(crate) now: UnixMillis,
}

impl Judge<'_> {
    /// Returns the findings of a key, in the order of their kinds.
    pub(crate) fn findings(&self, key: &KeyReview) -> Vec<Finding> {
        let kinds = FindingKind::ALL.into_iter();
        kinds.filter_map(|kind| self.finding(kind, key)).collect()
    }

    /// Returns the finding of a kind, if there is one.
    pub(crate) fn finding(&self, kind: FindingKind, key: &KeyReview) -> Option<Finding> {
        match kind {
            FindingKind::UsedAfterRevocation => self.used_after_revocation(key),
            FindingKind::OftenRejected => self.often_rejected(key),
            // Nothing else has to be decided on a key that is not active.
            _ if key.status != "active" => None,
            FindingKind::OrganizationGone => self.organization_gone(key),
            FindingKind::Unused | FindingKind::NotSeen => {
                self.not_used(key).filter(|finding| finding.kind == kind)
            }
            FindingKind::OverScoped => self.over_scoped(key),
            FindingKind::NeverAsked => self.never_asked(key),
            FindingKind::RotationDue => self.rotation_due(key),
            FindingKind::NotOfOrganization => self.not_of_organization(key),
            FindingKind::Name => self.name(key),
        }
    }

    /// A finding from the audit trail, which says no more than what was recorded.
    fn recorded(&self, kind: FindingKind, key: &KeyReview, proof: String) -> Finding {
        Finding {
            coverage: self.coverage.statement(),
            is_conclusive: self.coverage.is_whole(),
            ..of(kind, key, proof)
        }
    }

    fn used_after_revocation(&self, key: &KeyReview) -> Option<Finding> {
        let seen_at = *self.revoked.get(key.id.as_str())?;
        let last = key.last_allowed?;
        let bound = u64::try_from(self.policy.revocation_bound.as_millis()).unwrap_or(u64::MAX);
        if last.0 <= seen_at.0.saturating_add(bound) {
            return None;
        }
        let proof = format!(
            "The list of {seen_at} shows the key as inactive or gone, and a request of {last} was not rejected. A key may be \
             accepted for {} min after its revocation.",
            bound / 60_000
        );
        Some(Finding {
            // What is missing cannot make this untrue.
            is_conclusive: true,
            used_at: Some(last),
            checklist: steps(&[
                "Block the key in all services, by its id.",
                "Find out which service accepted it, and why: a cache, or another issuer.",
                "Look at what its requests did, in the audit trail.",
            ]),
            ..self.recorded(FindingKind::UsedAfterRevocation, key, proof)
        })
    }

    fn organization_gone(&self, key: &KeyReview) -> Option<Finding> {
        let org = key.org.as_ref()?;
        let organizations = self.policy.organizations.as_ref()?;
        if organizations.contains(org) {
            return None;
        }
        let proof = "The organization is not on the list of organizations.".to_owned();
        Some(Finding {
            checklist: steps(&["Check that the organization has left.", "Revoke the key."]),
            ..of(FindingKind::OrganizationGone, key, proof)
        })
    }

    fn not_used(&self, key: &KeyReview) -> Option<Finding> {
        let Coverage { since, days, .. } = self.coverage;
        let last_used = if key.is_shared {
            self.seen.last_used(&key.id)
        } else {
            key.last_used
        };
        if last_used.is_some_and(|last| last >= *since) {
            return None;
        }
        let created = key.created_at;
        // Nothing can be said of a window that it did not exist in.
        if created.is_some_and(|created| created >= self.now) {
            return None;
        }
        let is_old_enough = created.is_some_and(|created| created <= *since);
        let is_verified = key.last_verified_at.is_some_and(|last| last >= *since);
        let may_be_unidentified = self.seen.is_org_missing
            || (self.seen.is_user_missing && key.kind != "organization")
            || match &key.org {
                Some(org) if !key.is_shared => self.seen.unidentified.contains(org.as_str()),
                _ => !self.seen.unidentified.is_empty(),
            };
        let last = match key.last_used {
            Some(last) => format!("The last recorded request is of {last}."),
            None => "There is no recorded request.".to_owned(),
        };
        if self.coverage.is_whole() && is_old_enough && !is_verified && !may_be_unidentified {
            let mut proof = format!(
                "No request in {days} days, of which every one is recorded without gaps. {last}"
            );
            proof.push_str(match self.coverage.nodes {
                None => UNNOTICED,
                Some(_) => NODES_ARE_COUNTED,
            });
            return Some(Finding {
                checklist: steps(&[
                    "Ask the organization whether the key is still needed.",
                    "Revoke the key.",
                ]),
                ..self.recorded(FindingKind::Unused, key, proof)
            });
        }
        let mut proof = format!(
            "Not seen in {} of {days} days that are recorded without gaps. {last}",
            self.coverage.whole_days
        );
        if self.coverage.malformed > 0 {
            proof.push_str(" Some lines could not be read, and may be of this key.");
        }
        match created {
            Some(created) if !is_old_enough => {
                let _ = write!(proof, " The key was created on {}.", created.date());
            }
            None => proof.push_str(" It is not known when the key was created."),
            Some(_) => {}
        }
        if let (true, Some(verified)) = (is_verified, key.last_verified_at) {
            let _ = write!(
                proof,
                " The issuer verified it on {}: a service that is not in the evidence uses it.",
                verified.date()
            );
        }
        if may_be_unidentified {
            proof.push_str(" Some requests have no key id, and may be of this key.");
        }
        Some(Finding {
            is_conclusive: false,
            checklist: steps(&["Record the rest of the window, and review again."]),
            ..self.recorded(FindingKind::NotSeen, key, proof)
        })
    }

    fn over_scoped(&self, key: &KeyReview) -> Option<Finding> {
        let needed = key.needed.as_ref()?;
        let excess = key.granted.iter().filter(|scope| !needed.contains(scope));
        let excess: Vec<_> = excess
            .filter(|scope| self.seen.asked.contains(scope.as_str()))
            .cloned()
            .collect();
        if excess.is_empty() {
            return None;
        }
        Some(Finding {
            scopes: excess,
            checklist: replacement(needed),
            ..self.recorded(FindingKind::OverScoped, key, self.replay(key, needed))
        })
    }

    /// The proof of the least scopes.
    fn replay(&self, key: &KeyReview, needed: &[String]) -> String {
        let mut proof = format!(
            "With {}, all {} recorded requests with a scope policy, of {} days, would have been allowed.",
            listed(needed),
            key.replayed,
            self.coverage.days
        );
        if key.truncated > 0 {
            let _ = write!(
                proof,
                " {} requests may have met more policies than were recorded.",
                key.truncated
            );
        }
        if key.unguarded > 0 {
            let _ = write!(
                proof,
                " {} requests have no recorded scope policy; a scope that a handler tests itself is not seen.",
                key.unguarded
            );
        }
        proof
    }

    fn never_asked(&self, key: &KeyReview) -> Option<Finding> {
        // Services without scope policies say nothing about scopes.
        if self.seen.asked.is_empty() {
            return None;
        }
        let never = key
            .granted
            .iter()
            .filter(|scope| !self.seen.asked.contains(scope.as_str()));
        let never: Vec<_> = never.cloned().collect();
        if never.is_empty() {
            return None;
        }
        let proof = format!(
            "No recorded policy of any request names {}.",
            listed(&never)
        );
        let checklist = match &key.needed {
            Some(needed) => replacement(needed),
            None => steps(&[ASK]),
        };
        Some(Finding {
            scopes: never,
            checklist,
            ..self.recorded(FindingKind::NeverAsked, key, proof)
        })
    }

    fn rotation_due(&self, key: &KeyReview) -> Option<Finding> {
        let since = key.secret_since.unwrap_or(key.watched_since);
        let age = self.now.days_since(since);
        if age <= u64::from(self.policy.rotation_days) {
            return None;
        }
        let date = since.date();
        let mut proof = if key.secret_since.is_none() {
            format!(
                "The key is in reviews since {date}, so it is at least {age} days old. It is not known when it was created."
            )
        } else if key.created_at == Some(since) {
            format!("The key was created {age} days ago, on {date}.")
        } else {
            format!("A rotation was last seen {age} days ago, on {date}.")
        };
        let _ = if key.is_suffix_listed {
            write!(
                proof,
                " The secret has had the same last characters in all reviews since {}; an earlier rotation would not be seen.",
                key.watched_since.date()
            )
        } else {
            write!(
                proof,
                " The issuer shows no last characters of the secret, so a rotation would not be seen."
            )
        };
        Some(Finding {
            is_conclusive: key.is_suffix_listed && key.watched_since <= since,
            checklist: steps(&[
                "Rotate the secret, or create a second key first if there must be no gap.",
                "Deploy the new secret.",
            ]),
            ..of(FindingKind::RotationDue, key, proof)
        })
    }

    fn not_of_organization(&self, key: &KeyReview) -> Option<Finding> {
        let whose = match key.kind.as_str() {
            "organization" => return None,
            "user" => "a user, who may leave",
            "environment" => "the whole environment",
            _ => "something other than an organization",
        };
        let proof = format!("The issuer lists it as a key of {whose}.");
        let mut finding = of(FindingKind::NotOfOrganization, key, proof);
        finding.checklist = steps(&[
            "Create a key of the organization.",
            "Deploy it.",
            "Revoke this key.",
        ]);
        // Takes no part in the window.
        finding.coverage = format!("The list of {}", self.now);
        Some(finding)
    }

    fn often_rejected(&self, key: &KeyReview) -> Option<Finding> {
        let rejected = key.rejections();
        let all = rejected.saturating_add(key.allowed);
        let percent = u128::from(rejected) * 100 / u128::from(all.max(1));
        if rejected < self.policy.rejected_at_least.max(1)
            || percent < u128::from(self.policy.rejected_percent)
        {
            return None;
        }
        let codes = key
            .rejected
            .iter()
            .map(|(code, count)| format!("{count} {code}"));
        let codes: Vec<_> = codes.collect();
        let mut proof = format!(
            "{rejected} of {all} recorded requests were rejected ({percent} %): {}.",
            codes.join(", ")
        );
        if !key.denied.is_empty() {
            let _ = write!(proof, " They asked for {}.", listed(&key.denied));
        }
        Some(Finding {
            scopes: key.denied.clone(),
            checklist: steps(&[
                "Ask the organization what the client is meant to do.",
                "Repair the client, or create a key with the scopes that it needs.",
            ]),
            ..self.recorded(FindingKind::OftenRejected, key, proof)
        })
    }

    fn name(&self, key: &KeyReview) -> Option<Finding> {
        let rule = self.policy.name_rule.as_ref()?;
        let facts = KeyFacts {
            id: key.id.clone(),
            name: key.name.clone(),
            kind: key.kind.clone(),
            status: key.status.clone(),
            suffix: key.suffix.clone(),
            created_at: key.created_at,
            last_verified_at: key.last_verified_at,
            scopes: key.granted.clone(),
            org: key.org.clone(),
        };
        let problem = rule(&facts).err()?;
        Some(Finding {
            checklist: steps(&[
                "Create a key with a name that follows the convention: names cannot be changed.",
                "Deploy it.",
                "Revoke this key.",
            ]),
            ..of(FindingKind::Name, key, problem)
        })
    }
}

/// Without a number of nodes.
const UNNOTICED: &str = " A node whose newest audit files were not read would not be noticed.";
/// What a number of nodes does not tell.
const NODES_ARE_COUNTED: &str = " Nodes are counted by their audit trails: one without files is not noticed where another one that should not be counted records.";

/// A finding from the list of keys, which is complete.
fn of(kind: FindingKind, key: &KeyReview, proof: String) -> Finding {
    Finding {
        id: format!(
            "{} {} {}",
            kind.as_str(),
            key.org.as_deref().unwrap_or("-"),
            key.id
        ),
        kind,
        org: key.org.clone(),
        key: key.id.clone(),
        scopes: Vec::new(),
        proof,
        coverage: "from the list of keys".to_owned(),
        is_conclusive: true,
        checklist: Vec::new(),
        used_at: None,
        decision: None,
        is_decision_expired: false,
    }
}

fn steps(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| (*step).to_owned()).collect()
}

/// Keys cannot be changed, so one with fewer scopes is another key.
fn replacement(needed: &[String]) -> Vec<String> {
    let mut checklist = vec![format!("Create a key with {}.", listed(needed))];
    checklist.extend(steps(&[
        "Deploy it.",
        "Check in the audit trail that the old key is not used any more, also by handlers that test scopes themselves.",
        "Revoke the old key.",
    ]));
    checklist
}

fn listed(scopes: &[String]) -> String {
    match scopes {
        [] => "no scope".to_owned(),
        [scope] => format!("the scope {scope}"),
        scopes => format!("the scopes {}", scopes.join(", ")),
    }
}
