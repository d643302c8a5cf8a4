//! What the answers of verify mean.

use super::advice::Answers;
use super::reply::{Answer, Members};
use super::report::{Level, Report};

pub(super) fn unknown(answers: &Answers, report: &mut Report) {
    let is_good_valid = answers.good.as_ref().is_some_and(Answer::is_valid);
    let (level, means) = match &answers.unknown {
        Answer::Valid(_) => (
            Level::Failure,
            "the issuer accepts a key that does not exist",
        ),
        Answer::Invalid => (Level::Ok, "callers with such a key get 401"),
        Answer::Unconfirmed(_) => (
            Level::Ok,
            "callers with such a key get 401; a known key, after verify answers a later call",
        ),
        Answer::KeyOrToken(_) if is_good_valid => (
            Level::Ok,
            "it is about the key, since the good key is accepted with the same token",
        ),
        Answer::KeyOrToken(_) if answers.is_probe_accepted => (
            Level::Ok,
            "it is about the key, since the list of keys accepts the same token",
        ),
        Answer::KeyOrToken(_) => (
            Level::Failure,
            "it may be about the access token, which the list of keys rejects too",
        ),
        Answer::CannotTell(_) => (Level::Failure, "callers with an invalid key get 503"),
    };
    report.add("unknown key", level, answers.unknown.to_string(), means);
}

pub(super) fn good(answers: &Answers, report: &mut Report) {
    const CHECK: &str = "good key";
    let Some(answer) = &answers.good else {
        let means = "not tested: set ORGKEY_GOOD_KEY to an active key of an organization";
        report.add(CHECK, Level::Warning, "none given", means);
        return;
    };
    let Answer::Valid(members) = answer else {
        let means = if answers.is_token_rejected() {
            "the access token is rejected, not the key: grant the application the scope read:api_keys"
        } else {
            "the key is not valid here. Is it of another environment, revoked, or rotated?"
        };
        let means = match answer {
            Answer::CannotTell(_) => "valid keys get 503",
            _ => means,
        };
        report.add(CHECK, Level::Failure, answer.to_string(), means);
        return;
    };
    report.add(CHECK, Level::Ok, answer.to_string(), "");
    fields(members, report);
}

fn fields(members: &Members, report: &mut Report) {
    let mut problems = Vec::new();
    let mut level = Level::Ok;
    let mut problem = |of: Level, means: &'static str| {
        level = level.max(of);
        problems.push(means);
    };
    if members.text("org_code").is_none() {
        problem(
            Level::Failure,
            "no org_code: the key belongs to no organization, so its requests get 403",
        );
    }
    if members.text("user_id").is_some() {
        problem(
            Level::Failure,
            "user_id: the key is a user's, so its requests get 403",
        );
    }
    match members.scopes() {
        None => problem(Level::Failure, "scopes are no array of strings: 503"),
        Some(0) => problem(
            Level::Warning,
            "no scopes: a route that demands one rejects the key with 403",
        ),
        Some(_) => {}
    }
    if members.text("key_id").is_none() {
        problem(
            Level::Warning,
            "no key_id: keys cannot be blocked by id, or be held to one API with api_id",
        );
    }
    report.add("fields", level, members.description(), problems.join("; "));
}

pub(super) fn revoked(answers: &Answers, report: &mut Report) {
    const CHECK: &str = "revoked key";
    let Some(answer) = &answers.revoked else {
        let means = "not tested: set ORGKEY_REVOKED_KEY to a key that was revoked";
        report.add(CHECK, Level::Warning, "none given", means);
        return;
    };
    let (level, means) = match answer {
        Answer::Valid(_) => (
            Level::Failure,
            "the issuer accepts it. Was it revoked, and some minutes ago?",
        ),
        Answer::CannotTell(_) => (
            Level::Failure,
            "a revoked key is accepted up to the hard TTL, then gets 503",
        ),
        Answer::KeyOrToken(_) if answers.is_token_rejected() => {
            (Level::Failure, "it is about the access token")
        }
        Answer::Invalid => (Level::Ok, "a revoked key is rejected within two soft TTLs"),
        Answer::Unconfirmed(_) | Answer::KeyOrToken(_) => (
            Level::Ok,
            "a revoked key is rejected once another answer confirms it, at the latest after the hard TTL",
        ),
    };
    report.add(CHECK, level, answer.to_string(), means);
}
