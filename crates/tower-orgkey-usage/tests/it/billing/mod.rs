//! Billing with Kinde, over a socket to the emulator: the sums are exact, whatever fails.

mod held;
mod periods;
mod random;
mod sends;
mod stored;
pub(crate) mod world;

use proptest::prelude::*;

use self::random::{bills_exactly, steps};
use self::world::World;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn sums_are_exact_whatever_fails(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { bills_exactly(&World::new().await, &steps).await });
    }
}
