//! Compiler errors about the traits of `tower-orgkey` say what to do.

#![allow(clippy::unwrap_used)] // A test may fail on what it cannot do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wrong programs, and what the compiler says about each.
const PROGRAMS: [(&str, &str, [&str; 2]); 3] = [
    (
        "guard_body",
        include_str!("guard_body.rs"),
        [
            "`NoDefault` cannot be the body of a rejection",
            "guards, limits and settings need a body that implements `Default`",
        ],
    ),
    (
        "layer_body",
        include_str!("layer_body.rs"),
        [
            "cannot respond to a rejection with a body of type `String`",
            "call `with_rejection_response` with a function",
        ],
    ),
    (
        "verifier",
        include_str!("verifier.rs"),
        [
            "`Config` does not verify keys",
            "implement `Verifier`, or pass a function",
        ],
    ),
];

const MANIFEST: &str = r#"
[package]
name = "diagnostics"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
tower-orgkey = { path = "ROOT", default-features = false }
http = "1"
tower = { version = "0.5", default-features = false, features = ["util"] }

[workspace]
"#;

#[test]
fn compiler_errors_say_what_to_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().unwrap();
    let package = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("diagnostics");
    let programs = package.join("src/bin");
    fs::create_dir_all(&programs).unwrap();
    // A path of Windows has backslashes.
    let root_path = root.to_str().unwrap().replace('\\', "/");
    fs::write(
        package.join("Cargo.toml"),
        MANIFEST.replace("ROOT", &root_path),
    )
    .unwrap();
    // With the versions of the workspace, which are downloaded already.
    fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    for (name, program, _) in PROGRAMS {
        fs::write(programs.join(format!("{name}.rs")), program).unwrap();
    }
    for (name, _, messages) in PROGRAMS {
        let output = Command::new(env!("CARGO"))
            .args([
                "check",
                "--offline",
                "--quiet",
                "--color",
                "never",
                "--bin",
                name,
            ])
            .current_dir(&package)
            .env("CARGO_TARGET_DIR", package.join("target"))
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{name} compiles");
        for message in messages {
            assert!(
                errors.contains(message),
                "{name}: no {message:?} in\n{errors}"
            );
        }
        for private in ["sealed", "DynVerifier"] {
            assert!(
                !errors.contains(private),
                "{name}: {private:?} in\n{errors}"
            );
        }
    }
}
