//! `orgkey gateway`: decides for a reverse proxy whether a request may pass.

mod command;

pub use self::command::{Args, run};
