//! What an application needs to use the emulator, and how it is printed.

use std::fmt::Write as _;

use kinde_emulator::KindeEmulator;
use serde::Serialize;

/// The settings of an application, and the keys to test it with.
#[derive(Serialize)]
pub(super) struct Settings {
    issuer_url: String,
    client_id: String,
    client_secret: String,
    audience: String,
    control_url: String,
    pub(super) keys: Vec<Key>,
}

#[derive(Serialize)]
pub(super) struct Key {
    #[serde(rename = "key_id")]
    pub(super) id: String,
    #[serde(rename = "key")]
    pub(super) secret: String,
    pub(super) org_code: String,
    pub(super) scopes: Vec<String>,
    pub(super) status: &'static str,
}

impl Settings {
    pub(super) fn of(emulator: &KindeEmulator) -> Self {
        let issuer_url = emulator.issuer_url().to_owned();
        Self {
            client_id: emulator.client_id(),
            client_secret: emulator.client_secret(),
            audience: emulator.audience(),
            control_url: format!("{issuer_url}/_emulator"),
            issuer_url,
            keys: Vec::new(),
        }
    }

    /// One line of JSON.
    pub(super) fn to_json(&self) -> String {
        let json = serde_json::json!(self);
        format!("{json}\n")
    }

    /// Lines for a POSIX shell.
    pub(super) fn to_exports(&self) -> String {
        let mut text = String::new();
        for (name, value) in [
            ("KINDE_ISSUER_URL", &self.issuer_url),
            ("KINDE_CLIENT_ID", &self.client_id),
            ("KINDE_CLIENT_SECRET", &self.client_secret),
            ("KINDE_AUDIENCE", &self.audience),
            ("ORGKEY_EMULATOR_URL", &self.control_url),
        ] {
            export(&mut text, name, value);
        }
        let active = self.keys.iter().filter(|key| key.status == "active");
        for (number, key) in (1..).zip(active) {
            let name = if number == 1 {
                "ORGKEY_GOOD_KEY".to_owned()
            } else {
                format!("ORGKEY_GOOD_KEY_{number}")
            };
            export(&mut text, &name, &key.secret);
        }
        for key in self.keys.iter().filter(|key| key.status == "revoked") {
            export(&mut text, "ORGKEY_REVOKED_KEY", &key.secret);
        }
        text
    }
}

fn export(text: &mut String, name: &str, value: &str) {
    let quoted = value.replace('\'', r"'\''");
    // Writing to a string does not fail.
    let _ = writeln!(text, "export {name}='{quoted}'");
}
