//! What distinguishes verifiers in a fleet.

use std::collections::HashSet;

use tower_orgkey::Verifier;
use tower_orgkey_issuers::Endpoint;
use tower_orgkey_issuers::introspection::{
    IntrospectionVerifier, IntrospectionVerifierBuilder, Preset,
};
use tower_orgkey_issuers::unkey::UnkeyVerifier;
use tower_orgkey_issuers::workos::WorkOsVerifier;

const URL: &str = "https://issuer.example/verify";

fn endpoint(url: &str, environment: &str) -> Endpoint {
    let builder = Endpoint::builder(url).bearer_token("root-key-of-this-service");
    builder.environment(environment).build().unwrap()
}

fn introspection(
    endpoint: Endpoint,
    configure: impl FnOnce(IntrospectionVerifierBuilder) -> IntrospectionVerifierBuilder,
) -> String {
    let builder = IntrospectionVerifier::builder(endpoint)
        .audience("api")
        .organization_claim("org");
    configure(builder).build().unwrap().identity()
}

#[test]
fn every_setting_that_decides_is_in_the_identity() {
    let live = || endpoint(URL, "live");
    let identities = [
        introspection(live(), |builder| builder),
        introspection(endpoint(URL, "test"), |builder| builder),
        introspection(
            endpoint("https://issuer.example/other", "live"),
            |builder| builder,
        ),
        introspection(live(), |builder| builder.audience("admin")),
        introspection(live(), IntrospectionVerifierBuilder::any_audience),
        introspection(live(), |builder| builder.organization_claim("tenant")),
        introspection(live(), |builder| builder.preset(Preset::Zitadel)),
        introspection(live(), |builder| builder.preset(Preset::Hydra)),
        introspection(live(), |builder| {
            builder.organization_named("one", |_| Ok(None))
        }),
        introspection(live(), |builder| {
            builder.organization_named("two", |_| Ok(None))
        }),
        introspection(live(), |builder| {
            builder.organization_named("claim org", |_| Ok(None))
        }),
        introspection(
            live(),
            IntrospectionVerifierBuilder::allow_missing_token_type,
        ),
        introspection(live(), IntrospectionVerifierBuilder::service_accounts),
        WorkOsVerifier::with_endpoint(live()).identity(),
        WorkOsVerifier::with_endpoint(endpoint(URL, "test")).identity(),
        UnkeyVerifier::with_endpoint(live()).identity(),
        UnkeyVerifier::with_endpoint(live())
            .organization_in_meta("org")
            .identity(),
        UnkeyVerifier::with_endpoint(live())
            .organization_in_meta("tenant")
            .identity(),
        UnkeyVerifier::with_endpoint(endpoint(URL, "test")).identity(),
    ];
    let distinct: HashSet<&String> = identities.iter().collect();
    assert_eq!(distinct.len(), identities.len(), "{identities:?}");
    for identity in &identities {
        assert!(
            !identity.is_empty() && !identity.contains("root-key"),
            "{identity}"
        );
    }
    // The same on each node.
    assert_eq!(introspection(live(), |builder| builder), identities[0]);
}

#[test]
fn a_function_without_a_name_means_no_identity() {
    let identity = introspection(endpoint(URL, "live"), |builder| {
        builder.organization(|_| Ok(None))
    });
    assert_eq!(identity, "");
}

#[test]
fn no_environment_means_no_identity() {
    for environment in [None, Some("")] {
        let mut builder = Endpoint::builder(URL).bearer_token("root-key-of-this-service");
        if let Some(environment) = environment {
            builder = builder.environment(environment);
        }
        let endpoint = builder.build().unwrap();
        assert_eq!(
            UnkeyVerifier::with_endpoint(endpoint.clone()).identity(),
            ""
        );
        assert_eq!(
            WorkOsVerifier::with_endpoint(endpoint.clone()).identity(),
            ""
        );
        assert_eq!(introspection(endpoint, |builder| builder), "");
    }
}
