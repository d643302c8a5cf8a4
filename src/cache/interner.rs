//! One copy of what repeats from key to key: an organization has several keys, and an API offers a few kinds of keys.
//!
//! Every answer of the issuer brings strings of its own. What is equal to something held already is let go for a reference to
//! it, which saves a third of a key's memory.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use crate::context::OrgCode;
use crate::scope::Scopes;
use crate::verify::Facts;

/// The facts' parts that repeat. Holds no more than twice of what the entries hold themselves, and a few.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    orgs: Pool<OrgCode>,
    scopes: Pool<Scopes>,
}

impl Interner {
    /// The same facts, of shared parts.
    pub(crate) fn intern(&self, facts: Facts) -> Facts {
        Facts {
            org: facts.org.map(|org| self.orgs.intern(org)),
            scopes: self.scopes.intern(facts.scopes),
            ..facts
        }
    }
}

/// What is counted by references.
trait RefCounted: Clone + Eq + Hash {
    /// Whether somebody else holds it as well.
    fn is_used_elsewhere(&self) -> bool;
}

impl RefCounted for OrgCode {
    fn is_used_elsewhere(&self) -> bool {
        self.references() > 1
    }
}

impl RefCounted for Scopes {
    fn is_used_elsewhere(&self) -> bool {
        self.references() > 1
    }
}

/// So many are not worth a look at who holds them.
const MIN_SWEEP: usize = 64;

#[derive(Debug)]
struct Pool<T>(Mutex<Values<T>>);

#[derive(Debug)]
struct Values<T> {
    values: HashSet<T>,
    /// At this size, what nobody else holds is let go.
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Values {
            values: HashSet::new(),
            sweep_at: MIN_SWEEP,
        }))
    }
}

impl<T: RefCounted> Pool<T> {
    fn intern(&self, value: T) -> T {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = held.values.get(&value) {
            return same.clone();
        }
        if held.values.len() >= held.sweep_at {
            held.values.retain(T::is_used_elsewhere);
            // Twice of what is left: sweeping costs each newcomer a constant, on the whole.
            held.sweep_at = (held.values.len() * 2).max(MIN_SWEEP);
            let room = held.sweep_at;
            held.values.shrink_to(room);
        }
        held.values.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(n: usize) -> OrgCode {
        OrgCode::new(format!("org_{n}")).unwrap()
    }

    #[test]
    fn equal_parts_become_one() {
        let interner = Interner::default();
        let facts = || Facts {
            org: Some(org(1)),
            scopes: Scopes::from_names(["a", "b"]),
            ..Facts::default()
        };
        let first = interner.intern(facts());
        let second = interner.intern(facts());
        assert_eq!(first.org, second.org);
        assert_eq!(first.scopes, second.scopes);
        // The two, and the pool.
        assert_eq!(first.org.unwrap().references(), 3);
        assert_eq!(first.scopes.references(), 3);
    }

    fn scopes(n: usize) -> Scopes {
        Scopes::from_names([format!("scope:{n}")])
    }

    fn lets_go_of_what_nobody_holds<T: RefCounted>(
        value: impl Fn(usize) -> T,
        references: impl Fn(&T) -> usize,
    ) {
        let pool = Pool::default();
        let kept: Vec<T> = (0..10).map(|n| pool.intern(value(n))).collect();
        for n in 10..10_000 {
            drop(pool.intern(value(n)));
            assert!(pool.0.lock().unwrap().values.len() <= MIN_SWEEP);
        }
        for (n, kept) in kept.iter().enumerate() {
            assert!(pool.intern(value(n)) == *kept);
            assert_eq!(references(kept), 2, "{n}");
        }
    }

    #[test]
    fn what_nobody_holds_any_more_is_let_go() {
        lets_go_of_what_nobody_holds(org, OrgCode::references);
        lets_go_of_what_nobody_holds(scopes, Scopes::references);
    }

    #[test]
    fn what_is_held_is_swept_as_often_as_it_doubles() {
        let pool = Pool::default();
        let mut kept = Vec::new();
        let mut bounds = vec![MIN_SWEEP];
        for n in 0..100 * MIN_SWEEP {
            kept.push(pool.intern(org(n)));
            let held = pool.0.lock().unwrap();
            assert_eq!(held.values.len(), kept.len());
            if bounds.last() != Some(&held.sweep_at) {
                bounds.push(held.sweep_at);
            }
        }
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64, 128].map(|n| n * MIN_SWEEP));
    }
}
