//! A source for the unit tests.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::time::{Duration, SystemTime};

use crate::cache::LookupRequest;
use crate::config::Lifetimes;
use crate::source::{
    Answer, Answered, Failure, FailureKind, IndexKey, Label, Source, Telemetry, Value,
};

pub(crate) const LIFETIMES: Lifetimes = Lifetimes {
    soft: Duration::from_secs(60),
    hard: Duration::from_secs(900),
};

/// A hash of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TestKey(u64);

/// Returns the key with this name.
pub(crate) fn test_key(name: impl AsRef<str>) -> TestKey {
    TestKey(BuildHasherDefault::<DefaultHasher>::default().hash_one(name.as_ref()))
}

impl IndexKey for TestKey {
    fn bits(&self) -> u64 {
        self.0
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) org: Option<String>,
    pub(crate) key_id: Option<String>,
    pub(crate) expires_at: Option<SystemTime>,
}

impl Facts {
    pub(crate) fn of(org: &str, key_id: &str) -> Self {
        Self {
            org: Some(org.to_owned()),
            key_id: Some(key_id.to_owned()),
            expires_at: None,
        }
    }

    pub(crate) fn expiring(at: SystemTime) -> Self {
        Self {
            expires_at: Some(at),
            ..Self::default()
        }
    }
}

impl Value for Facts {
    fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    fn organization(&self) -> Option<&str> {
        self.org.as_deref()
    }

    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    fn clear_expiry(&mut self) {
        self.expires_at = None;
    }
}

#[derive(Debug)]
pub(crate) struct TestError(pub(crate) FailureKind);

impl fmt::Display for TestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for TestError {}

impl Failure for TestError {
    fn kind(&self) -> FailureKind {
        self.0
    }
}

/// A source whose function answers. Names that begin with `b/` belong to the second one of two upstreams, and names that begin
/// with `none/` to no upstream.
#[derive(Debug)]
pub(crate) struct TestSource(pub(crate) fn(&str) -> Result<Answer<Facts>, TestError>);

pub(crate) struct NoTelemetry;

impl Telemetry<TestSource> for NoTelemetry {}

pub(crate) fn request(name: &str) -> LookupRequest<TestSource> {
    LookupRequest::new(name.to_owned(), test_key(name), None)
}

impl Source for TestSource {
    type Key = TestKey;
    type Query = String;
    type Mark = ();
    type Value = Facts;
    type Error = TestError;
    type Telemetry = NoTelemetry;

    fn upstreams(&self) -> Vec<Label> {
        ["a", "b"].map(Label::from).to_vec()
    }

    fn upstream_of(&self, name: &String) -> Option<usize> {
        (!name.starts_with("none/")).then(|| usize::from(name.starts_with("b/")))
    }

    fn mark(&self, _: &String) {}

    async fn call(
        &self,
        name: &String,
        _: Option<&Facts>,
        _: Duration,
    ) -> Result<Answered<Facts>, TestError> {
        let answer = self.0(name)?;
        Ok(Answered {
            answer,
            credential: 0,
        })
    }
}
