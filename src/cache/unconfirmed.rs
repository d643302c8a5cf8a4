//! Invalid answers that may have been about something else than the key: an endpoint that does not understand us, or a
//! verifier's own credential.
//!
//! Such an answer is noted. It is confirmed when the issuer answers a call that was sent after it, about any key and under
//! the same credential: that shows that the endpoint and the credential work, so the answer was about the key. A known key is
//! served until then.
//!
//! Notes of known and of unknown keys have separate room, because anybody can present unknown keys. A key that finds no room
//! is noted when it is verified again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use super::store::DigestBuildHasher;
use crate::clock::Tick;
use crate::key::KeyDigest;

/// Notes of known keys, and of unknown keys.
const MAX_NOTES: usize = 10_000;
/// A note about an unknown key is forgotten after this time.
const UNKNOWN_LASTS: Duration = Duration::from_secs(60);
/// So many known keys that stay unconfirmed for so long are reported: the issuer is probably at fault.
const REPORTED_KEYS: usize = 20;
const REPORTED_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct UnconfirmedAnswers {
    notes: Mutex<Notes>,
    /// The number of notes, so that an answer locks nothing while there are none.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Notes {
    known: HashMap<KeyDigest, Note<Arc<Entry>>, DigestBuildHasher>,
    unknown: HashMap<KeyDigest, Note<u64>, DigestBuildHasher>,
    is_reported: bool,
}

/// An unconfirmed answer.
#[derive(Debug)]
struct Note<T> {
    /// What the key was when the answer came.
    about: T,
    credential: u64,
    read_at: Tick,
}

/// A key whose invalid answer is confirmed.
#[derive(Debug)]
pub(crate) enum Confirmed {
    /// The entry that is invalid now, unless it was replaced meanwhile.
    Known(Arc<Entry>),
    /// An unknown key, and the version under which its lookup began.
    Unknown(KeyDigest, u64),
}

impl UnconfirmedAnswers {
    pub(crate) fn note_known(&self, entry: &Arc<Entry>, credential: u64, read_at: Tick) {
        let mut notes = self.notes();
        let known = &mut notes.known;
        if known.len() >= MAX_NOTES {
            known.retain(|_, note| read_at < note.about.hard_until());
        }
        note(known, entry.digest, Arc::clone(entry), credential, read_at);
        self.publish_len(&notes);
    }

    pub(crate) fn note_unknown(
        &self,
        digest: KeyDigest,
        began: u64,
        credential: u64,
        read_at: Tick,
    ) {
        let mut notes = self.notes();
        let unknown = &mut notes.unknown;
        if unknown.len() >= MAX_NOTES {
            unknown.retain(|_, note| is_recent(note, read_at));
        }
        note(unknown, digest, began, credential, read_at);
        self.publish_len(&notes);
    }

    /// The issuer answered a call that was sent at this time under this credential. Returns the keys that this confirms.
    pub(crate) fn confirm(&self, credential: u64, sent_at: Tick, now: Tick) -> Vec<Confirmed> {
        if self.len.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut notes = self.notes();
        // No call is sent under an older credential any more, so its notes stay unconfirmed.
        notes.known.retain(|_, note| note.credential >= credential);
        notes
            .unknown
            .retain(|_, note| note.credential >= credential && is_recent(note, now));
        let mut confirmed: Vec<_> = notes
            .known
            .extract_if(|_, note| note.is_confirmed(credential, sent_at))
            .map(|(_, note)| Confirmed::Known(note.about))
            .collect();
        let unknown = notes
            .unknown
            .extract_if(|_, note| note.is_confirmed(credential, sent_at))
            .map(|(digest, note)| Confirmed::Unknown(digest, note.about));
        confirmed.extend(unknown);
        notes.is_reported &= !notes.known.is_empty();
        self.publish_len(&notes);
        confirmed
    }

    /// The key is valid: its note was about something else.
    pub(crate) fn forget(&self, digest: KeyDigest) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut notes = self.notes();
        notes.known.remove(&digest);
        notes.unknown.remove(&digest);
        self.publish_len(&notes);
    }

    /// Returns how many known keys are unconfirmed, once when they are too many.
    pub(crate) fn take_report(&self, now: Tick) -> Option<usize> {
        let mut notes = self.notes();
        if notes.is_reported || notes.known.len() < REPORTED_KEYS {
            return None;
        }
        let is_old = |note: &&Note<Arc<Entry>>| now.since(note.read_at) >= REPORTED_AFTER;
        let old = notes.known.values().filter(is_old).count();
        notes.is_reported = old >= REPORTED_KEYS;
        notes.is_reported.then_some(old)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_len(&self, notes: &Notes) {
        let len = notes.known.len() + notes.unknown.len();
        self.len.store(len, Ordering::Release);
    }
}

impl<T> Note<T> {
    fn is_confirmed(&self, credential: u64, sent_at: Tick) -> bool {
        self.credential == credential && sent_at > self.read_at
    }
}

fn is_recent(note: &Note<u64>, now: Tick) -> bool {
    now.since(note.read_at) <= UNKNOWN_LASTS
}

/// Notes an answer if there is room. An earlier answer under the same credential stays: it is confirmed sooner.
fn note<T>(
    notes: &mut HashMap<KeyDigest, Note<T>, DigestBuildHasher>,
    digest: KeyDigest,
    about: T,
    credential: u64,
    read_at: Tick,
) {
    let before = notes.get(&digest);
    if before.is_none() && notes.len() >= MAX_NOTES {
        return;
    }
    let read_at = match before {
        Some(before) if before.credential == credential => before.read_at,
        _ => read_at,
    };
    let note = Note {
        about,
        credential,
        read_at,
    };
    notes.insert(digest, note);
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::cache::Lifetimes;
    use crate::key::DigestSecret;
    use crate::verify::Facts;

    fn entries(n: usize) -> Vec<Arc<Entry>> {
        let secret = DigestSecret::draw().unwrap();
        let lifetimes = Lifetimes {
            soft: Duration::from_secs(60),
            hard: Duration::from_secs(900),
        };
        let entry = |n: usize| {
            let digest = secret.digest(n.to_string());
            Entry::new(
                Facts::default(),
                digest,
                Tick(0),
                1,
                lifetimes,
                Tick(0),
                Weak::new(),
            )
        };
        (0..n).map(|n| Arc::new(entry(n))).collect()
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn only_a_later_call_confirms() {
        for is_known in [true, false] {
            let answers = UnconfirmedAnswers::default();
            let entry = &entries(1)[0];
            if is_known {
                answers.note_known(entry, 1, at(10));
            } else {
                answers.note_unknown(entry.digest, 7, 1, at(10));
            }
            assert!(answers.confirm(1, at(9), at(11)).is_empty());
            assert!(answers.confirm(1, at(10), at(11)).is_empty());
            let confirmed = answers.confirm(1, at(11), at(12));
            match confirmed.as_slice() {
                [Confirmed::Known(known)] => assert!(is_known && Arc::ptr_eq(known, entry)),
                [Confirmed::Unknown(digest, 7)] => assert!(!is_known && *digest == entry.digest),
                other => panic!("{other:?}"),
            }
            assert!(answers.confirm(1, at(12), at(13)).is_empty());
        }
    }

    #[test]
    fn another_credential_confirms_nothing() {
        let answers = UnconfirmedAnswers::default();
        let entries = entries(2);
        answers.note_known(&entries[0], 2, at(10));
        answers.note_unknown(entries[1].digest, 1, 2, at(10));
        // A late answer to the old credential, then answers to the new one.
        assert!(answers.confirm(1, at(11), at(11)).is_empty());
        assert!(answers.confirm(3, at(11), at(11)).is_empty());
        assert!(answers.confirm(2, at(12), at(12)).is_empty(), "was dropped");
        answers.note_known(&entries[0], 3, at(13));
        assert_eq!(answers.confirm(3, at(14), at(14)).len(), 1);
    }

    #[test]
    fn a_repeated_answer_keeps_its_first_time() {
        let answers = UnconfirmedAnswers::default();
        let entry = &entries(1)[0];
        answers.note_known(entry, 1, at(10));
        answers.note_known(entry, 1, at(20));
        assert_eq!(answers.confirm(1, at(15), at(21)).len(), 1);
        answers.note_known(entry, 1, at(30));
        answers.note_known(entry, 2, at(40));
        assert!(answers.confirm(2, at(35), at(41)).is_empty());
    }

    #[test]
    fn a_valid_key_is_forgotten() {
        let answers = UnconfirmedAnswers::default();
        let entry = &entries(1)[0];
        answers.note_known(entry, 1, at(10));
        answers.note_unknown(entry.digest, 1, 1, at(10));
        answers.forget(entry.digest);
        assert!(answers.confirm(1, at(11), at(11)).is_empty());
    }

    #[test]
    fn unknown_keys_are_forgotten_after_a_minute() {
        let answers = UnconfirmedAnswers::default();
        let entries = entries(2);
        answers.note_known(&entries[0], 1, at(10));
        answers.note_unknown(entries[1].digest, 1, 1, at(10));
        let confirmed = answers.confirm(1, at(71), at(71));
        assert!(matches!(confirmed.as_slice(), [Confirmed::Known(_)]));
    }

    #[test]
    fn memory_is_bounded_and_unknown_keys_take_no_room_of_known() {
        let answers = UnconfirmedAnswers::default();
        let secret = DigestSecret::draw().unwrap();
        for n in 0..MAX_NOTES + 10 {
            answers.note_unknown(secret.digest(n.to_string()), 1, 1, at(10));
        }
        assert_eq!(answers.notes().unknown.len(), MAX_NOTES);
        answers.note_known(&entries(1)[0], 1, at(10));
        assert_eq!(answers.notes().known.len(), 1);
        answers.note_unknown(secret.digest("late"), 1, 1, at(80));
        assert_eq!(answers.notes().unknown.len(), 1);
    }

    #[test]
    fn twenty_keys_unconfirmed_for_ten_seconds_are_reported_once() {
        let answers = UnconfirmedAnswers::default();
        for entry in &entries(20) {
            answers.note_known(entry, 1, at(10));
        }
        assert_eq!(answers.take_report(at(19)), None);
        assert_eq!(answers.take_report(at(20)), Some(20));
        assert_eq!(answers.take_report(at(21)), None);
        assert_eq!(answers.confirm(1, at(22), at(22)).len(), 20);
        for entry in &entries(20) {
            answers.note_known(entry, 1, at(30));
        }
        assert_eq!(answers.take_report(at(40)), Some(20));
    }
}
