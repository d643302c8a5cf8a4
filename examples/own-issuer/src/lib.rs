//! An issuer of keys in SQLite: keys as hashes, a prefix and a checksum, rotation with an overlap, scopes, and expiry.
//!
//! A key is `acme_`, 32 hexadecimal digits of randomness, and 8 of a checksum. The checksum tells a mistyped key from a revoked
//! one without a query, and lets a scanner for leaked secrets find real keys. The randomness is 128 bits, so that a fast hash is
//! enough: nobody can guess a key from its hash, as they could a password.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};
use tower_orgkey::{ApiKey, KeyId, OrgCode, Scopes, Verification, Verifier, VerifyError};
use zeroize::Zeroizing;

/// How keys begin. Accept nothing else with [`only_matching`](tower_orgkey::ApiKeyLayerBuilder::only_matching) and [`is_key`].
pub const PREFIX: &str = "acme_";

/// How long a query waits for another process, within the deadline of an attempt.
const BUSY: Duration = Duration::from_millis(250);

/// A key has an organization, scopes and an expiry. Its secrets are rotated; `valid_until` ends the overlap.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS keys (
        id TEXT PRIMARY KEY,
        organization TEXT NOT NULL,
        scopes TEXT NOT NULL,
        expires_at INTEGER,
        revoked INTEGER NOT NULL DEFAULT FALSE
    ) STRICT;
    CREATE TABLE IF NOT EXISTS secrets (
        hash BLOB PRIMARY KEY,
        key_id TEXT NOT NULL REFERENCES keys (id),
        valid_until INTEGER
    ) STRICT;";

/// The issuer. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Issuer(Arc<Mutex<Connection>>);

/// A new key. The secret is shown once: only its hash is stored.
#[derive(Debug)]
pub struct IssuedKey {
    /// The identifier, which a rotation does not change.
    pub id: KeyId,
    /// The secret for the customer.
    pub secret: ApiKey,
}

/// A key cannot be issued or changed.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The database.
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
    /// The operating system has no random numbers.
    #[error("no random numbers")]
    Random(#[from] getrandom::Error),
    /// No such key, or a revoked one.
    #[error("there is no such key")]
    NotFound,
}

impl Issuer {
    /// Opens the database, and creates its tables if there are none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IssuerError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Issues a key. Scopes are names without spaces; without `expires_at` the key does not expire.
    pub fn issue(
        &self,
        organization: &OrgCode,
        scopes: &[&str],
        expires_at: Option<SystemTime>,
    ) -> Result<IssuedKey, IssuerError> {
        let id =
            KeyId::new(format!("key_{}", random()?.as_str())).map_err(|_| IssuerError::NotFound)?;
        let secret = new_secret()?;
        let expires_at = expires_at.map(seconds);
        self.transaction(|database| {
            let key = params![
                id.as_str(),
                organization.as_str(),
                scopes.join(" "),
                expires_at
            ];
            let insert =
                "INSERT INTO keys (id, organization, scopes, expires_at) VALUES (?, ?, ?, ?)";
            database.execute(insert, key)?;
            insert_secret(database, &id, &secret)
        })?;
        Ok(IssuedKey { id, secret })
    }

    /// Issues a new secret for a key. The old ones are valid for as long as `overlap`.
    pub fn rotate(&self, id: &KeyId, overlap: Duration) -> Result<ApiKey, IssuerError> {
        let secret = new_secret()?;
        let until = seconds(SystemTime::now() + overlap);
        self.transaction(|database| {
            let is_valid = "SELECT TRUE FROM keys WHERE id = ? AND NOT revoked";
            let found = database.query_row(is_valid, [id.as_str()], |_| Ok(()));
            found.optional()?.ok_or(IssuerError::NotFound)?;
            let end = "UPDATE secrets SET valid_until = ?1
                WHERE key_id = ?2 AND (valid_until IS NULL OR valid_until > ?1)";
            database.execute(end, params![until, id.as_str()])?;
            insert_secret(database, id, &secret)
        })?;
        Ok(secret)
    }

    /// Revokes a key with all its secrets.
    pub fn revoke(&self, id: &KeyId) -> Result<(), IssuerError> {
        self.transaction(|database| {
            let revoke = "UPDATE keys SET revoked = TRUE WHERE id = ?";
            match database.execute(revoke, [id.as_str()])? {
                0 => Err(IssuerError::NotFound),
                _ => Ok(()),
            }
        })
    }

    fn transaction(
        &self,
        change: impl FnOnce(&Connection) -> Result<(), IssuerError>,
    ) -> Result<(), IssuerError> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        change(&transaction)?;
        Ok(transaction.commit()?)
    }

    fn find(&self, hash: [u8; 32]) -> Result<Option<Row>, rusqlite::Error> {
        let query = "SELECT id, organization, scopes, expires_at, valid_until, revoked
            FROM secrets JOIN keys ON keys.id = key_id WHERE hash = ?";
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statement = connection.prepare(query)?;
        let row = statement.query_row([&hash[..]], |row| {
            let (expires_at, valid_until): (Option<u64>, Option<u64>) = (row.get(3)?, row.get(4)?);
            Ok(Row {
                id: row.get(0)?,
                organization: row.get(1)?,
                scopes: row.get(2)?,
                // The earlier one, of those there are.
                expires_at: expires_at.into_iter().chain(valid_until).min(),
                is_revoked: row.get(5)?,
            })
        });
        row.optional()
    }
}

struct Row {
    id: String,
    organization: String,
    scopes: String,
    expires_at: Option<u64>,
    is_revoked: bool,
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        if !is_key(key.expose_secret()) {
            return Ok(Verification::invalid());
        }
        let (issuer, hash) = (self.clone(), hash(key));
        // SQLite blocks its thread. The layer stops waiting after its deadline.
        let found = tokio::task::spawn_blocking(move || issuer.find(hash)).await;
        let found = found.map_err(VerifyError::unavailable)?;
        match found.map_err(VerifyError::unavailable)? {
            Some(row) if !row.is_revoked => row.verification(),
            _ => Ok(Verification::invalid()),
        }
    }
}

impl Row {
    fn verification(self) -> Result<Verification, VerifyError> {
        // An unusable row is about one key, not about the database.
        let organization =
            OrgCode::new(self.organization).map_err(VerifyError::invalid_response)?;
        let id = KeyId::new(self.id).map_err(VerifyError::invalid_response)?;
        let verification = Verification::of_organization(organization)
            .with_key_id(id)
            .with_scopes(Scopes::from_names(self.scopes.split_whitespace()));
        Ok(match self.expires_at {
            // From then on the layer rejects the key, whatever is cached.
            Some(at) => verification.with_expires_at(UNIX_EPOCH + Duration::from_secs(at)),
            None => verification,
        })
    }
}

/// Returns whether this can be a key: its prefix and its checksum are right.
pub fn is_key(text: &str) -> bool {
    text.strip_prefix(PREFIX)
        .and_then(|rest| rest.split_at_checked(32))
        .is_some_and(|(random, checksum)| checksum == checksum_of(random))
}

fn checksum_of(random: &str) -> String {
    format!("{:08x}", crc32fast::hash(random.as_bytes()))
}

fn random() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 16]);
    getrandom::fill(&mut *bytes)?;
    Ok(Zeroizing::new(format!(
        "{:032x}",
        u128::from_le_bytes(*bytes)
    )))
}

fn new_secret() -> Result<ApiKey, IssuerError> {
    let random = random()?;
    let secret = Zeroizing::new(format!("{PREFIX}{}{}", *random, checksum_of(&random)));
    // Letters, digits and an underscore are a key.
    ApiKey::parse(&secret).map_err(|_| IssuerError::NotFound)
}

fn insert_secret(database: &Connection, id: &KeyId, secret: &ApiKey) -> Result<(), IssuerError> {
    let insert = "INSERT INTO secrets (hash, key_id) VALUES (?, ?)";
    database.execute(insert, params![hash(secret), id.as_str()])?;
    Ok(())
}

fn hash(key: &ApiKey) -> [u8; 32] {
    Sha256::digest(key.expose_secret()).into()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
