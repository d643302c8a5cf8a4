//! The Kinde verifier passes the kit.

use kinde_emulator::{KeySpec, KindeEmulator};
use tower_orgkey::ApiKey;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey_issuers::conformance::{
    Condition, FaultProxy, Guarantee, IssuerUnderTest, check_verifier,
};

struct Emulated {
    emulator: KindeEmulator,
    proxy: FaultProxy,
    /// The keys and their ids.
    issued: Vec<(String, String)>,
}

impl IssuerUnderTest for Emulated {
    async fn issue(&mut self, organization: &str) -> ApiKey {
        let key = self.emulator.issue_key(KeySpec::organization(organization));
        let pair = (key.secret().to_owned(), key.id().to_owned());
        self.issued.push(pair);
        ApiKey::parse(key.secret()).unwrap()
    }

    async fn revoke(&mut self, key: &ApiKey) {
        let mut issued = self.issued.iter();
        let (_, id) = issued
            .find(|(secret, _)| secret == key.expose_secret())
            .unwrap();
        self.emulator.revoke(id);
    }

    fn proxy(&self) -> Option<&FaultProxy> {
        Some(&self.proxy)
    }
}

#[tokio::test]
async fn fault_130_kinde_passes_the_kit() {
    let emulator = KindeEmulator::start().await.unwrap();
    let proxy = FaultProxy::builder(emulator.addr()).inactive(400, "{}");
    let proxy = proxy.start().await.unwrap();
    let verifier = KindeVerifier::builder(proxy.url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .audience(emulator.audience())
        .build()
        .unwrap();
    let mut issuer = Emulated {
        emulator,
        proxy,
        issued: Vec::new(),
    };
    let report = check_verifier(verifier, &mut issuer).await;
    report.assert();
    for condition in Condition::FAULTS {
        assert!(
            report.holds(Guarantee::KnownKeysKept, condition),
            "{report}"
        );
    }
}
