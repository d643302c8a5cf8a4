//! What does not depend on a database driver.

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
