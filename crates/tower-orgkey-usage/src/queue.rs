//! Records that wait for the sink, in order, and which of them are in the spool file.

use std::collections::VecDeque;
use std::io;

use crate::record::UsageRecord;
use crate::spool::{Journal, SpoolFile};

pub(crate) struct Queue {
    records: VecDeque<UsageRecord>,
    most: usize,
    journal: Option<Journal>,
    /// How many records, from the head, are in the file.
    in_file: usize,
    /// How many records at the head of the file were removed here and not there.
    done: usize,
}

impl Queue {
    /// Holds at most `most` records, and starts with those of the file.
    pub(crate) fn new(file: Option<SpoolFile>, most: usize) -> Self {
        let (journal, records) = match file {
            Some(SpoolFile { journal, records }) => (Some(journal), records),
            None => (None, VecDeque::new()),
        };
        Self {
            in_file: records.len(),
            records,
            most,
            journal,
            done: 0,
        }
    }

    /// Appends records, and returns how many of the oldest were dropped.
    pub(crate) fn add(&mut self, records: Vec<UsageRecord>) -> usize {
        self.records.extend(records);
        let excess = self.records.len().saturating_sub(self.most);
        self.remove(excess);
        excess
    }

    /// The oldest records, at most `most`.
    pub(crate) fn head(&self, most: usize) -> Vec<UsageRecord> {
        self.records.iter().take(most).cloned().collect()
    }

    /// Removes the oldest records.
    pub(crate) fn remove(&mut self, number: usize) {
        self.records.drain(..number);
        let in_file = number.min(self.in_file);
        self.in_file -= in_file;
        self.done += in_file;
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// How many records are not in the file.
    pub(crate) fn unsaved(&self) -> usize {
        self.records.len() - self.in_file
    }

    /// Whether the file has to be written.
    pub(crate) fn is_to_be_saved(&self) -> bool {
        self.journal.is_some() && (self.done > 0 || self.in_file < self.records.len())
    }

    /// Writes the file. Blocks.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.write(self.done, &self.records, self.in_file)?;
            self.done = 0;
            self.in_file = self.records.len();
        }
        Ok(())
    }
}
