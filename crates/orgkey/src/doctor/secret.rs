//! Secrets, and where they are read from.

use std::fmt;
use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::{env, fs};

use zeroize::Zeroizing;

/// A text that is never printed.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a file, without the line break at its end.
    pub(crate) fn of_file(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let text = Zeroizing::new(text);
        let secret = Self::new(text.trim_end_matches(['\r', '\n']));
        if secret.expose().trim().is_empty() {
            return Err("the file is empty".to_owned());
        }
        Ok(secret)
    }

    /// Reads a variable of the environment. `None` if it is not set.
    pub(crate) fn of_env(name: &str) -> Result<Option<Self>, String> {
        match env::var(name) {
            Ok(text) if text.trim().is_empty() => {
                Err("the environment variable is empty".to_owned())
            }
            Ok(text) => Ok(Some(Self::new(text))),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => {
                Err("the environment variable is not UTF-8".to_owned())
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The keys to ask the issuer about.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// An active key of an organization.
    pub(crate) good: Option<Secret>,
    /// A key that was revoked.
    pub(crate) revoked: Option<Secret>,
}

impl Keys {
    /// Reads the good key from the first line of the standard input, and the revoked one from the second.
    pub(crate) fn of_stdin() -> Result<Self, String> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(
                "the standard input is a terminal, which would show the keys; \
                        redirect a file to it, or use environment variables"
                    .to_owned(),
            );
        }
        let mut lines = stdin.lock().lines();
        let mut next = || match lines.next().transpose() {
            Ok(line) => Ok(line
                .map(|line| Secret::new(line.trim()))
                .filter(|key| !key.expose().is_empty())),
            Err(error) => Err(format!("the standard input cannot be read: {error}")),
        };
        Ok(Self {
            good: next()?,
            revoked: next()?,
        })
    }
}
