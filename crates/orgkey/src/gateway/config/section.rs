//! Reads the tables of a configuration, and collects all errors instead of stopping at the first.

use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// An error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong. Holds no secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

/// The errors of a configuration that were found so far.
pub(super) struct Problems<'a> {
    text: &'a str,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn add(&mut self, at: &Range<usize>, message: impl Into<String>) {
        let line = self.line(at.start);
        let message = message.into();
        self.found.push(Problem { line, message });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the errors in the order of their lines.
    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.line);
        self.found
    }
}

/// A table of the file. Its keys are removed as they are read, so the rest is unknown.
pub(super) struct Section<'i> {
    name: &'static str,
    pub(super) span: Range<usize>,
    table: DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'i> Section<'i> {
    pub(super) fn new(name: &'static str, table: Spanned<DeTable<'i>>) -> Self {
        let span = table.span();
        Self {
            name,
            span,
            table: table.into_inner(),
            known: Vec::new(),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Returns the value of a key. `None` if there is none, or if it has an error.
    pub(super) fn optional<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        let span = value.span();
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => Some(Spanned::new(span, value)),
            Err(error) => {
                let at = error.span().unwrap_or(span);
                let message = error.message();
                problems.add(&at, format!("{} `{key}`: {message}", self.name));
                None
            }
        }
    }

    /// Returns the value of a key, which must be there.
    pub(super) fn required<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Spanned<T>> {
        if self.table.contains_key(key) {
            return self.optional(key, problems);
        }
        self.known.push(key);
        problems.add(&self.span, format!("{} needs `{key}`", self.name));
        None
    }

    /// Returns the table of this name.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Section<'i>> {
        let value = self.take(key)?;
        let span = value.span();
        if let DeValue::Table(table) = value.into_inner() {
            return Some(Section::new(name, Spanned::new(span, table)));
        }
        problems.add(&span, format!("`{key}` must be a table, {name}"));
        None
    }

    /// Returns the tables of this name: one, or an array of them.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Vec<Section<'i>> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let span = value.span();
        let values = match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            value => vec![Spanned::new(span, value)],
        };
        let mut tables = Vec::with_capacity(values.len());
        for value in values {
            let span = value.span();
            if let DeValue::Table(table) = value.into_inner() {
                tables.push(Section::new(name, Spanned::new(span, table)));
            } else {
                problems.add(&span, format!("`{key}` must be a table, {name}"));
            }
        }
        tables
    }

    /// Reports the keys that were not taken.
    pub(super) fn finish(self, problems: &mut Problems<'_>) {
        for (key, _) in self.table {
            let known = self.known.join("`, `");
            let message = format!(
                "{} has no key `{}`; its keys are `{known}`",
                self.name,
                key.get_ref(),
            );
            problems.add(&key.span(), message);
        }
    }
}
