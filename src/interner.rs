//! Interns what results have in common: an organization has several keys, and keys have the same scopes.
//!
//! Each answer of the issuer contains new strings. They are replaced by references to equal ones, which saves a third of a
//! key's memory.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use crate::identifier::OrgCode;
use crate::scope::Scopes;
use crate::verify::Facts;

/// Organization codes and sets of scopes. Holds at most twice as many as the entries used at the last cleanup, or 64.
#[derive(Default)]
pub(crate) struct Interner {
    orgs: Pool<OrgCode>,
    scopes: Pool<Scopes>,
}

impl Interner {
    /// Replaces parts of a result by equal ones that are in use.
    pub(crate) fn intern(&self, facts: &mut Facts) {
        if let Some(org) = &mut facts.org {
            self.orgs.intern(org);
        }
        self.scopes.intern(&mut facts.scopes);
    }
}

/// A value behind a reference count.
trait RefCounted: Clone + Eq + Hash {
    /// Returns whether there are other references.
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

/// Up to this many values are never swept.
const MIN_SWEEP: usize = 64;

struct Pool<T>(Mutex<Values<T>>);

struct Values<T> {
    values: HashSet<T>,
    /// At this size, unused values are removed.
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
    fn intern(&self, value: &mut T) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = pool.values.get(value) {
            *value = same.clone();
            return;
        }
        if pool.values.len() >= pool.sweep_at {
            pool.values.retain(T::is_used_elsewhere);
            // Twice what is left, so that the amortized cost of sweeping is constant per insertion.
            pool.sweep_at = (pool.values.len() * 2).max(MIN_SWEEP);
            let room = pool.sweep_at;
            pool.values.shrink_to(room);
        }
        pool.values.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(n: usize) -> OrgCode {
        OrgCode::new(format!("org_{n}")).unwrap()
    }

    #[test]
    fn equal_parts_are_shared() {
        let interner = Interner::default();
        let shared = || {
            let mut facts = Facts {
                org: Some(org(1)),
                scopes: Scopes::from_names(["a", "b"]),
                ..Facts::default()
            };
            interner.intern(&mut facts);
            facts
        };
        let (first, second) = (shared(), shared());
        assert_eq!(first.org, second.org);
        assert_eq!(first.scopes, second.scopes);
        // Two results and the pool.
        assert_eq!(first.org.unwrap().references(), 3);
        assert_eq!(first.scopes.references(), 3);
    }

    fn scopes(n: usize) -> Scopes {
        Scopes::from_names([format!("scope:{n}")])
    }

    fn interned<T: RefCounted>(pool: &Pool<T>, mut value: T) -> T {
        pool.intern(&mut value);
        value
    }

    fn removes_unused<T: RefCounted>(value: impl Fn(usize) -> T, references: impl Fn(&T) -> usize) {
        let pool = Pool::default();
        let kept: Vec<T> = (0..10).map(|n| interned(&pool, value(n))).collect();
        for n in 10..10_000 {
            drop(interned(&pool, value(n)));
            assert!(pool.0.lock().unwrap().values.len() <= MIN_SWEEP);
        }
        for (n, kept) in kept.iter().enumerate() {
            assert!(interned(&pool, value(n)) == *kept);
            assert_eq!(references(kept), 2, "{n}");
        }
    }

    #[test]
    fn unused_values_are_removed() {
        removes_unused(org, OrgCode::references);
        removes_unused(scopes, Scopes::references);
    }

    #[test]
    fn values_are_swept_each_time_they_double() {
        let pool = Pool::default();
        let mut kept = Vec::new();
        let mut bounds = vec![MIN_SWEEP];
        for n in 0..100 * MIN_SWEEP {
            kept.push(interned(&pool, org(n)));
            let values = pool.0.lock().unwrap();
            assert_eq!(values.values.len(), kept.len());
            if bounds.last() != Some(&values.sweep_at) {
                bounds.push(values.sweep_at);
            }
        }
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64, 128].map(|n| n * MIN_SWEEP));
    }
}
