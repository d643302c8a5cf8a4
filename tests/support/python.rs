//! Programs of the virtual environment that `./test` installs.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

/// Returns the command for a program.
pub(crate) fn program(name: &str) -> Command {
    let environment = std::env::var_os("ORGKEY_TEST_PYTHON").map_or_else(
        || {
            // Of the root, of which this package is part.
            let packages = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
            let mut environments = packages.map(|package| package.join("target/python"));
            let found = environments.find(|environment| environment.exists());
            found.unwrap_or_else(|| panic!("no `target/python`: `./test` makes it"))
        },
        PathBuf::from,
    );
    Command::new(environment.join("bin").join(name))
}

pub(crate) async fn output(mut command: Command) -> Output {
    let output = command.output().await;
    output.unwrap_or_else(|error| panic!("{command:?}: {error}; `./test` installs it"))
}

/// Runs a script of the package's tests, and returns the JSON that it prints.
pub(crate) async fn script(name: &str, arguments: &[&str]) -> serde_json::Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = program("python");
    command.arg(tests.join(name)).args(arguments);
    let output = output(command).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text} {errors}");
    serde_json::from_str(&text).unwrap()
}
