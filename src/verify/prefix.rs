use std::sync::Arc;

use orgkey_lookup::{Answer, Invalid, Label};

use super::{Attempt, BoxVerifier, Facts, Issuer, Verification, Verifier, VerifyError};
use crate::config::ConfigError;
use crate::identifier::{KeyId, OrgCode};
use crate::key::{ApiKey, MAX_KEY_LEN, is_token68};

/// The maximum length of an issuer's name, in bytes.
const MAX_NAME_LEN: usize = 32;

/// A [`Verifier`] that chooses among several issuers by the prefix of the key.
///
/// A key is sent to one issuer only: the one with the longest prefix that the key begins with. A key that begins with none of
/// the prefixes is invalid: the layer rejects it with 401, without a call, and counts it against no budget.
///
/// Each issuer has its own circuit breaker, throttle, retry budget and limits of calls, so an issuer that is down or asks for
/// fewer calls does not affect the keys of the others. [`ApiKeyHandle::issuers`](crate::ApiKeyHandle::issuers) returns the state
/// of each, and events and metrics have the label `issuer`. The cache, its capacity and its lifetimes are common to all.
///
/// # Organizations and key ids
///
/// Two issuers may use the same organization code for different organizations. So more than one issuer requires
/// [`organizations`](PrefixVerifierBuilder::organizations), which says whether they do:
///
/// | | organization | key id | user id |
/// |---|---|---|---|
/// | [`Organizations::Separate`] | `kinde:org_1` | `kinde:key_1` | `kinde:kp_1` |
/// | [`Organizations::Shared`] | `org_1` | `kinde:key_1` | `kp_1` |
///
/// These are the identifiers that handlers, guards, limits, settings, audit and the methods of
/// [`ApiKeyHandle`](crate::ApiKeyHandle) have. An issuer itself gets its own identifiers. An identifier that is longer than 255
/// bytes with its name is an [invalid response](VerifyError::invalid_response). `KeyReconcilerBuilder::issuer` reconciles the
/// keys of one of the issuers with Kinde.
///
/// # Example
///
/// ```
/// use tower_orgkey::verify::{Organizations, PrefixVerifier};
/// use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
/// # let kinde = verifier_fn(|_| async { Ok(Verification::invalid()) });
/// # let table = verifier_fn(|_| async { Ok(Verification::invalid()) });
///
/// let verifier = PrefixVerifier::builder()
///     .issuer("kinde", ["k_live_", "k_test_"], kinde)
///     .issuer("table", ["acme-"], table)
///     .organizations(Organizations::Separate)
///     .build()?;
/// let auth = ApiKeyLayer::new(verifier);
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct PrefixVerifier(Arc<Inner>);

struct Inner {
    issuers: Vec<Named>,
    /// Longest first, each with the index of its issuer.
    prefixes: Vec<(String, usize)>,
    organizations: Option<Organizations>,
}

struct Named {
    name: Label,
    verifier: BoxVerifier,
}

/// Whether several issuers have the same organizations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Organizations {
    /// Each issuer has other organizations, possibly with the same codes. Codes, key ids and user ids begin with the name of
    /// the issuer and a colon.
    Separate,
    /// All issuers have the same organizations and users, under the same codes. Only key ids begin with the name of the issuer
    /// and a colon.
    ///
    /// An issuer can then accept a key for an organization of another one, so each must be trusted with all of them.
    Shared,
}

impl PrefixVerifier {
    /// Returns a builder without issuers.
    pub fn builder() -> PrefixVerifierBuilder {
        PrefixVerifierBuilder {
            issuers: Vec::new(),
            organizations: None,
        }
    }
}

impl Inner {
    fn index_of(&self, key: &ApiKey) -> Option<usize> {
        let key = key.expose_secret();
        let mut prefixes = self.prefixes.iter();
        prefixes
            .find(|(prefix, _)| key.starts_with(prefix))
            .map(|&(_, issuer)| issuer)
    }

    /// Calls the issuer of a key, and puts the issuer's name in front of the identifiers of its answer.
    async fn call<'a, C>(
        &'a self,
        key: &ApiKey,
        call: impl FnOnce(&'a Named) -> C,
    ) -> Result<Verification, VerifyError>
    where
        C: Future<Output = Result<Verification, VerifyError>>,
    {
        let Some(index) = self.index_of(key) else {
            // No answer of an issuer, so it confirms no other one.
            return Ok(Verification::invalid_as(Invalid::Concluded));
        };
        let named = &self.issuers[index];
        let mut verification = call(named).await?;
        if let (Some(organizations), Answer::Valid(facts)) =
            (self.organizations, &mut verification.0.answer)
        {
            named
                .name_facts(facts, organizations)
                .map_err(VerifyError::invalid_response)?;
        }
        Ok(verification)
    }
}

impl Named {
    fn name_facts(
        &self,
        facts: &mut Facts,
        organizations: Organizations,
    ) -> Result<(), crate::identifier::InvalidIdentifier> {
        let named = |id: &str| format!("{}:{id}", self.name);
        if let Some(key_id) = &mut facts.key_id {
            *key_id = KeyId::new(named(key_id.as_str()))?;
        }
        if organizations == Organizations::Separate {
            if let Some(org) = &mut facts.org {
                *org = OrgCode::new(named(org.as_str()))?;
            }
            if let Some(user) = &mut facts.user {
                **user = named(user).into();
            }
        }
        Ok(())
    }

    /// Returns the attempt with the identifier that the issuer itself uses.
    fn own_attempt(&self, attempt: Attempt) -> Attempt {
        let own = attempt.key_id().and_then(|key_id| {
            let own = key_id.as_str().strip_prefix(&*self.name)?;
            KeyId::new(own.strip_prefix(':')?).ok()
        });
        match own {
            Some(own) => attempt.known(Some(own)),
            None => attempt,
        }
    }
}

impl Verifier for PrefixVerifier {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.call(key, |named| named.verifier.verify(key)).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0.call(key, |named| named.verifier.reverify(key)).await
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        mut attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        let verified = self.0.call(key, |named| {
            if self.0.organizations.is_some() {
                attempt = named.own_attempt(attempt);
            }
            named.verifier.verify_attempt(key, attempt)
        });
        verified.await
    }

    fn issuers(&self) -> Vec<Issuer> {
        let separate = self.0.organizations == Some(Organizations::Separate);
        let issuers = self.0.issuers.iter();
        issuers
            .map(|named| Issuer {
                name: Label::clone(&named.name),
                has_namespace: separate,
            })
            .collect()
    }

    fn identity(&self) -> String {
        let organizations = match self.0.organizations {
            Some(Organizations::Separate) => "separate",
            Some(Organizations::Shared) => "shared",
            None => "own",
        };
        let mut identity = String::from(organizations);
        for (index, named) in self.0.issuers.iter().enumerate() {
            let prefixes = self.0.prefixes.iter().filter(|(_, of)| *of == index);
            let prefixes: Vec<&str> = prefixes.map(|(prefix, _)| prefix.as_str()).collect();
            let (own, prefixes) = (named.verifier.identity(), prefixes.join(" "));
            if own.is_empty() {
                return String::new();
            }
            // Each length stands before its text, so that two sets of issuers differ.
            for part in [&*named.name, &prefixes, &own] {
                for text in ["\n", &part.len().to_string(), ":", part] {
                    identity.push_str(text);
                }
            }
        }
        identity
    }

    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        self.0.index_of(key)
    }
}

impl_debug!(PrefixVerifier, |verifier| {
    prefixes: verifier.0.prefixes,
    organizations: verifier.0.organizations
});

/// Configures and builds a [`PrefixVerifier`].
#[must_use]
pub struct PrefixVerifierBuilder {
    issuers: Vec<(Named, Vec<String>)>,
    organizations: Option<Organizations>,
}

impl PrefixVerifierBuilder {
    /// Adds an issuer, and the prefixes of its keys. An empty prefix matches all keys that no longer prefix matches.
    ///
    /// The name is 1 to 32 lowercase letters, digits, `-` and `_`. Later versions of a service keep it: it is a part of stored
    /// organization codes and key ids.
    pub fn issuer<P: Into<String>>(
        mut self,
        name: impl Into<Arc<str>>,
        prefixes: impl IntoIterator<Item = P>,
        verifier: impl Verifier,
    ) -> Self {
        let named = Named {
            name: name.into(),
            verifier: verifier.boxed(),
        };
        let prefixes = prefixes.into_iter().map(Into::into).collect();
        self.issuers.push((named, prefixes));
        self
    }

    /// Sets whether the issuers have the same organizations. Required for more than one issuer. With one issuer and without
    /// this setting, all identifiers are the issuer's.
    pub fn organizations(mut self, organizations: Organizations) -> Self {
        self.organizations = Some(organizations);
        self
    }

    /// Builds the verifier.
    ///
    /// # Errors
    ///
    /// Names the invalid setting: `issuer` if there is none, if a name is invalid or used twice, if a verifier has several
    /// issuers itself, or if an issuer has no prefix;
    /// `prefixes` if one is used twice or cannot begin a key; `organizations` if there are several issuers and it is not set.
    pub fn build(self) -> Result<PrefixVerifier, ConfigError> {
        let invalid = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        if self.issuers.is_empty() {
            return invalid("issuer", "at least one is required");
        }
        if self.issuers.len() > 1 && self.organizations.is_none() {
            return invalid(
                "organizations",
                "must say whether several issuers have the same organizations",
            );
        }
        let mut issuers: Vec<Named> = Vec::with_capacity(self.issuers.len());
        let mut all: Vec<(String, usize)> = Vec::new();
        for (named, prefixes) in self.issuers {
            if !is_name(&named.name) {
                return invalid(
                    "issuer",
                    "a name must be 1 to 32 lowercase letters, digits, `-` and `_`",
                );
            }
            if issuers.iter().any(|other| other.name == named.name) {
                return invalid("issuer", "two issuers must not have the same name");
            }
            if named.verifier.issuers().len() > 1 {
                return invalid(
                    "issuer",
                    "must be a single issuer, not another `PrefixVerifier`",
                );
            }
            if prefixes.is_empty() {
                return invalid("issuer", "each issuer must have a prefix");
            }
            for prefix in prefixes {
                if prefix.len() > MAX_KEY_LEN || !is_token68(prefix.as_bytes()) {
                    return invalid("prefixes", "a prefix must be able to begin a key");
                }
                if all.iter().any(|(other, _)| *other == prefix) {
                    return invalid("prefixes", "must not be used twice");
                }
                all.push((prefix, issuers.len()));
            }
            issuers.push(named);
        }
        all.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(PrefixVerifier(Arc::new(Inner {
            issuers,
            prefixes: all,
            organizations: self.organizations,
        })))
    }
}

/// Whether this can be the name of an issuer in front of its identifiers.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

impl_debug!(PrefixVerifierBuilder, |builder| { organizations: builder.organizations });

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::verify::verifier_fn;

    fn verifier(org: &'static str) -> impl Verifier {
        verifier_fn(move |_| async move {
            Ok(Verification::of_organization(OrgCode::from_static(org))
                .with_key_id(KeyId::from_static("id"))
                .with_user_id("user"))
        })
    }

    fn two() -> PrefixVerifierBuilder {
        PrefixVerifier::builder()
            .issuer("a", ["a_", "b_a_"], verifier("org"))
            .issuer("b", ["b_"], verifier("org"))
    }

    fn key(key: &str) -> ApiKey {
        ApiKey::parse(key).unwrap()
    }

    /// The error of a build: its field.
    fn fails(builder: PrefixVerifierBuilder) -> &'static str {
        builder.build().unwrap_err().field()
    }

    #[test]
    fn several_issuers_need_a_statement() {
        assert_eq!(fails(two()), "organizations");
        for organizations in [Organizations::Separate, Organizations::Shared] {
            assert!(two().organizations(organizations).build().is_ok());
        }
        let one = PrefixVerifier::builder().issuer("a", ["a_"], verifier("org"));
        assert!(one.build().is_ok());
    }

    #[test]
    fn ambiguous_issuers_are_rejected() {
        let shared = || two().organizations(Organizations::Shared);
        let add = |name: &'static str, prefixes: &'static [&'static str]| {
            fails(shared().issuer(name, prefixes.iter().copied(), verifier("org")))
        };
        assert_eq!(fails(PrefixVerifier::builder()), "issuer");
        assert_eq!(add("a", &["c_"]), "issuer");
        assert_eq!(add("c", &[]), "issuer");
        for name in ["", "A", "a:b", "a b", "é"] {
            assert_eq!(add(name, &["c_"]), "issuer", "{name}");
        }
        let nested = shared().issuer("c", ["c_"], shared().build().unwrap());
        assert_eq!(fails(nested), "issuer");
        assert_eq!(add("c", &["b_a_"]), "prefixes");
        assert_eq!(add("c", &["c_", "c_"]), "prefixes");
        for prefix in ["a b", "é", "a=", "a:"] {
            let builder = shared().issuer("c", [prefix], verifier("org"));
            assert_eq!(fails(builder), "prefixes", "{prefix}");
        }
    }

    #[test]
    fn longest_prefix_wins() {
        let verifier = two()
            .issuer("rest", [""], verifier("org"))
            .organizations(Organizations::Shared)
            .build()
            .unwrap();
        for (secret, issuer) in [
            ("a_345678", 0),
            ("b_345678", 1),
            ("b_a_5678", 0),
            ("b_a-5678", 1),
            ("c_345678", 2),
        ] {
            assert_eq!(verifier.issuer_of(&key(secret)), Some(issuer), "{secret}");
        }
        let verifier = two().organizations(Organizations::Shared).build().unwrap();
        assert_eq!(verifier.issuer_of(&key("c_345678")), None);
        assert_eq!(verifier.issuer_of(&key("A_345678")), None);
    }

    #[tokio::test]
    async fn identifiers_have_the_name_of_their_issuer() {
        type Ids = (&'static str, &'static str, &'static str);
        let cases: [(Option<Organizations>, Ids); 3] = [
            (Some(Organizations::Separate), ("b:org", "b:id", "b:user")),
            (Some(Organizations::Shared), ("org", "b:id", "user")),
            (None, ("org", "id", "user")),
        ];
        for (organizations, (org, key_id, user)) in cases {
            let mut builder = PrefixVerifier::builder().issuer("b", ["b_"], verifier("org"));
            builder.organizations = organizations;
            let verifier = builder.build().unwrap().boxed();
            let key = key("b_345678");
            let attempt = Attempt::new(Duration::from_secs(1));
            for verified in [
                verifier.verify(&key).await,
                verifier.reverify(&key).await,
                verifier.verify_attempt(&key, attempt).await,
            ] {
                let Answer::Valid(facts) = verified.unwrap().0.answer else {
                    panic!("not valid")
                };
                assert_eq!(facts.org.as_ref().unwrap(), &org);
                assert_eq!(facts.key_id.as_ref().unwrap(), &key_id);
                assert_eq!(facts.user(), Some(user));
            }
            let issuers = verifier.issuers();
            assert_eq!((issuers.len(), issuers[0].name()), (1, "b"));
            let separate = organizations == Some(Organizations::Separate);
            assert_eq!(issuers[0].has_namespace(), separate);
        }
    }

    #[tokio::test]
    async fn a_key_of_no_issuer_is_never_sent() {
        let never = || verifier_fn(|_| async { unreachable!("the key was sent") });
        let verifier = PrefixVerifier::builder()
            .issuer("a", ["a_"], never())
            .build()
            .unwrap();
        let key = key("b_345678");
        let attempt = Attempt::new(Duration::from_secs(1)).known(None);
        for verified in [
            verifier.verify(&key).await,
            verifier.reverify(&key).await,
            verifier.verify_attempt(&key, attempt).await,
        ] {
            let answer = verified.unwrap().0.answer;
            // An answer of an issuer would confirm others.
            assert!(matches!(answer, Answer::Invalid(Invalid::Concluded)));
        }
    }

    struct ShowsAttempt;

    impl Verifier for ShowsAttempt {
        async fn verify(&self, _: &ApiKey) -> Result<Verification, VerifyError> {
            unreachable!("only attempts are made")
        }

        async fn verify_attempt(
            &self,
            _: &ApiKey,
            attempt: Attempt,
        ) -> Result<Verification, VerifyError> {
            let shown = attempt.key_id().map_or("none", KeyId::as_str).to_owned();
            Ok(Verification::of_organization(OrgCode::new(shown).unwrap()))
        }
    }

    #[tokio::test]
    async fn an_issuer_gets_its_own_key_id() {
        let verifier = PrefixVerifier::builder()
            .issuer("a", ["a_"], ShowsAttempt)
            .organizations(Organizations::Shared)
            .build()
            .unwrap();
        for (known, own) in [("a:id:1", "id:1"), ("b:id", "b:id"), ("ab:id", "ab:id")] {
            let attempt =
                Attempt::new(Duration::from_secs(1)).known(Some(KeyId::from_static(known)));
            let result = verifier.verify_attempt(&key("a_345678"), attempt).await;
            let Answer::Valid(facts) = result.unwrap().0.answer else {
                panic!("not valid")
            };
            assert_eq!(facts.org.unwrap(), own);
        }
    }

    #[tokio::test]
    async fn too_long_identifiers_are_invalid_responses() {
        let long: &'static str = "o".repeat(254).leak();
        let verifier = PrefixVerifier::builder()
            .issuer("a", ["a_"], verifier(long))
            .organizations(Organizations::Separate)
            .build()
            .unwrap();
        let error = verifier.verify(&key("a_345678")).await.unwrap_err();
        assert_eq!(
            error.kind(),
            crate::verify::VerifyErrorKind::InvalidResponse
        );
    }

    /// An issuer with this identity.
    struct Identified(&'static str);

    impl Verifier for Identified {
        async fn verify(&self, _: &ApiKey) -> Result<Verification, VerifyError> {
            unreachable!()
        }

        fn identity(&self) -> String {
            self.0.to_owned()
        }
    }

    #[test]
    fn the_identity_tells_issuers_and_settings_apart() {
        let identity = |own, name: &'static str, prefix: &'static str, organizations| {
            let builder = PrefixVerifier::builder()
                .issuer(name, [prefix], Identified(own))
                .organizations(organizations);
            builder.build().unwrap().identity()
        };
        let (separate, shared) = (Organizations::Separate, Organizations::Shared);
        let identities = [
            identity("x", "a", "p_", separate),
            identity("y", "a", "p_", separate),
            identity("x", "b", "p_", separate),
            identity("x", "a", "q_", separate),
            identity("x", "a", "p_", shared),
        ];
        let distinct: std::collections::HashSet<_> = identities.iter().collect();
        assert_eq!(distinct.len(), identities.len());
        assert_eq!(identities[0], identity("x", "a", "p_", separate));
    }

    #[test]
    fn one_issuer_without_an_identity_is_enough() {
        let verifier = PrefixVerifier::builder()
            .issuer("a", ["a_"], Identified("x"))
            .issuer("b", ["b_"], verifier("org"))
            .organizations(Organizations::Separate)
            .build()
            .unwrap();
        assert_eq!(verifier.identity(), "");
    }
}
