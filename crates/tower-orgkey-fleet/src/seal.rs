//! Seals what is given to the engine, and opens what it returns.
//!
//! ```text
//! sealed = 0x01 ‖ id of the secret ‖ nonce (12) ‖ AES-256-GCM-SIV ciphertext ‖ tag (16)
//! AAD    = "orgkey.1" ‖ kind ‖ fleet ‖ issuer ‖ place, each with its length
//! ```
//!
//! So a value cannot be read, changed, or moved to another place, kind, issuer or fleet. GCM-SIV, because all nodes share one
//! key: a repeated random nonce reveals only whether two values are equal.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};

use crate::secret::{CryptoFailed, FleetSecret, Keys};

/// The place of sealed log entries.
pub(crate) const LOG: &str = "log";

const FORMAT: u8 = 1;
const TAG_LEN: usize = 16;
const HEADER: usize = 2 + NONCE_LEN;
/// The longest plain text. Longer results are not shared.
pub(crate) const MAX_LEN: usize = 16 * 1024;

/// What a sealed value is. Part of what it is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Result = 1,
    LogEntry = 2,
    NodeRecord = 3,
    Block = 4,
    Acknowledgement = 5,
}

impl Kind {
    #[cfg(any(test, feature = "__fuzzing"))]
    pub(crate) const ALL: [Self; 5] = [
        Self::Result,
        Self::LogEntry,
        Self::NodeRecord,
        Self::Block,
        Self::Acknowledgement,
    ];
}

/// The keys of a fleet and an issuer, and what values are bound to.
#[derive(Debug)]
pub(crate) struct Sealer {
    fleet: String,
    issuer: String,
    first: Keys,
    /// Those of earlier or later secrets, which are accepted.
    others: Vec<Keys>,
}

/// An opened value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) plain: Vec<u8>,
    /// Whether it was sealed under the first secret of this node.
    pub(crate) is_first: bool,
}

impl Sealer {
    /// `secrets` has at least one; the first one seals.
    pub(crate) fn new(
        secrets: &[FleetSecret],
        fleet: &str,
        issuer: &str,
    ) -> Result<Self, CryptoFailed> {
        let mut keys = secrets
            .iter()
            .map(|secret| Keys::derive(secret, fleet, issuer));
        Ok(Self {
            fleet: fleet.to_owned(),
            issuer: issuer.to_owned(),
            first: keys.next().ok_or(CryptoFailed)??,
            others: keys.collect::<Result<_, _>>()?,
        })
    }

    /// Returns the keys that seal.
    pub(crate) fn keys(&self) -> &Keys {
        &self.first
    }

    /// Seals a value for a place. `None` if it is too long.
    pub(crate) fn seal(&self, kind: Kind, place: &str, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() > MAX_LEN {
            return None;
        }
        let mut text = plain.to_vec();
        let aad = Aad::from(self.aad(kind, place));
        let nonce = self
            .first
            .seal
            .seal_in_place_append_tag(aad, &mut text)
            .ok()?;
        let mut sealed = Vec::with_capacity(HEADER + text.len());
        sealed.extend([FORMAT, self.first.id]);
        sealed.extend(nonce.as_ref());
        sealed.extend(text);
        Some(sealed)
    }

    /// Opens a value. `None` if it was not sealed for this place by a node of this fleet.
    pub(crate) fn open(&self, kind: Kind, place: &str, sealed: &[u8]) -> Option<Opened> {
        if !(HEADER + TAG_LEN..=HEADER + MAX_LEN + TAG_LEN).contains(&sealed.len()) {
            return None;
        }
        let (header, text) = sealed.split_at(HEADER);
        if header[0] != FORMAT {
            return None;
        }
        let keys = [&self.first].into_iter().chain(&self.others);
        // Two secrets may have the same id.
        for (nth, keys) in keys.enumerate().filter(|(_, keys)| keys.id == header[1]) {
            let nonce = Nonce::try_assume_unique_for_key(&header[2..]).ok()?;
            let mut plain = text.to_vec();
            let aad = Aad::from(self.aad(kind, place));
            if let Ok(opened) = keys.seal.open_in_place(nonce, aad, &mut plain) {
                let len = opened.len();
                plain.truncate(len);
                return Some(Opened {
                    plain,
                    is_first: nth == 0,
                });
            }
        }
        None
    }

    fn aad(&self, kind: Kind, place: &str) -> Vec<u8> {
        let mut aad = b"orgkey.1".to_vec();
        aad.push(kind as u8);
        for part in [&self.fleet, &self.issuer, place] {
            aad.extend((part.len() as u64).to_le_bytes());
            aad.extend(part.as_bytes());
        }
        aad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> FleetSecret {
        FleetSecret::new(&[byte; 32]).unwrap()
    }

    fn sealer(secrets: &[u8], fleet: &str, issuer: &str) -> Sealer {
        let secrets: Vec<_> = secrets.iter().copied().map(secret).collect();
        Sealer::new(&secrets, fleet, issuer).unwrap()
    }

    #[test]
    fn a_sealed_value_opens_only_in_its_place() {
        let ours = sealer(&[1], "fleet", "issuer");
        let sealed = ours.seal(Kind::Result, "place", b"plain").unwrap();
        let opened = ours.open(Kind::Result, "place", &sealed).unwrap();
        assert_eq!((&*opened.plain, opened.is_first), (&b"plain"[..], true));
        assert_eq!(ours.open(Kind::Block, "place", &sealed), None);
        assert_eq!(ours.open(Kind::Result, "other", &sealed), None);
        for other in [
            sealer(&[2], "fleet", "issuer"),
            sealer(&[1], "other", "issuer"),
            sealer(&[1], "fleet", "other"),
            // Equal when joined.
            sealer(&[1], "fleeti", "ssuer"),
        ] {
            assert_eq!(other.open(Kind::Result, "place", &sealed), None);
        }
    }

    #[test]
    fn an_accepted_secret_opens_but_does_not_seal() {
        let (old, both, new) = (
            sealer(&[1], "f", "i"),
            sealer(&[2, 1], "f", "i"),
            sealer(&[2], "f", "i"),
        );
        let by_old = old.seal(Kind::Result, "p", b"plain").unwrap();
        assert!(!both.open(Kind::Result, "p", &by_old).unwrap().is_first);
        assert_eq!(new.open(Kind::Result, "p", &by_old), None);
        let by_both = both.seal(Kind::Result, "p", b"plain").unwrap();
        assert!(new.open(Kind::Result, "p", &by_both).unwrap().is_first);
        assert_eq!(old.open(Kind::Result, "p", &by_both), None);
    }

    #[test]
    fn too_long_values_are_not_sealed() {
        let sealer = sealer(&[1], "f", "i");
        assert!(sealer.seal(Kind::Result, "p", &vec![0; MAX_LEN]).is_some());
        assert!(
            sealer
                .seal(Kind::Result, "p", &vec![0; MAX_LEN + 1])
                .is_none()
        );
    }

    #[test]
    fn mutated_values_never_open() {
        let ours = sealer(&[1, 2], "fleet", "issuer");
        let values = Kind::ALL.map(|kind| (kind, ours.seal(kind, "place", &[7; 100]).unwrap()));
        for (kind, sealed) in &values {
            assert!(ours.open(*kind, "place", sealed).is_some());
        }
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..10_000_000 {
            let (kind, sealed) = &values[round % values.len()];
            let mut mutated = sealed.clone();
            match random.u8(0..4) {
                0 => mutated.truncate(random.usize(0..sealed.len())),
                1 => mutated.extend((0..random.usize(1..20)).map(|_| random.u8(..))),
                2 => random.fill(&mut mutated),
                _ => {
                    let at = random.usize(0..sealed.len());
                    mutated[at] ^= random.u8(1..);
                }
            }
            assert_eq!(ours.open(*kind, "place", &mutated), None);
        }
    }
}
