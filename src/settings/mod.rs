//! Settings: what is configured for each organization, loaded once and kept like the facts of a key.
