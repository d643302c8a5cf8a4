//! HTTPS.

use kinde_emulator::{Endpoint, Fault, KeySpec, KindeEmulator, KindeEmulatorBuilder};
use reqwest::Certificate;

use crate::{Caller, read};

/// Returns a caller that trusts only the root certificate of `root`.
fn trusting(root: &KindeEmulator, emulator: &KindeEmulator) -> Caller {
    let root = Certificate::from_pem(root.root_certificate_pem().unwrap().as_bytes()).unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([root])
        .build()
        .unwrap();
    Caller {
        http,
        ..Caller::new(emulator)
    }
}

async fn start(builder: KindeEmulatorBuilder) -> (KindeEmulator, Caller) {
    let emulator = builder.start().await.unwrap();
    let caller = trusting(&emulator, &emulator);
    (emulator, caller)
}

#[tokio::test]
async fn client_that_trusts_the_root_is_served() {
    let (emulator, caller) = start(KindeEmulator::builder().tls()).await;
    assert!(emulator.issuer_url().starts_with("https://127.0.0.1:"));
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    let (status, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!((status, &body["org_code"]), (200, &"org_1".into()));
    assert_eq!(caller.fetch_token(&emulator).await.status(), 200);
    let by_name = caller.url.replace("127.0.0.1", "localhost");
    let named = Caller {
        url: by_name,
        ..caller
    };
    assert_eq!(named.verify(key.secret()).await.status(), 200);
    assert_eq!(emulator.calls().failed_tls_handshakes, 0);
}

#[tokio::test]
async fn faults_close_and_reset_tls_connections() {
    let (emulator, caller) = start(KindeEmulator::builder().tls()).await;
    for fault in [Fault::reset(), Fault::close()] {
        emulator.inject(Endpoint::Verify, fault);
        caller.try_verify("k_live_0").await.unwrap_err();
    }
    emulator.inject(Endpoint::Verify, Fault::truncate());
    let response = caller.verify("k_live_0").await;
    assert_eq!(response.status(), 200);
    response.bytes().await.unwrap_err();
    assert_eq!(emulator.calls().verify.faulted, 3);
}

#[tokio::test]
async fn invalid_certificates_fail_the_handshake() {
    let (other, _) = start(KindeEmulator::builder().tls()).await;
    let (unknown, _) = start(KindeEmulator::builder().tls()).await;
    let (misnamed, _) = start(KindeEmulator::builder().tls_for_names(["acme.example"])).await;
    let (expired, _) = start(KindeEmulator::builder().tls_expired()).await;
    for (root, emulator) in [
        (&other, &unknown),
        (&misnamed, &misnamed),
        (&expired, &expired),
    ] {
        let error = trusting(root, emulator)
            .try_verify("k_live_0")
            .await
            .unwrap_err();
        assert!(error.is_connect(), "{error:?}");
        assert_eq!(emulator.calls().verify.total, 0);
        assert_eq!(emulator.calls().connections, 1);
    }
}
