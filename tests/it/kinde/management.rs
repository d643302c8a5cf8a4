//! Calls of the management API for other crates.

use crate::support::kinde::Stage;
use crate::support::stub::{Answer, Endpoint};

/// Each token is billed, and a token without the scope of the call is no better when it is new.
#[tokio::test]
async fn rejected_calls_share_one_renewal() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Elsewhere, Answer::status(403));
    for call in 1..=3 {
        let management = stage.kinde.management();
        let reply = management.get("/api/v1/organization", &[]).await.unwrap();
        assert_eq!(reply.status(), 403);
        // The first call is repeated with the second token.
        assert_eq!(stage.count(Endpoint::Elsewhere), call + 1);
        assert_eq!(stage.count(Endpoint::Token), 2);
    }
    stage.jump(5);
    let management = stage.kinde.management();
    let reply = management.get("/api/v1/organization", &[]).await.unwrap();
    assert_eq!(reply.status(), 403);
    assert_eq!(stage.count(Endpoint::Token), 3);
}

/// One client without its scope does not keep the others from a new token.
#[tokio::test]
async fn missing_scope_delays_no_renewal_after_401() {
    let stage = Stage::new().await;
    let management = stage.kinde.management();
    stage.stub.always(Endpoint::Elsewhere, Answer::status(403));
    for _ in 0..2 {
        management.get("/api/v1/organization", &[]).await.unwrap();
    }
    assert_eq!(stage.count(Endpoint::Token), 2);
    stage.stub.always(Endpoint::Elsewhere, Answer::status(401));
    management.get("/api/v1/feature_flags", &[]).await.unwrap();
    assert_eq!(stage.count(Endpoint::Token), 3);
}
