//! Regions: [`RegionLayer`] lets a deployment serve only the organizations whose home is there.
//!
//! An API that runs in several regions, each with its own data, has one deployment per region. The layer compares the home of
//! the key's organization with the region of the deployment. A request of another region is rejected with 421
//! [`wrong-region`](crate::rejection#wrong-region) before anything reads its body, and no inner service is called. The response
//! names the region and its base address, and redirects nowhere: a client that follows a redirect to another host either drops
//! the key, or sends it along without asking.
//!
//! ```
//! use axum::{Router, routing::get};
//! use http::Extensions;
//! use tower_orgkey::region::{Home, RegionLayer};
//! use tower_orgkey::{ApiKeyLayer, OrgContext};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//!
//! let region = RegionLayer::builder("eu", |org: &OrgContext, _: &Extensions| {
//!     match org.org_code().as_str() {
//!         "org_acme" => Home::Here,
//!         "org_globex" => Home::At("us".into()),
//!         _ => Home::Unknown,
//!     }
//! })
//! .region("us", "https://us.api.example.com")
//! .build()?;
//!
//! // The last `route_layer` is the outermost.
//! let app: Router = Router::new()
//!     .route("/reports", get(async |_: OrgContext| "reports"))
//!     .route_layer(region)
//!     .route_layer(auth);
//! # Ok::<(), tower_orgkey::ConfigError>(())
//! ```
//!
//! # Order of layers
//!
//! From the outside in: [`ApiKeyLayer`](crate::ApiKeyLayer), the [settings](crate::settings) that the function reads, this
//! layer, limits, guards, handler. Without an `ApiKeyLayer` around it, the layer responds with 500 and logs an error. A request
//! that [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) accepts without a key has no home, and passes.
//!
//! # Homes from settings
//!
//! If homes are in a database, load them with an [`OrgSettingsLayer`](crate::OrgSettingsLayer) (feature `settings`), and read
//! them with [`OrgSettings::of`](crate::OrgSettings::of):
//!
//! ```
//! # #[cfg(feature = "settings")] {
//! use http::Extensions;
//! use tower_orgkey::region::{Home, RegionLayer};
//! use tower_orgkey::{OrgContext, OrgSettings};
//!
//! struct Tenant {
//!     region: String,
//! }
//!
//! let region = RegionLayer::builder("eu", |_: &OrgContext, extensions: &Extensions| {
//!     match OrgSettings::<Tenant>::of(extensions) {
//!         Some(tenant) if tenant.region == "eu" => Home::Here,
//!         Some(tenant) => Home::At(tenant.region.clone().into()),
//!         None => Home::Unknown,
//!     }
//! })
//! .region("us", "https://us.api.example.com")
//! .build()?;
//! # }
//! # Ok::<(), tower_orgkey::ConfigError>(())
//! ```
//!
//! A new home then applies within the bounds of the settings, or at once with
//! [`ApiKeyHandle::invalidate_org`](crate::ApiKeyHandle::invalidate_org). The function runs on every request, so a request is
//! never decided by a home that was read for an earlier one.
//!
//! # Before the verification
//!
//! When the layer decides, the issuer has verified the key, and so has processed it wherever the issuer is. If keys or hosts
//! show the region, [`reject_before_lookup`](crate::ApiKeyLayerBuilder::reject_before_lookup) rejects a request without a call
//! to the issuer. Such a function can only say "not here": what it lets pass is still decided by this layer.
//!
//! ```
//! # use http::Extensions;
//! # use tower_orgkey::region::{Home, RegionLayer};
//! # use tower_orgkey::{ApiKey, ApiKeyLayer, OrgContext, RequestHead, Verification, verifier_fn};
//! # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
//! # let region = RegionLayer::builder("eu", |_: &OrgContext, _: &Extensions| Home::Here)
//! #     .region("us", "https://us.api.example.com")
//! #     .build()?;
//! let hint = region.clone();
//! let auth = ApiKeyLayer::builder(verifier)
//!     .reject_before_lookup(move |_: RequestHead<'_>, key: &ApiKey| {
//!         key.expose_secret().starts_with("k_us_").then(|| hint.wrong_region("us"))
//!     })
//!     .build()?;
//! # Ok::<(), tower_orgkey::ConfigError>(())
//! ```
//!
//! **Remove the hint before an organization moves.** Its keys keep their prefix, so the new region would send its clients back
//! to the old one, and the old one to the new.
//!
//! # What this does not do
//!
//! By the time the region is known, the key, the code of the organization, the path and the address of the peer have been
//! processed here. If that is too much, give each region its own host name. The layer decides where a request is served; where
//! your data, backups and logs are is up to you.

mod builder;
mod layer;

pub use self::builder::RegionLayerBuilder;
pub use self::layer::{Home, RegionLayer, RegionService};
