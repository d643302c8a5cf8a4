//! `orgkey doctor` against an emulator that behaves in each way that Kinde's contract permits.

mod answers;
mod arguments;
mod billing;
mod mistakes;
mod secrecy;
mod transport;

use std::convert::Infallible;
use std::process::{Output, Stdio};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kinde_emulator::{IssuedKey, KeySpec, KindeEmulator, KindeEmulatorBuilder};
use orgkey::gateway::Config;
use serde_json::Value;
use tokio::process::Command;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::kinde::{KindeVerifier, UnauthorizedMeans};

/// An emulator, and a good and a revoked key.
struct Stage {
    emulator: KindeEmulator,
    good: IssuedKey,
    revoked: IssuedKey,
}

impl Stage {
    async fn set() -> Self {
        Self::with(KindeEmulator::builder()).await
    }

    async fn with(builder: KindeEmulatorBuilder) -> Self {
        let emulator = builder.start().await.unwrap();
        let spec = || KeySpec::organization("org_1").scopes(["read:reports"]);
        let good = emulator.issue_key(spec());
        let revoked = emulator.issue_key(spec());
        emulator.revoke(revoked.id());
        Self {
            emulator,
            good,
            revoked,
        }
    }

    /// The doctor with flags, and with the keys in the environment.
    fn command(&self) -> Command {
        let mut command = doctor();
        command
            .args(["--json", "--issuer", self.emulator.issuer_url()])
            .args(["--client-id", &self.emulator.client_id()])
            .args(["--client-secret-env", "TEST_SECRET"]);
        self.environment(&mut command);
        command
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("TEST_SECRET", self.emulator.client_secret())
            .env("ORGKEY_GOOD_KEY", self.good.secret())
            .env("ORGKEY_REVOKED_KEY", self.revoked.secret());
    }

    /// The doctor with a configuration file.
    async fn configured(&self, issuer: &str) -> Diagnosis {
        let file = self.config_file(issuer);
        let mut command = doctor();
        command.arg("--json").arg("--config").arg(file.path());
        self.environment(&mut command);
        self.diagnose(command).await
    }

    /// A configuration with this issuer and these further lines.
    fn config_file(&self, further: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = format!(
            "[issuer]\nkind = \"kinde\"\nurl = \"{}\"\nclient_id = \"{}\"\nclient_secret_env = \"TEST_SECRET\"\n{further}",
            self.emulator.issuer_url(),
            self.emulator.client_id()
        );
        std::fs::write(file.path(), lines).unwrap();
        file
    }

    async fn run(&self) -> Diagnosis {
        self.diagnose(self.command()).await
    }

    /// Runs the doctor, and checks that it prints no secret.
    async fn diagnose(&self, mut command: Command) -> Diagnosis {
        let diagnosis = Diagnosis::of(&command.output().await.unwrap());
        self.assert_secret(&diagnosis.text);
        diagnosis
    }

    fn assert_secret(&self, text: &str) {
        let secrets = [
            self.emulator.client_secret(),
            self.good.secret().to_owned(),
            self.revoked.secret().to_owned(),
        ];
        // A table breaks lines.
        let letters: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        for secret in secrets {
            let secret: String = secret.chars().filter(char::is_ascii_alphanumeric).collect();
            assert!(!letters.contains(&secret), "{text}");
        }
        assert!(!letters.contains("eyJ"), "an access token: {text}");
        let is_visible = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
        assert!(text.chars().all(is_visible), "{text:?}");
    }

    /// Checks the layer with the recommended lines, and that the gateway reads them.
    async fn assert_recommendation_works(&self, diagnosis: &Diagnosis) {
        let listen = "[listen]\nchecks = \"127.0.0.1:0\"\n";
        let config = Config::parse(&format!("{listen}{}", diagnosis.lines()));
        assert!(config.is_ok(), "{config:?}");
        let lines: toml::Table = diagnosis.lines().parse().unwrap();
        let issuer = &lines["issuer"];
        let text = |name: &str| Some(issuer.get(name)?.as_str().unwrap());
        assert_eq!(text("client_secret_env"), Some("TEST_SECRET"));
        let mut kinde = KindeVerifier::builder(text("url").unwrap())
            .client_credentials(text("client_id").unwrap(), self.emulator.client_secret());
        if let Some(audience) = text("audience") {
            kinde = kinde.audience(audience);
        }
        if let Some(api_id) = text("api_id") {
            kinde = kinde.api_id(api_id);
        }
        match text("unauthorized_means") {
            None | Some("evidence") => {}
            Some("key") => kinde = kinde.unauthorized_means(UnauthorizedMeans::Key),
            Some("access-token") => {
                kinde = kinde.unauthorized_means(UnauthorizedMeans::AccessToken);
            }
            Some(other) => panic!("{other}"),
        }
        let layer = ApiKeyLayer::new(kinde.build().unwrap());
        let service = layer.layer(service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
        for (key, status) in [
            ("k_live_never_issued", 401),
            (self.good.secret(), 200),
            (self.revoked.secret(), 401),
            (self.good.secret(), 200),
        ] {
            let request = Request::builder().header("authorization", format!("Bearer {key}"));
            let request = request.body(Full::default()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{issuer}");
        }
    }
}

/// The program, with nothing of this process's environment that it reads.
fn doctor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orgkey"));
    command
        .arg("doctor")
        .env_remove("ORGKEY_GOOD_KEY")
        .env_remove("ORGKEY_REVOKED_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

struct Diagnosis {
    code: i32,
    report: Value,
    /// All that was printed.
    text: String,
}

impl Diagnosis {
    fn of(output: &Output) -> Self {
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        let report: Value = serde_json::from_str(&stdout).unwrap_or_default();
        let code = output.status.code().unwrap();
        if !report.is_null() {
            assert_eq!(report["works"], code == 0, "{stdout}");
        }
        Self {
            code,
            report,
            text: stdout + &stderr,
        }
    }

    fn lines(&self) -> &str {
        self.report["recommended_lines"].as_str().unwrap()
    }

    /// The result of a check. The worst, if it was reported more than once.
    fn result(&self, check: &str) -> &str {
        let rows = self.report["checks"].as_array().unwrap().iter();
        let mut rows = rows.filter(|row| row["check"] == check);
        let results = rows.by_ref().map(|row| row["result"].as_str().unwrap());
        results
            .max_by_key(|result| {
                let order = ["ok", "warning", "change", "failure"];
                order.iter().position(|of| of == result).unwrap()
            })
            .unwrap_or("absent")
    }

    /// What a check observed and what that means.
    fn row(&self, check: &str) -> String {
        let rows = self.report["checks"].as_array().unwrap().iter();
        let rows = rows.filter(|row| row["check"] == check);
        let rows = rows.map(|row| format!("{} {}", row["observed"], row["means"]));
        rows.collect::<Vec<_>>().join("; ")
    }
}
