//! The key as it came in, and the digest that stands for it everywhere else.
//!
//! An [`ApiKey`] exists only while a verification is under way: a hit is answered from the digest of the
//! header's own bytes. Dropping a key overwrites its memory. Buffers outside this crate (the HTTP server's, the
//! HTTP client's, TLS) keep copies that nobody here can reach.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;

use siphasher::sip128::SipHasher13;
use zeroize::Zeroizing;

/// The shortest key that is looked at, in bytes.
pub const MIN_KEY_LEN: usize = 8;
/// The longest key that is looked at, in bytes.
pub const MAX_KEY_LEN: usize = 512;
/// How many of a key's last characters an issuer may show.
pub(crate) const KEY_TAIL_LEN: usize = 4;

/// A caller's API key: a secret of 8 to 512 bytes in RFC 6750's `b64token` grammar.
///
/// `Debug` prints `ApiKey(…)`; there is no `Display`. The memory is overwritten when the key is dropped.
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
    /// Takes a key that keeps the grammar: `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`
    /// (RFC 6750 §2.1), 8 to 512 bytes.
    pub fn parse(key: &str) -> Result<Self, InvalidApiKey> {
        if is_key(key.as_bytes()) {
            Ok(Self(Zeroizing::new(key.to_owned())))
        } else {
            Err(InvalidApiKey(()))
        }
    }

    /// [`parse`](Self::parse) for the bytes of a header.
    pub(crate) fn from_bytes(key: &[u8]) -> Result<Self, InvalidApiKey> {
        std::str::from_utf8(key)
            .map_err(|_| InvalidApiKey(()))
            .and_then(Self::parse)
    }

    /// The secret itself, for the one place that must send it: the call to the issuer.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The text is not a key: shorter than 8 bytes, longer than 512, or outside RFC 6750's `b64token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: expected 8 to 512 bytes of RFC 6750 b64token")]
pub struct InvalidApiKey(());

/// RFC 6750 §2.1 `b64token`, and our bounds on its length. The length goes first: nothing long is ever scanned.
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

/// Whether all bytes are of the alphabet of `b64token`. Junk comes in floods, so it goes by blocks, each without a
/// branch: compilers make a few vector instructions of one.
#[inline]
fn is_token68(bytes: &[u8]) -> bool {
    const BLOCK: usize = 16;

    let Some(last) = bytes.len().checked_sub(BLOCK) else {
        return bytes.iter().all(|&b| is_token68_byte(b));
    };
    let mut worst = [0; BLOCK];
    let mut at = 0;
    loop {
        // The last block overlaps the one before it, so that nothing is left over.
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

/// Zero for a byte of the alphabet: how far it is from the nearest part of it, by operations that exist for whole vectors.
#[inline]
fn outside_token68(byte: u8) -> u8 {
    // How far behind the range; a byte before it wraps around to far behind it.
    let outside =
        |byte: u8, first: u8, last: u8| byte.wrapping_sub(first).saturating_sub(last - first);
    // `-`, `.`, `/` and the digits follow each other in ASCII; letters differ from their capitals by one bit.
    outside(byte, b'-', b'9')
        .min(outside(byte | 0x20, b'a', b'z'))
        .min(byte ^ b'_')
        .min(byte ^ b'~')
        .min(byte ^ b'+')
}

/// What stands for a key inside a cache: 128 bits of SipHash-1-3 over the *whole* key under the cache's secret.
///
/// It is a pseudo-random function: without the 128-bit secret nobody can tell which keys share a digest, so two keys
/// collide with a chance of one in 2^128 a pair, and no caller can look for a pair. Nobody ever sees a digest, and the
/// secret lives no longer than the process, so whoever wanted a collision could only send keys and hope. For that the
/// rounds of SipHash-1-3 suffice (no attack on it is known that beats guessing; the hash tables of Rust and Python rest
/// on it), and they cost every request a third less than those of SipHash-2-4.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyDigest {
    // Two halves and not a `u128`, whose alignment pads everything it stands in.
    low: u64,
    high: u64,
}

impl KeyDigest {
    /// Bits for the shard or bucket of a table; the digest is uniform already.
    pub(crate) fn low(self) -> u64 {
        self.low
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

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

/// What stands for the last four characters of a key, which an issuer may show in its list of keys.
///
/// 32 bits of the same function over these characters alone. No key is so short, so it is no key's digest; and without the
/// cache's secret it gives none of the characters away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyTail(NonZeroU32);

impl fmt::Debug for KeyTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyTail(…)")
    }
}

/// The secret of one cache. Drawn when the layer is built, never stored or shown.
pub(crate) struct DigestSecret(Zeroizing<[u8; 16]>);

impl DigestSecret {
    /// From the operating system's random source.
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        let mut secret = Zeroizing::new([0; 16]);
        getrandom::fill(&mut *secret)?;
        Ok(Self(secret))
    }

    #[cfg(feature = "test-util")]
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

    /// The tail of a key, or of what an issuer shows of one. `None` when there are no four characters to it.
    pub(crate) fn tail(&self, key: &str) -> Option<KeyTail> {
        let tail = key.get(key.len().checked_sub(KEY_TAIL_LEN)?..)?;
        // A mask, say, is no part of a key.
        if !tail.bytes().all(|b| is_token68_byte(b) || b == b'=') {
            return None;
        }
        #[allow(clippy::cast_possible_truncation)] // The low half of the low half is meant.
        let bits = self.digest(tail).low() as u32;
        // Two of the 2^32 values become one.
        Some(KeyTail(NonZeroU32::new(bits).unwrap_or(NonZeroU32::MIN)))
    }
}

impl fmt::Debug for DigestSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn a_key_is_8_to_512_bytes_of_b64token() {
        assert!(!is_key(b"1234567"));
        assert!(is_key(b"12345678"));
        assert!(is_key(&[b'a'; 512]));
        assert!(!is_key(&[b'a'; 513]));
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
    fn a_byte_outside_the_alphabet_is_found_wherever_it_stands() {
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
    fn the_digest_depends_on_every_byte_and_on_the_secret() {
        let secret = DigestSecret::draw().unwrap();
        let key = "k".repeat(MAX_KEY_LEN);
        let digest = secret.digest(&key);
        assert_eq!(digest, secret.digest(&key));
        for at in 0..key.len() {
            let mut other = key.clone().into_bytes();
            other[at] = b'x';
            let other = String::from_utf8(other).unwrap();
            assert!(secret.digest(&other) != digest, "byte {at}");
        }
        assert!(secret.digest(&key[..511]) != digest);
        assert!(DigestSecret::draw().unwrap().digest(&key) != digest);
    }

    #[test]
    fn a_table_spreads_digests_and_finds_them_again() {
        let secret = DigestSecret::draw().unwrap();
        let tables = std::hash::RandomState::new();
        let hash = |key: &str| BuildHasher::hash_one(&tables, secret.digest(key));
        let keys: Vec<_> = (0..1_000).map(|n| format!("k_live_{n}")).collect();
        let spread: HashSet<_> = keys.iter().map(|key| hash(key)).collect();
        assert_eq!(spread.len(), keys.len());
        assert_eq!(hash(&keys[0]), hash(&keys[0]));
    }

    #[test]
    fn a_tail_is_of_the_last_four_characters_and_no_others() {
        let secret = DigestSecret::draw().unwrap();
        let tail = secret.tail("k_live_abcdwxyz");
        assert!(tail.is_some() && tail == secret.tail("wxyz"));
        assert!(tail == secret.tail("another_key_wxyz"));
        assert!(tail != secret.tail("k_live_abcdwxyZ"));
        assert!(tail != secret.tail("k_live_abcdWxyz"));
        assert!(tail != DigestSecret::draw().unwrap().tail("wxyz"));
        assert!(secret.tail("****").is_none() && secret.tail("w yz").is_none());
        assert!(secret.tail("xyz").is_none() && secret.tail("").is_none());
        // Four bytes from the end is no boundary of a character.
        assert!(secret.tail("aéxyz").is_none());
        assert_eq!(size_of::<Option<KeyTail>>(), 4);
        assert_eq!(format!("{tail:?}"), "Some(KeyTail(…))");
    }

    #[test]
    fn nothing_about_a_key_is_printable() {
        let secret = DigestSecret::draw().unwrap();
        let key = ApiKey::parse("k_live_secret").unwrap();
        let shown = format!("{key:?}{secret:?}{:?}", secret.digest("k_live_secret"));
        assert_eq!(shown, "ApiKey(…)DigestSecret(…)KeyDigest(…)");
    }
}
