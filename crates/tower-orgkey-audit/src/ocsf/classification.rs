//! The class of a request, and the fields that follow from it.

use http::Method;

use crate::event::{AuditedRequest, Outcome};
use tower_orgkey::RejectionKind;
use tower_orgkey::observer::EarlyEnd;

/// A class of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    ApiActivity,
    Authentication,
    EventLog,
}

impl Class {
    pub(crate) const fn uid(self) -> u32 {
        match self {
            Self::ApiActivity => 6003,
            Self::Authentication => 3002,
            Self::EventLog => 1008,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ApiActivity => "API Activity",
            Self::Authentication => "Authentication",
            Self::EventLog => "Event Log Activity",
        }
    }

    pub(crate) const fn category(self) -> Caption {
        match self {
            Self::ApiActivity => Caption(6, "Application Activity"),
            Self::Authentication => Caption(3, "Identity & Access Management"),
            Self::EventLog => Caption(1, "System Activity"),
        }
    }
}

/// A number of the schema, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caption(pub(crate) u32, pub(crate) &'static str);

impl Caption {
    pub(crate) const LOGON: Self = Self(1, "Logon");
    pub(crate) const SUCCESS: Self = Self(1, "Success");
    pub(crate) const FAILURE: Self = Self(2, "Failure");
    pub(crate) const OTHER: u32 = 99;
}

/// What [`ACTIVITIES`], [`ACTIONS`] and [`STATUSES`] say of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Classification {
    pub(crate) class: Class,
    activity: usize,
    action: usize,
    status: usize,
}

const ACTIVITIES: [Caption; 5] = [
    Caption(1, "Create"),
    Caption(2, "Read"),
    Caption(3, "Update"),
    Caption(4, "Delete"),
    Caption(Caption::OTHER, "Other"),
];
const ACTIONS: [Caption; 2] = [Caption(1, "Allowed"), Caption(2, "Denied")];
const STATUSES: [Caption; 3] = [
    Caption::SUCCESS,
    Caption::FAILURE,
    Caption(Caption::OTHER, "Dropped"),
];

impl Classification {
    pub(crate) fn of(request: &AuditedRequest) -> Self {
        let rejection = request.rejection();
        let has_failed = request
            .status
            .is_some_and(|status| status.is_client_error() || status.is_server_error());
        Self {
            class: match rejection {
                Some(rejection) if is_about_the_key(rejection.kind()) => Class::Authentication,
                None if request.is_unverified() => Class::Authentication,
                _ => Class::ApiActivity,
            },
            activity: activity(&request.method),
            action: usize::from(rejection.is_some() || request.is_unverified()),
            status: match &request.outcome {
                Outcome::Allowed if !has_failed => 0,
                Outcome::EndedEarly(EarlyEnd::Dropped) if request.status.is_none() => 2,
                Outcome::Allowed | Outcome::Rejected(_) | Outcome::EndedEarly(_) => 1,
            },
        }
    }

    /// Returns all classifications of requests, each at its [`index`](Self::index).
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let classes = [Class::ApiActivity, Class::Authentication].into_iter();
        classes.flat_map(|class| {
            (0..ACTIVITIES.len()).flat_map(move |activity| {
                (0..ACTIONS.len()).flat_map(move |action| {
                    (0..STATUSES.len()).map(move |status| Self {
                        class,
                        activity,
                        action,
                        status,
                    })
                })
            })
        })
    }

    pub(crate) fn index(self) -> usize {
        let class = usize::from(self.class == Class::Authentication);
        ((class * ACTIVITIES.len() + self.activity) * ACTIONS.len() + self.action) * STATUSES.len()
            + self.status
    }

    pub(crate) fn activity(self) -> Caption {
        match self.class {
            Class::Authentication => Caption::LOGON,
            Class::ApiActivity | Class::EventLog => ACTIVITIES[self.activity],
        }
    }

    pub(crate) fn action(self) -> Caption {
        ACTIONS[self.action]
    }

    pub(crate) fn status(self) -> Caption {
        STATUSES[self.status]
    }

    pub(crate) fn severity(self) -> Caption {
        [Caption(1, "Informational"), Caption(2, "Low")][self.action]
    }
}

/// Whether a rejection happens before the organization is known.
fn is_about_the_key(kind: RejectionKind) -> bool {
    matches!(
        kind,
        RejectionKind::CredentialMissing
            | RejectionKind::CredentialMalformed
            | RejectionKind::InvalidToken
            | RejectionKind::OrganizationRequired
            | RejectionKind::VerifierUnavailable
            | RejectionKind::VerifierMisconfigured
    )
}

/// The place among [`ACTIVITIES`].
fn activity(method: &Method) -> usize {
    match *method {
        Method::POST => 0,
        Method::GET | Method::HEAD => 1,
        Method::PUT | Method::PATCH => 2,
        Method::DELETE => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_classification_is_at_its_index() {
        let all: Vec<_> = Classification::all().collect();
        assert_eq!(all.len(), 60);
        for (at, classification) in all.into_iter().enumerate() {
            assert_eq!(classification.index(), at);
        }
    }
}
