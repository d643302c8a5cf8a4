//! The Kinde verifier over TLS.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayer, telemetry};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::support::kinde::{GOOD, get, layer_over, yes};
use crate::support::stub::{Endpoint, Stub};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "the stub's authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn server(&self, name: &str, last_year: i32) -> ServerConfig {
        let all = rustls::ALL_VERSIONS;
        self.server_of(name, last_year, all)
    }

    fn server_of(
        &self,
        name: &str,
        last_year: i32,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        params
            .extended_key_usages
            .push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

async fn start(config: ServerConfig) -> Stub {
    let stub = Stub::start_tls(config).await;
    stub.always(Endpoint::Verify, yes());
    stub
}

/// Returns a layer that trusts this authority, with the stub as its issuer under the name `host`.
fn layer(stub: &Stub, host: &str, trusted: Option<&Authority>) -> ApiKeyLayer {
    let mut builder = KindeVerifier::builder(format!("https://{host}:{}", stub.addr.port()))
        .bearer_token("static-secret")
        .connect_timeout(std::time::Duration::from_secs(5));
    if let Some(authority) = trusted {
        builder = builder.add_root_certificate_pem(authority.pem());
    }
    layer_over(builder.build().unwrap(), &TestClock::new())
}

/// Records the events of tower-orgkey, one line each.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Line(String);

        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                write!(self.0, "{field}={value:?} ").unwrap();
            }
        }

        if event.metadata().target() == telemetry::TARGET {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }
}

#[tokio::test]
async fn trusted_certificate_is_accepted() {
    let authority = Authority::new();
    let stub = start(authority.server("localhost", 4000)).await;
    let layer = layer(&stub, "localhost", Some(&authority));
    assert_eq!(get(&layer, GOOD).await, (200, "org_1".into()));
    assert_eq!(stub.count(Endpoint::Verify), 1);
}

#[tokio::test]
async fn tls_1_2_is_accepted() {
    let authority = Authority::new();
    let versions = [&rustls::version::TLS12];
    let stub = start(authority.server_of("localhost", 4000, &versions)).await;
    let layer = layer(&stub, "localhost", Some(&authority));
    assert_eq!(get(&layer, GOOD).await, (200, "org_1".into()));
}

#[tokio::test]
async fn fault_13_bad_certificate_gets_503_and_an_event() {
    let ours = Authority::new();
    let other = Authority::new();
    for (what, config, trusted) in [
        ("unknown authority", ours.server("localhost", 4000), None),
        (
            "another authority",
            ours.server("localhost", 4000),
            Some(&other),
        ),
        (
            "wrong name",
            ours.server("issuer.invalid", 4000),
            Some(&ours),
        ),
        ("expired", ours.server("localhost", 2021), Some(&ours)),
    ] {
        let stub = start(config).await;
        let events = Events::default();
        let layer = layer(&stub, "localhost", trusted);
        let subscriber = tracing_subscriber::registry().with(events.clone());
        let guard = tracing::subscriber::set_default(subscriber);
        for key in ["k_live_good_0001", "k_live_good_0002"] {
            let got = get(&layer, key).await;
            assert_eq!(got, (503, "verifier-unavailable".into()), "{what}");
        }
        drop(guard);
        assert!(stub.connections() > 0, "{what}: no connection");
        assert_eq!(stub.count(Endpoint::Verify), 0, "{what}");
        let events = events.0.lock().unwrap();
        let security_events: Vec<_> = events
            .iter()
            .filter(|event| event.contains("security=true"))
            .collect();
        assert_eq!(security_events.len(), 1, "{what}: {events:?}");
        assert!(
            events
                .iter()
                .all(|event| !event.contains("static-secret") && !event.contains("k_live")),
            "{what}: {events:?}"
        );
    }
}

#[tokio::test]
async fn fault_13_https_issuer_gets_no_plain_http() {
    let stub = Stub::start().await;
    stub.always(Endpoint::Verify, yes());
    let layer = layer(&stub, "localhost", None);
    assert_eq!(get(&layer, GOOD).await.0, 503);
    assert!(stub.connections() > 0, "no connection");
    assert_eq!(stub.count(Endpoint::Verify), 0);
}
