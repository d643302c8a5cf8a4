//! `orgkey emulator`: a Kinde-compatible issuer for development, and for tests in any language.
//!
//! It runs a [`KindeEmulator`](kinde_emulator::KindeEmulator) with its control endpoints, and prints what an application needs
//! to use it.

mod command;
mod settings;

pub use self::command::{Args, run};
