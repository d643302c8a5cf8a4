//! The issuer passes the conformance kit, and rotates and expires its keys.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use example_own_issuer::{Issuer, PREFIX, is_key};
use rusqlite::Connection;
use tempfile::TempDir;
use tower_orgkey::{ApiKey, KeyId, OrgCode, Verifier};
use tower_orgkey_issuers::conformance::{Condition, Guarantee, IssuerUnderTest, check_verifier};

struct Database {
    directory: TempDir,
    issuer: Issuer,
    /// Another process.
    other: Connection,
    ids: HashMap<String, KeyId>,
    condition: Condition,
}

impl Database {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.sqlite");
        Self {
            issuer: Issuer::open(&path).unwrap(),
            other: Connection::open(&path).unwrap(),
            directory,
            ids: HashMap::new(),
            condition: Condition::Normal,
        }
    }
}

impl IssuerUnderTest for Database {
    async fn issue(&mut self, organization: &str) -> ApiKey {
        let organization = OrgCode::new(organization).unwrap();
        let key = self
            .issuer
            .issue(&organization, &["read:reports"], None)
            .unwrap();
        let secret = key.secret.expose_secret().to_owned();
        self.ids.insert(secret, key.id);
        key.secret
    }

    async fn revoke(&mut self, key: &ApiKey) {
        self.issuer.revoke(&self.ids[key.expose_secret()]).unwrap();
    }

    async fn set(&mut self, condition: Condition) -> bool {
        match self.condition {
            Condition::Down => self.other.execute_batch("ROLLBACK").unwrap(),
            Condition::Garbage => {
                let repair = "UPDATE keys SET organization = substr(organization, 2)";
                self.other.execute_batch(repair).unwrap();
            }
            _ => {}
        }
        let change = match condition {
            Condition::Normal => "",
            // No other connection can read.
            Condition::Down => "BEGIN EXCLUSIVE",
            Condition::Garbage => "UPDATE keys SET organization = ' ' || organization",
            _ => return false,
        };
        self.other.execute_batch(change).unwrap();
        self.condition = condition;
        true
    }
}

#[tokio::test]
async fn issuer_passes_the_kit() {
    let mut database = Database::new();
    let report = check_verifier(database.issuer.clone(), &mut database).await;
    report.assert();
    for condition in [Condition::Down, Condition::Garbage] {
        assert!(
            report.holds(Guarantee::KnownKeysKept, condition),
            "{report}"
        );
        assert!(
            report.holds(Guarantee::FailuresClassified, condition),
            "{report}"
        );
    }
}

fn acme() -> OrgCode {
    OrgCode::from_static("org_acme")
}

#[tokio::test]
async fn rotation_has_an_overlap() {
    let database = Database::new();
    let issuer = &database.issuer;
    let key = issuer.issue(&acme(), &[], None).unwrap();
    let expiry = async |key: &ApiKey| issuer.verify(key).await.unwrap().expires_at();
    assert_eq!(expiry(&key.secret).await, None);

    let hour = Duration::from_secs(3600);
    let before = SystemTime::now();
    let second = issuer.rotate(&key.id, hour).unwrap();
    let after = SystemTime::now();
    let end = expiry(&key.secret).await.unwrap();
    // Whole seconds are stored.
    assert!(before + hour - Duration::from_secs(1) < end && end <= after + hour);
    assert_eq!(expiry(&second).await, None);

    // A rotation without an overlap ends both, and does not prolong the first.
    let third = issuer.rotate(&key.id, Duration::ZERO).unwrap();
    for old in [&key.secret, &second] {
        assert!(expiry(old).await.unwrap() <= SystemTime::now());
    }
    issuer.rotate(&key.id, Duration::from_secs(3600)).unwrap();
    assert!(expiry(&second).await.unwrap() <= SystemTime::now());
    assert!(expiry(&third).await.unwrap() > SystemTime::now());

    issuer.revoke(&key.id).unwrap();
    assert!(!issuer.verify(&third).await.unwrap().is_valid());
    assert!(issuer.rotate(&key.id, Duration::ZERO).is_err());
}

#[tokio::test]
async fn earlier_of_expiry_and_overlap_counts() {
    let database = Database::new();
    let issuer = &database.issuer;
    let soon = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let key = issuer.issue(&acme(), &[], Some(soon)).unwrap();
    assert_eq!(
        issuer.verify(&key.secret).await.unwrap().expires_at(),
        Some(soon)
    );
    issuer.rotate(&key.id, Duration::from_secs(60)).unwrap();
    assert!(
        issuer
            .verify(&key.secret)
            .await
            .unwrap()
            .expires_at()
            .unwrap()
            < soon
    );
}

#[test]
fn secret_is_not_stored() {
    let database = Database::new();
    let key = database.issuer.issue(&acme(), &[], None).unwrap();
    let file = std::fs::read(database.directory.path().join("keys.sqlite")).unwrap();
    let random = &key.secret.expose_secret()[PREFIX.len()..];
    let holds = |text: &str| {
        file.windows(text.len())
            .any(|bytes| bytes == text.as_bytes())
    };
    assert!(holds(key.id.as_str()) && !holds(random));
}

#[test]
fn checksum_finds_mistyped_keys() {
    let database = Database::new();
    let key = database.issuer.issue(&acme(), &[], None).unwrap();
    let secret = key.secret.expose_secret();
    assert!(is_key(secret));
    for at in PREFIX.len()..secret.len() {
        let mut mistyped = secret.to_owned();
        let other = if secret.as_bytes()[at] == b'0' {
            "1"
        } else {
            "0"
        };
        mistyped.replace_range(at..=at, other);
        assert!(!is_key(&mistyped), "{at}");
    }
    for other in [
        "",
        "acme_",
        "other_00",
        &secret[..secret.len() - 1],
        "acme_é",
    ] {
        assert!(!is_key(other), "{other}");
    }
}
