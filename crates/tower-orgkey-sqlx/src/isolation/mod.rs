//! The check of a database without a driver: the statements, and the report about what they return.
//!
//! With the feature `sqlx`, [`OrgPool::checked`](crate::OrgPool::checked) does all of this. For another driver, depend on this
//! crate with `default-features = false`, which has no dependencies, and as the role of the service:
//!
//! 1. Begin a transaction on a new connection, run [`FINDINGS`], and give its rows to [`IsolationReport::read`].
//! 2. Run [`PROBED`]. For each table that it returns, run [`probe`] in a savepoint, which is rolled back: for all tables before
//!    an organization was [set](SET_ORG), then with an empty text, then with a code that no organization has. If it returns
//!    `true`, call [`IsolationReport::rows_visible`]; if it fails, [`IsolationReport::probe_failed`], except with class 22 for
//!    the code of no organization, which a policy may cast. Roll back.
//! 3. Remove the exceptions, and stop the start of the service unless [`IsolationReport::into_result`] is `Ok`.
//!
//! ```
//! use tower_orgkey_sqlx::isolation::{Exceptions, FindingKind, IsolationReport};
//!
//! let rows = [
//!     ("truncate", "public.notes", "revoke truncate"),
//!     ("row-security-off", "public.plans", "alter table … enable row level security"),
//! ];
//! let exceptions = Exceptions::none().except(FindingKind::RowSecurityOff, "public.plans");
//! let report = IsolationReport::read(rows).unwrap().without(&exceptions);
//! assert_eq!(report.findings().len(), 1);
//! assert_eq!(
//!     report.into_result().unwrap_err().to_string(),
//!     "the database does not isolate organizations:\ntruncate  public.notes  revoke truncate",
//! );
//! ```

mod finding;
mod report;

pub use self::finding::{Finding, FindingKind};
pub use self::report::{Exceptions, IsolationReport, UnknownFinding};

/// The custom setting of PostgreSQL that holds the organization's code: `app.org`.
pub const ORG_SETTING: &str = "app.org";

/// Sets a setting until the end of the transaction. `$1` is [`ORG_SETTING`], `$2` the organization's code.
///
/// Outside of a transaction it has no effect and still returns `$2`. Therefore read the setting back with [`READ_ORG`], in a
/// separate statement, and compare.
pub const SET_ORG: &str = "select pg_catalog.set_config($1, $2, true)";

/// Reads a setting: null if it was never set on this connection, and the empty string after the end of the transaction that
/// set it. `$1` is [`ORG_SETTING`].
pub const READ_ORG: &str = "select pg_catalog.current_setting($1, true)";

/// Lists what would show the current role the rows of other organizations, as three columns of text: kind, object, detail. It
/// has no parameters. [`FindingKind`] has the meanings.
pub const FINDINGS: &str = include_str!("findings.sql");

/// Lists the tables to [`probe`], as one column of text. It has no parameters.
pub const PROBED: &str = include_str!("probed.sql");

/// Returns the statement that says, as a boolean, whether the current role sees a row of this table. `table` is a row of
/// [`PROBED`], which is quoted; pass nothing else.
///
/// ```
/// use tower_orgkey_sqlx::isolation::probe;
///
/// assert_eq!(probe("public.notes"), "select exists (select from public.notes)");
/// ```
pub fn probe(table: &str) -> String {
    format!("select exists (select from {table})")
}
