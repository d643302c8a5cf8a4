//! Removes secrets and control characters from text.
//!
//! An issuer may repeat what it was sent: whole, in part, or encoded. Every text that is printed passes [`Scrubber::clean`]. It
//! replaces each run of characters that has eight letters or digits in a row in common with a secret, whatever is between
//! them and in whatever case. Secrets are also searched for backwards, percent-encoded, and in hexadecimal and base64.

use std::collections::HashSet;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::secret::Secret;

/// So many letters and digits in common with a secret are replaced.
const WINDOW: usize = 8;
/// A longer text of an issuer is cut off.
const MAX_LEN: usize = 400;
const REDACTED: &str = "[redacted]";

/// Removes the secrets that it knows.
#[derive(Default)]
pub(super) struct Scrubber {
    /// Letters and digits of secrets, in lower case.
    windows: HashSet<Vec<u8>>,
}

impl Scrubber {
    pub(super) fn add(&mut self, secret: &Secret) {
        let secret = secret.expose().as_bytes();
        let backwards: Vec<u8> = secret.iter().rev().copied().collect();
        self.add_form(secret);
        self.add_form(&backwards);
        self.add_form(percent_encoded(secret).as_bytes());
        self.add_form(
            form_urlencoded::byte_serialize(secret)
                .collect::<String>()
                .as_bytes(),
        );
        self.add_form(hexadecimal(secret).as_bytes());
        // A secret within an encoded text begins at one of three positions of a group.
        for before in 0..3 {
            let padded = [&vec![0; before], secret].concat();
            let encoded = STANDARD_NO_PAD.encode(padded);
            // The first and last characters also depend on the text around the secret.
            let from = encoded.len().min(if before == 0 { 0 } else { before + 1 });
            let until = encoded.len().saturating_sub(1).max(from);
            self.add_form(&encoded.as_bytes()[from..until]);
        }
    }

    fn add_form(&mut self, form: &[u8]) {
        let characters: Vec<u8> = letters(form).map(|(_, letter)| letter).collect();
        let size = characters.len().min(WINDOW);
        if size > 0 {
            self.windows
                .extend(characters.windows(size).map(<[u8]>::to_vec));
        }
    }

    /// Returns the text without secrets, in one line of visible ASCII, and with a bounded length.
    pub(super) fn clean(&self, text: &str) -> String {
        let scrubbed = self.scrub(text);
        let mut clean = String::with_capacity(scrubbed.len());
        for character in scrubbed.chars() {
            if clean.len() >= MAX_LEN {
                clean.push_str("...");
                break;
            }
            if character == ' ' || character.is_ascii_graphic() {
                clean.push(character);
            } else {
                clean.extend(character.escape_default());
            }
        }
        clean
    }

    /// Returns whether cleaning would change the text.
    pub(super) fn is_clean(&self, text: &str) -> bool {
        self.clean(text) == text
    }

    fn scrub(&self, text: &str) -> String {
        let found: Vec<(usize, u8)> = letters(text.as_bytes()).collect();
        let characters: Vec<u8> = found.iter().map(|(_, letter)| *letter).collect();
        let sizes: HashSet<usize> = self.windows.iter().map(Vec::len).collect();
        let mut is_secret = vec![false; text.len()];
        for size in sizes {
            for (at, window) in characters.windows(size).enumerate() {
                if self.windows.contains(window) {
                    let (first, last) = (found[at].0, found[at + size - 1].0);
                    is_secret[first..=last].fill(true);
                }
            }
        }
        let mut scrubbed = String::with_capacity(text.len());
        let mut was_secret = false;
        for (at, character) in text.char_indices() {
            if !is_secret[at] {
                scrubbed.push(character);
            } else if !was_secret {
                scrubbed.push_str(REDACTED);
            }
            was_secret = is_secret[at];
        }
        scrubbed
    }
}

/// Returns the letters and digits in lower case, with their positions.
fn letters(text: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let all = text.iter().copied().enumerate();
    all.filter(|(_, byte)| byte.is_ascii_alphanumeric())
        .map(|(at, byte)| (at, byte.to_ascii_lowercase()))
}

fn percent_encoded(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "k_live_9f+Zq/3mW~x7Rt.52Lp0";

    fn clean(text: &str) -> String {
        let mut scrubber = Scrubber::default();
        scrubber.add(&Secret::new(SECRET));
        scrubber.clean(text)
    }

    fn separated(by: &str) -> String {
        let characters: Vec<String> = SECRET.chars().map(String::from).collect();
        characters.join(by)
    }

    #[test]
    fn other_text_stays() {
        let text = "the key org_1 is invalid (code 7)";
        assert_eq!(clean(text), text);
        assert_eq!(
            clean("key_id: api_key_0195ac80"),
            "key_id: api_key_0195ac80"
        );
    }

    #[test]
    fn secrets_are_replaced_in_every_form() {
        let base64 = |before: &str| STANDARD_NO_PAD.encode(format!("{before}{SECRET}&more=1"));
        for form in [
            SECRET.to_owned(),
            SECRET.to_uppercase(),
            SECRET.chars().rev().collect(),
            percent_encoded(SECRET.as_bytes()),
            hexadecimal(SECRET.as_bytes()),
            SECRET.replace('/', "\\/"),
            separated("\u{200b}"),
            separated(" "),
        ] {
            assert_eq!(clean(&form).matches(REDACTED).count(), 1, "{form}");
            let rest = clean(&form).replace(REDACTED, "");
            let rest = letters(rest.as_bytes()).count();
            assert!(rest < 5, "{form}");
        }
        for before in ["", "a", "ab", "abc"] {
            let encoded = base64(before);
            let shown = clean(&encoded);
            let longest = shown.split(REDACTED).map(str::len).max();
            assert!(longest.unwrap() < 16, "{encoded} {shown}");
        }
    }

    #[test]
    fn parts_of_a_secret_are_replaced() {
        let letters: String = SECRET.chars().filter(char::is_ascii_alphanumeric).collect();
        for from in 0..letters.len() - WINDOW {
            let part = &letters[from..from + WINDOW];
            assert_eq!(clean(&format!("<{part}>")), "<[redacted]>");
        }
        assert_eq!(clean("<liv>"), "<liv>");
    }

    #[test]
    fn short_secrets_are_replaced_as_a_whole() {
        let mut scrubber = Scrubber::default();
        scrubber.add(&Secret::new("pw-1"));
        assert_eq!(scrubber.clean("it is 'pw-1'"), "it is '[redacted]'");
        assert!(!scrubber.is_clean("pw1"));
        assert!(scrubber.is_clean("pw"));
    }

    #[test]
    fn what_is_not_visible_ascii_is_escaped() {
        assert_eq!(clean("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(clean("\u{202e}evil\u{2066}"), "\\u{202e}evil\\u{2066}");
        assert_eq!(clean("é"), "\\u{e9}");
        let long = clean(&"x".repeat(10_000));
        assert_eq!(long.len(), MAX_LEN + 3);
    }

    #[test]
    fn a_secret_is_replaced_before_a_text_is_cut() {
        let text = format!("{}{SECRET}", "-".repeat(MAX_LEN - REDACTED.len()));
        assert!(clean(&text).ends_with("-[redacted]"), "{}", clean(&text));
    }
}
