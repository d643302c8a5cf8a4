use std::error::Error;
use std::fmt;

use super::finding::{Finding, FindingKind};

/// What was found in a database. See the [module](super) for an example.
///
/// `Display` prints a table: the kind, the object and a hint of each finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IsolationReport {
    /// Sorted.
    findings: Vec<Finding>,
}

impl IsolationReport {
    /// Reads the rows that [`FINDINGS`](super::FINDINGS) returned: kind, object, detail.
    ///
    /// The error is a kind that this version does not know.
    ///
    /// ```
    /// use tower_orgkey_sqlx::isolation::{FindingKind, IsolationReport};
    ///
    /// let report = IsolationReport::read([("superuser", "role app", "current role")])?;
    /// assert_eq!(report.findings()[0].kind(), FindingKind::Superuser);
    /// assert!(IsolationReport::read([("a-newer-kind", "role app", "")]).is_err());
    /// # Ok::<(), tower_orgkey_sqlx::isolation::UnknownFinding>(())
    /// ```
    pub fn read<T: AsRef<str>>(
        rows: impl IntoIterator<Item = (T, T, T)>,
    ) -> Result<Self, UnknownFinding> {
        let mut report = Self::default();
        for (kind, object, detail) in rows {
            let kind = kind.as_ref();
            let known = FindingKind::ALL.iter().find(|known| known.name() == kind);
            let known = known.ok_or_else(|| UnknownFinding(kind.to_owned()))?;
            report.add(*known, object.as_ref(), detail.as_ref());
        }
        Ok(report)
    }

    /// Adds that a [`probe`](super::probe) of this table returned `true`.
    ///
    /// ```
    /// use tower_orgkey_sqlx::isolation::{FindingKind, IsolationReport};
    ///
    /// let mut report = IsolationReport::default();
    /// report.rows_visible("public.notes");
    /// assert_eq!(report.findings()[0].kind(), FindingKind::RowsVisible);
    /// ```
    pub fn rows_visible(&mut self, table: &str) {
        let detail = "without an organization, or with one that does not exist";
        self.add(FindingKind::RowsVisible, table, detail);
    }

    /// Adds that a [`probe`](super::probe) of this table failed with this SQLSTATE. A policy that raises an exception (`P0001`)
    /// shows no rows, and is no finding.
    ///
    /// ```
    /// use tower_orgkey_sqlx::isolation::{FindingKind, IsolationReport};
    ///
    /// let mut report = IsolationReport::default();
    /// report.probe_failed("public.notes", "P0001");
    /// assert!(report.findings().is_empty());
    /// report.probe_failed("public.notes", "22P02");
    /// assert_eq!(report.findings()[0].kind(), FindingKind::ProbeFailed);
    /// ```
    pub fn probe_failed(&mut self, table: &str, sqlstate: &str) {
        if sqlstate != "P0001" {
            let detail = format!("SQLSTATE {sqlstate} without an organization");
            self.add(FindingKind::ProbeFailed, table, &detail);
        }
    }

    fn add(&mut self, kind: FindingKind, object: &str, detail: &str) {
        let finding = Finding {
            kind,
            object: object.to_owned(),
            detail: detail.to_owned(),
        };
        if let Err(place) = self.findings.binary_search(&finding) {
            self.findings.insert(place, finding);
        }
    }

    /// Removes the findings that are exceptions.
    pub fn without(mut self, exceptions: &Exceptions) -> Self {
        self.findings.retain(|finding| !exceptions.contain(finding));
        self
    }

    /// Returns the findings, ordered by kind and object.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns the report as an error if it has findings.
    pub fn into_result(self) -> Result<(), Self> {
        if self.findings.is_empty() {
            Ok(())
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for IsolationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return f.write_str("the database isolates organizations");
        }
        f.write_str("the database does not isolate organizations:")?;
        let width = |column: fn(&Finding) -> &str| {
            let lengths = self.findings.iter().map(column);
            lengths.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let (kinds, objects) = (width(|finding| finding.kind.name()), width(Finding::object));
        for finding in &self.findings {
            let kind = finding.kind.name();
            write!(
                f,
                "\n{kind:kinds$}  {:objects$}  {}",
                finding.object, finding.detail
            )?;
        }
        Ok(())
    }
}

impl Error for IsolationReport {}

/// Findings that are known and accepted: a table that all organizations share, for example.
///
/// ```
/// use tower_orgkey_sqlx::isolation::{Exceptions, FindingKind};
///
/// let exceptions = Exceptions::none()
///     .except(FindingKind::RowSecurityOff, "public.plans")
///     .except(FindingKind::DefinerFunction, "public.sign_up(text, text)");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Exceptions(Vec<(FindingKind, String)>);

impl Exceptions {
    /// No exceptions.
    pub fn none() -> Self {
        Self::default()
    }

    /// Accepts findings of this kind about this object, which is named as in the report. Other kinds of findings about it are
    /// still reported.
    pub fn except(mut self, kind: FindingKind, object: impl Into<String>) -> Self {
        self.0.push((kind, object.into()));
        self
    }

    fn contain(&self, finding: &Finding) -> bool {
        let mut exceptions = self.0.iter();
        exceptions.any(|(kind, object)| *kind == finding.kind && *object == finding.object)
    }
}

/// A kind of finding that this version does not know, because the rows are not those of its
/// [`FINDINGS`](super::FINDINGS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFinding(String);

impl fmt::Display for UnknownFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown kind of finding {:?}", self.0)
    }
}

impl Error for UnknownFinding {}
