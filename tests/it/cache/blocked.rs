//! Blocks apply to cached keys.

use tower::Layer;
use tower_orgkey::{ApiKey, ApiKeyHandle, BlockListFull, KeyId, OrgCode};

use super::{ONE, SECOND, TWO, layer, rejected};
use crate::support::service::{Handler, allowed, outcome};
use crate::support::{Issuer, org};

type Block = fn(&ApiKeyHandle) -> Result<(), BlockListFull>;

#[tokio::test(start_paused = true)]
async fn blocks_apply_to_the_next_request() {
    let blocks: [(&str, Block); 3] = [
        ("its organization", |handle| {
            handle.block_org(&OrgCode::from_static("org_one"))
        }),
        ("its id", |handle| {
            handle.block_key_id(&KeyId::from_static("id_of_org_one"))
        }),
        ("its secret", |handle| {
            handle.block_key(&ApiKey::parse(ONE).unwrap())
        }),
    ];
    for (what, block) in blocks {
        let issuer = Issuer::knowing([(ONE, org("org_one", &[])), (TWO, org("org_two", &[]))]);
        let (layer, _) = layer(issuer.clone());
        let handler = Handler::default();
        let api = layer.layer(handler.clone());
        // A lookup, a hit that reads the tables, and a hit that does not.
        for _ in 0..3 {
            assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{what}");
            assert_eq!(outcome(&api, TWO).await, allowed("org_two"), "{what}");
        }
        assert_eq!((handler.reached(), issuer.calls()), (6, 2), "{what}");
        block(&layer.handle()).unwrap();
        assert_eq!(outcome(&api, ONE).await, rejected(), "{what}");
        assert_eq!(handler.reached(), 6, "{what}");
        // The block lasts, affects no other key, and causes no call.
        tokio::time::advance(SECOND).await;
        assert_eq!(outcome(&api, ONE).await, rejected(), "{what}");
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"), "{what}");
        assert_eq!((handler.reached(), issuer.calls()), (7, 2), "{what}");
    }
}
