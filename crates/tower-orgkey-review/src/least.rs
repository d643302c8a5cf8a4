//! The least scopes that a key needs for the requests that were recorded.

use std::collections::BTreeSet;

use crate::segment::AnyOf;

/// Whether a key with these scopes satisfies a policy.
pub(crate) fn permits(policy: &AnyOf, held: &BTreeSet<&str>) -> bool {
    let mut alternatives = policy.iter();
    alternatives.any(|scopes| scopes.iter().all(|scope| held.contains(scope.as_str())))
}

/// Returns scopes of which none can be taken away, and that satisfy all policies. Each policy has its number of requests.
///
/// `None` if not even all the granted scopes satisfy them. There may be several such sets. Scopes that fewer requests name are
/// taken away first.
pub(crate) fn least<'a>(
    granted: &BTreeSet<&'a str>,
    policies: &[(&'a AnyOf, u64)],
) -> Option<BTreeSet<&'a str>> {
    let satisfies =
        |held: &BTreeSet<&str>| policies.iter().all(|(policy, _)| permits(policy, held));
    if !satisfies(granted) {
        return None;
    }
    let named = |scope: &str| -> u64 {
        let naming = policies
            .iter()
            .filter(|(policy, _)| policy.iter().flatten().any(|named| named == scope));
        naming.map(|(_, count)| count).sum()
    };
    let mut order: Vec<_> = granted.iter().map(|scope| (named(scope), *scope)).collect();
    order.sort_unstable();
    let mut held = granted.clone();
    for (_, scope) in order {
        held.remove(scope);
        // A scope that is needed now is needed in any smaller set too, so one pass is enough.
        if !satisfies(&held) {
            held.insert(scope);
        }
    }
    Some(held)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCOPES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn policies() -> impl Strategy<Value = Vec<AnyOf>> {
        let scopes = proptest::sample::subsequence(&SCOPES[..], 0..4);
        let scopes = scopes.prop_map(|names| names.into_iter().map(str::to_owned).collect());
        let policy = proptest::collection::vec(scopes, 0..4);
        proptest::collection::vec(policy, 0..8)
    }

    proptest! {
        #[test]
        fn least_scopes_suffice_and_are_irreducible(
            policies in policies(),
            granted in proptest::sample::subsequence(&SCOPES[..], 0..=6),
        ) {
            let granted: BTreeSet<&str> = granted.into_iter().collect();
            // What was allowed is what the granted scopes satisfy.
            let asked: Vec<_> = policies.iter().filter(|policy| permits(policy, &granted)).collect();
            let counted: Vec<_> = asked.iter().copied().zip(1_u64..).collect();
            let least = least(&granted, &counted).unwrap();
            prop_assert!(least.is_subset(&granted));
            for policy in &asked {
                prop_assert!(permits(policy, &least));
            }
            for scope in &least {
                let mut fewer = least.clone();
                fewer.remove(scope);
                prop_assert!(asked.iter().any(|policy| !permits(policy, &fewer)));
            }
        }

        #[test]
        fn unexplained_requests_have_no_least_scopes(policies in policies()) {
            let granted: BTreeSet<&str> = ["a", "b"].into();
            let counted: Vec<_> = policies.iter().map(|policy| (policy, 1)).collect();
            let is_explained = policies.iter().all(|policy| permits(policy, &granted));
            prop_assert_eq!(least(&granted, &counted).is_some(), is_explained);
        }
    }
}
