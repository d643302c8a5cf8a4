//! The test kit, shared by all test binaries of the workspace.
//!
//! | module | contents |
//! |---|---|
//! | `issuer` | an issuer in memory |
//! | `app` | an application behind the layer with this issuer, on the paused clock |
//! | `service`, `probe` | inner services, and requests to them |
//! | `wire` | a server on a socket, and a client that shows the bytes of a response |
//! | `stub`, `kinde` | a server with scripted replies, and one that behaves like Kinde, with a verifier and a layer |
//! | `emulated`, `proxy` | an application, an emulator, and a proxy between them that injects faults |
//! | `log` | the captured events of a thread |
//!
//! `python`, which runs Python programs, `server`, which starts servers in other languages, and `nested`, which makes JSON that
//! overflows the stack, are included without the others.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod app;
pub(crate) mod emulated;
pub(crate) mod issuer;
pub(crate) mod kinde;
pub(crate) mod log;
pub(crate) mod probe;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod stub;
pub(crate) mod wire;

#[allow(unused_imports, reason = "each test binary uses a part of this")]
pub(crate) use self::issuer::{Answer, Issuer, org};
