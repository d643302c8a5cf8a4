//! `orgkey gateway`: decides for a reverse proxy whether a request may pass.

mod admin;
mod allow;
mod assertion;
mod checks;
mod command;
pub mod config;
mod deadline;
mod decision;
mod dialect;
mod identity;
mod no_key;
mod once_map;
mod once_per_second;
mod open_files;
mod path;
mod readiness;
mod recent;
mod recorder;
mod region;
mod rendered;
mod routes;
mod serve;
mod server;
mod setup;
mod terms;
mod waiting;
mod when_woken;

pub use self::command::{Args, run};
pub use self::config::Config;
pub use self::serve::Bounds;
pub use self::server::{Error, Gateway, GatewayHandle};
