//! What waits to be pushed, in order, and what the file knows of it.

use std::collections::VecDeque;
use std::io;

use super::record::UsageRecord;
use super::unsent::{Journal, UnsentFile};

pub(super) struct Outbox {
    queue: VecDeque<UsageRecord>,
    most: usize,
    journal: Option<Journal>,
    /// So many of the queue, from its head, are in the file.
    in_file: usize,
    /// So many records in the file are done with, and it has not been told.
    done: usize,
}

impl Outbox {
    /// Holds at most so many records, and begins with what the file has.
    pub(super) fn new(file: Option<UnsentFile>, most: usize) -> Self {
        let (journal, queue) = match file {
            Some(UnsentFile { journal, records }) => (Some(journal), records),
            None => (None, VecDeque::new()),
        };
        Self {
            in_file: queue.len(),
            queue,
            most,
            journal,
            done: 0,
        }
    }

    /// Adds records behind the others. Tells how many of the oldest had to go.
    pub(super) fn add(&mut self, records: Vec<UsageRecord>) -> usize {
        self.queue.extend(records);
        let excess = self.queue.len().saturating_sub(self.most);
        self.remove(excess);
        excess
    }

    /// The oldest, at most so many.
    pub(super) fn head(&self, most: usize) -> Vec<UsageRecord> {
        self.queue.iter().take(most).cloned().collect()
    }

    /// The oldest are done with, so many of them.
    pub(super) fn remove(&mut self, number: usize) {
        self.queue.drain(..number);
        let in_file = number.min(self.in_file);
        self.in_file -= in_file;
        self.done += in_file;
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many would be gone with this process.
    pub(super) fn unsaved(&self) -> usize {
        self.queue.len() - self.in_file
    }

    /// Whether there is a file that does not know everything.
    pub(super) fn is_to_be_saved(&self) -> bool {
        self.journal.is_some() && (self.done > 0 || self.in_file < self.queue.len())
    }

    /// Tells the file what it does not know. Blocks.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.write(self.done, &self.queue, self.in_file)?;
            self.done = 0;
            self.in_file = self.queue.len();
        }
        Ok(())
    }
}
