use http::Method;
use percent_encoding::percent_decode_str;

/// An endpoint of Kinde's API that the emulator implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /oauth2/token`.
    Token,
    /// `POST /api/v1/api_keys/verify`.
    Verify,
    /// `GET /api/v1/api_keys`.
    ListKeys,
    /// `GET /api/v1/api_keys/{key_id}`.
    GetKey,
    /// `POST /api/v1/api_keys`.
    CreateKey,
    /// `PUT /api/v1/api_keys/{key_id}`.
    RotateKey,
    /// `DELETE /api/v1/api_keys/{key_id}`.
    DeleteKey,
    /// `GET /api/v1/organization`.
    GetOrganization,
    /// `GET /api/v1/billing/agreements`.
    ListAgreements,
    /// `POST /api/v1/billing/meter_usage`.
    RecordUsage,
}

impl Endpoint {
    /// All endpoints.
    pub const ALL: [Self; 10] = [
        Self::Token,
        Self::Verify,
        Self::ListKeys,
        Self::GetKey,
        Self::CreateKey,
        Self::RotateKey,
        Self::DeleteKey,
        Self::GetOrganization,
        Self::ListAgreements,
        Self::RecordUsage,
    ];

    /// Returns the endpoint for a request, and the key id in its path.
    pub(crate) fn of(method: &Method, path: &str) -> Option<(Self, Option<String>)> {
        match path {
            "/oauth2/token" => return (method == Method::POST).then_some((Self::Token, None)),
            "/api/v1/api_keys/verify" if method == Method::POST => {
                return Some((Self::Verify, None));
            }
            "/api/v1/api_keys" => {
                return match *method {
                    Method::GET => Some((Self::ListKeys, None)),
                    Method::POST => Some((Self::CreateKey, None)),
                    _ => None,
                };
            }
            "/api/v1/organization" => {
                return (method == Method::GET).then_some((Self::GetOrganization, None));
            }
            "/api/v1/billing/agreements" => {
                return (method == Method::GET).then_some((Self::ListAgreements, None));
            }
            "/api/v1/billing/meter_usage" => {
                return (method == Method::POST).then_some((Self::RecordUsage, None));
            }
            _ => {}
        }
        let id = path.strip_prefix("/api/v1/api_keys/")?;
        if id.is_empty() || id.contains('/') {
            return None;
        }
        let endpoint = match *method {
            Method::GET => Self::GetKey,
            Method::PUT => Self::RotateKey,
            Method::DELETE => Self::DeleteKey,
            _ => return None,
        };
        let id = percent_decode_str(id).decode_utf8_lossy().into_owned();
        Some((endpoint, Some(id)))
    }

    /// Returns the scope that a token needs for this endpoint.
    pub(crate) fn scope(self) -> Option<&'static str> {
        match self {
            Self::Token => None,
            Self::Verify | Self::ListKeys | Self::GetKey => Some("read:api_keys"),
            Self::CreateKey => Some("create:api_keys"),
            Self::RotateKey => Some("update:api_keys"),
            Self::DeleteKey => Some("delete:api_keys"),
            Self::GetOrganization => Some("read:organizations"),
            Self::ListAgreements => Some("read:billing_agreements"),
            Self::RecordUsage => Some("create:meter_usage"),
        }
    }
}

/// A set of [`Endpoint`]s, made from one endpoint or an array of them.
///
/// ```
/// use kinde_emulator::{Endpoint, Endpoints};
///
/// let management: Endpoints = [Endpoint::ListKeys, Endpoint::GetKey].into();
/// assert!(management.contains(Endpoint::GetKey));
/// assert!(!management.contains(Endpoint::Verify));
/// assert_eq!(Endpoints::ALL, Endpoint::ALL.into());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints(u16);

impl Endpoints {
    /// The set of all endpoints.
    pub const ALL: Self = Self(0x3FF);

    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn with(self, endpoint: Endpoint) -> Self {
        Self(self.0 | Self::from(endpoint).0)
    }

    /// Returns whether the set contains this endpoint.
    pub fn contains(self, endpoint: Endpoint) -> bool {
        self.0 & 1 << endpoint as u8 != 0
    }
}

impl From<Endpoint> for Endpoints {
    fn from(endpoint: Endpoint) -> Self {
        Self(1 << endpoint as u8)
    }
}

impl<const N: usize> From<[Endpoint; N]> for Endpoints {
    fn from(endpoints: [Endpoint; N]) -> Self {
        endpoints.into_iter().fold(Self::NONE, Self::with)
    }
}
