//! What a request comes to: its class, and what is said of it in every class.

use http::Method;

use crate::audit::event::{AuditedRequest, Outcome};
use crate::observer::EarlyEnd;
use crate::rejection::RejectionKind;

/// A class of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) enum Class {
    ApiActivity,
    Authentication,
    EventLog,
}

impl Class {
    pub(in crate::audit) const fn uid(self) -> u32 {
        match self {
            Self::ApiActivity => 6003,
            Self::Authentication => 3002,
            Self::EventLog => 1008,
        }
    }

    pub(in crate::audit) const fn name(self) -> &'static str {
        match self {
            Self::ApiActivity => "API Activity",
            Self::Authentication => "Authentication",
            Self::EventLog => "Event Log Activity",
        }
    }

    pub(in crate::audit) const fn category(self) -> Caption {
        match self {
            Self::ApiActivity => Caption(6, "Application Activity"),
            Self::Authentication => Caption(3, "Identity & Access Management"),
            Self::EventLog => Caption(1, "System Activity"),
        }
    }
}

/// A number of the schema's and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) struct Caption(pub(in crate::audit) u32, pub(in crate::audit) &'static str);

impl Caption {
    pub(in crate::audit) const SUCCESS: Self = Self(1, "Success");
    pub(in crate::audit) const FAILURE: Self = Self(2, "Failure");
    pub(in crate::audit) const OTHER: u32 = 99;
}

/// What a request comes to in the schema's words.
#[derive(Clone, Copy, Debug)]
pub(in crate::audit) struct Verdict {
    pub(in crate::audit) class: Class,
    pub(in crate::audit) activity: Caption,
    pub(in crate::audit) action: Caption,
    pub(in crate::audit) status: Caption,
    pub(in crate::audit) severity: Caption,
}

impl Verdict {
    pub(in crate::audit) fn of(request: &AuditedRequest) -> Self {
        let class = match request.rejection() {
            Some(rejection) if is_about_the_key(rejection.kind()) => Class::Authentication,
            _ => Class::ApiActivity,
        };
        let is_refused = request.rejection().is_some();
        let has_failed = request
            .status
            .is_some_and(|status| status.is_client_error() || status.is_server_error());
        Self {
            class,
            activity: match class {
                Class::Authentication => Caption(1, "Logon"),
                Class::ApiActivity | Class::EventLog => activity(&request.method),
            },
            action: if is_refused {
                Caption(2, "Denied")
            } else {
                Caption(1, "Allowed")
            },
            status: match &request.outcome {
                Outcome::LetIn if !has_failed => Caption::SUCCESS,
                Outcome::EndedEarly(EarlyEnd::Dropped) => Caption(Caption::OTHER, "Dropped"),
                Outcome::LetIn | Outcome::Refused(_) | Outcome::EndedEarly(_) => Caption::FAILURE,
            },
            severity: if is_refused {
                Caption(2, "Low")
            } else {
                Caption(1, "Informational")
            },
        }
    }
}

/// Whether the request got no further than to the question whose it is.
fn is_about_the_key(kind: RejectionKind) -> bool {
    match kind {
        RejectionKind::CredentialMissing
        | RejectionKind::CredentialMalformed
        | RejectionKind::InvalidToken
        | RejectionKind::OrganizationRequired
        | RejectionKind::VerifierUnavailable
        | RejectionKind::VerifierMisconfigured => true,
        RejectionKind::InsufficientScope
        | RejectionKind::OrganizationMismatch
        | RejectionKind::NotFound
        | RejectionKind::RateLimited
        | RejectionKind::ConcurrencyLimited
        | RejectionKind::SettingsUnavailable
        | RejectionKind::Internal
        | RejectionKind::Custom => false,
    }
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
