use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use kinde_emulator::{KeySpec, KindeEmulator};
use tokio::signal;

use super::settings::{Key, Settings};

/// Runs a Kinde-compatible issuer on this machine, for development and tests.
///
/// Prints its URL, its credentials and keys as `export` lines, and runs until it is interrupted. `POST /_emulator/…` issues,
/// rotates and revokes keys, injects faults and moves the clock.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The address to listen on. Port 0 is a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
    /// Permit an address that is not loopback: everyone who reaches it can issue keys.
    #[arg(long)]
    allow_non_loopback: bool,
    /// Print one line of JSON instead of `export` lines.
    #[arg(long)]
    json: bool,
    /// Issue a key for this organization, with scopes separated by commas. May be repeated.
    #[arg(
        long = "key",
        value_name = "ORG[=SCOPE,…]",
        default_value = "org_1=read:reports"
    )]
    keys: Vec<KeyArg>,
    /// Use the same credentials and keys in every run, so that a configuration can contain them.
    #[arg(long)]
    fixed_credentials: bool,
    /// The audience that token requests must name. `<issuer>/api` by default.
    #[arg(long, value_name = "URL")]
    audience: Option<String>,
}

/// The organization and the scopes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyArg {
    org_code: String,
    scopes: Vec<String>,
}

impl std::str::FromStr for KeyArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (org_code, scopes) = text.split_once('=').unwrap_or((text, ""));
        if org_code.is_empty() {
            return Err("the organization is empty");
        }
        let scopes = scopes.split(',').filter(|scope| !scope.is_empty());
        Ok(Self {
            org_code: org_code.to_owned(),
            scopes: scopes.map(str::to_owned).collect(),
        })
    }
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    if !args.allow_non_loopback && !args.listen.ip().to_canonical().is_loopback() {
        eprintln!(
            "orgkey emulator: {} is not a loopback address; everyone who reaches it could issue keys. \
             --allow-non-loopback permits it.",
            args.listen
        );
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(serve(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orgkey emulator: {}: {error}", args.listen);
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &Args) -> io::Result<()> {
    let mut builder = KindeEmulator::builder()
        .addr(args.listen)
        .control_endpoints();
    if args.fixed_credentials {
        builder = builder.client_credentials("emulator", "fixed-password-of-the-emulator");
    }
    if let Some(audience) = &args.audience {
        builder = builder.audience(audience);
    }
    let emulator = builder.start().await?;
    // Before the output, so that an interrupt of a reader is never missed.
    let mut interrupt = Interrupt::new()?;
    let settings = issue(args, &emulator);
    let text = if args.json {
        settings.to_json()
    } else {
        settings.to_exports()
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    eprintln!(
        "orgkey emulator: listening on {}, press Ctrl-C to stop",
        emulator.issuer_url()
    );
    interrupt.wait().await;
    emulator.shutdown().await;
    Ok(())
}

/// Issues the keys, and one that is revoked.
fn issue(args: &Args, emulator: &KindeEmulator) -> Settings {
    let mut settings = Settings::of(emulator);
    let secret = |name: String| {
        args.fixed_credentials
            .then(|| format!("k_live_emulator_{name}"))
    };
    for (number, key) in (1..).zip(&args.keys) {
        let spec = KeySpec::organization(&key.org_code).scopes(&key.scopes);
        settings.keys.push(Key {
            status: "active",
            ..issue_key(emulator, key, spec, secret(format!("{number}")))
        });
    }
    if let Some(key) = args.keys.first() {
        let spec = KeySpec::organization(&key.org_code).scopes(&key.scopes);
        let revoked = issue_key(emulator, key, spec, secret("revoked".to_owned()));
        emulator.revoke(&revoked.id);
        settings.keys.push(Key {
            status: "revoked",
            ..revoked
        });
    }
    settings
}

fn issue_key(emulator: &KindeEmulator, key: &KeyArg, spec: KeySpec, secret: Option<String>) -> Key {
    let spec = match secret {
        Some(secret) => spec.secret(secret),
        None => spec,
    };
    let issued = emulator.issue_key(spec);
    Key {
        id: issued.id().to_owned(),
        secret: issued.secret().to_owned(),
        org_code: key.org_code.clone(),
        scopes: key.scopes.clone(),
        status: "active",
    }
}

/// Ctrl-C, and the signal with which service managers and test harnesses stop a process.
#[cfg(unix)]
struct Interrupt {
    terminate: signal::unix::Signal,
    interrupt: signal::unix::Signal,
}

#[cfg(unix)]
impl Interrupt {
    fn new() -> io::Result<Self> {
        use signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Interrupt;

#[cfg(not(unix))]
impl Interrupt {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn wait(&mut self) {
        // Without a handler there is nothing to wait for.
        if signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
