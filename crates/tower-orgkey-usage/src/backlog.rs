//! The records that the sink has not stored: those that wait, in order, and those that are parked.
//!
//! Every change is a [`Change`], which the spool file keeps and replays.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::parked::{ParkReason, ParkedRecord};
use crate::record::UsageRecord;

#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) parked: Vec<Parked>,
}

#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) record: UsageRecord,
    /// When the first push of the record began that may have stored it, in seconds since the Unix epoch.
    pub(crate) sent: Option<u64>,
    /// `sent` is of the push in flight.
    pub(crate) is_new: bool,
    pub(crate) is_saved: bool,
    /// How often the sink panicked on this record alone, in this process.
    pub(crate) panics: u32,
}

#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) parked: ParkedRecord,
    pub(crate) is_saved: bool,
}

/// A change of the backlog, as a line of the spool file. Positions are ascending, and count from the oldest record.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change<R, P> {
    /// New records wait.
    Records(R),
    /// So many of the oldest waiting records were removed.
    Done(usize),
    /// These waiting records were removed.
    Removed(Vec<usize>),
    /// A push of these waiting records begins.
    Sent { at: u64, records: Vec<usize> },
    /// The push of these waiting records stored none of them.
    NotStored(Vec<usize>),
    /// These waiting records are pushed after all others, in this order.
    Later(Vec<usize>),
    /// These waiting records are parked.
    Park {
        reason: ParkReason,
        records: Vec<usize>,
    },
    /// Parked records, in a file that was rewritten.
    Parked(P),
    /// These parked records were removed.
    Dropped(Vec<usize>),
    /// These parked records wait again.
    Again(Vec<usize>),
}

impl<R, P> Change<R, P> {
    /// How much of the file the change is done with, or is itself, in records or notes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Records(_) | Self::Parked(_) => 0,
            Self::Done(number) => *number,
            Self::Removed(records)
            | Self::Sent { records, .. }
            | Self::NotStored(records)
            | Self::Later(records)
            | Self::Park { records, .. }
            | Self::Dropped(records)
            | Self::Again(records) => records.len(),
        }
    }
}

/// A change that holds no records.
pub(crate) type Small = Change<(), ()>;
/// A change as it is read.
pub(crate) type Read = Change<Vec<UsageRecord>, Vec<ParkedRecord>>;

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.parked.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.parked.len()
    }

    /// Applies a change that was read. An error says what is wrong with it.
    pub(crate) fn replay(&mut self, change: Read) -> Result<(), &'static str> {
        match change {
            Change::Records(records) => self.append(records, true),
            Change::Parked(parked) => self.parked.extend(parked.into_iter().map(|parked| Parked {
                parked,
                is_saved: true,
            })),
            Change::Done(number) => return self.apply(&Change::Done(number)),
            Change::Removed(at) => return self.apply(&Change::Removed(at)),
            Change::Sent { at, records } => return self.apply(&Change::Sent { at, records }),
            Change::NotStored(at) => return self.apply(&Change::NotStored(at)),
            Change::Later(at) => return self.apply(&Change::Later(at)),
            Change::Park { reason, records } => {
                return self.apply(&Change::Park { reason, records });
            }
            Change::Dropped(at) => return self.apply(&Change::Dropped(at)),
            Change::Again(at) => return self.apply(&Change::Again(at)),
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, records: Vec<UsageRecord>, is_saved: bool) {
        self.waiting
            .extend(records.into_iter().map(|record| Waiting {
                record,
                sent: None,
                is_new: false,
                is_saved,
                panics: 0,
            }));
    }

    pub(crate) fn apply(&mut self, change: &Small) -> Result<(), &'static str> {
        match change {
            Change::Records(()) | Change::Parked(()) => {}
            Change::Done(number) => {
                if *number > self.waiting.len() {
                    return Err("removes more records than there are");
                }
                self.waiting.drain(..*number);
            }
            Change::Removed(at) => {
                check(at, self.waiting.len())?;
                self.take(at);
            }
            Change::Sent { at, records } => {
                check(records, self.waiting.len())?;
                for place in records {
                    self.waiting[*place].sent = Some(*at);
                    self.waiting[*place].is_new = true;
                }
            }
            Change::NotStored(at) => {
                check(at, self.waiting.len())?;
                for place in at {
                    self.waiting[*place].sent = None;
                    self.waiting[*place].is_new = false;
                }
            }
            Change::Later(at) => {
                let mut places = at.clone();
                places.sort_unstable();
                check(&places, self.waiting.len())?;
                let mut later: Vec<_> = places.iter().zip(self.take(&places)).collect();
                let rank: HashMap<usize, usize> = at.iter().copied().zip(0..).collect();
                later.sort_by_key(|(place, _)| rank.get(*place));
                (self.waiting).extend(later.into_iter().map(|(_, waiting)| waiting));
            }
            Change::Park { reason, records } => {
                check(records, self.waiting.len())?;
                for waiting in self.take(records) {
                    self.parked.push(Parked {
                        parked: ParkedRecord {
                            record: waiting.record,
                            // Whatever else is wrong with it, it may be billed.
                            reason: match waiting.sent {
                                Some(since) => ParkReason::MaybeStored { since },
                                None => *reason,
                            },
                        },
                        is_saved: waiting.is_saved,
                    });
                }
            }
            Change::Dropped(at) => {
                check(at, self.parked.len())?;
                self.take_parked(at);
            }
            Change::Again(at) => {
                check(at, self.parked.len())?;
                for Parked { parked, is_saved } in self.take_parked(at) {
                    self.append(vec![parked.record], is_saved);
                }
            }
        }
        Ok(())
    }

    /// Removes the waiting records at these places.
    fn take(&mut self, at: &[usize]) -> Vec<Waiting> {
        let span = at.last().map_or(0, |last| last + 1);
        let head: Vec<Waiting> = self.waiting.drain(..span).collect();
        let (taken, kept) = part(head, at);
        for waiting in kept.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
        taken
    }

    fn take_parked(&mut self, at: &[usize]) -> Vec<Parked> {
        let (taken, kept) = part(std::mem::take(&mut self.parked), at);
        self.parked = kept;
        taken
    }

    /// The pushes that may have stored waiting records, by the time at which they began.
    pub(crate) fn sent(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut sent: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (place, waiting) in self.waiting.iter().enumerate() {
            if let Some(at) = waiting.sent {
                sent.entry(at).or_default().push(place);
            }
        }
        sent
    }
}

fn check(at: &[usize], len: usize) -> Result<(), &'static str> {
    if at.is_sorted_by(|a, b| a < b) && at.last().is_none_or(|last| *last < len) {
        Ok(())
    } else {
        Err("names records that there are not")
    }
}

/// Separates the items at these places from the others.
fn part<T>(items: Vec<T>, at: &[usize]) -> (Vec<T>, Vec<T>) {
    let mut at = at.iter().copied().peekable();
    let (mut taken, mut kept) = (Vec::new(), Vec::new());
    for (place, item) in items.into_iter().enumerate() {
        if at.next_if_eq(&place).is_some() {
            taken.push(item);
        } else {
            kept.push(item);
        }
    }
    (taken, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Account, KeyName, Route};

    fn backlog() -> Backlog {
        let record = |n: u64| UsageRecord {
            id: n.to_string(),
            minute: 60 * n,
            account: Account::Anonymous,
            key: KeyName::Unnamed,
            route: Route::Unmatched,
            counts: crate::Counts::default(),
        };
        let mut backlog = Backlog::default();
        backlog.append((0..4).map(record).collect(), true);
        let reason = ParkReason::TooOld;
        let records = vec![1];
        backlog.apply(&Change::Park { reason, records }).unwrap();
        backlog
    }

    #[test]
    fn positions_beyond_the_backlog_are_errors() {
        let reason = ParkReason::Held;
        for at in [
            vec![3],
            vec![0, 3],
            vec![1, 0],
            vec![1, 1],
            vec![usize::MAX],
        ] {
            let records = at.clone();
            for change in [
                Read::Removed(at.clone()),
                Read::Sent {
                    at: 1,
                    records: records.clone(),
                },
                Read::NotStored(at.clone()),
                Read::Park { reason, records },
                Read::Dropped(at.clone()),
                Read::Again(at),
            ] {
                let mut backlog = backlog();
                assert!(backlog.replay(change).is_err());
                assert_eq!((backlog.waiting.len(), backlog.parked.len()), (3, 1));
            }
        }
        for at in [vec![3], vec![1, 1], vec![2, 0, 3], vec![usize::MAX]] {
            assert!(backlog().replay(Read::Later(at)).is_err());
        }
        assert!(backlog().replay(Read::Done(4)).is_err());
        assert!(backlog().replay(Read::Done(3)).is_ok());
    }

    #[test]
    fn records_keep_their_order() {
        let mut backlog = backlog();
        backlog.apply(&Change::Again(vec![0])).unwrap();
        backlog.apply(&Change::Removed(vec![1])).unwrap();
        backlog.apply(&Change::Later(vec![0, 2])).unwrap();
        let ids = backlog.waiting.iter().map(|waiting| &waiting.record.id);
        assert_eq!(ids.collect::<Vec<_>>(), ["3", "0", "1"]);
        backlog.apply(&Change::Later(vec![2, 0])).unwrap();
        let ids = backlog.waiting.iter().map(|waiting| &waiting.record.id);
        assert_eq!(ids.collect::<Vec<_>>(), ["0", "1", "3"]);
    }
}
