//! The API key of a request, and the digest that replaces it everywhere else.
//!
//! An [`ApiKey`] exists only during a verification: a hit needs only the digest of the header's bytes. Its memory is zeroized on
//! drop. Buffers outside this crate (HTTP server, HTTP client, TLS) have copies that it cannot zeroize.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;

use siphasher::sip128::SipHasher13;
use zeroize::Zeroizing;

/// The minimum length of a key, in bytes.
pub const MIN_KEY_LEN: usize = 8;
/// The maximum length of a key, in bytes. A layer accepts [`DEFAULT_MAX_KEY_LEN`] unless configured.
pub const MAX_KEY_LEN: usize = 8 * 1024;
/// The maximum length of a key that a layer accepts by default, in bytes. See
/// [`max_key_len`](crate::ApiKeyLayerBuilder::max_key_len).
pub const DEFAULT_MAX_KEY_LEN: usize = 512;
/// The number of a key's last characters in an issuer's list.
pub(crate) const KEY_TAIL_LEN: usize = 4;

/// A caller's API key: a secret of 8 to 8,192 bytes in RFC 6750's `b64token` grammar.
///
/// `Debug` prints `ApiKey(…)`; there is no `Display`. The memory is zeroized on drop.
///
/// ```
/// use tower_orgkey::ApiKey;
///
/// let key = ApiKey::parse("k_live_0123456789abcdef")?;
/// assert!(key.expose_secret().starts_with("k_live_"));
/// assert_eq!(format!("{key:?}"), "ApiKey(…)");
/// assert!(ApiKey::parse("no spaces allowed").is_err());
/// # Ok::<(), tower_orgkey::InvalidApiKey>(())
/// ```
#[derive(Clone)]
pub struct ApiKey(Zeroizing<String>);

impl ApiKey {
    /// Parses a key of 8 to 8,192 bytes in the grammar `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`
    /// (RFC 6750 §2.1).
    pub fn parse(key: &str) -> Result<Self, InvalidApiKey> {
        if is_key(key.as_bytes()) {
            Ok(Self(Zeroizing::new(key.to_owned())))
        } else {
            Err(InvalidApiKey(()))
        }
    }

    /// Like [`parse`](Self::parse), for the bytes of a header.
    pub(crate) fn from_bytes(key: &[u8]) -> Result<Self, InvalidApiKey> {
        std::str::from_utf8(key)
            .map_err(|_| InvalidApiKey(()))
            .and_then(Self::parse)
    }

    /// Returns the secret, to send it to the issuer.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The text is not a key: shorter than 8 bytes, longer than 8,192, or outside RFC 6750's `b64token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: expected 8 to 8192 bytes of RFC 6750 b64token")]
pub struct InvalidApiKey(());

/// Checks for an RFC 6750 §2.1 `b64token` of a valid length. The length is checked first, so long values are not scanned.
#[inline]
pub(crate) fn is_key(bytes: &[u8]) -> bool {
    if !(MIN_KEY_LEN..=MAX_KEY_LEN).contains(&bytes.len()) {
        return false;
    }
    if is_token68(bytes) {
        return true;
    }
    let body = bytes.iter().rposition(|&b| b != b'=');
    body.is_some_and(|last| last + 1 < bytes.len() && is_token68(&bytes[..=last]))
}

/// Returns whether all bytes are in the alphabet of `b64token`. Invalid keys can arrive at a high rate, so it checks blocks
/// without branches, which compile to vector instructions.
#[inline]
pub(crate) fn is_token68(bytes: &[u8]) -> bool {
    const BLOCK: usize = 16;

    let Some(last) = bytes.len().checked_sub(BLOCK) else {
        return bytes.iter().all(|&b| is_token68_byte(b));
    };
    let mut worst = [0; BLOCK];
    let mut at = 0;
    loop {
        // The last block overlaps the one before it.
        let Some(block) = bytes[at.min(last)..].first_chunk::<BLOCK>() else {
            return false;
        };
        for (worst, &byte) in worst.iter_mut().zip(block) {
            *worst = (*worst).max(outside_token68(byte));
        }
        at += BLOCK;
        if at >= bytes.len() {
            return u128::from_ne_bytes(worst) == 0;
        }
    }
}

#[inline]
fn is_token68_byte(byte: u8) -> bool {
    outside_token68(byte) == 0
}

/// Zero for a byte of the alphabet, else its distance to it. Uses operations that exist for vectors.
#[inline]
fn outside_token68(byte: u8) -> u8 {
    // The distance after the range. A byte before the range wraps around.
    let outside =
        |byte: u8, first: u8, last: u8| byte.wrapping_sub(first).saturating_sub(last - first);
    // `-`, `.`, `/` and the digits are adjacent in ASCII; upper and lower case differ in one bit.
    outside(byte, b'-', b'9')
        .min(outside(byte | 0x20, b'a', b'z'))
        .min(byte ^ b'_')
        .min(byte ^ b'~')
        .min(byte ^ b'+')
}

/// Identifies a key in a cache: 128 bits of SipHash-1-3 over the *whole* key under the secret of the cache.
///
/// It is a pseudo-random function: without the 128-bit secret, two keys collide with probability 2^-128, and no caller can search
/// for a collision, because digests are never shown and the secret lives no longer than the process. No attack on SipHash-1-3 is
/// known that beats guessing (the hash tables of Rust and Python use it), and it costs a third less than SipHash-2-4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDigest {
    // Not a `u128`: its alignment would add padding.
    low: u64,
    high: u64,
}

impl KeyDigest {
    /// Bits for the shard or bucket of a table. The digest is uniform.
    pub(crate) fn low(self) -> u64 {
        self.low
    }

    /// Returns the digest for other nodes of a fleet, which have the same secret. It is sent sealed.
    pub fn to_bytes(self) -> [u8; 16] {
        let bits = u128::from(self.high) << 64 | u128::from(self.low);
        bits.to_le_bytes()
    }

    /// Restores the digest that another node sent.
    #[allow(clippy::cast_possible_truncation)] // Each half is kept.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self {
            low: bits as u64,
            high: (bits >> 64) as u64,
        }
    }
}

impl orgkey_lookup::IndexKey for KeyDigest {
    #[inline]
    fn bits(&self) -> u64 {
        self.low
    }
}

impl Hash for KeyDigest {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

impl_debug!(KeyDigest);

/// Identifies the last four characters of a key, which an issuer may show in its list of keys.
///
/// 32 bits of the same function over these characters only. Keys are longer, so it is not the digest of a key. It reveals no
/// character without the secret of the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyTail(NonZeroU32);

impl_debug!(KeyTail);

/// The secret of one cache, or of the caches of a fleet with the same issuer. Generated when the layer is built, or derived from
/// the secret of the fleet; never stored or shown.
pub(crate) struct DigestSecret(Zeroizing<[u8; 16]>);

impl DigestSecret {
    /// Generates a secret with the operating system's random source.
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        let mut secret = Zeroizing::new([0; 16]);
        getrandom::fill(&mut *secret)?;
        Ok(Self(secret))
    }

    /// Takes the secret that the nodes of a fleet share, or that a benchmark needs.
    pub(crate) fn fixed(secret: [u8; 16]) -> Self {
        Self(Zeroizing::new(secret))
    }

    #[inline]
    pub(crate) fn digest(&self, key: impl AsRef<[u8]>) -> KeyDigest {
        let digest = SipHasher13::new_with_key(&self.0).hash(key.as_ref());
        KeyDigest {
            low: digest.h1,
            high: digest.h2,
        }
    }

    /// Returns the tail of a key, or of the suffix that an issuer shows. `None` for fewer than four characters of a key.
    pub(crate) fn tail(&self, key: &str) -> Option<KeyTail> {
        let tail = key.get(key.len().checked_sub(KEY_TAIL_LEN)?..)?;
        // Excludes masks such as `****`.
        if !tail.bytes().all(|b| is_token68_byte(b) || b == b'=') {
            return None;
        }
        #[allow(clippy::cast_possible_truncation)] // Truncated on purpose.
        let bits = self.digest(tail).low() as u32;
        // Zero is mapped to one.
        Some(KeyTail(NonZeroU32::new(bits).unwrap_or(NonZeroU32::MIN)))
    }
}

impl_debug!(DigestSecret);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn key_is_8_to_8192_bytes_of_b64token() {
        assert!(!is_key(b"1234567"));
        assert!(is_key(b"12345678"));
        assert!(is_key(&[b'a'; 8192]));
        assert!(!is_key(&[b'a'; 8193]));
        assert!(is_key(b"aZ09-._~+/=="));
        assert!(is_key(b"a======="));
        assert!(!is_key(b"=========="));
        assert!(!is_key(b"abcd=efgh"));
        assert!(!is_key(b"two words="));
        for outside in [' ', ',', '"', '\t', '\0', 'é', ':', ';', '@', '`', '{'] {
            assert!(
                !is_key(format!("12345678{outside}").as_bytes()),
                "{outside:?}"
            );
        }
    }

    #[test]
    fn byte_outside_the_alphabet_is_found() {
        for len in MIN_KEY_LEN..70 {
            let key = vec![b'a'; len];
            assert!(is_key(&key), "{len}");
            for at in 0..len {
                for byte in 0..=u8::MAX {
                    let mut key = key.clone();
                    key[at] = byte;
                    let within = byte.is_ascii_alphanumeric()
                        || b"-._~+/".contains(&byte)
                        || (byte == b'=' && at + 1 == len);
                    assert_eq!(is_key(&key), within, "{byte} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn digest_depends_on_all_bytes_and_the_secret() {
        let secret = DigestSecret::draw().unwrap();
        let key = "k".repeat(MAX_KEY_LEN);
        let digest = secret.digest(&key);
        assert_eq!(digest, secret.digest(&key));
        for at in (0..key.len()).step_by(13) {
            let mut other = key.clone().into_bytes();
            other[at] = b'x';
            let other = String::from_utf8(other).unwrap();
            assert!(secret.digest(&other) != digest, "byte {at}");
        }
        assert!(secret.digest(&key[..MAX_KEY_LEN - 1]) != digest);
        assert!(DigestSecret::draw().unwrap().digest(&key) != digest);
    }

    #[test]
    fn tables_distribute_digests() {
        let secret = DigestSecret::draw().unwrap();
        let tables = std::hash::RandomState::new();
        let hash = |key: &str| BuildHasher::hash_one(&tables, secret.digest(key));
        let keys: Vec<_> = (0..1_000).map(|n| format!("k_live_{n}")).collect();
        let spread: HashSet<_> = keys.iter().map(|key| hash(key)).collect();
        assert_eq!(spread.len(), keys.len());
        assert_eq!(hash(&keys[0]), hash(&keys[0]));
    }

    #[test]
    fn tail_depends_on_the_last_four_characters() {
        let secret = DigestSecret::draw().unwrap();
        let tail = secret.tail("k_live_abcdwxyz");
        assert!(tail.is_some() && tail == secret.tail("wxyz"));
        assert!(tail == secret.tail("another_key_wxyz"));
        assert!(tail != secret.tail("k_live_abcdwxyZ"));
        assert!(tail != secret.tail("k_live_abcdWxyz"));
        assert!(tail != DigestSecret::draw().unwrap().tail("wxyz"));
        assert!(secret.tail("****").is_none() && secret.tail("w yz").is_none());
        assert!(secret.tail("xyz").is_none() && secret.tail("").is_none());
        // Four bytes from the end is not a character boundary.
        assert!(secret.tail("aéxyz").is_none());
        assert_eq!(size_of::<Option<KeyTail>>(), 4);
        assert_eq!(format!("{tail:?}"), "Some(KeyTail { .. })");
    }

    #[test]
    fn debug_output_has_no_secrets() {
        let secret = DigestSecret::draw().unwrap();
        let key = ApiKey::parse("k_live_secret").unwrap();
        let shown = format!("{key:?}{secret:?}{:?}", secret.digest("k_live_secret"));
        assert_eq!(shown, "ApiKey(…)DigestSecret { .. }KeyDigest { .. }");
    }
}
