use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tower_orgkey::ConfigError;

/// The key of the pseudonyms in events, for [`AuditLayer::pseudonymize`](crate::AuditLayer::pseudonymize).
///
/// A pseudonym is the first half of the HMAC-SHA-256 (RFC 2104) of an identifier, as 32 hexadecimal digits. The same key gives
/// the same pseudonym, on all nodes and in all trails, so events of one user can still be found by whoever has the key and the
/// user's id. Without the key they can be neither computed nor reversed: there are few addresses, so keep the key apart from the
/// events. If the key is erased, no event can be linked to a person any more.
///
/// `Debug` does not show the key.
///
/// ```
/// use tower_orgkey_audit::PseudonymKey;
///
/// # let secret = [7; 32];
/// let key = PseudonymKey::new(&secret)?;
/// assert_eq!(key.of_user("kp_7").len(), 32);
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct PseudonymKey(Arc<Hmac<Sha256>>);

/// Hexadecimal digits.
pub(crate) type Pseudonym = [u8; 32];

impl PseudonymKey {
    /// Creates the key from a secret of at least 32 bytes, which must be random.
    ///
    /// # Errors
    ///
    /// If the secret is shorter.
    pub fn new(secret: &[u8]) -> Result<Self, ConfigError> {
        if secret.len() < 32 {
            return Err(ConfigError::new("new", "must have at least 32 bytes"));
        }
        match Hmac::new_from_slice(secret) {
            Ok(hmac) => Ok(Self(Arc::new(hmac))),
            Err(_) => Err(ConfigError::new("new", "is not a key for HMAC")),
        }
    }

    /// Returns the pseudonym of a user's id, to find the events of a user.
    pub fn of_user(&self, id: &str) -> String {
        text(&self.pseudonym("user", id.as_bytes())).to_owned()
    }

    /// Returns the pseudonym of an address, to find the events of a peer. An IPv4-mapped IPv6 address has that of the IPv4
    /// address.
    pub fn of_peer(&self, ip: IpAddr) -> String {
        text(&self.of_ip(ip)).to_owned()
    }

    pub(crate) fn of_ip(&self, ip: IpAddr) -> Pseudonym {
        self.pseudonym("peer", ip.to_canonical().to_string().as_bytes())
    }

    /// `kind` separates ids from addresses of the same text.
    fn pseudonym(&self, kind: &str, of: &[u8]) -> Pseudonym {
        let mut hmac = Hmac::clone(&self.0);
        hmac.update(kind.as_bytes());
        hmac.update(&[0]);
        hmac.update(of);
        let mut digits = [0; 32];
        for (pair, byte) in digits
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(hmac.finalize().into_bytes())
        {
            *pair = [
                b"0123456789abcdef"[usize::from(byte >> 4)],
                b"0123456789abcdef"[usize::from(byte & 15)],
            ];
        }
        digits
    }
}

pub(crate) fn text(pseudonym: &Pseudonym) -> &str {
    std::str::from_utf8(pseudonym).unwrap_or_default()
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PseudonymKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PseudonymKey {
        PseudonymKey::new(b"0123456789abcdef0123456789abcdef").unwrap()
    }

    /// Computed with Python: `hmac.new(key, b"user\0kp_7", "sha256").hexdigest()[:32]`.
    #[test]
    fn pseudonyms_are_those_of_hmac_sha_256() {
        assert_eq!(key().of_user("kp_7"), "2638f0c90adecef092c989dbb5411177");
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(key().of_peer(ip), "520da3194a805c4dcdfaca33c781f045");
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(key().of_peer(mapped), key().of_peer(ip));
        assert_ne!(key().of_user("192.0.2.7"), key().of_peer(ip));
    }

    #[test]
    fn short_secrets_are_errors_and_no_secret_is_shown() {
        assert!(PseudonymKey::new(&[7; 31]).is_err());
        assert!(PseudonymKey::new(&[7; 100]).is_ok());
        assert_eq!(format!("{:?}", key()), "PseudonymKey { .. }");
    }
}
