//! What the answers of verify recommend for `unauthorized_means`.

use super::reply::Answer;
use super::report::{Level, Report};
use crate::meaning::Meaning;

/// How verify answered.
pub(super) struct Answers {
    /// To a key that does not exist.
    pub(super) unknown: Answer,
    pub(super) good: Option<Answer>,
    pub(super) revoked: Option<Answer>,
    /// To the good key, or else the unknown one, with a token that cannot be valid.
    pub(super) invalid_token: Answer,
    /// Whether the list of keys accepts the token.
    pub(super) is_probe_accepted: bool,
}

impl Answers {
    /// Returns whether an invalid key is answered with 401 or 403.
    fn has_unauthorized_key(&self) -> bool {
        let revoked = self.revoked.as_ref();
        self.unknown.is_key_or_token() || revoked.is_some_and(Answer::is_key_or_token)
    }

    fn is_good_valid(&self) -> bool {
        self.good.as_ref().is_some_and(Answer::is_valid)
    }

    /// Returns whether the answers show that a 401 or 403 is about the access token.
    pub(super) fn is_token_rejected(&self) -> bool {
        let is_good_rejected = self.good.as_ref().is_none_or(Answer::is_key_or_token);
        self.unknown.is_key_or_token() && is_good_rejected && !self.is_probe_accepted
    }

    /// Returns whether verify accepts the good key whatever the token.
    fn is_token_ignored(&self) -> bool {
        self.is_good_valid() && self.invalid_token.is_valid()
    }

    /// Returns whether the same key gets 401 or 403 only with the invalid token.
    fn is_token_honored(&self) -> bool {
        let with_own_token = self.good.as_ref().unwrap_or(&self.unknown);
        self.invalid_token.is_key_or_token() && !with_own_token.is_key_or_token()
    }

    /// Reports which credential a 401 or 403 is about, and returns the setting to recommend.
    pub(super) fn unauthorized_means(
        &self,
        configured: Option<Meaning>,
        report: &mut Report,
    ) -> Option<Meaning> {
        let has_unauthorized_key = self.has_unauthorized_key();
        let observed = format!(
            "invalid key: {}{}; invalid token: {}",
            self.unknown,
            if has_unauthorized_key && !self.unknown.is_key_or_token() {
                " (revoked: 401 or 403)"
            } else {
                ""
            },
            self.invalid_token
        );
        let mut add = |level, means| report.add("401 or 403", level, &observed, means);
        if self.is_token_rejected() {
            add(
                Level::Failure,
                "it is about the access token: the list of keys rejects the token too",
            );
            return configured;
        }
        if self.is_token_ignored() && has_unauthorized_key && !self.is_probe_accepted {
            let level = if configured == Some(Meaning::Key) {
                Level::Ok
            } else {
                Level::Change
            };
            add(
                level,
                "it is always about the key: verify ignores the token, and the list of keys cannot tell",
            );
            return Some(Meaning::Key);
        }
        match configured {
            Some(Meaning::AccessToken) if has_unauthorized_key => {
                add(
                    Level::Change,
                    "it can be about the key, which unauthorized_means = \"access-token\" answers with 503",
                );
                return None;
            }
            Some(Meaning::Key) if self.is_token_honored() && self.is_probe_accepted => {
                add(
                    Level::Change,
                    "it can be about the token: with unauthorized_means = \"key\" a rejected token makes every key invalid",
                );
                return None;
            }
            Some(Meaning::Key) if self.invalid_token.is_key_or_token() => add(
                Level::Warning,
                "it can be about the token: with unauthorized_means = \"key\" a rejected token makes every key invalid",
            ),
            _ if has_unauthorized_key && !self.is_probe_accepted => add(
                Level::Warning,
                "it can be about either, and the list of keys cannot tell: grant the scope read:api_keys",
            ),
            _ if matches!(self.invalid_token, Answer::CannotTell(_)) => add(
                Level::Warning,
                "not found out: verify did not answer the call with an invalid token. Run the doctor again",
            ),
            _ if has_unauthorized_key && self.is_token_ignored() => add(
                Level::Ok,
                "it is about the key: verify ignores the token; the default settings see it",
            ),
            _ if has_unauthorized_key => add(
                Level::Ok,
                "it can be about the key or the token; the default settings tell them apart",
            ),
            _ if self.invalid_token.is_key_or_token() => add(
                Level::Ok,
                "it is about the token; the default settings see it",
            ),
            _ => add(
                Level::Ok,
                "neither an invalid key nor an invalid token was answered with it",
            ),
        }
        configured
    }
}
