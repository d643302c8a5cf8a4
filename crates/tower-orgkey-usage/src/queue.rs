//! The backlog with its bound and its file.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::account::Account;
use crate::aggregator::RecordCounts;
use crate::backlog::{Backlog, Change, Small};
use crate::parked::{ParkReason, ParkedRecord, Settlement};
use crate::record::UsageRecord;
use crate::spool::{Journal, SpoolFile};
use crate::telemetry;

pub(crate) struct Queue {
    backlog: Backlog,
    most: usize,
    journal: Option<Journal>,
    /// Some records are not in the file.
    has_unsaved: bool,
}

/// A clock that is set back by at most so many seconds makes no age unknown.
const CLOCK_STEP: u64 = 60;

/// Until when a record can be pushed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Seconds since the Unix epoch.
    pub(crate) now: u64,
    /// How long a push may take.
    pub(crate) push: Duration,
    /// How long the meter remembers ids.
    pub(crate) remembers: Option<Duration>,
    /// How old a record may be.
    pub(crate) oldest: Option<Duration>,
}

impl Limits {
    /// Whether pushes have to be noted before they begin.
    pub(crate) fn are_set(&self) -> bool {
        self.remembers.is_some() || self.oldest.is_some()
    }

    /// Whether the meter can have forgotten a record that was sent at `since` before a push ends.
    fn is_forgotten(&self, since: u64) -> bool {
        // The clock was set back, so the age is unknown.
        let is_unknown = since > self.now.saturating_add(CLOCK_STEP);
        self.is_over(self.remembers, since) || self.remembers.is_some() && is_unknown
    }

    /// Whether a push that begins now can end after `limit` has passed since `since`.
    fn is_over(&self, limit: Option<Duration>, since: u64) -> bool {
        let end = Duration::from_secs(self.now.saturating_sub(since)).saturating_add(self.push);
        limit.is_some_and(|limit| end >= limit)
    }
}

impl Queue {
    /// Holds at most `most` records, and as many parked ones, and starts with those of the file.
    pub(crate) fn new(file: Option<SpoolFile>, most: usize) -> Self {
        let (journal, backlog) = match file {
            Some(SpoolFile { journal, backlog }) => (Some(journal), backlog),
            None => (None, Backlog::default()),
        };
        Self {
            backlog,
            most,
            journal,
            has_unsaved: false,
        }
    }

    /// Appends records, and returns how many were dropped because there are too many.
    pub(crate) fn add(&mut self, records: Vec<UsageRecord>) -> usize {
        if let Some(journal) = &mut self.journal {
            journal.note_records(&records);
        }
        self.has_unsaved |= !records.is_empty();
        self.backlog.append(records, false);
        let accounts = self.backlog.waiting.iter();
        let excess = excess(accounts.map(|waiting| &waiting.record.account), self.most);
        let number = excess.len();
        if number > 0 {
            self.remove_at(excess);
        }
        number
    }

    /// Parks those of the `most` oldest records that must not be pushed any more, and returns their ids. Repeats with those
    /// that follow, but for the last ones that are `excluded`.
    pub(crate) fn park_expired(
        &mut self,
        most: usize,
        excluded: usize,
        limits: &Limits,
    ) -> Vec<ParkedNow> {
        let mut ids = Vec::new();
        while limits.are_set() {
            let most = most.min(self.len().saturating_sub(excluded));
            let head = self.backlog.waiting.iter().take(most).enumerate();
            let expired = head.filter(|(_, waiting)| {
                limits.is_over(limits.oldest, waiting.record.minute)
                    || (waiting.sent).is_some_and(|sent| limits.is_forgotten(sent))
            });
            let expired: Vec<usize> = expired.map(|(place, _)| place).collect();
            if expired.is_empty() {
                break;
            }
            ids.extend(self.park(ParkReason::TooOld, expired));
        }
        ids
    }

    /// Parks waiting records, for this reason if the sink cannot have stored them.
    pub(crate) fn park(&mut self, reason: ParkReason, records: Vec<usize>) -> Vec<ParkedNow> {
        let number = records.len();
        self.change(&Change::Park { reason, records });
        let parked = &self.backlog.parked;
        let new = parked[parked.len().saturating_sub(number)..].iter();
        new.map(|parked| ParkedNow {
            id: parked.parked.record.id.clone(),
            reason: parked.parked.reason,
        })
        .collect()
    }

    /// Removes the parked records beyond the bound, and returns how many there were.
    pub(crate) fn trim_parked(&mut self) -> usize {
        let accounts = self.backlog.parked.iter();
        let accounts = accounts.map(|parked| &parked.parked.record.account);
        let excess = excess(accounts, self.most);
        let number = excess.len();
        if number > 0 {
            self.change(&Change::Dropped(excess));
        }
        number
    }

    /// The oldest records, at most `most`. With `at`, notes that a push of them begins then.
    pub(crate) fn begin_push(&mut self, most: usize, at: Option<u64>) -> Vec<UsageRecord> {
        let number = most.min(self.backlog.waiting.len());
        if let Some(at) = at {
            let mut records = Vec::new();
            for (place, waiting) in self.backlog.waiting.iter_mut().take(number).enumerate() {
                // An earlier push that was cancelled had no answer.
                waiting.is_new = false;
                if waiting.sent.is_none() {
                    records.push(place);
                }
            }
            if !records.is_empty() {
                self.change(&Change::Sent { at, records });
            }
        }
        let head = self.backlog.waiting.iter().take(number);
        head.map(|waiting| waiting.record.clone()).collect()
    }

    /// Notes that the push stored none of the `number` oldest records.
    pub(crate) fn not_stored(&mut self, number: usize) {
        let head = self.backlog.waiting.iter().take(number).enumerate();
        let new = head.filter(|(_, waiting)| waiting.is_new);
        let new: Vec<usize> = new.map(|(place, _)| place).collect();
        if !new.is_empty() {
            self.change(&Change::NotStored(new));
        }
    }

    /// Moves the records of accounts with a key behind all others, in the order of the keys, and returns these keys.
    pub(crate) fn order<K: Ord + Copy>(&mut self, key: impl Fn(&Account) -> Option<K>) -> Vec<K> {
        let waiting = self.backlog.waiting.iter();
        let keys: Vec<Option<K>> = waiting
            .map(|waiting| key(&waiting.record.account))
            .collect();
        if !keys.is_sorted() {
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by_key(|place| keys[*place]);
            // These stay where they are.
            let pairs = order.windows(2);
            let kept = pairs.take_while(|pair| pair[0] < pair[1]).count() + 1;
            self.change(&Change::Later(order.split_off(kept)));
        }
        keys.into_iter().flatten().collect()
    }

    /// The accounts of the waiting records.
    pub(crate) fn accounts(&self) -> HashSet<&Account> {
        let waiting = self.backlog.waiting.iter();
        waiting.map(|waiting| &waiting.record.account).collect()
    }

    /// Notes that the sink panicked on the oldest record alone, and returns how often it has.
    pub(crate) fn panicked(&mut self) -> u32 {
        let head = self.backlog.waiting.front_mut();
        head.map_or(0, |waiting| {
            waiting.panics = waiting.panics.saturating_add(1);
            waiting.panics
        })
    }

    /// Whether an earlier push may have stored the oldest record.
    pub(crate) fn may_be_stored(&self) -> bool {
        let head = self.backlog.waiting.front();
        head.is_some_and(|waiting| waiting.sent.is_some())
    }

    /// Removes the oldest records.
    pub(crate) fn remove(&mut self, number: usize) {
        if number > 0 {
            self.change(&Change::Done(number));
        }
    }

    /// Removes the records at these places, which are ascending.
    pub(crate) fn remove_at(&mut self, places: Vec<usize>) {
        self.change(&Change::Removed(places));
    }

    pub(crate) fn parked(&self) -> Vec<ParkedRecord> {
        let parked = self.backlog.parked.iter();
        parked.map(|parked| parked.parked.clone()).collect()
    }

    pub(crate) fn settle(
        &mut self,
        settlement: Settlement,
        mut select: impl FnMut(&ParkedRecord) -> bool,
    ) -> usize {
        let parked = self.backlog.parked.iter().enumerate();
        let selected = parked.filter(|(_, parked)| select(&parked.parked));
        let selected: Vec<usize> = selected.map(|(place, _)| place).collect();
        let number = selected.len();
        if number > 0 {
            self.change(&match settlement {
                Settlement::Billed => Change::Dropped(selected),
                Settlement::PushAgain => Change::Again(selected),
            });
        }
        number
    }

    fn change(&mut self, change: &Small) {
        if let Some(journal) = &mut self.journal {
            journal.note(change);
        }
        let applied = self.backlog.apply(change);
        debug_assert!(applied.is_ok(), "places are of this queue");
    }

    pub(crate) fn len(&self) -> usize {
        self.backlog.waiting.len()
    }

    /// How many records are not in the file.
    pub(crate) fn unsaved(&self) -> usize {
        let waiting = self.backlog.waiting.iter();
        let parked = self.backlog.parked.iter();
        waiting.filter(|waiting| !waiting.is_saved).count()
            + parked.filter(|parked| !parked.is_saved).count()
    }

    /// Whether the file has to be written.
    fn is_to_be_saved(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_to_be_written)
    }

    /// Writes the file. Blocks.
    fn save(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.write(&self.backlog)?;
            if std::mem::take(&mut self.has_unsaved) {
                for waiting in &mut self.backlog.waiting {
                    waiting.is_saved = true;
                }
                for parked in &mut self.backlog.parked {
                    parked.is_saved = true;
                }
            }
        }
        Ok(())
    }
}

/// Returns the places of the records beyond `most`, ascending. Each is the oldest one of the account that has the most, so that
/// an account with many records displaces its own.
fn excess<'a>(accounts: impl ExactSizeIterator<Item = &'a Account>, most: usize) -> Vec<usize> {
    let number = accounts.len().saturating_sub(most);
    if number == 0 {
        return Vec::new();
    }
    let mut places: HashMap<&Account, VecDeque<usize>> = HashMap::new();
    for (place, account) in accounts.enumerate() {
        places.entry(account).or_default().push_back(place);
    }
    // Of accounts with equally many, the one with the oldest record comes first.
    let mut largest: BinaryHeap<_> = places
        .into_values()
        .map(|places| (places.len(), Reverse(places)))
        .collect();
    let mut excess = Vec::with_capacity(number);
    while excess.len() < number
        && let Some(mut account) = largest.peek_mut()
    {
        account.0 -= 1;
        excess.extend(account.1.0.pop_front());
    }
    excess.sort_unstable();
    excess
}

/// A record that was parked just now.
#[derive(Debug)]
pub(crate) struct ParkedNow {
    pub(crate) id: String,
    pub(crate) reason: ParkReason,
}

/// Writes the spool file, if there is one and it has to be written.
pub(crate) async fn save(queue: &Arc<Mutex<Queue>>) -> io::Result<()> {
    if !lock(queue).is_to_be_saved() {
        return Ok(());
    }
    let queue = Arc::clone(queue);
    let saved = tokio::task::spawn_blocking(move || lock(&queue).save()).await;
    // Else the runtime is shutting down.
    saved.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
}

/// Reports how many records wait and are parked.
pub(crate) fn report(queue: &Mutex<Queue>, counts: &RecordCounts) {
    let (waiting, parked, too_old) = {
        let queue = lock(queue);
        let parked = queue.backlog.parked.iter();
        let too_old = parked.filter(|parked| parked.parked.reason == ParkReason::TooOld);
        (queue.len(), queue.backlog.parked.len(), too_old.count())
    };
    counts.waiting.store(waiting, Ordering::Relaxed);
    counts.parked.store(parked, Ordering::Relaxed);
    counts.too_old.store(too_old, Ordering::Relaxed);
    telemetry::waiting(waiting);
    telemetry::parked_now(parked);
}

pub(crate) fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tower_orgkey::OrgCode;

    use super::*;

    #[test]
    fn the_account_with_the_most_records_loses_its_oldest() {
        let org = |code| Account::Organization(OrgCode::from_static(code));
        let accounts = ["a", "b", "a", "c", "a", "b"].map(org);
        for (most, places) in [
            (7, vec![]),
            (6, vec![]),
            (5, vec![0]),
            // Of two accounts with two records each, the one with the oldest.
            (4, vec![0, 1]),
            (3, vec![0, 1, 2]),
            (1, vec![0, 1, 2, 3, 4]),
            (0, vec![0, 1, 2, 3, 4, 5]),
        ] {
            assert_eq!(excess(accounts.iter(), most), places, "{most}");
        }
    }
}
