//! Limits: how many requests an organization or a key may make, and how many at once.
