//! The gateway as proxies, operators and the shell see it.

mod admin;
mod checks;
mod command;
mod grpc;
mod running;
mod support;
