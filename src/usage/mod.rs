//! Usage: what each organization and each key did, by route and minute.
