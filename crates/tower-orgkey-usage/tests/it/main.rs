//! What is counted, what is folded, and what a meter is told of it: through the layer, and over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod collector;
mod counted;
mod exact;
mod file;
mod kit;
mod pushed;
mod wire;
