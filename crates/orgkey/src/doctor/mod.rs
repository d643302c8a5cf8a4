//! `orgkey doctor`: asks an issuer what its documentation leaves open, and says what the answers mean for the configuration.
//!
//! Nothing secret is sent before the issuer's certificate was verified and its address was shown, and nothing secret is
//! printed: `scrub` removes it from what the issuer says.

mod advice;
mod billing;
mod claims;
pub(crate) mod client;
mod command;
mod examination;
mod network;
mod own_api;
mod rehearsal;
mod reply;
mod report;
mod rows;
mod scrub;
pub(crate) mod secret;
pub(crate) mod table;
mod token;

pub use self::command::{Args, run};
