//! The convention for names of keys.

use std::str::FromStr;

/// A template for names of keys, such as `{org}-{env:prod|staging}-{purpose}`.
///
/// `{word}` is one or more of `a`–`z`, `A`–`Z`, `0`–`9`, `_` and `.`, and the last one may also contain `-`. `{word:a|b}` is
/// one of these alternatives. `{org_code}` is the code of the key's organization, if it is known. All other characters stand
/// for themselves.
///
/// ```
/// use tower_orgkey_review::NameTemplate;
///
/// let template: NameTemplate = "{org}-{env:prod|staging}-{purpose}".parse().unwrap();
/// assert!(template.is_met("acme-prod-nightly-export", None));
/// assert!(!template.is_met("acme-test-export", None));
/// assert!(!template.is_met("my key", None));
/// assert!("{org".parse::<NameTemplate>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Word { is_last: bool },
    OneOf(Vec<String>),
    OrgCode,
}

/// A template has a brace that is not closed, or an empty placeholder. Returned when a [`NameTemplate`] is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a placeholder is empty or not closed")]
pub struct InvalidTemplate;

impl FromStr for NameTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, more)) = rest.split_once('{') {
            let (placeholder, after) = more.split_once('}').ok_or(InvalidTemplate)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            parts.push(match placeholder.split_once(':') {
                Some((_, alternatives)) => {
                    let alternatives: Vec<_> = alternatives.split('|').map(str::to_owned).collect();
                    if alternatives.iter().any(String::is_empty) {
                        return Err(InvalidTemplate);
                    }
                    Part::OneOf(alternatives)
                }
                None if placeholder.is_empty() => return Err(InvalidTemplate),
                None if placeholder == "org_code" => Part::OrgCode,
                None => Part::Word {
                    is_last: !after.contains('{'),
                },
            });
            rest = after;
        }
        if rest.contains('}') {
            return Err(InvalidTemplate);
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }
}

/// Longer names follow no template, which bounds the work.
const MAX_NAME: usize = 255;

impl NameTemplate {
    /// Returns the text of the template.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether a name follows the template, for a key of this organization. One of more than 255 bytes does not.
    pub fn is_met(&self, name: &str, org: Option<&str>) -> bool {
        if name.len() > MAX_NAME {
            return false;
        }
        // The places that the parts so far can end at.
        let mut ends = vec![0];
        for part in &self.parts {
            let mut next = Vec::new();
            for at in ends {
                let rest = &name[at..];
                match part {
                    Part::Literal(literal) => next.extend(after(rest, literal, at)),
                    Part::OneOf(words) => {
                        next.extend(words.iter().filter_map(|word| after(rest, word, at)));
                    }
                    Part::OrgCode => match org {
                        Some(org) => {
                            // With several issuers, codes begin with the name of their issuer.
                            let own = org.split_once(':').map(|(_, own)| own);
                            let codes = [Some(org), own].into_iter().flatten();
                            next.extend(codes.filter_map(|code| after(rest, code, at)));
                        }
                        None => next.extend(words(rest, true).map(|length| at + length)),
                    },
                    Part::Word { is_last } => {
                        next.extend(words(rest, *is_last).map(|length| at + length));
                    }
                }
            }
            next.sort_unstable();
            next.dedup();
            ends = next;
        }
        ends.contains(&name.len())
    }
}

fn after(rest: &str, word: &str, at: usize) -> Option<usize> {
    rest.starts_with(word).then_some(at + word.len())
}

/// Returns the lengths that a word at the beginning can have.
fn words(rest: &str, with_hyphen: bool) -> impl Iterator<Item = usize> {
    let is_word = move |byte: &u8| {
        byte.is_ascii_alphanumeric() || b"_.".contains(byte) || (with_hyphen && *byte == b'-')
    };
    let length = rest.bytes().take_while(is_word).count();
    1..=length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_met(template: &str, name: &str, org: Option<&str>) -> bool {
        template.parse::<NameTemplate>().unwrap().is_met(name, org)
    }

    #[test]
    fn names_need_no_name_of_an_issuer() {
        for name in ["org_1-prod", "kinde:org_1-prod"] {
            assert!(
                is_met("{org_code}-{env}", name, Some("kinde:org_1")),
                "{name}"
            );
        }
        for name in ["kinde-prod", "rg_1-prod", "org_2-prod"] {
            assert!(
                !is_met("{org_code}-{env}", name, Some("kinde:org_1")),
                "{name}"
            );
        }
    }

    #[test]
    fn names_follow_templates() {
        let usual = "{org}-{env}-{purpose}";
        for name in ["acme-prod-billing", "a-b-c-d", "org_1.x-test-1"] {
            assert!(is_met(usual, name, None), "{name}");
        }
        for name in [
            "",
            "acme-prod",
            "acme-prod-",
            "-prod-x",
            "acme--x",
            "ac me-prod-x",
            "äcme-prod-x",
        ] {
            assert!(!is_met(usual, name, None), "{name}");
        }
        assert!(is_met("{org_code}/x", "org_1/x", Some("org_1")));
        assert!(!is_met("{org_code}/x", "org_2/x", Some("org_1")));
        assert!(is_met("{org_code}/x", "org_2/x", None));
        assert!(is_met("{a:x|xy}-{b}", "xy-z", None));
        assert!(is_met("fixed", "fixed", None));
        assert!(!is_met("fixed", "fixed2", None));
    }

    #[test]
    fn invalid_templates_are_errors() {
        for text in ["{", "{}", "a}", "{a:}", "{a:b|}", "{a:b"] {
            assert!(text.parse::<NameTemplate>().is_err(), "{text}");
        }
    }

    #[test]
    fn long_names_cost_little() {
        let template = "{word}".repeat(30);
        assert!(!is_met(&template, &("a".repeat(254) + "!"), None));
        assert!(is_met(&template, &"a".repeat(255), None));
        assert!(!is_met(&template, &"a".repeat(256), None));
    }
}
