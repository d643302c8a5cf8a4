use http::HeaderName;
use utoipa::Modify;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};

/// The name of the security scheme in the document.
pub const SCHEME: &str = "org_key";

const DESCRIPTION: &str = "The API key of an organization.";

/// Adds the security scheme of organization keys to a document, under the name [`SCHEME`].
///
/// Call [`modify`](Modify::modify), or name it in `#[openapi(modifiers(..))]`. See the [crate](crate) for an example.
#[derive(Clone, Debug)]
#[must_use]
pub struct OrgKeyScheme {
    header: Option<HeaderName>,
}

impl OrgKeyScheme {
    /// The key is the bearer token of `Authorization`: the default of `ApiKeyLayer`.
    pub fn bearer() -> Self {
        Self { header: None }
    }

    /// The key is in another header: see
    /// [`credential_header`](tower_orgkey::auth::ApiKeyLayerBuilder::credential_header).
    pub fn header(name: HeaderName) -> Self {
        Self { header: Some(name) }
    }
}

impl Modify for OrgKeyScheme {
    fn modify(&self, api: &mut OpenApi) {
        let scheme = match &self.header {
            None => SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("API key")
                    .description(Some(DESCRIPTION))
                    .build(),
            ),
            Some(name) => SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                name.as_str(),
                DESCRIPTION,
            ))),
        };
        let components = api.components.get_or_insert_default();
        components.add_security_scheme(SCHEME, scheme);
    }
}
