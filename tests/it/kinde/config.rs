//! Invalid settings are errors of `build`.

use tower_orgkey::ConfigError;
use tower_orgkey::kinde::{KindeVerifier, KindeVerifierBuilder};

fn at(issuer: &str) -> KindeVerifierBuilder {
    KindeVerifier::builder(issuer).without_credentials()
}

fn error_of(builder: KindeVerifierBuilder) -> ConfigError {
    match builder.build() {
        Err(error) => error,
        Ok(verifier) => panic!("{verifier:?} was built"),
    }
}

#[test]
fn invalid_issuer_is_an_error() {
    for issuer in [
        "",
        "acme.kinde.com",
        "//acme.kinde.com",
        "https://",
        "https://:443",
        "ftp://acme.kinde.com",
        "file:///etc/passwd",
        "data:text/plain,acme",
        "https://acme.kinde.com/api",
        "https://acme.kinde.com?x=y",
        "https://acme.kinde.com#x",
        "https://user@acme.kinde.com",
        "https://user:hunter2@acme.kinde.com",
        "http://acme.kinde.com",
        "http://127.0.0.1.kinde.com",
        "http://localhost.kinde.com",
        "http://10.0.0.1",
        "http://[::2]",
    ] {
        let error = error_of(at(issuer));
        assert_eq!(error.field(), "issuer", "{issuer}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn plain_http_is_for_loopback_only() {
    for issuer in [
        "http://127.0.0.1:3000",
        "http://127.1.2.3",
        "http://[::1]:3000/",
        "http://localhost",
    ] {
        assert!(at(issuer).build().is_ok(), "{issuer}");
    }
    let builder = at("http://issuer.internal").dangerously_allow_http();
    assert!(builder.build().is_ok());
}

#[cfg(any(feature = "rustls", feature = "native-tls"))]
#[test]
fn https_needs_no_runtime_and_no_slash() {
    assert!(at("https://acme.kinde.com").build().is_ok());
    assert!(at("https://acme.kinde.com/").build().is_ok());
}

#[cfg(not(any(feature = "rustls", feature = "native-tls")))]
#[test]
fn https_without_a_tls_feature_is_an_error() {
    assert_eq!(error_of(at("https://acme.kinde.com")).field(), "issuer");
    let builder = at("http://localhost").add_root_certificate_pem("whatever");
    assert_eq!(error_of(builder).field(), "add_root_certificate_pem");
}

#[test]
fn credentials_must_be_set_and_not_empty() {
    let builder = || KindeVerifier::builder("http://localhost");
    assert_eq!(error_of(builder()).field(), "credentials");
    for (id, secret) in [("", "s3cret"), ("id", ""), (" ", "s3cret"), ("id", "\n")] {
        let error = error_of(builder().client_credentials(id, secret));
        assert_eq!(error.field(), "client_credentials");
        assert!(!error.to_string().contains("s3cret"));
    }
    let long = "t".repeat(16 * 1024 + 1);
    for token in ["", "two words", "s3cret\r\nx: y", "sécret", &long] {
        let error = error_of(builder().bearer_token(token));
        assert_eq!(error.field(), "bearer_token");
        assert!(!error.to_string().contains("s3cret"));
    }
}

#[test]
fn invalid_settings_are_errors() {
    let builder = || KindeVerifier::builder("http://localhost").client_credentials("id", "secret");
    assert!(builder().build().is_ok());
    assert_eq!(error_of(builder().audience("")).field(), "audience");
    assert_eq!(error_of(builder().scope(" ")).field(), "scope");
    assert_eq!(error_of(builder().api_id("")).field(), "api_id");
    let none = at("http://localhost").api_id("api");
    assert_eq!(error_of(none).field(), "api_id");
    let at_once = builder().connect_timeout(std::time::Duration::ZERO);
    assert_eq!(error_of(at_once).field(), "connect_timeout");
    for proxy in ["", "nowhere", "socks5://user:hunter2@proxy", "http://"] {
        let error = error_of(builder().proxy(proxy));
        assert_eq!(error.field(), "proxy", "{proxy}");
        assert!(!error.to_string().contains("hunter2"));
    }
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for pem in ["", "garbage", garbage] {
        let error = error_of(builder().add_root_certificate_pem(pem));
        assert_eq!(error.field(), "add_root_certificate_pem", "{pem}");
    }
}

#[test]
fn debug_and_errors_have_no_secrets() {
    let builder = KindeVerifier::builder("http://localhost")
        .client_credentials("the-client-id", "s3cret")
        .proxy("http://user:hunter2@localhost");
    let shown = format!("{builder:?}");
    let shown = format!("{shown}{:?}", builder.build().unwrap());
    assert!(shown.contains("http://localhost"), "{shown}");
    let with_token = || KindeVerifier::builder("http://localhost").bearer_token("s3cret");
    let shown = format!(
        "{shown}{:?}{:?}",
        with_token(),
        with_token().build().unwrap()
    );
    assert!(!shown.contains("s3cret") && !shown.contains("hunter2"));
}
