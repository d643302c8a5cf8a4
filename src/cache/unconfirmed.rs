//! Invalid answers that may have been about something else than the key: an endpoint that does not understand us, or a
//! verifier's own credential.
//!
//! Such an answer is noted, and the key is not rejected on it. It is confirmed by two things, in this order and under the
//! same credential: the issuer answers a call that was sent later, about any key; and then it calls this key invalid again,
//! to a call sent after that. So neither an issuer that rejects everything nor its recovery costs a valid key.
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
/// A note about an unknown key is forgotten after this time; one about a known key with its cached result.
const UNKNOWN_LASTS: Duration = Duration::from_secs(60);
/// So many known keys that stay unanswered for so long are reported: the issuer is probably at fault.
const REPORTED_KEYS: usize = 20;
const REPORTED_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct UnconfirmedAnswers {
    notes: Mutex<Notes>,
    /// The number of notes, so that nothing is locked while there are none.
    len: AtomicUsize,
    /// The number of notes that no answer followed yet.
    unanswered: AtomicUsize,
}

#[derive(Debug, Default)]
struct Notes {
    known: Room,
    unknown: Room,
    is_reported: bool,
}

/// The notes of one class of keys, by whether the issuer has answered a later call.
#[derive(Debug, Default)]
struct Room {
    unanswered: HashMap<KeyDigest, Note, DigestBuildHasher>,
    answered: HashMap<KeyDigest, Answered, DigestBuildHasher>,
}

/// An unconfirmed answer.
#[derive(Debug)]
struct Note {
    /// The cached result of a known key.
    entry: Option<Arc<Entry>>,
    credential: u64,
    read_at: Tick,
    until: Tick,
}

/// An unconfirmed answer that was followed by an answer about another key.
#[derive(Debug)]
struct Answered {
    credential: u64,
    answered_at: Tick,
    until: Tick,
}

impl UnconfirmedAnswers {
    /// Notes an answer to a call sent at `sent_at` about a key, whose cached result is `entry` if it is known. Returns whether
    /// the answer confirms an earlier one.
    #[must_use]
    pub(crate) fn note(
        &self,
        digest: KeyDigest,
        entry: Option<&Arc<Entry>>,
        credential: u64,
        sent_at: Tick,
        now: Tick,
    ) -> bool {
        let mut notes = self.notes();
        let room = match entry {
            Some(_) => &mut notes.known,
            None => &mut notes.unknown,
        };
        let is_confirmed = room.note(digest, entry, credential, sent_at, now);
        self.publish_len(&notes);
        is_confirmed
    }

    /// The issuer answered a call that was sent at this time under this credential. Returns the cached results of known keys
    /// that are in doubt from now on: they should be verified again.
    pub(crate) fn answered(&self, credential: u64, sent_at: Tick, now: Tick) -> Vec<Arc<Entry>> {
        if self.unanswered.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut notes = self.notes();
        let doubted = notes.known.answered(credential, sent_at, now);
        notes.unknown.answered(credential, sent_at, now);
        notes.is_reported &= !notes.known.unanswered.is_empty();
        self.publish_len(&notes);
        doubted
    }

    /// The key is valid or rejected: its note has served.
    pub(crate) fn forget(&self, digest: KeyDigest) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut notes = self.notes();
        notes.known.forget(digest);
        notes.unknown.forget(digest);
        self.publish_len(&notes);
    }

    /// Returns how many known keys stay unanswered, once when they are too many.
    pub(crate) fn take_report(&self, now: Tick) -> Option<usize> {
        if self.unanswered.load(Ordering::Acquire) < REPORTED_KEYS {
            return None;
        }
        let mut notes = self.notes();
        let unanswered = &notes.known.unanswered;
        if notes.is_reported || unanswered.len() < REPORTED_KEYS {
            return None;
        }
        let is_old = |note: &&Note| now.since(note.read_at) >= REPORTED_AFTER;
        let old = unanswered.values().filter(is_old).count();
        notes.is_reported = old >= REPORTED_KEYS;
        notes.is_reported.then_some(old)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_len(&self, notes: &Notes) {
        let unanswered = notes.known.unanswered.len() + notes.unknown.unanswered.len();
        let answered = notes.known.answered.len() + notes.unknown.answered.len();
        self.unanswered.store(unanswered, Ordering::Release);
        self.len.store(unanswered + answered, Ordering::Release);
    }
}

impl Room {
    fn note(
        &mut self,
        digest: KeyDigest,
        entry: Option<&Arc<Entry>>,
        credential: u64,
        sent_at: Tick,
        now: Tick,
    ) -> bool {
        if let Some(answered) = self.answered.get(&digest)
            && answered.credential == credential
            && now < answered.until
        {
            let is_confirmed = sent_at >= answered.answered_at;
            if is_confirmed {
                self.answered.remove(&digest);
            }
            return is_confirmed;
        }
        self.answered.remove(&digest);
        let before = self.unanswered.get(&digest);
        if before.is_none() && self.len() >= MAX_NOTES {
            self.unanswered.retain(|_, note| now < note.until);
            self.answered.retain(|_, answered| now < answered.until);
            if self.len() >= MAX_NOTES {
                return false;
            }
        }
        // An earlier answer under the same credential is followed by an answer sooner.
        let before = self.unanswered.get(&digest);
        let read_at = before
            .filter(|before| before.credential == credential)
            .map_or(now, |before| before.read_at);
        let note = Note {
            entry: entry.cloned(),
            credential,
            read_at,
            until: entry.map_or(now.after(UNKNOWN_LASTS), |entry| entry.hard_until()),
        };
        self.unanswered.insert(digest, note);
        false
    }

    fn answered(&mut self, credential: u64, sent_at: Tick, now: Tick) -> Vec<Arc<Entry>> {
        // No call is sent under an older credential any more, so nothing will follow its notes.
        self.unanswered
            .retain(|_, note| note.credential >= credential && now < note.until);
        let is_followed = |note: &mut Note| note.credential == credential && sent_at > note.read_at;
        let mut doubted = Vec::new();
        for (digest, note) in self.unanswered.extract_if(|_, note| is_followed(note)) {
            let answered = Answered {
                credential,
                answered_at: now,
                until: note.until,
            };
            self.answered.insert(digest, answered);
            doubted.extend(note.entry);
        }
        doubted
    }

    fn forget(&mut self, digest: KeyDigest) {
        self.unanswered.remove(&digest);
        self.answered.remove(&digest);
    }

    fn len(&self) -> usize {
        self.unanswered.len() + self.answered.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::cache::Lifetimes;
    use crate::key::DigestSecret;
    use crate::verify::Facts;

    const HARD: Duration = Duration::from_secs(900);

    fn entries(n: usize) -> Vec<Arc<Entry>> {
        let secret = DigestSecret::draw().unwrap();
        let lifetimes = Lifetimes {
            soft: Duration::from_secs(60),
            hard: HARD,
        };
        let entry = |n: usize| {
            let digest = secret.digest(n.to_string());
            let facts = Facts::default();
            Entry::new(facts, digest, Tick(0), 1, lifetimes, Tick(0), Weak::new())
        };
        (0..n).map(|n| Arc::new(entry(n))).collect()
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    /// Notes an answer that was read when its call was sent.
    fn note(answers: &UnconfirmedAnswers, entry: &Arc<Entry>, credential: u64, now: Tick) -> bool {
        answers.note(entry.digest, Some(entry), credential, now, now)
    }

    fn note_unknown(answers: &UnconfirmedAnswers, digest: KeyDigest, now: Tick) -> bool {
        answers.note(digest, None, 1, now, now)
    }

    #[test]
    fn an_answer_between_two_invalid_ones_confirms() {
        for is_known in [true, false] {
            let answers = UnconfirmedAnswers::default();
            let entry = &entries(1)[0];
            let note = |sent_at, read_at| {
                let known = is_known.then_some(entry);
                answers.note(entry.digest, known, 1, sent_at, read_at)
            };
            assert!(!note(at(9), at(10)));
            assert!(!note(at(11), at(12)), "nothing in between");
            assert!(answers.answered(1, at(9), at(13)).is_empty(), "sent before");
            assert!(answers.answered(1, at(10), at(13)).is_empty());
            let doubted = answers.answered(1, at(11), at(14));
            assert_eq!(doubted.len(), usize::from(is_known));
            assert!(!note(at(13), at(15)), "sent before the answer came");
            assert!(note(at(14), at(16)));
            assert!(!note(at(17), at(18)), "begins again");
        }
    }

    #[test]
    fn another_credential_confirms_nothing() {
        let answers = UnconfirmedAnswers::default();
        let entry = &entries(1)[0];
        assert!(!note(&answers, entry, 2, at(10)));
        // A late answer to the old credential, then one to a newer one.
        assert!(answers.answered(1, at(11), at(11)).is_empty());
        assert!(answers.answered(3, at(11), at(11)).is_empty());
        assert!(answers.answered(2, at(12), at(12)).is_empty(), "dropped");
        assert!(!note(&answers, entry, 3, at(13)));
        assert_eq!(answers.answered(3, at(14), at(14)).len(), 1);
        assert!(!note(&answers, entry, 4, at(15)));
        assert_eq!(answers.answered(4, at(16), at(16)).len(), 1);
        assert!(note(&answers, entry, 4, at(17)));
    }

    #[test]
    fn a_repeated_answer_keeps_its_first_time() {
        let answers = UnconfirmedAnswers::default();
        let entry = &entries(1)[0];
        assert!(!note(&answers, entry, 1, at(10)));
        assert!(!note(&answers, entry, 1, at(20)));
        assert_eq!(answers.answered(1, at(15), at(21)).len(), 1);
    }

    #[test]
    fn a_valid_key_is_forgotten() {
        for is_answered in [true, false] {
            let answers = UnconfirmedAnswers::default();
            let entry = &entries(1)[0];
            assert!(!note(&answers, entry, 1, at(10)));
            if is_answered {
                assert_eq!(answers.answered(1, at(11), at(11)).len(), 1);
            }
            answers.forget(entry.digest);
            assert!(!note(&answers, entry, 1, at(12)));
        }
    }

    #[test]
    fn notes_end_with_their_time() {
        let answers = UnconfirmedAnswers::default();
        let entries = entries(2);
        let unknown = entries[1].digest;
        assert!(!note(&answers, &entries[0], 1, at(10)));
        assert!(!note_unknown(&answers, unknown, at(10)));
        assert_eq!(answers.answered(1, at(11), at(11)).len(), 1);
        assert!(!note_unknown(&answers, unknown, at(70)), "a minute later");
        assert!(note(&answers, &entries[0], 1, at(899)));
    }

    #[test]
    fn memory_is_bounded_per_class() {
        let answers = UnconfirmedAnswers::default();
        let secret = DigestSecret::draw().unwrap();
        for n in 0..MAX_NOTES + 10 {
            let _ = note_unknown(&answers, secret.digest(n.to_string()), at(10));
        }
        assert_eq!(answers.notes().unknown.len(), MAX_NOTES);
        assert!(answers.answered(1, at(11), at(11)).is_empty());
        let _ = note_unknown(&answers, secret.digest("one more"), at(12));
        assert_eq!(answers.notes().unknown.len(), MAX_NOTES);
        let _ = note(&answers, &entries(1)[0], 1, at(12));
        assert_eq!(answers.notes().known.len(), 1);
        let _ = note_unknown(&answers, secret.digest("late"), at(80));
        assert_eq!(answers.notes().unknown.len(), 1);
    }

    #[test]
    fn twenty_keys_unanswered_for_ten_seconds_are_reported_once() {
        let answers = UnconfirmedAnswers::default();
        for round in [10, 30] {
            for entry in &entries(20) {
                assert!(!note(&answers, entry, 1, at(round)));
            }
            assert_eq!(answers.take_report(at(round + 9)), None);
            assert_eq!(answers.take_report(at(round + 10)), Some(20));
            assert_eq!(answers.take_report(at(round + 11)), None);
            assert_eq!(
                answers.answered(1, at(round + 12), at(round + 12)).len(),
                20
            );
        }
    }
}
