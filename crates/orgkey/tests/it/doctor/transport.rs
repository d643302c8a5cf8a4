//! The way to the issuer. Nothing secret is sent on a way that was not verified.

use std::net::TcpListener;
use std::process::Stdio;

use kinde_emulator::{Endpoint, Fault, KindeEmulator};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{Stage, doctor};

#[tokio::test]
async fn untrusted_certificate_gets_no_secret() {
    for builder in [
        KindeEmulator::builder().tls(),
        KindeEmulator::builder().tls_expired(),
        KindeEmulator::builder().tls_for_names(["other.example"]),
    ] {
        let stage = Stage::with(builder).await;
        let diagnosis = stage.run().await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("connection"), "ok");
        assert_eq!(diagnosis.result("TLS"), "failure");
        assert!(diagnosis.row("TLS").to_lowercase().contains("certificate"));
        let calls = stage.emulator.calls();
        assert_eq!(calls.total(), 0);
        assert!(calls.failed_tls_handshakes >= 1);
    }
}

#[tokio::test]
async fn trusted_certificate_is_verified() {
    let stage = Stage::with(KindeEmulator::builder().tls()).await;
    let root = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(root.path(), stage.emulator.root_certificate_pem().unwrap()).unwrap();
    let mut command = stage.command();
    command.env("SSL_CERT_FILE", root.path());
    let diagnosis = stage.diagnose(command).await;
    assert_eq!(diagnosis.result("TLS"), "ok");
    assert!(diagnosis.row("TLS").contains("certificate verified"));
    assert_eq!(diagnosis.code, 0, "{}", diagnosis.text);

    for builder in [
        KindeEmulator::builder().tls_expired(),
        KindeEmulator::builder().tls_for_names(["other.example"]),
    ] {
        let stage = Stage::with(builder).await;
        std::fs::write(root.path(), stage.emulator.root_certificate_pem().unwrap()).unwrap();
        let mut command = stage.command();
        command.env("SSL_CERT_FILE", root.path());
        let diagnosis = stage.diagnose(command).await;
        assert_eq!(diagnosis.result("TLS"), "failure");
        assert_eq!(stage.emulator.calls().total(), 0);
    }
}

#[tokio::test]
async fn address_is_shown_before_a_secret_is_sent() {
    let stage = Stage::set().await;
    stage.emulator.inject(Endpoint::Token, Fault::hold());
    let mut child = stage.command().stdout(Stdio::null()).spawn().unwrap();
    stage.emulator.wait_for_calls(Endpoint::Token, 1).await;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The call is held until this line was read.
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains(&stage.emulator.addr().to_string()), "{line}");
    assert_eq!(stage.emulator.calls().verify.total, 0);
    stage.emulator.clear_faults();
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn plain_http_is_for_loopback_only() {
    let stage = Stage::set().await;
    for url in [
        "http://192.0.2.1",
        "http://acme.kinde.com",
        "ftp://acme.kinde.com",
    ] {
        let mut command = doctor();
        command
            .args(["--json", "--issuer", url, "--client-id", "id"])
            .args(["--client-secret-env", "TEST_SECRET"]);
        stage.environment(&mut command);
        let diagnosis = stage.diagnose(command).await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result("URL"), "failure");
        assert_eq!(diagnosis.result("name resolution"), "absent");
    }
}

#[tokio::test]
async fn unreachable_issuers_are_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let stage = Stage::set().await;
    for (url, check) in [
        (closed.as_str(), "connection"),
        ("https://no-such-host.invalid", "name resolution"),
    ] {
        let mut command = doctor();
        command
            .args(["--json", "--issuer", url, "--client-id", "id"])
            .args(["--client-secret-env", "TEST_SECRET"]);
        stage.environment(&mut command);
        let diagnosis = stage.diagnose(command).await;
        assert_eq!(diagnosis.code, 1);
        assert_eq!(diagnosis.result(check), "failure", "{}", diagnosis.text);
    }
}
