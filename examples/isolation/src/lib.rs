//! Data of one organization without `OrgPool`: rows with `tokio-postgres`, a database per organization, and objects.

pub mod databases;
pub mod objects;
pub mod rows;
