//! Evidence as a file of JSON lines: a head per segment, and a line per record.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
use crate::line::is_identifier;
use crate::segment::{CODES, COMBINATIONS, Head, Record, Row, SegmentBuilder, Week};

/// The version of the format. Another one is an error.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    OrgkeyEvidence {
        version: u32,
    },
    Segment(Box<Head>),
    Weeks {
        org: std::borrow::Cow<'a, str>,
        weeks: Vec<Week>,
    },
    Key {
        org: std::borrow::Cow<'a, str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<std::borrow::Cow<'a, str>>,
        #[serde(flatten)]
        record: Stored,
    },
    /// How many lines there are before it, so that a file that was cut off is not read.
    End(u64),
}

/// A record in a file.
#[derive(Serialize, Deserialize)]
struct Stored {
    first: u64,
    last: u64,
    #[serde(default)]
    last_allowed: u64,
    #[serde(default)]
    allowed: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<(u32, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asked: Vec<(u32, u64)>,
    /// A record holds at most `u32::MAX`, which stands for more.
    #[serde(default)]
    uncounted: u64,
}

impl From<&Record> for Stored {
    fn from(record: &Record) -> Self {
        Self {
            first: record.first,
            last: record.last,
            last_allowed: record.last_allowed,
            allowed: record.allowed,
            rejected: record.rejected().collect(),
            asked: record.asked().collect(),
            uncounted: record.uncounted.into(),
        }
    }
}

impl Stored {
    /// Fails if the record names what its segment lacks.
    fn into_record(self, head: &Head) -> Result<Record, &'static str> {
        let mut record = Record::default();
        record.first = self.first;
        record.last = self.last;
        record.last_allowed = self.last_allowed;
        record.allowed = self.allowed;
        record.uncounted = u32::try_from(self.uncounted).unwrap_or(u32::MAX);
        let are_known = |counts: &[(u32, u64)], known: usize| {
            counts.iter().all(|(index, _)| (*index as usize) < known)
        };
        if !are_known(&self.rejected, head.codes.len())
            || !are_known(&self.asked, head.combinations.len())
        {
            return Err("a record names what its segment lacks");
        }
        for (combination, count) in self.asked {
            if !record.ask(combination, count) {
                return Err("a record has too many combinations");
            }
        }
        for (code, count) in self.rejected {
            record.reject(code, count);
        }
        Ok(record)
    }
}

/// A file is not evidence, or not all of it. Returned by [`Evidence::read`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has another format or version, or was changed.
    #[error("line {line}: {problem}")]
    Invalid {
        /// The number of the line, from one.
        line: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Evidence {
    /// Writes the evidence as JSON lines: one per segment, organization and key. [`read`](Self::read) reads them.
    ///
    /// The bytes depend on nothing but the evidence.
    ///
    /// # Errors
    ///
    /// What the writer returned.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut lines = 0;
        let mut put = |line: &Line<'_>| {
            lines += 1;
            serde_json::to_writer(&mut out, line)?;
            out.write_all(b"\n")
        };
        put(&Line::OrgkeyEvidence { version: VERSION })?;
        for segment in &self.segments {
            put(&Line::Segment(Box::new(segment.head.clone())))?;
            for org in segment.orgs.iter().filter(|org| !org.weeks.is_empty()) {
                put(&Line::Weeks {
                    org: (&*org.name).into(),
                    weeks: org.weeks.iter().collect(),
                })?;
            }
            for Row { org, id, record } in segment.rows() {
                put(&Line::Key {
                    org: org.into(),
                    key: (!id.is_empty()).then(|| id.into()),
                    record: record.into(),
                })?;
            }
        }
        serde_json::to_writer(&mut out, &Line::End(lines))?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Reads what [`write`](Self::write) has written.
    ///
    /// # Errors
    ///
    /// The file is of another version, was cut off or changed, or has segments that overlap; or the reader failed.
    pub fn read(input: impl BufRead) -> Result<Self, ReadError> {
        let mut evidence = Self::default();
        let mut segment: Option<SegmentBuilder> = None;
        let mut is_complete = false;
        let mut number = 0;
        for line in input.lines() {
            let text = line?;
            number += 1;
            let invalid = |problem| ReadError::Invalid {
                line: number,
                problem,
            };
            let Ok(line) = serde_json::from_str(&text) else {
                return Err(invalid("not a line of evidence"));
            };
            if is_complete {
                return Err(invalid("lines after the end"));
            }
            match (line, &mut segment) {
                (Line::OrgkeyEvidence { version: VERSION }, _) if number == 1 => {}
                (Line::OrgkeyEvidence { .. }, _) => return Err(invalid("another version")),
                _ if number == 1 => return Err(invalid("not a file of evidence")),
                (Line::Segment(head), segment) => {
                    if head.combinations.len() > COMBINATIONS || head.codes.len() > CODES + 1 {
                        return Err(invalid("an invalid segment"));
                    }
                    add(&mut evidence, segment.take()).map_err(invalid)?;
                    *segment = Some(SegmentBuilder::new(*head));
                }
                (Line::End(lines), segment) => {
                    if lines != number - 1 {
                        return Err(invalid("lines are missing"));
                    }
                    add(&mut evidence, segment.take()).map_err(invalid)?;
                    is_complete = true;
                }
                (_, None) => return Err(invalid("a record without a segment")),
                (Line::Weeks { org, .. } | Line::Key { org, .. }, _) if !is_identifier(&org) => {
                    return Err(invalid(OUTSIDE_GRAMMAR));
                }
                (Line::Key { key: Some(key), .. }, _) if !is_identifier(&key) => {
                    return Err(invalid(OUTSIDE_GRAMMAR));
                }
                (Line::Weeks { org, weeks }, Some(segment)) => {
                    let org = segment.org(&org);
                    *segment.weeks(org) = weeks.into_iter().collect();
                }
                (Line::Key { org, key, record }, Some(segment)) => {
                    let record = record.into_record(segment.head()).map_err(invalid)?;
                    let org = segment.org(&org);
                    *segment.record(org, &key.unwrap_or_default()) = record;
                }
            }
        }
        if is_complete {
            Ok(evidence)
        } else {
            Err(ReadError::Invalid {
                line: number,
                problem: "the file is cut off",
            })
        }
    }
}

const OUTSIDE_GRAMMAR: &str = "an identifier is outside its grammar";

fn add(evidence: &mut Evidence, segment: Option<SegmentBuilder>) -> Result<(), &'static str> {
    if let Some(segment) = segment {
        let segment = Evidence::of_segment(segment.finish());
        let merged = std::mem::take(evidence).merge(segment);
        *evidence = merged.map_err(|_| "two segments overlap")?;
    }
    Ok(())
}
