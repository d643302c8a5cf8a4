//! Another server at the issuer's address, which cannot present the issuer's certificate.

use kinde_emulator::KindeEmulator;

use crate::support::emulated::Stage;
use crate::support::log::Log;
use crate::support::proxy::Fault;

#[tokio::test]
async fn fault_13_impostor_gets_no_key_and_no_token() {
    let tls = || KindeEmulator::builder().tls();
    for (what, impostor, is_certificate) in [
        ("another authority's certificate", tls(), true),
        ("plain HTTP", KindeEmulator::builder(), false),
    ] {
        let (log, _guard) = Log::capture();
        let impostor = impostor.verify_without_token().start().await.unwrap();
        let mut stage = Stage::over(tls().start().await.unwrap()).await;
        let unknown = stage.unknown_key();
        stage.proxy.inject(Fault::Divert(impostor.addr())).await;
        stage.shows_an_outage(&unknown).await;
        assert!(stage.proxy.injected() >= 5, "{what}");
        let calls = impostor.calls();
        assert!(calls.connections >= 5, "{what}: {calls:?}");
        assert_eq!(calls.verify.total + calls.token.total, 0, "{what}");
        assert_eq!(calls.unrouted, 0, "{what}");
        let events = log.lines("ERROR", "security=true");
        assert_eq!(
            events.len(),
            usize::from(is_certificate),
            "{what}: {events:?}"
        );
        stage.proxy.heal();
        stage.shows_recovery(&unknown).await;
    }
}
