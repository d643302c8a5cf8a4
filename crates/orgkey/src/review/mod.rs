//! `orgkey review`: says of each key whether it is used, which scopes it needs, and what has to be decided, with the proof from
//! audit files. The review itself is `tower-orgkey-review`.

mod command;
mod issuer;
mod progress;

pub use self::command::{Args, run};
