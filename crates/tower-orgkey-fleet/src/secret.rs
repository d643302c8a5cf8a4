//! The secret of a fleet, and the keys that are derived from it.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// The shortest secret, in bytes.
pub(crate) const MIN_SECRET_LEN: usize = 32;
/// The longest secret, in bytes.
const MAX_SECRET_LEN: usize = 1024;

/// The secret that all nodes of a fleet share: 32 to 1,024 random bytes.
///
/// Nothing that was not sealed with a key derived from it is believed, whoever stored it. `Debug` prints `FleetSecret(…)`; the
/// memory is zeroized on drop.
///
/// ```
/// use tower_orgkey_fleet::FleetSecret;
///
/// // `openssl rand -base64 32`
/// let secret = FleetSecret::from_base64("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=")?;
/// assert_eq!(format!("{secret:?}"), "FleetSecret(…)");
/// assert!(FleetSecret::new(b"too short").is_err());
/// # Ok::<(), tower_orgkey_fleet::InvalidFleetSecret>(())
/// ```
#[derive(Clone)]
pub struct FleetSecret(Zeroizing<Vec<u8>>);

/// The secret is shorter than 32 bytes, longer than 1,024, or not base64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fleet secret: expected 32 to 1024 bytes")]
pub struct InvalidFleetSecret(());

impl FleetSecret {
    /// Creates a secret of 32 to 1,024 bytes from a random source.
    pub fn new(secret: &[u8]) -> Result<Self, InvalidFleetSecret> {
        if (MIN_SECRET_LEN..=MAX_SECRET_LEN).contains(&secret.len()) {
            Ok(Self(Zeroizing::new(secret.to_vec())))
        } else {
            Err(InvalidFleetSecret(()))
        }
    }

    /// Decodes a secret from standard base64, with padding. White space around it is ignored.
    pub fn from_base64(text: &str) -> Result<Self, InvalidFleetSecret> {
        let decoded = STANDARD.decode(text.trim());
        let decoded = Zeroizing::new(decoded.map_err(|_| InvalidFleetSecret(()))?);
        Self::new(&decoded)
    }
}

impl fmt::Debug for FleetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetSecret(…)")
    }
}

/// The keys of a fleet and an issuer.
pub(crate) struct Keys {
    /// Distinguishes secrets during a rotation. Public.
    pub(crate) id: u8,
    pub(crate) digest: Zeroizing<[u8; 16]>,
    pub(crate) seal: RandomizedNonceKey,
    name: hmac::Key,
}

/// Lengths of output for HKDF.
struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

/// The system's crypto library failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CryptoFailed;

impl Keys {
    /// Derives the keys by HKDF-SHA-256. Each is bound to the fleet and the issuer.
    pub(crate) fn derive(
        secret: &FleetSecret,
        fleet: &str,
        issuer: &str,
    ) -> Result<Self, CryptoFailed> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"orgkey-fleet-1").extract(&secret.0);
        let expand = |label: &str, out: &mut [u8]| {
            // The name of a fleet contains no zero byte.
            let info = [
                label.as_bytes(),
                &[0],
                fleet.as_bytes(),
                &[0],
                issuer.as_bytes(),
            ];
            let okm = prk
                .expand(&info, Len(out.len()))
                .map_err(|_| CryptoFailed)?;
            okm.fill(out).map_err(|_| CryptoFailed)
        };
        let mut id = [0; 1];
        let mut digest = Zeroizing::new([0; 16]);
        let mut seal = Zeroizing::new([0; 32]);
        let mut name = Zeroizing::new([0; 32]);
        expand("id", &mut id)?;
        expand("digest", &mut *digest)?;
        expand("seal", &mut *seal)?;
        expand("name", &mut *name)?;
        Ok(Self {
            id: id[0],
            digest,
            seal: RandomizedNonceKey::new(&AES_256_GCM_SIV, &*seal).map_err(|_| CryptoFailed)?,
            name: hmac::Key::new(hmac::HMAC_SHA256, &*name),
        })
    }

    /// Returns the name under which the engine stores the result of a key: it says nothing about the key.
    pub(crate) fn name(&self, key: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.name, key.as_bytes()))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}
