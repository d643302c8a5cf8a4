//! A block reaches what is remembered, and the shortest way to it.

use tower::Layer;
use tower_orgkey::{ApiKey, ApiKeyHandle, BlockListFull, KeyId, OrgCode};

use super::{ONE, SECOND, TWO, invalid, layer};
use crate::support::service::{Handler, allowed, outcome};
use crate::support::{Issuer, org};

type Block = fn(&ApiKeyHandle) -> Result<(), BlockListFull>;

#[tokio::test(start_paused = true)]
async fn a_cached_key_is_refused_at_the_very_next_request_after_a_block() {
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
        // Thrice: loaded, found, and found by the shortest way, which asks no table.
        for _ in 0..3 {
            assert_eq!(outcome(&api, ONE).await, allowed("org_one"), "{what}");
            assert_eq!(outcome(&api, TWO).await, allowed("org_two"), "{what}");
        }
        assert_eq!((handler.reached(), issuer.calls()), (6, 2), "{what}");
        block(&layer.handle()).unwrap();
        assert_eq!(outcome(&api, ONE).await, invalid(), "{what}");
        assert_eq!(handler.reached(), 6, "{what}");
        // It stays so, nobody else is kept out, and the issuer is not asked.
        tokio::time::advance(SECOND).await;
        assert_eq!(outcome(&api, ONE).await, invalid(), "{what}");
        assert_eq!(outcome(&api, TWO).await, allowed("org_two"), "{what}");
        assert_eq!((handler.reached(), issuer.calls()), (7, 2), "{what}");
    }
}
