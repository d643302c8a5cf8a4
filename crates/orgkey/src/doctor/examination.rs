//! The checks, in their order. Each needs those before it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::advice::Answers;
use super::billing::Billing;
use super::client::{Issuer, Reply};
use super::reply::Answer;
use super::report::{Level, Report};
use super::secret::{Keys, Secret};
use super::table::IssuerTable;
use super::token::Token;
use super::{network, own_api, rehearsal, rows, token};

const SCOPE: &str = "read:api_keys";
/// Half of what an assertion of the gateway is valid for.
const MAX_SKEW_FOR_ASSERTIONS: i64 = 30;
/// What a reply and the resolution of `Date` may add.
const NEGLIGIBLE_SKEW: i64 = 5;

/// What is examined.
pub(super) struct Examination<'a> {
    pub(super) table: &'a IssuerTable,
    pub(super) secret: &'a Secret,
    pub(super) keys: &'a Keys,
    /// Whether the gateway signs assertions.
    pub(super) has_identity: bool,
    pub(super) billing: Option<&'a Billing>,
    /// Is told the address before anything secret is sent.
    pub(super) announce: &'a dyn Fn(&str),
}

impl Examination<'_> {
    /// Makes all checks, up to the first that the others need and that fails.
    pub(super) async fn run(&self, report: &mut Report) {
        let mut replies = Vec::new();
        // `None` only says where the checks ended; the report says why.
        if let Some((issuer, token)) = self.access(report, &mut replies).await {
            let _ = self.keys(&issuer, &token, report, &mut replies).await;
            if let Some(billing) = self.billing {
                billing.examine(&issuer, &token, &mut replies, report).await;
            }
        }
        if !replies.is_empty() {
            rate_limits(&replies, report);
        }
    }

    /// Checks the way to the issuer, and gets a token.
    async fn access(
        &self,
        report: &mut Report,
        replies: &mut Vec<Reply>,
    ) -> Option<(Issuer, Token)> {
        let url = network::url(self.table, report)?;
        let addresses = network::resolve(&url, report).await?;
        let peer = network::connect(&addresses, report).await?;
        let issuer = network::client(&url, report)?;
        let hello = network::tls(&url, &issuer, report).await?;
        // Of the verified connection, in case that another name resolution gave another address.
        let peer = hello.peer.unwrap_or(peer);
        (self.announce)(&format!(
            "sending credentials to {} at {peer}",
            self.table.origin()
        ));
        self.clock(&hello, report);
        replies.push(hello);
        let token = token::fetch(self.table, self.secret, &issuer, replies, report).await?;
        Some((issuer, token))
    }

    /// Checks what verify answers, and whether the layer can be configured for it.
    async fn keys(
        &self,
        issuer: &Issuer,
        token: &Token,
        report: &mut Report,
        replies: &mut Vec<Reply>,
    ) -> Option<()> {
        let is_probe_accepted = self.scopes(issuer, token, replies, report).await;
        let unknown_key = unknown_key(report)?;
        let answers = self
            .answers(issuer, token, &unknown_key, is_probe_accepted, replies)
            .await;
        rows::unknown(&answers, report);
        rows::good(&answers, report);
        rows::revoked(&answers, report);
        let configured = self.table.unauthorized_means;
        let unauthorized_means = answers.unauthorized_means(configured, report);
        let api_id = self.table.api_id.as_deref();
        let api_id = match &answers.good {
            Some(Answer::Valid(members)) => {
                own_api::recommend(api_id, issuer, token, members, replies, report).await
            }
            _ => api_id.map(str::to_owned),
        };
        if report.worst() == Level::Failure {
            return None;
        }

        let default_audience = self.table.default_audience();
        let recommended = IssuerTable {
            audience: Some(token.audience.clone()).filter(|audience| *audience != default_audience),
            api_id,
            unauthorized_means,
            ..self.table.clone()
        };
        self.rehearse(&recommended, &unknown_key, report).await;
        if report.worst() < Level::Failure {
            report.recommended = Some(recommended);
        }
        Some(())
    }

    fn clock(&self, hello: &Reply, report: &mut Report) {
        let date = hello.header("date");
        let date = date.and_then(|date| httpdate::parse_http_date(&date).ok());
        let Some(date) = date else {
            report.add(
                "clock",
                Level::Warning,
                "no Date",
                "the clocks cannot be compared",
            );
            return;
        };
        let (before, after) = hello.between;
        let skew = seconds(date) - seconds(before).midpoint(seconds(after));
        let observed = format!("the issuer's is {skew} s ahead of this machine's");
        let level = if skew.saturating_abs() <= NEGLIGIBLE_SKEW {
            Level::Ok
        } else if self.has_identity && skew.saturating_abs() > MAX_SKEW_FOR_ASSERTIONS {
            Level::Failure
        } else {
            Level::Warning
        };
        let means = match level {
            Level::Ok => "",
            Level::Failure => {
                "assertions of [identity] are valid for 60 s: services with the right time reject them. Which clock is wrong?"
            }
            _ => {
                "keys are verified all the same, since lifetimes are relative; times in the audit log may be wrong. Which clock is wrong?"
            }
        };
        report.add("clock", level, observed, means);
    }

    /// Returns whether the token is accepted for the list of keys, which the verifier asks when verify answers 401.
    async fn scopes(
        &self,
        issuer: &Issuer,
        token: &Token,
        replies: &mut Vec<Reply>,
        report: &mut Report,
    ) -> bool {
        let names_scope = token.scopes.iter().any(|scope| scope == SCOPE);
        let named = if token.scopes.is_empty() {
            "none named".to_owned()
        } else {
            token.scopes.join(" ")
        };
        let (status, is_accepted) = match issuer.probe(&token.secret).await {
            Ok(reply) => {
                let status = reply.status;
                replies.push(reply);
                (status.to_string(), status == 200)
            }
            Err(error) => (error, false),
        };
        let observed = format!("{named}; list of keys: {status}");
        let (level, means) = match (is_accepted, names_scope) {
            (true, _) => (
                Level::Ok,
                "a 401 can be told apart, and keys can be looked up",
            ),
            (false, false) if self.table.api_id.is_some() => (
                Level::Failure,
                "api_id needs the scope read:api_keys: grant it to the application",
            ),
            (false, false) => (
                Level::Warning,
                "grant the scope read:api_keys to the application; verify may need it too",
            ),
            (false, true) => (
                Level::Warning,
                "the list of keys rejects the token although it has the scope",
            ),
        };
        report.add("scopes", level, observed, means);
        is_accepted
    }

    /// Asks verify. The unknown key first, because no other answer can then have helped.
    async fn answers(
        &self,
        issuer: &Issuer,
        token: &Token,
        unknown_key: &Secret,
        is_probe_accepted: bool,
        replies: &mut Vec<Reply>,
    ) -> Answers {
        let mut ask = async |key: &Secret, token: &Secret| {
            let reply = issuer.verify(key, token).await;
            let answer = Answer::of(&reply);
            replies.extend(reply);
            answer
        };
        let unknown = ask(unknown_key, &token.secret).await;
        let good = match &self.keys.good {
            Some(key) => Some(ask(key, &token.secret).await),
            None => None,
        };
        let revoked = match &self.keys.revoked {
            Some(key) => Some(ask(key, &token.secret).await),
            None => None,
        };
        let any = self.keys.good.as_ref().unwrap_or(unknown_key);
        let invalid_token = ask(any, &token.invalid()).await;
        Answers {
            unknown,
            good,
            revoked,
            invalid_token,
            is_probe_accepted,
        }
    }

    /// Asks the layer as it would be configured.
    async fn rehearse(&self, table: &IssuerTable, unknown_key: &Secret, report: &mut Report) {
        let mut names = vec![("unknown key", 401)];
        let mut keys = vec![unknown_key];
        if let Some(good) = &self.keys.good {
            names.push(("good key", 200));
            keys.push(good);
        }
        if let Some(revoked) = &self.keys.revoked {
            names.push(("revoked key", 401));
            keys.push(revoked);
        }
        let (level, observed, means) = match rehearsal::statuses(table, self.secret, &keys).await {
            Ok(statuses) => {
                let mut pairs = names.iter().zip(&statuses);
                let works = pairs.all(|((_, expected), status)| expected == status);
                let observed = names.iter().zip(&statuses);
                let observed = observed.map(|((name, _), status)| format!("{name}: {status}"));
                let observed = observed.collect::<Vec<_>>().join(", ");
                if works {
                    (
                        Level::Ok,
                        observed,
                        "so the gateway answers with the lines below",
                    )
                } else {
                    (
                        Level::Failure,
                        observed,
                        "expected 200 for the good key, and 401 for the others",
                    )
                }
            }
            Err(error) => (Level::Failure, error, "the lines cannot be used"),
        };
        report.add("rehearsal", level, observed, means);
    }
}

fn rate_limits(replies: &[Reply], report: &mut Report) {
    const CHECK: &str = "rate limits";
    let mut found: Vec<String> = Vec::new();
    for reply in replies {
        for (name, value) in &reply.headers {
            let name = name.as_str();
            let is_limit = name == "retry-after"
                || name.starts_with("ratelimit")
                || name.starts_with("x-ratelimit");
            let value = String::from_utf8_lossy(value.as_bytes());
            let shown = format!("{name}: {value}");
            if is_limit && !found.contains(&shown) && found.len() < 10 {
                found.push(shown);
            }
        }
    }
    let is_throttled = replies.iter().any(|reply| reply.status == 429);
    let observed = if found.is_empty() {
        "no header".to_owned()
    } else {
        found.join(", ")
    };
    let (level, means) = if is_throttled {
        (
            Level::Warning,
            "a call was answered 429; verifications wait as RateLimit-Reset or Retry-After says",
        )
    } else {
        (
            Level::Ok,
            "on 429, verifications wait as RateLimit-Reset or Retry-After says",
        )
    };
    report.add(CHECK, level, observed, means);
}

/// Returns a key that no issuer has issued.
fn unknown_key(report: &mut Report) -> Option<Secret> {
    let mut random = [0; 16];
    if let Err(error) = getrandom::fill(&mut random) {
        let means = "the operating system has no random numbers";
        report.add("unknown key", Level::Failure, error.to_string(), means);
        return None;
    }
    let random = u128::from_ne_bytes(random);
    Some(Secret::new(format!("k_live_orgkey_doctor_{random:032x}")))
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
