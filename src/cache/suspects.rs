//! Known keys that the issuer refused in a way that may have meant something else.
//!
//! Such a key is given up only when the issuer then answered a verification that began after the refusal: that shows
//! that the endpoint works, so the refusal was about the key. Many such refusals with no answer between them show the
//! opposite.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use crate::clock::Tick;

/// A refusal not confirmed within this time proves nothing.
const WINDOW: Duration = Duration::from_secs(60);
/// So many known keys refused in [`BURST_WINDOW`], none confirmed: the issuer is at fault.
const BURST: usize = 20;
const BURST_WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Suspects {
    list: Mutex<Vec<Suspect>>,
    /// Its length, so that an answer costs no lock while there are none.
    len: AtomicUsize,
}

#[derive(Debug)]
struct Suspect {
    entry: Arc<Entry>,
    refused_at: Tick,
}

impl Suspects {
    /// Notes a refusal. `true` when it is one too many: then the issuer is not believed, and all are cleared.
    #[must_use]
    pub(crate) fn add(&self, entry: &Arc<Entry>, refused_at: Tick) -> bool {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|suspect| refused_at.since(suspect.refused_at) <= WINDOW);
        if !list
            .iter()
            .any(|suspect| suspect.entry.digest == entry.digest)
        {
            list.push(Suspect {
                entry: Arc::clone(entry),
                refused_at,
            });
        }
        let recent = list
            .iter()
            .filter(|suspect| refused_at.since(suspect.refused_at) <= BURST_WINDOW)
            .count();
        let is_burst = recent >= BURST;
        if is_burst {
            list.clear();
        }
        self.len.store(list.len(), Ordering::Release);
        is_burst
    }

    /// The issuer answered a verification sent at this time. Returns those whose refusal it confirms.
    pub(crate) fn confirm(&self, sent_at: Tick, now: Tick) -> Vec<Arc<Entry>> {
        if self.len.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|suspect| now.since(suspect.refused_at) <= WINDOW);
        let confirmed = list
            .extract_if(.., |suspect| sent_at > suspect.refused_at)
            .map(|suspect| suspect.entry)
            .collect();
        self.len.store(list.len(), Ordering::Release);
        confirmed
    }
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
    fn only_an_answer_to_a_later_call_confirms_and_only_for_a_minute() {
        let suspects = Suspects::default();
        let entry = &entries(1)[0];
        assert!(!suspects.add(entry, at(10)));
        assert!(suspects.confirm(at(9), at(11)).is_empty());
        assert!(suspects.confirm(at(10), at(11)).is_empty());
        assert_eq!(suspects.confirm(at(11), at(12)).len(), 1);
        assert!(suspects.confirm(at(12), at(13)).is_empty());
        assert!(!suspects.add(entry, at(20)));
        assert!(suspects.confirm(at(80), at(81)).is_empty());
    }

    #[test]
    fn a_key_that_is_refused_again_after_a_minute_is_suspect_anew() {
        let suspects = Suspects::default();
        let entry = &entries(1)[0];
        assert!(!suspects.add(entry, at(10)));
        assert!(!suspects.add(entry, at(71)));
        assert!(suspects.confirm(at(71), at(72)).is_empty());
        assert_eq!(suspects.confirm(at(72), at(73)).len(), 1);
    }

    #[test]
    fn twenty_keys_in_ten_seconds_clear_the_list_and_one_key_twenty_times_does_not() {
        let suspects = Suspects::default();
        let entries = entries(20);
        for _ in 0..30 {
            assert!(!suspects.add(&entries[0], at(10)));
        }
        for entry in &entries[1..19] {
            assert!(!suspects.add(entry, at(15)));
        }
        assert!(suspects.add(&entries[19], at(20)));
        assert!(suspects.confirm(at(21), at(21)).is_empty());
    }

    #[test]
    fn twenty_keys_over_a_longer_time_stay_suspect() {
        let suspects = Suspects::default();
        for (n, entry) in entries(20).iter().enumerate() {
            assert!(!suspects.add(entry, at(n as u64)));
        }
        assert_eq!(suspects.confirm(at(30), at(30)).len(), 20);
    }
}
