use super::*;

const OTHER: u64 = 1;
const THIS: u64 = 2;

const ACCEPTED: Found = Found::Accepted;
const REJECTED: Found = Found::Rejected(StatusCode::FORBIDDEN);
const FAILED: Found = Found::Failed;

const INVALID: Option<Decision> = Some(Decision::Invalid);
const UNDECIDED: Option<Decision> = Some(Decision::Undecided {
    is_misconfigured: false,
});
const MISCONFIGURED: Option<Decision> = Some(Decision::Undecided {
    is_misconfigured: true,
});
const RENEW_REJECTED: Option<Decision> = Some(Decision::Renew {
    is_misconfigured: true,
});
const RENEW: Option<Decision> = Some(Decision::Renew {
    is_misconfigured: false,
});
const PROBE: Option<Decision> = None;

/// A state, the time, and calls that were sent and are not answered yet.
#[derive(Default)]
struct Issuer {
    state: State,
    now: Tick,
    verify_sent: Option<Seq>,
    probe_sent: Option<Seq>,
}

impl Issuer {
    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    fn send_verify(&mut self) {
        self.verify_sent = Some(self.state.draw());
    }

    fn send_probe(&mut self) {
        self.probe_sent = Some(self.state.draw());
    }

    /// Verify answers 200: the call in flight, or one sent now.
    fn ok(&mut self, token: u64) -> Option<Event> {
        let sent = self.verify_sent.take();
        let sent = sent.unwrap_or_else(|| self.state.draw());
        self.state
            .answered(TokenId::numbered(token), sent, false, self.now)
    }

    /// The probe ends: the one in flight, or one sent now.
    fn probe(&mut self, token: u64, found: Found) -> Option<Event> {
        let sent = self.probe_sent.take();
        let sent = sent.unwrap_or_else(|| self.state.draw());
        let probe = Probe {
            token: TokenId::numbered(token),
            sent,
            read: self.state.draw(),
            found,
        };
        self.state.probe_ended(probe, self.now)
    }

    /// Verify answers 401 under this token.
    fn unauthorized(&mut self, token: u64, is_known: bool, is_retry: bool) -> Unauthorized {
        Unauthorized {
            status: StatusCode::UNAUTHORIZED,
            token: TokenId::numbered(token),
            read: self.state.draw(),
            is_known,
            is_retry,
        }
    }

    /// Verify answers 401 about a known key, and no evidence follows.
    fn known_no(&mut self, token: u64, key_id: Option<&str>) {
        let answer = self.unauthorized(token, true, false);
        let key_id = key_id.map(|id| KeyId::new(id).unwrap());
        self.state.leave_unconfirmed(&answer, key_id.as_ref());
    }

    fn become_unusable(&mut self) {
        self.probe(THIS, REJECTED);
        self.ok(THIS);
        self.probe(THIS, REJECTED);
    }
}

struct Case {
    what: &'static str,
    before: fn(&mut Issuer),
    after: fn(&mut Issuer),
    unknown: Option<Decision>,
    known: Option<Decision>,
    /// For either, after one retry.
    retried: Option<Decision>,
}

fn nothing(_: &mut Issuer) {}

/// The table in the module documentation of `kinde`, below "a newer token exists".
#[test]
#[allow(clippy::too_many_lines)] // A table.
fn evidence_table_decides_a_401() {
    let cases = [
        Case {
            what: "no evidence",
            before: nothing,
            after: nothing,
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "verify: 200 to a later call",
            before: nothing,
            after: |issuer| _ = issuer.ok(THIS),
            unknown: INVALID,
            known: INVALID,
            retried: INVALID,
        },
        Case {
            what: "verify: 200 to an earlier call",
            before: Issuer::send_verify,
            after: |issuer| _ = issuer.ok(THIS),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "verify: 200 under another token",
            before: nothing,
            after: |issuer| _ = issuer.ok(OTHER),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "a later probe is accepted",
            before: nothing,
            after: |issuer| _ = issuer.probe(THIS, ACCEPTED),
            unknown: INVALID,
            known: UNDECIDED,
            retried: INVALID,
        },
        Case {
            what: "a later probe is accepted, and a known key's answer is unconfirmed",
            before: |issuer| {
                issuer.ok(THIS);
                issuer.known_no(THIS, None);
            },
            after: |issuer| _ = issuer.probe(THIS, ACCEPTED),
            unknown: UNDECIDED,
            known: UNDECIDED,
            retried: UNDECIDED,
        },
        Case {
            what: "a later probe is accepted, and a known key's answer is confirmed",
            before: |issuer| {
                issuer.known_no(THIS, None);
                issuer.ok(THIS);
            },
            after: |issuer| _ = issuer.probe(THIS, ACCEPTED),
            unknown: INVALID,
            known: UNDECIDED,
            retried: INVALID,
        },
        Case {
            what: "a later probe is accepted, and a known key's answer is of another token",
            before: |issuer| issuer.known_no(OTHER, None),
            after: |issuer| _ = issuer.probe(THIS, ACCEPTED),
            unknown: INVALID,
            known: UNDECIDED,
            retried: INVALID,
        },
        Case {
            what: "an earlier probe is accepted",
            before: Issuer::send_probe,
            after: |issuer| _ = issuer.probe(THIS, ACCEPTED),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "a probe with another token is accepted",
            before: nothing,
            after: |issuer| _ = issuer.probe(OTHER, ACCEPTED),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "a later probe rejects the token",
            before: |issuer| _ = issuer.ok(THIS),
            after: |issuer| _ = issuer.probe(THIS, REJECTED),
            unknown: RENEW_REJECTED,
            known: RENEW_REJECTED,
            retried: MISCONFIGURED,
        },
        Case {
            what: "an earlier probe rejects the token",
            before: Issuer::send_probe,
            after: |issuer| _ = issuer.probe(THIS, REJECTED),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "a later probe fails",
            before: nothing,
            after: |issuer| _ = issuer.probe(THIS, FAILED),
            unknown: UNDECIDED,
            known: UNDECIDED,
            retried: UNDECIDED,
        },
        Case {
            what: "the probe in flight fails",
            before: Issuer::send_probe,
            after: |issuer| _ = issuer.probe(THIS, FAILED),
            unknown: UNDECIDED,
            known: UNDECIDED,
            retried: UNDECIDED,
        },
        Case {
            what: "a probe has failed before",
            before: |issuer| _ = issuer.probe(THIS, FAILED),
            after: nothing,
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
        Case {
            what: "the probe is unusable",
            before: Issuer::become_unusable,
            after: |issuer| issuer.pass(59),
            unknown: UNDECIDED,
            known: UNDECIDED,
            retried: UNDECIDED,
        },
        Case {
            what: "the probe is unusable, and verify: 200 to a later call",
            before: Issuer::become_unusable,
            after: |issuer| _ = issuer.ok(THIS),
            unknown: INVALID,
            known: INVALID,
            retried: INVALID,
        },
        Case {
            what: "the probe is unusable, and no 200 for 60 s",
            before: Issuer::become_unusable,
            after: |issuer| issuer.pass(60),
            unknown: RENEW,
            known: RENEW,
            retried: UNDECIDED,
        },
        Case {
            what: "the probe is unusable, and no 200 under this token",
            before: |issuer| {
                issuer.probe(OTHER, REJECTED);
                issuer.ok(OTHER);
                issuer.probe(OTHER, REJECTED);
            },
            after: nothing,
            unknown: RENEW,
            known: RENEW,
            retried: UNDECIDED,
        },
        Case {
            what: "the probe has been unusable for 15 minutes",
            before: Issuer::become_unusable,
            after: |issuer| issuer.pass(15 * 60),
            unknown: PROBE,
            known: PROBE,
            retried: PROBE,
        },
    ];
    for case in cases {
        for is_known in [false, true] {
            for is_retry in [false, true] {
                let mut issuer = Issuer::default();
                (case.before)(&mut issuer);
                let answer = issuer.unauthorized(THIS, is_known, is_retry);
                (case.after)(&mut issuer);
                let decision = issuer.state.decide(&answer, issuer.now);
                let expected = match (is_retry, is_known) {
                    (false, false) => case.unknown,
                    (false, true) => case.known,
                    // An accepted probe is the one piece of evidence that counts for unknown keys only.
                    (true, true) if case.known == UNDECIDED => UNDECIDED,
                    (true, _) => case.retried,
                };
                let what = case.what;
                assert_eq!(decision, expected, "{what}, {is_known}, {is_retry}");
            }
        }
    }
}

#[test]
fn only_a_later_200_makes_the_probe_unusable() {
    for (is_later, is_unusable) in [(false, false), (true, true)] {
        let mut issuer = Issuer::default();
        issuer.send_probe();
        if !is_later {
            // After the probe, but before its reply was read: the token may have been revoked in between.
            issuer.send_verify();
        }
        issuer.probe(THIS, REJECTED);
        issuer.ok(THIS);
        let event = issuer.probe(THIS, REJECTED);
        assert_eq!(event, is_unusable.then_some(Event::ProbeUnusable));
        let answer = issuer.unauthorized(THIS, false, false);
        let decision = issuer.state.decide(&answer, issuer.now);
        assert_eq!(decision, if is_unusable { UNDECIDED } else { PROBE });
    }
}

#[test]
fn other_tokens_200_keeps_the_probe_usable() {
    let mut issuer = Issuer::default();
    issuer.probe(OTHER, REJECTED);
    issuer.ok(THIS);
    assert_eq!(issuer.probe(OTHER, REJECTED), None);
    assert_eq!(issuer.state.no_probe_before, None);
}

#[test]
fn unusable_probe_is_retried_and_logged_once() {
    let mut issuer = Issuer::default();
    issuer.probe(THIS, REJECTED);
    issuer.ok(THIS);
    // The token may have been granted its scope after the first rejection.
    let answer = issuer.unauthorized(THIS, false, false);
    assert_eq!(issuer.state.decide(&answer, issuer.now), PROBE);
    let unusable = Some(Event::ProbeUnusable);
    assert_eq!(issuer.probe(THIS, REJECTED), unusable);
    for _ in 0..3 {
        issuer.pass(15 * 60);
        let answer = issuer.unauthorized(THIS, false, true);
        assert_eq!(issuer.state.decide(&answer, issuer.now), PROBE);
        assert_eq!(issuer.probe(THIS, REJECTED), None);
        assert_eq!(issuer.state.decide(&answer, issuer.now), UNDECIDED);
    }
    issuer.pass(15 * 60);
    let answer = issuer.unauthorized(THIS, false, false);
    assert_eq!(issuer.probe(THIS, ACCEPTED), None);
    assert_eq!(issuer.state.decide(&answer, issuer.now), INVALID);
    // Usable again.
    let answer = issuer.unauthorized(THIS, false, false);
    assert_eq!(issuer.state.decide(&answer, issuer.now), PROBE);
    issuer.probe(THIS, REJECTED);
    assert_eq!(issuer.state.decide(&answer, issuer.now), RENEW_REJECTED);
    issuer.ok(THIS);
    assert_eq!(issuer.probe(THIS, REJECTED), unusable);
}

#[test]
fn rejected_token_is_logged_once() {
    let mut issuer = Issuer::default();
    for _ in 0..2 {
        let token_rejected = Event::TokenRejected {
            verify: StatusCode::UNAUTHORIZED,
            probe: StatusCode::FORBIDDEN,
        };
        issuer.send_verify();
        issuer.probe(THIS, REJECTED);
        let answer = issuer.unauthorized(THIS, false, false);
        assert_eq!(issuer.state.rejected(&answer), Some(token_rejected));
        assert_eq!(issuer.state.rejected(&answer), None);
        assert_eq!(issuer.ok(THIS), None, "sent before the rejection");
        assert_eq!(issuer.ok(THIS), Some(Event::TokenAcceptedAgain));
        assert_eq!(issuer.ok(THIS), None);
    }
}

#[test]
fn only_a_renewal_that_helped_resets_the_backoff() {
    for (is_retry, waits) in [(false, [5, 10, 20]), (true, [0, 0, 0])] {
        let mut issuer = Issuer::default();
        assert!(issuer.state.may_renew(issuer.now));
        for wait in waits {
            let sent = issuer.state.draw();
            let token = TokenId::numbered(THIS);
            issuer.state.answered(token, sent, is_retry, issuer.now);
            if wait > 0 {
                issuer.pass(wait - 1);
                assert!(!issuer.state.may_renew(issuer.now), "{wait}");
                issuer.pass(1);
            }
            assert!(issuer.state.may_renew(issuer.now), "{wait}");
        }
    }
}

#[test]
fn late_200_of_an_older_token_is_ignored() {
    let mut issuer = Issuer::default();
    issuer.ok(THIS);
    issuer.ok(OTHER);
    let this = TokenId::numbered(THIS);
    assert!(issuer.state.has_answered_lately(this, issuer.now));
    issuer.pass(60);
    assert!(!issuer.state.has_answered_lately(this, issuer.now));
}

#[test]
fn record_confirms_the_answers_about_its_key() {
    let confirm = |issuer: &mut Issuer| {
        let key_id = KeyId::from_static("api_key_1");
        issuer.state.confirm(&key_id);
        issuer
            .state
            .is_known_key_unconfirmed(TokenId::numbered(THIS))
    };
    let mut issuer = Issuer::default();
    issuer.known_no(THIS, Some("api_key_1"));
    issuer.known_no(THIS, Some("api_key_1"));
    assert!(!confirm(&mut issuer));
    // Not those about other keys, whichever came last.
    for ids in [["api_key_2", "api_key_1"], ["api_key_1", "api_key_2"]] {
        for id in ids {
            issuer.known_no(THIS, Some(id));
        }
        assert!(confirm(&mut issuer), "{ids:?}");
        issuer.ok(THIS);
    }
    issuer.known_no(THIS, None);
    assert!(confirm(&mut issuer));
}

#[test]
fn confirmed_answer_is_not_left_unconfirmed() {
    let mut issuer = Issuer::default();
    let answer = issuer.unauthorized(THIS, true, false);
    issuer.ok(THIS);
    issuer.state.leave_unconfirmed(&answer, None);
    assert!(issuer.state.unconfirmed.is_none());
    // One of an older token does not replace one of a newer token either.
    issuer.known_no(THIS, None);
    issuer.known_no(OTHER, None);
    let token = issuer.state.unconfirmed.as_ref().unwrap().token;
    assert_eq!(token, TokenId::numbered(THIS));
}
