//! Evidence as a file of JSON lines: a head per segment, and a line per record.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::evidence::Evidence;
use crate::segment::{COMBINATIONS, Head, Record, Segment, Week, split};

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
        record: Record,
    },
    /// How many lines there are before it, so that a file that was cut off is not read.
    End(u64),
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
            let mut weeks: Vec<_> = segment.weeks.iter().collect();
            weeks.sort_unstable_by_key(|(org, _)| *org);
            for (org, weeks) in weeks {
                put(&Line::Weeks {
                    org: (&**org).into(),
                    weeks: weeks.clone(),
                })?;
            }
            let mut records: Vec<_> = segment.records.iter().collect();
            records.sort_unstable_by_key(|(name, _)| *name);
            for (name, record) in records {
                let (org, key) = split(name);
                put(&Line::Key {
                    org: org.into(),
                    key: key.map(Into::into),
                    record: Record::clone(record),
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
        let mut segment: Option<Segment> = None;
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
                    if head.combinations.len() > COMBINATIONS {
                        return Err(invalid("an invalid segment"));
                    }
                    add(&mut evidence, segment.take()).map_err(invalid)?;
                    let head = *head;
                    *segment = Some(Segment {
                        head,
                        ..Segment::default()
                    });
                }
                (Line::End(lines), segment) => {
                    if lines != number - 1 {
                        return Err(invalid("lines are missing"));
                    }
                    add(&mut evidence, segment.take()).map_err(invalid)?;
                    is_complete = true;
                }
                (_, None) => return Err(invalid("a record without a segment")),
                (Line::Weeks { org, weeks }, Some(segment)) => {
                    segment.weeks.insert(org.into(), weeks);
                }
                (Line::Key { org, key, record }, Some(segment)) => {
                    let known = |counts: &[(u32, u64)], most: usize| {
                        counts.iter().all(|(index, _)| (*index as usize) < most)
                    };
                    if !known(&record.rejected, segment.head.codes.len())
                        || !known(&record.asked, segment.head.combinations.len())
                    {
                        return Err(invalid("a record names what its segment lacks"));
                    }
                    if org.contains(' ') {
                        return Err(invalid("an identifier is outside its grammar"));
                    }
                    let name = match key {
                        Some(key) => format!("{org} {key}"),
                        None => org.into_owned(),
                    };
                    segment.records.insert(name.into(), Box::new(record));
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

fn add(evidence: &mut Evidence, segment: Option<Segment>) -> Result<(), &'static str> {
    if let Some(segment) = segment {
        let merged = std::mem::take(evidence).merge(Evidence::of_segment(segment));
        *evidence = merged.map_err(|_| "two segments overlap")?;
    }
    Ok(())
}
