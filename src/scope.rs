//! Scopes, and policies over scopes. Independent of HTTP.
//!
//! A *scope* is a name in RFC 6749's `scope-token` grammar. Names are compared byte for byte: `read` does not include
//! `read:users`, and `Read` is another name. A *policy* is a list of alternatives, each a set of required scopes. A policy
//! without alternatives rejects every key. An alternative without scopes would permit every key, so it is an error.
//!
//! ```
//! use tower_orgkey::{ScopePolicy, Scopes};
//!
//! // (read and write) or admin
//! let policy = ScopePolicy::new([vec!["read", "write"], vec!["admin"]]);
//! assert!(policy.permits(&Scopes::from_names(["write", "read"])));
//! assert!(policy.permits(&Scopes::from_names(["admin"])));
//! assert!(!policy.permits(&Scopes::from_names(["read", "admin:users"])));
//! ```

use std::fmt;
use std::sync::Arc;

/// The maximum number of scopes of a key.
pub const MAX_SCOPES: usize = 1_000;
/// The maximum length of a scope, in bytes.
pub const MAX_SCOPE_LEN: usize = 256;

/// One scope: 1 to 256 bytes of RFC 6749 §3.3 `scope-token` (visible ASCII without `"` and `\`).
///
/// ```
/// use tower_orgkey::Scope;
///
/// assert_eq!(Scope::new("read:users")?.as_str(), "read:users");
/// assert!(Scope::new("two words").is_err());
/// # Ok::<(), tower_orgkey::InvalidScope>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Box<str>);

impl Scope {
    /// Creates a scope.
    ///
    /// # Errors
    ///
    /// If the name is outside the grammar.
    pub fn new(name: impl Into<Box<str>>) -> Result<Self, InvalidScope> {
        let name = name.into();
        if is_scope(name.as_bytes()) {
            Ok(Self(name))
        } else {
            Err(InvalidScope(()))
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Scope {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The text is not a scope: empty, longer than 256 bytes, or outside RFC 6749's `scope-token`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a scope: expected 1 to 256 bytes of RFC 6749 scope-token")]
pub struct InvalidScope(());

/// Text or a sequence that is not a set of scopes.
///
/// ```
/// use tower_orgkey::{InvalidScopes, Scopes};
///
/// assert!(matches!("read:é".parse::<Scopes>(), Err(InvalidScopes::Scope(_))));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidScopes {
    /// A name is not a scope.
    #[error(transparent)]
    Scope(#[from] InvalidScope),
    /// More than [`MAX_SCOPES`] names.
    #[error("more than {MAX_SCOPES} scopes")]
    TooMany,
}

pub(crate) const fn is_scope(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > MAX_SCOPE_LEN {
        return false;
    }
    let mut at = 0;
    while at < name.len() {
        if !matches!(name[at], 0x21 | 0x23..=0x5B | 0x5D..=0x7E) {
            return false;
        }
        at += 1;
    }
    true
}

/// The scopes of a key: a set that is cheap to clone.
///
/// ```
/// use tower_orgkey::Scopes;
///
/// let held = Scopes::from_names(["read:users", "read:users", "write:users"]);
/// assert_eq!(held.len(), 2);
/// assert!(held.contains("read:users"));
/// assert!(!held.contains("read"));
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Option<Arc<[Scope]>>);

impl Scopes {
    /// Returns the empty set.
    pub fn none() -> Self {
        Self::default()
    }

    /// Creates a set of these names.
    ///
    /// Names outside the `scope-token` grammar are skipped, because no policy can require them. The verifier has to check that
    /// the list has at most [`MAX_SCOPES`] names.
    pub fn from_names<N: Into<Box<str>>>(names: impl IntoIterator<Item = N>) -> Self {
        names
            .into_iter()
            .filter_map(|name| Scope::new(name).ok())
            .collect()
    }

    /// Returns whether the set has exactly this name.
    #[inline]
    pub fn contains(&self, name: &str) -> bool {
        /// Up to this size, a linear search is faster than a binary one: most names differ in length.
        const LINEAR_SEARCH: usize = 8;

        match &self.0 {
            Some(held) if held.len() <= LINEAR_SEARCH => {
                held.iter().any(|held| held.as_str() == name)
            }
            Some(held) => binary_search(held, name),
            None => false,
        }
    }

    /// Iterates over the scopes in byte order.
    pub fn iter(&self) -> std::slice::Iter<'_, Scope> {
        self.as_slice().iter()
    }

    /// Returns the number of scopes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The number of references to this allocation. 0 for the empty set.
    pub(crate) fn references(&self) -> usize {
        self.0.as_ref().map_or(0, Arc::strong_count)
    }

    fn as_slice(&self) -> &[Scope] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Out of line, so that the usual small set needs no registers for it.
#[inline(never)]
fn binary_search(sorted: &[Scope], name: &str) -> bool {
    sorted
        .binary_search_by(|held| held.as_str().cmp(name))
        .is_ok()
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut scopes: Vec<Scope> = scopes.into_iter().collect();
        scopes.sort_unstable();
        scopes.dedup();
        Self((!scopes.is_empty()).then(|| scopes.into()))
    }
}

impl<'a> IntoIterator for &'a Scopes {
    type Item = &'a Scope;
    type IntoIter = std::slice::Iter<'a, Scope>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The scopes that a route requires: alternatives, each a set of scopes that a key must all have.
///
/// See the [module documentation](crate::scope).
#[derive(Clone, Debug, Eq)]
pub struct ScopePolicy(Arc<[Box<[Scope]>]>);

/// Compares references first: each request through a guard has the guard's policy.
impl PartialEq for ScopePolicy {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl ScopePolicy {
    /// Creates a policy. Without alternatives, it rejects every key.
    ///
    /// # Panics
    ///
    /// If an alternative is empty, or a name is outside RFC 6749's `scope-token`. [`ScopePolicy::try_new`] returns an error
    /// instead.
    #[track_caller]
    pub fn new<A, N>(alternatives: impl IntoIterator<Item = A>) -> Self
    where
        A: IntoIterator<Item = N>,
        N: Into<Box<str>>,
    {
        match Self::try_new(alternatives) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}"),
        }
    }

    /// Like [`new`](Self::new), for policies that are not written in code.
    pub fn try_new<A, N>(
        alternatives: impl IntoIterator<Item = A>,
    ) -> Result<Self, InvalidScopePolicy>
    where
        A: IntoIterator<Item = N>,
        N: Into<Box<str>>,
    {
        alternatives
            .into_iter()
            .map(|names| {
                let scopes = names
                    .into_iter()
                    .map(Scope::new)
                    .collect::<Result<Box<[_]>, _>>()
                    .map_err(InvalidScopePolicy::Scope)?;
                if scopes.is_empty() {
                    return Err(InvalidScopePolicy::EmptyAlternative);
                }
                Ok(scopes)
            })
            .collect::<Result<Arc<[_]>, _>>()
            .map(Self)
    }

    /// Returns whether a key with these scopes has all scopes of one alternative.
    pub fn permits(&self, held: &Scopes) -> bool {
        permits(self.alternatives(), held)
    }

    /// Returns the alternatives, each the scopes that must all be held.
    ///
    /// ```
    /// use tower_orgkey::ScopePolicy;
    ///
    /// let policy = ScopePolicy::new([vec!["read", "write"], vec!["admin"]]);
    /// let widths: Vec<usize> = policy.alternatives().map(<[_]>::len).collect();
    /// assert_eq!(widths, [2, 1]);
    /// ```
    pub fn alternatives(&self) -> impl Iterator<Item = &[Scope]> + Clone {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// Why a [`ScopePolicy`] cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidScopePolicy {
    /// An alternative without scopes, which would permit every key.
    #[error("an alternative of a scope policy is empty, which would permit every key")]
    EmptyAlternative,
    /// A name outside the grammar, which no key can have.
    #[error("a scope policy has a name that is {0}")]
    Scope(#[source] InvalidScope),
}

/// Decides for policies built at run time and for those of types.
pub(crate) fn permits<'a, N: AsRef<str> + 'a>(
    mut alternatives: impl Iterator<Item = &'a [N]>,
    held: &Scopes,
) -> bool {
    alternatives
        .any(|names| !names.is_empty() && names.iter().all(|name| held.contains(name.as_ref())))
}

/// Returns the scopes that a rejection names (RFC 6750 §3), separated by spaces: those of the first alternative of which the key
/// lacks the fewest.
pub(crate) fn wanted<'a, N: AsRef<str> + 'a>(
    alternatives: impl Iterator<Item = &'a [N]>,
    held: &Scopes,
) -> String {
    let lacking = |names: &&[N]| {
        names
            .iter()
            .filter(|name| !held.contains(name.as_ref()))
            .count()
    };
    let nearest = alternatives.min_by_key(lacking).unwrap_or_default();
    nearest
        .iter()
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_match_whole_names_only() {
        let held = Scopes::from_names(["read:users"]);
        for other in [
            "read",
            "read:",
            "read:user",
            "read:users:all",
            "Read:users",
            "READ:USERS",
            "",
        ] {
            assert!(!held.contains(other), "{other}");
        }
        assert!(held.contains("read:users"));
    }

    #[test]
    fn policy_needs_all_scopes_of_an_alternative() {
        let policy = ScopePolicy::new([vec!["a", "b"], vec!["c"]]);
        for (held, is_permitted) in [
            (&["a", "b"][..], true),
            (&["c"], true),
            (&["a", "c"], true),
            (&["a"], false),
            (&["b", "d"], false),
            (&[], false),
        ] {
            let names = held.iter().copied();
            assert_eq!(
                policy.permits(&Scopes::from_names(names)),
                is_permitted,
                "{held:?}"
            );
        }
    }

    #[test]
    fn policy_without_alternatives_rejects() {
        let none: [[&str; 0]; 0] = [];
        assert!(!ScopePolicy::new(none).permits(&Scopes::from_names(["a"])));
    }

    #[test]
    fn empty_alternatives_and_bad_names_are_errors() {
        assert_eq!(
            ScopePolicy::try_new([vec!["a"], vec![]]).unwrap_err(),
            InvalidScopePolicy::EmptyAlternative
        );
        for bad in ["", "a b", "a\"b", "a\\b", "é", "a\nb", &"a".repeat(257)] {
            assert!(
                matches!(
                    ScopePolicy::try_new([[bad]]),
                    Err(InvalidScopePolicy::Scope(_))
                ),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn rejection_names_the_nearest_alternative() {
        let policy = ScopePolicy::new([vec!["a", "b", "c"], vec!["d", "e"], vec!["f"]]);
        let wanted = |held: &[&str]| {
            wanted(
                policy.alternatives(),
                &Scopes::from_names(held.iter().copied()),
            )
        };
        assert_eq!(wanted(&["a", "b"]), "a b c");
        assert_eq!(wanted(&["e"]), "d e");
        assert_eq!(wanted(&[]), "f");
    }

    #[test]
    fn names_outside_the_grammar_are_skipped() {
        let held = Scopes::from_names(["ok", "two words", "quo\"te", "new\nline", ""]);
        assert_eq!(held, Scopes::from_names(["ok"]));
        assert!(Scopes::from_names(["two words"]).is_empty());
    }

    #[test]
    fn set_of_any_size_has_exactly_its_names() {
        for size in 0..40 {
            let names: Vec<_> = (0..size).map(|n| format!("read:{n:02}")).collect();
            let held = Scopes::from_names(names.iter().rev().map(String::as_str));
            for name in &names {
                assert!(held.contains(name), "{name} of {size}");
                assert!(!held.contains(&format!("{name}x")), "{name}x of {size}");
                assert!(!held.contains(&name[..6]), "{} of {size}", &name[..6]);
            }
            assert!(!held.contains("write:00") && !held.contains("a") && !held.contains(""));
        }
    }

    #[test]
    fn set_has_a_size_and_an_order() {
        for names in [&[][..], &["b"], &["b", "a", "b"]] {
            let held = Scopes::from_names(names.iter().copied());
            let listed: Vec<_> = held.iter().map(ToString::to_string).collect();
            let distinct: std::collections::BTreeSet<_> = names.iter().copied().collect();
            assert!(listed.iter().eq(distinct.iter()), "{listed:?}");
            assert_eq!(held.len(), distinct.len());
            assert_eq!(held.is_empty(), names.is_empty());
            assert!((&held).into_iter().eq(held.iter()));
        }
        let longest = "a".repeat(MAX_SCOPE_LEN);
        assert_eq!(Scope::new(longest.as_str()).unwrap().as_str(), longest);
        let scope = Scope::new("read:users").unwrap();
        assert_eq!(
            (scope.as_str(), scope.as_ref()),
            ("read:users", "read:users")
        );
    }
}
