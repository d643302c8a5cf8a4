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
    pub(crate) const SUCCESS: Self = Self(1, "Success");
    pub(crate) const FAILURE: Self = Self(2, "Failure");
    pub(crate) const OTHER: u32 = 99;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Classification {
    pub(crate) class: Class,
    pub(crate) activity: Caption,
    pub(crate) action: Caption,
    pub(crate) status: Caption,
    pub(crate) severity: Caption,
}

impl Classification {
    pub(crate) fn of(request: &AuditedRequest) -> Self {
        let class = match request.rejection() {
            Some(rejection) if is_about_the_key(rejection.kind()) => Class::Authentication,
            _ => Class::ApiActivity,
        };
        let is_rejected = request.rejection().is_some();
        let has_failed = request
            .status
            .is_some_and(|status| status.is_client_error() || status.is_server_error());
        Self {
            class,
            activity: match class {
                Class::Authentication => Caption(1, "Logon"),
                Class::ApiActivity | Class::EventLog => activity(&request.method),
            },
            action: if is_rejected {
                Caption(2, "Denied")
            } else {
                Caption(1, "Allowed")
            },
            status: match &request.outcome {
                Outcome::Allowed if !has_failed => Caption::SUCCESS,
                Outcome::EndedEarly(EarlyEnd::Dropped) => Caption(Caption::OTHER, "Dropped"),
                Outcome::Allowed | Outcome::Rejected(_) | Outcome::EndedEarly(_) => {
                    Caption::FAILURE
                }
            },
            severity: if is_rejected {
                Caption(2, "Low")
            } else {
                Caption(1, "Informational")
            },
        }
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

fn activity(method: &Method) -> Caption {
    match *method {
        Method::POST => Caption(1, "Create"),
        Method::GET | Method::HEAD => Caption(2, "Read"),
        Method::PUT | Method::PATCH => Caption(3, "Update"),
        Method::DELETE => Caption(4, "Delete"),
        _ => Caption(Caption::OTHER, "Other"),
    }
}
