//! Invalid answers that may have been about something else than the key: an endpoint that does not understand us, or a
//! verifier's own credential.
//!
//! Such an answer is noted. It is confirmed when the issuer answers a call that was sent after it, about any key and under
//! the same credential: that shows that the endpoint and the credential work, so the answer was about the key. A known key is
//! served until then.
//!
//! There is one exception. When many known keys stay unconfirmed for a while, the issuer may have been rejecting everybody, and
//! its first answer may show only that this is over. Then the keys are verified again, and those that are still invalid are
//! rejected.
//!
//! Notes of known and of unknown keys have separate room, because anybody can present unknown keys. A key that finds no room
//! is noted when it is verified again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use super::store::KeyBuildHasher;
use crate::clock::Tick;
use crate::source::{IndexKey, Source};

/// Notes of known keys, and of unknown keys.
const MAX_NOTES: usize = 10_000;
/// A note about an unknown key is forgotten after this time.
const UNKNOWN_LASTS: Duration = Duration::from_secs(60);
/// So many known keys that stay unconfirmed for so long show that the issuer is at fault.
const BURST: usize = 20;
const BURST_LASTS: Duration = Duration::from_secs(10);

pub(super) struct UnconfirmedAnswers<S: Source> {
    notes: Mutex<Notes<S>>,
    /// The number of notes, so that an answer locks nothing while there are none.
    len: AtomicUsize,
}

struct Notes<S: Source> {
    known: HashMap<S::Key, Note<Arc<Entry<S>>>, KeyBuildHasher>,
    unknown: HashMap<S::Key, Note<u64>, KeyBuildHasher>,
    is_reported: bool,
}

/// An unconfirmed answer.
struct Note<T> {
    /// What the key was when the answer came.
    about: T,
    credential: u64,
    sent_at: Tick,
    read_at: Tick,
    /// When an answer came that left the key in doubt.
    doubted_at: Option<Tick>,
}

/// The circumstances of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// The generation of the credential that was presented.
    pub(crate) credential: u64,
    pub(crate) sent_at: Tick,
    pub(crate) read_at: Tick,
}

/// What an answer of the issuer means for a key that was noted.
#[derive(Debug)]
pub(super) enum Followed<S: Source> {
    /// A known key is invalid, unless its entry was replaced meanwhile. The call that said so was sent at this time.
    Known(Arc<Entry<S>>, Tick),
    /// An unknown key is invalid, unless it was found valid since. Its lookup began under this version, and its call was sent at
    /// this time.
    Unknown(S::Key, u64, Tick),
    /// A known key is in doubt: it should be verified again.
    Doubted(Arc<Entry<S>>),
}

impl<S: Source> Default for UnconfirmedAnswers<S> {
    fn default() -> Self {
        let notes = Notes {
            known: HashMap::default(),
            unknown: HashMap::default(),
            is_reported: false,
        };
        Self {
            notes: Mutex::new(notes),
            len: AtomicUsize::new(0),
        }
    }
}

impl<S: Source> UnconfirmedAnswers<S> {
    /// Notes an answer about a known key. Returns whether the key is invalid for certain.
    #[must_use]
    pub(crate) fn note_known(&self, entry: &Arc<Entry<S>>, received: Received) -> bool {
        let mut notes = self.notes();
        let known = &mut notes.known;
        if known.len() >= MAX_NOTES {
            known.retain(|_, note| received.read_at < note.about.hard_until());
        }
        let is_certain = note(known, &entry.key, Arc::clone(entry), received);
        self.publish_len(&notes);
        is_certain
    }

    /// Notes an answer about an unknown key, whose lookup began under this version. Returns whether the key is invalid for
    /// certain.
    #[must_use]
    pub(crate) fn note_unknown(&self, key: &S::Key, began: u64, received: Received) -> bool {
        let mut notes = self.notes();
        let unknown = &mut notes.unknown;
        if unknown.len() >= MAX_NOTES {
            unknown.retain(|_, note| is_recent(note, received.read_at));
        }
        let is_certain = note(unknown, key, began, received);
        self.publish_len(&notes);
        is_certain
    }

    /// The issuer answered a call that was sent at this time under this credential. Returns what this means for the
    /// keys noted.
    pub(crate) fn answered(&self, credential: u64, sent_at: Tick, now: Tick) -> Vec<Followed<S>> {
        if self.len.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut notes = self.notes();
        // No call is sent under an older credential any more, so its notes stay unconfirmed.
        notes.known.retain(|_, note| note.credential >= credential);
        notes
            .unknown
            .retain(|_, note| note.credential >= credential && is_recent(note, now));
        let is_burst = notes.overdue(now) >= BURST;
        let Notes { known, unknown, .. } = &mut *notes;
        let followed = if is_burst {
            let is_followed = |note: &Note<u64>| note.is_followed(credential, sent_at);
            for note in unknown.values_mut().filter(|note| is_followed(note)) {
                note.doubted_at = Some(now);
            }
            let known = known.values_mut();
            known
                .filter(|note| note.is_followed(credential, sent_at))
                .map(|note| {
                    note.doubted_at = Some(now);
                    Followed::Doubted(Arc::clone(&note.about))
                })
                .collect()
        } else {
            let known = known
                .extract_if(|_, note| note.is_followed(credential, sent_at))
                .map(|(_, note)| Followed::Known(note.about, note.sent_at));
            let unknown = unknown
                .extract_if(|_, note| note.is_followed(credential, sent_at))
                .map(|(key, note)| Followed::Unknown(key, note.about, note.sent_at));
            known.chain(unknown).collect()
        };
        notes.is_reported &= notes.overdue(now) > 0;
        self.publish_len(&notes);
        followed
    }

    /// The key is valid: its note was about something else.
    pub(crate) fn forget(&self, key: &S::Key) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut notes = self.notes();
        notes.known.remove(key);
        notes.unknown.remove(key);
        self.publish_len(&notes);
    }

    /// Returns how many known keys are unconfirmed, once when they are too many.
    pub(crate) fn take_report(&self, now: Tick) -> Option<usize> {
        if self.len.load(Ordering::Acquire) < BURST {
            return None;
        }
        let mut notes = self.notes();
        if notes.is_reported {
            return None;
        }
        let overdue = notes.overdue(now);
        notes.is_reported = overdue >= BURST;
        notes.is_reported.then_some(overdue)
    }

    fn notes(&self) -> MutexGuard<'_, Notes<S>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_len(&self, notes: &Notes<S>) {
        let len = notes.known.len() + notes.unknown.len();
        self.len.store(len, Ordering::Release);
    }
}

impl<S: Source> Notes<S> {
    /// Returns how many known keys have been unconfirmed for long.
    fn overdue(&self, now: Tick) -> usize {
        if self.known.len() < BURST {
            return 0;
        }
        let is_overdue = |note: &&Note<Arc<Entry<S>>>| {
            note.doubted_at.is_none() && now.since(note.read_at) >= BURST_LASTS
        };
        self.known.values().filter(is_overdue).count()
    }
}

impl<T> Note<T> {
    fn is_followed(&self, credential: u64, sent_at: Tick) -> bool {
        self.doubted_at.is_none() && self.credential == credential && sent_at > self.read_at
    }
}

fn is_recent(note: &Note<u64>, now: Tick) -> bool {
    now.since(note.read_at) <= UNKNOWN_LASTS
}

/// Notes an answer if there is room. An earlier answer under the same credential stays: it is confirmed sooner, or now.
fn note<K: IndexKey, T>(
    notes: &mut HashMap<K, Note<T>, KeyBuildHasher>,
    key: &K,
    about: T,
    received: Received,
) -> bool {
    let Received {
        credential,
        sent_at,
        read_at,
    } = received;
    let has_room = notes.len() < MAX_NOTES;
    match notes.get(key) {
        None if !has_room => return false,
        Some(before) if before.credential == credential => {
            let is_certain = before.doubted_at.is_some_and(|at| sent_at >= at);
            if is_certain {
                notes.remove(key);
            }
            return is_certain;
        }
        _ => {}
    }
    let note = Note {
        about,
        credential,
        sent_at,
        read_at,
        doubted_at: None,
    };
    notes.insert(key.clone(), note);
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::{Facts, LIFETIMES, TestSource, test_key};

    fn entries(n: usize) -> Vec<Arc<Entry<TestSource>>> {
        let entry = |n: usize| {
            let key = test_key(n.to_string());
            Entry::new(
                Facts::default(),
                key,
                (),
                Tick(0),
                1,
                LIFETIMES,
                Tick(0),
                None,
            )
        };
        (0..n).map(|n| Arc::new(entry(n))).collect()
    }

    /// An answer that was read when its call was sent.
    fn received(credential: u64, at: Tick) -> Received {
        Received {
            credential,
            sent_at: at,
            read_at: at,
        }
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn only_a_later_call_confirms() {
        for is_known in [true, false] {
            let answers = UnconfirmedAnswers::<TestSource>::default();
            let entry = &entries(1)[0];
            if is_known {
                assert!(!answers.note_known(entry, received(1, at(10))));
            } else {
                assert!(!answers.note_unknown(&entry.key, 7, received(1, at(10))));
            }
            assert!(answers.answered(1, at(9), at(11)).is_empty());
            assert!(answers.answered(1, at(10), at(11)).is_empty());
            let confirmed = answers.answered(1, at(11), at(12));
            match confirmed.as_slice() {
                [Followed::Known(known, sent_at)] => {
                    assert!(is_known && Arc::ptr_eq(known, entry) && *sent_at == at(10));
                }
                [Followed::Unknown(key, 7, sent_at)] => {
                    assert!(!is_known && *key == entry.key && *sent_at == at(10));
                }
                other => panic!("{other:?}"),
            }
            assert!(answers.answered(1, at(12), at(13)).is_empty());
        }
    }

    #[test]
    fn another_credential_confirms_nothing() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        let entries = entries(2);
        assert!(!answers.note_known(&entries[0], received(2, at(10))));
        assert!(!answers.note_unknown(&entries[1].key, 1, received(2, at(10))));
        // A late answer to the old credential, then answers to the new one.
        assert!(answers.answered(1, at(11), at(11)).is_empty());
        assert!(answers.answered(3, at(11), at(11)).is_empty());
        assert!(
            answers.answered(2, at(12), at(12)).is_empty(),
            "was dropped"
        );
        assert!(!answers.note_known(&entries[0], received(3, at(13))));
        assert_eq!(answers.answered(3, at(14), at(14)).len(), 1);
    }

    #[test]
    fn a_repeated_answer_keeps_its_first_time() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        let entry = &entries(1)[0];
        assert!(!answers.note_known(entry, received(1, at(10))));
        assert!(!answers.note_known(entry, received(1, at(20))));
        assert_eq!(answers.answered(1, at(15), at(21)).len(), 1);
        assert!(!answers.note_known(entry, received(1, at(30))));
        assert!(!answers.note_known(entry, received(2, at(40))));
        assert!(answers.answered(2, at(35), at(41)).is_empty());
    }

    #[test]
    fn a_valid_key_is_forgotten() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        let entry = &entries(1)[0];
        assert!(!answers.note_known(entry, received(1, at(10))));
        assert!(!answers.note_unknown(&entry.key, 1, received(1, at(10))));
        answers.forget(&entry.key);
        assert!(answers.answered(1, at(11), at(11)).is_empty());
    }

    #[test]
    fn unknown_keys_are_forgotten_after_a_minute() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        let entries = entries(2);
        assert!(!answers.note_known(&entries[0], received(1, at(10))));
        assert!(!answers.note_unknown(&entries[1].key, 1, received(1, at(10))));
        let confirmed = answers.answered(1, at(71), at(71));
        assert!(matches!(confirmed.as_slice(), [Followed::Known(..)]));
    }

    #[test]
    fn unknown_keys_take_no_room_of_known_keys() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        for n in 0..MAX_NOTES + 10 {
            assert!(!answers.note_unknown(&test_key(n.to_string()), 1, received(1, at(10))));
        }
        assert_eq!(answers.notes().unknown.len(), MAX_NOTES);
        assert!(!answers.note_known(&entries(1)[0], received(1, at(10))));
        assert_eq!(answers.notes().known.len(), 1);
        assert!(!answers.note_unknown(&test_key("late"), 1, received(1, at(80))));
        assert_eq!(answers.notes().unknown.len(), 1);
    }

    #[test]
    fn twenty_unconfirmed_keys_are_reported_once() {
        let answers = UnconfirmedAnswers::<TestSource>::default();
        let entries = entries(40);
        for entry in &entries[..20] {
            assert!(!answers.note_known(entry, received(1, at(10))));
        }
        assert_eq!(answers.take_report(at(19)), None);
        assert_eq!(answers.take_report(at(20)), Some(20));
        assert_eq!(answers.take_report(at(21)), None);
        assert_eq!(answers.answered(1, at(22), at(22)).len(), 20);
        for entry in &entries[20..] {
            assert!(!answers.note_known(entry, received(1, at(30))));
        }
        assert_eq!(answers.take_report(at(40)), Some(20));
    }

    #[test]
    fn a_burst_is_doubted_and_not_confirmed() {
        for (keys, answer, is_burst) in [(20, 20, true), (19, 20, false), (20, 19, false)] {
            let answers = UnconfirmedAnswers::<TestSource>::default();
            let entries = entries(keys + 1);
            for entry in &entries[..keys] {
                assert!(!answers.note_known(entry, received(1, at(10))));
            }
            assert!(!answers.note_unknown(&entries[keys].key, 1, received(1, at(10))));
            let followed = answers.answered(1, at(answer), at(answer));
            let doubted = followed
                .iter()
                .filter(|f| matches!(f, Followed::Doubted(_)));
            assert_eq!(doubted.count(), if is_burst { keys } else { 0 });
            assert_eq!(followed.len(), if is_burst { keys } else { keys + 1 });
            assert!(answers.answered(1, at(30), at(30)).is_empty());
            // Still invalid, by a call that was sent after the answer.
            let unknown = entries[keys].key;
            assert!(!answers.note_known(&entries[0], received(1, at(answer - 1))));
            let is_certain = answers.note_known(&entries[0], received(1, at(answer)));
            assert_eq!(is_certain, is_burst);
            let is_certain = answers.note_unknown(&unknown, 1, received(1, at(answer)));
            assert_eq!(is_certain, is_burst);
        }
    }
}
