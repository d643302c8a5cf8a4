//! One function per fuzz target. Each asserts what must hold for any input.

use crate::seal::{Kind, Sealer};
use crate::secret::FleetSecret;
use crate::wire::{Acknowledgement, LogEntry, NodeRecord, StoredResult, Wire};

/// Decodes bytes as if they had been opened. What decodes is the same after it was encoded.
///
/// # Panics
///
/// If it is not.
pub fn decode(bytes: &[u8]) -> bool {
    fn check<T: Wire + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
        let Some(value) = T::decode(bytes) else {
            return false;
        };
        assert_eq!(T::decode(&value.encode()), Some(value));
        true
    }
    let checks = [
        check::<StoredResult>,
        check::<LogEntry>,
        check::<NodeRecord>,
        check::<Acknowledgement>,
    ];
    checks.map(|check| check(bytes)).contains(&true)
}

/// Opens bytes as an engine may return them.
///
/// # Panics
///
/// If they open, because only this node knows the secret.
pub fn open(bytes: &[u8]) {
    #[allow(clippy::unwrap_used)] // 32 bytes are a secret.
    let secret = FleetSecret::new(&[7; 32]).unwrap();
    let Ok(sealer) = Sealer::new(&[secret], "fleet", "issuer") else {
        return;
    };
    for kind in Kind::ALL {
        assert_eq!(sealer.open(kind, "place", bytes), None);
    }
}
