//! Kinde's ambiguous answers through the layer: recorded, confirmed by a later 200, and rejected.

use futures_util::future::join_all;

use crate::support::kinde::{
    BAD, GOOD, Stage, invalid_key, misconfigured, rejected, served, unavailable, valid_key, yes,
};
use crate::support::stub::{Answer, Endpoint};

fn no_record() -> Answer {
    Answer::json(404, r#"{"errors":[{"code":"API_KEY_NOT_FOUND"}]}"#)
}

#[tokio::test]
async fn fault_75_invalid_key_is_503_then_401() {
    for probe in [401, 403] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Probe, Answer::status(probe));
        // The token may be at fault, and so may the next one.
        assert_eq!(stage.get(BAD).await, misconfigured());
        assert_eq!(stage.count(Endpoint::Token), 2);
        assert_eq!(stage.get(BAD).await, misconfigured());
        stage.jump(1);
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.get(BAD).await, rejected());
        // From here on the probe is known to be unusable.
        for n in 0..5 {
            let key = invalid_key(n);
            assert_eq!(stage.get(&key).await.0, 503);
            stage.jump(1);
            assert_eq!(stage.get(&valid_key(n)).await, served());
            assert_eq!(stage.get(&key).await, rejected());
        }
        assert_eq!(stage.count(Endpoint::Token), 2);
    }
}

#[tokio::test]
async fn fault_75_revoked_key_is_removed_on_a_200() {
    let stage = Stage::new().await;
    stage.stub.always(Endpoint::Probe, Answer::status(401));
    assert_eq!(stage.get(GOOD).await, served());
    stage.stub.on(Endpoint::Verify, |request| {
        if request.key() == GOOD {
            Answer::status(401)
        } else {
            yes()
        }
    });
    stage.jump(130);
    assert_eq!(stage.get(GOOD).await, served());
    stage.jump(1);
    assert_eq!(stage.get(&valid_key(2)).await, served());
    assert_eq!(stage.get(GOOD).await, rejected());
}

#[tokio::test]
async fn fault_68_200_decides_if_the_probe_fails() {
    for probe in [500, 429, 404] {
        let stage = Stage::new().await;
        stage.stub.always(Endpoint::Probe, Answer::status(probe));
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.get(BAD).await, unavailable());
        stage.jump(1);
        assert_eq!(stage.get(&valid_key(2)).await, served());
        assert_eq!(stage.get(BAD).await, rejected());
        assert_eq!(stage.count(Endpoint::Token), 1);
    }
}

#[tokio::test]
async fn fault_72_forty_known_keys_survive_401_for_all() {
    for status in [401, 403] {
        let stage = Stage::new().await;
        let keys: Vec<_> = (0..40).map(valid_key).collect();
        for key in &keys {
            assert_eq!(stage.get(key).await, served());
        }
        stage.stub.always(Endpoint::Verify, Answer::status(status));
        for _ in 0..6 {
            stage.jump(130);
            for answered in join_all(keys.iter().map(|key| stage.get(key))).await {
                assert_eq!(answered, served());
            }
        }
        assert!(stage.count(Endpoint::Verify) >= 40 * 7);
        // The first answer after it costs none of them either.
        stage.stub.always(Endpoint::Verify, yes());
        stage.jump(30);
        for key in &keys {
            assert_eq!(stage.get(key).await, served());
        }
    }
}

#[tokio::test]
async fn fault_76_revoked_keys_are_removed_on_a_200() {
    for answer in [Answer::status(400), Answer::status(401), no_record()] {
        let stage = Stage::new().await;
        let revoked: Vec<_> = (0..200).map(invalid_key).collect();
        for key in &revoked {
            stage.stub.always(Endpoint::Verify, yes());
            assert_eq!(stage.get(key).await, served());
        }
        stage.stub.on(Endpoint::Verify, move |request| {
            if request.key().starts_with("k_live_none") {
                answer.clone()
            } else {
                yes()
            }
        });
        stage.jump(130);
        for answered in join_all(revoked.iter().map(|key| stage.get(key))).await {
            assert_eq!(answered, served());
        }
        stage.jump(1);
        assert_eq!(stage.get(GOOD).await, served());
        for answered in join_all(revoked.iter().map(|key| stage.get(key))).await {
            assert_eq!(answered, rejected());
        }
    }
}

#[tokio::test]
async fn lone_revoked_key_is_removed_by_its_record() {
    for answer in [Answer::status(400), Answer::status(401), no_record()] {
        let stage = Stage::new().await;
        assert_eq!(stage.get(GOOD).await, served());
        stage.stub.always(Endpoint::Verify, answer);
        stage.stub.always(Endpoint::Key, no_record());
        stage.jump(130);
        assert_eq!(stage.get(GOOD).await, rejected());
        assert_eq!(stage.count(Endpoint::Key), 1);
    }
}
