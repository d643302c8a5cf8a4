//! What there is to try: `curl` lines, each beneath what it will answer. That is the status and the body, or the `code` in
//! the body of a refusal.

use kinde_emulator::{IssuedKey, KeySpec, KindeEmulator};

use crate::Issuer;

pub(crate) fn print(api: &str, issuer: &Issuer) {
    println!("The API listens on {api}.");
    if let Some(emulator) = &issuer.emulator {
        println!("Its issuer is an emulator of Kinde on {}.", issuer.url);
        with_emulator(api, emulator);
    } else {
        println!("Its issuer is {}.", issuer.url);
        with_a_key_of_ones_own(api);
    }
    println!("\nCtrl-C stops it.");
}

fn with_emulator(api: &str, emulator: &KindeEmulator) {
    let of_organization = |org: &str, scopes: &[&str]| {
        let scopes = scopes.iter().copied();
        emulator.issue_key(KeySpec::organization(org).scopes(scopes))
    };
    let north = of_organization("org_north", &["read:reports", "read:users"]);
    let south = of_organization("org_south", &["read:users", "write:users"]);
    // Shown when the issuer is down, and not before.
    let unused = of_organization("org_south", &["read:users"]);
    let revoked = of_organization("org_north", &["read:users"]);
    emulator.revoke(revoked.id());
    let user = emulator.issue_key(KeySpec::user("kp_1").scopes(["read:users"]));

    let (north_id, unused_id) = (north.id(), unused.id());
    let [north, south, unused, revoked, user] =
        [&north, &south, &unused, &revoked, &user].map(bearer);
    println!(
        r#"
## Good keys

# Whose key is it? → 200 {{"key_id":"{north_id}","org_code":"org_north","scopes":["read:reports","read:users"]}}
curl -si '{api}/whoami' {north}

# Has the scope read:users → 200 {{"org_code":"org_north","users":["user_1","user_2"]}}
curl -si '{api}/users' {north}

# Has the scope write:users → 201 {{"org_code":"org_south","created":"user_3"}}
curl -si '{api}/users' -X POST {south}

# The organization in the path is the key's own → 200 {{"org_code":"org_north","reports":["report_1"]}}
curl -si '{api}/orgs/org_north/reports' {north}

## Good keys that may not

# Lacks the scope write:users → 403 insufficient-scope
curl -si '{api}/users' -X POST {north}

# The path names another organization → 403 organization-mismatch
curl -si '{api}/orgs/org_south/reports' {north}

# The path names what no organization can be called → 403 organization-mismatch
curl -si '{api}/orgs/%FF/reports' {north}

# The key is a user's, not an organization's → 403 organization-required
curl -si '{api}/whoami' {user}

## Bad keys

# Was revoked → 401 invalid-token
curl -si '{api}/whoami' {revoked}

# Never existed → 401 invalid-token
curl -si '{api}/whoami' -H 'Authorization: Bearer k_live_never_existed'"#
    );
    without_a_key(api);
    println!(
        r#"
## The issuer is down: keys that were used before go on working

# Turn it off → 200 {{"outage":true}}
curl -si '{api}/emulator/outage' -X POST

# Verified a moment ago → 200 {{"key_id":"{north_id}","org_code":"org_north","scopes":["read:reports","read:users"]}}
curl -si '{api}/whoami' {north}

# Not used so far: nobody can tell whether it is good → 503 verifier-unavailable
curl -si '{api}/whoami' {unused}

# Turn it on again → 200 {{"outage":false}}
curl -si '{api}/emulator/outage' -X POST

# The same key as before (503 some seconds longer if there were many tries) → 200 {{"key_id":"{unused_id}","org_code":"org_south","scopes":["read:users"]}}
curl -si '{api}/whoami' {unused}"#
    );
}

fn with_a_key_of_ones_own(api: &str) {
    println!(
        r#"
## Keys of yours: set KEY to one of an organization

curl -si '{api}/whoami' -H "Authorization: Bearer $KEY"

curl -si '{api}/users' -H "Authorization: Bearer $KEY"

curl -si '{api}/orgs/<its org_code>/reports' -H "Authorization: Bearer $KEY"

## Bad keys"#
    );
    without_a_key(api);
}

/// What needs no key.
fn without_a_key(api: &str) {
    println!(
        r#"
# No key → 401 credential-missing
curl -si '{api}/whoami'

# Another scheme → 401 credential-missing
curl -si '{api}/whoami' -H 'Authorization: Basic dXNlcjpwYXNzd29yZA=='

# Nothing after the scheme → 400 credential-malformed
curl -si '{api}/whoami' -H 'Authorization: Bearer '

# Two credentials → 400 credential-malformed
curl -si '{api}/whoami' -H 'Authorization: Bearer first-key' -H 'Authorization: Bearer second-key'

## Open to everybody

# A health check → 200 {{"status":"ok"}}
curl -si '{api}/health'

# An unknown path → 404
curl -si '{api}/nowhere'"#
    );
}

fn bearer(key: &IssuedKey) -> String {
    format!("-H 'Authorization: Bearer {}'", key.secret())
}
