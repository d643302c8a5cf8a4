//! Behavior of the layer, the guards, limits, settings and the Kinde verifier, seen through public items. A module per area.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod cache;
mod contract;
mod corpus;
mod emulated_outage;
mod faults;
mod http;
mod kinde;
mod limit;
mod modules;
mod outage;
mod pages;
#[path = "../support/python.rs"]
mod python;
mod quickstart;
mod reconciler;
mod region;
mod revoke_endpoint;
mod settings;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod telemetry;
