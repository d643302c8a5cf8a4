//! Scopes, against plain sets of strings.

use std::collections::HashSet;

use proptest::prelude::*;
use tower::{ServiceBuilder, ServiceExt};
use tower_orgkey::test_util::OrgContextBuilder;
use tower_orgkey::{Rejection, RejectionKind, RequireScopeLayer, Scope, ScopePolicy, Scopes};

use crate::support::service::{Handler, Outcome};

/// Names that are near to each other: prefixes, cases, lists.
const NAMES: [&str; 12] = [
    "a",
    "A",
    "b",
    "ab",
    "a:b",
    "a:",
    "read",
    "read:users",
    "Read:users",
    "read:user",
    "*",
    "a,b",
];

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NAMES.as_slice())
}

fn policy() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    prop::collection::vec(prop::collection::vec(name(), 1..4), 0..4)
}

fn is_scope(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && name
            .chars()
            .all(|c| ('!'..='~').contains(&c) && c != '"' && c != '\\')
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_permits_what_the_sets_permit(
        alternatives in policy(),
        held in prop::collection::vec(name(), 0..8),
    ) {
        let set: HashSet<&str> = held.iter().copied().collect();
        let expected = alternatives
            .iter()
            .any(|names| names.iter().all(|name| set.contains(name)));
        let policy = ScopePolicy::new(alternatives.clone());
        let scopes = Scopes::from_names(held.iter().copied());
        prop_assert_eq!(scopes.len(), set.len());
        for name in NAMES {
            prop_assert_eq!(scopes.contains(name), set.contains(name));
        }
        prop_assert_eq!(policy.permits(&scopes), expected);

        // The guard decides likewise, and names an alternative that lacks the fewest.
        let mut request = http::Request::new(());
        // `held` is a list of names written in this file.
        request
            .extensions_mut()
            .insert(OrgContextBuilder::new("org_one").scopes(held).build());
        let handler = Handler::default();
        let guard = ServiceBuilder::new()
            .layer(RequireScopeLayer::new(policy))
            .service(handler.clone());
        let response = futures_util::FutureExt::now_or_never(guard.oneshot(request)).unwrap().unwrap();
        if expected {
            prop_assert_eq!(Outcome::of(&response), Outcome::Passed("org_one".into()));
            prop_assert_eq!(handler.reached(), 1);
        } else {
            prop_assert_eq!(handler.reached(), 0);
            let rejection = response.extensions().get::<Rejection>().unwrap();
            prop_assert_eq!(rejection.kind(), RejectionKind::InsufficientScope);
            let lacking = |names: &[&str]| names.iter().filter(|name| !set.contains(*name)).count();
            match rejection.required_scope() {
                None => prop_assert!(alternatives.is_empty()),
                Some(wanted) => {
                    let wanted: Vec<&str> = wanted.split(' ').collect();
                    prop_assert!(alternatives.contains(&wanted));
                    let fewest = alternatives.iter().map(|names| lacking(names)).min();
                    prop_assert_eq!(Some(lacking(&wanted)), fewest);
                }
            }
        }
    }

    #[test]
    fn a_name_is_a_scope_exactly_in_the_grammar(name in "[ -~]{0,6}|\\PC{0,4}|[a-z]{250,260}|[!-~]{1,3}[\\n\\r\\t\\x00\\x7f]") {
        prop_assert_eq!(Scope::new(name.as_str()).is_ok(), is_scope(&name));
        prop_assert_eq!(ScopePolicy::try_new([[name.as_str()]]).is_ok(), is_scope(&name));
        let held = Scopes::from_names(["a", &name]);
        prop_assert_eq!(held.contains(&name), is_scope(&name));
        let names: HashSet<&str> = ["a", &name].into_iter().filter(|name| is_scope(name)).collect();
        prop_assert_eq!(held.len(), names.len());
    }
}
