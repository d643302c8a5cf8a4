//! `orgkey gateway`: decides for a reverse proxy whether a request may pass.

mod command;
pub mod config;
mod path;
mod routes;

pub use self::command::{Args, run};
pub use self::config::Config;
