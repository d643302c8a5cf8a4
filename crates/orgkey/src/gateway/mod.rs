//! `orgkey gateway`: decides for a reverse proxy whether a request may pass.

mod checks;
mod command;
pub mod config;
mod decision;
mod dialect;
mod identity;
mod path;
mod routes;

pub use self::command::{Args, run};
pub use self::config::Config;
