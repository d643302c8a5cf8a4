//! The command line of the gateway.

use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use http::Method;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tower_orgkey::Scope;
use tracing_subscriber::EnvFilter;

use super::config::{Config, Demand, Problem};
use super::open_files;
use super::routes::{NotFound, Routes};
use super::server::{Gateway, GatewayHandle};
use super::setup::{self, Setup};

/// Decides for nginx, Traefik, Caddy and Envoy whether a request may pass.
///
/// Without a further command, the gateway runs until SIGTERM or SIGINT. SIGHUP reloads routes and limits.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct Args {
    /// The configuration file.
    #[arg(long, global = true, default_value = "gateway.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Reports all errors of the configuration, by line.
    Check,
    /// Says which route a request has, and what it demands.
    Explain {
        /// The method, in upper case.
        method: Method,
        /// The path as the client sends it.
        path: String,
        /// The host, for routes of one host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Prints the key set that services verify assertions with.
    Jwks,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let config = match load(&args.config) {
        Ok(config) => config,
        Err(message) => {
            eprint!("{message}");
            return ExitCode::FAILURE;
        }
    };
    match args.command {
        None => serve(&args.config, config),
        Some(Command::Check) => {
            for warning in config.warnings() {
                eprintln!("warning: {warning}");
            }
            if let Err(errors) = Setup::new(&config) {
                for error in errors {
                    eprintln!("{}: {error}", args.config.display());
                }
                return ExitCode::FAILURE;
            }
            println!(
                "{}: {} routes, no errors",
                args.config.display(),
                config.routes.len()
            );
            ExitCode::SUCCESS
        }
        Some(Command::Jwks) => match key_set(&config) {
            Ok(keys) => {
                println!("{keys}");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        },
        Some(Command::Explain { method, path, host }) => {
            let (explanation, has_route) = explain(config, &method, host.as_deref(), &path);
            print!("{explanation}");
            if has_route {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Runs the gateway until a signal ends it.
fn serve(file: &Path, config: Config) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    open_files::raise_limit();
    runtime.block_on(async {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
            signal(SignalKind::hangup()),
        );
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
            return failed(&"signals cannot be received");
        };
        let gateway = match Gateway::start(config).await {
            Ok(gateway) => gateway,
            Err(error) => return failed(&error),
        };
        tracing::info!(checks = %gateway.checks_address(), "gateway is listening");
        if let Some(admin) = gateway.admin_address() {
            tracing::info!(%admin, "admin is listening");
        }
        let handle = gateway.handle();
        gateway
            .run(async {
                let mut ready = pin!(handle.until_ready());
                let mut is_ready = false;
                loop {
                    tokio::select! {
                        () = &mut ready, if !is_ready => {
                            notify(NotifyState::Ready);
                            is_ready = true;
                        }
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                        _ = hangup.recv() => reload(file, &handle),
                    }
                }
                notify(NotifyState::Stopping);
            })
            .await;
        ExitCode::SUCCESS
    })
}

/// Applies the routes and limits of the file. On an error, the old ones stay.
fn reload(file: &Path, handle: &GatewayHandle) {
    let reloaded = load(file).and_then(|config| {
        let routes = config.routes.len();
        handle
            .reload(&config)
            .map(|()| routes)
            .map_err(|error| error.to_string())
    });
    match reloaded {
        Ok(routes) => tracing::info!(routes, "configuration is reloaded"),
        Err(errors) => {
            for error in errors.lines() {
                tracing::error!(error, "configuration is not reloaded");
            }
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "service manager is not notified");
    }
}

fn failed(error: &dyn Display) -> ExitCode {
    eprintln!("orgkey: {error}");
    ExitCode::FAILURE
}

/// Reads a configuration. The error has a line for each problem.
pub(super) fn load(path: &Path) -> Result<Config, String> {
    let file = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}\n"))?;
    Config::parse(&text).map_err(|problems| listed(path, &problems))
}

fn listed(path: &Path, problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut list, problem| {
        // Writing to a string cannot fail.
        let _ = writeln!(list, "{}:{problem}", path.display());
        list
    })
}

fn key_set(config: &Config) -> Result<String, String> {
    let signer = setup::signer(config)?.ok_or("the table [identity] is missing")?;
    serde_json::to_string_pretty(signer.key_set()).map_err(|error| error.to_string())
}

/// Returns what the gateway decides about a request before it reads a key, and whether the request has a route.
fn explain(config: Config, method: &Method, host: Option<&str>, path: &str) -> (String, bool) {
    let routes = Routes::new(config.routes, config.allow_semicolons);
    match routes.find(method, host, path) {
        Ok(found) => {
            let route = routes.get(found.index);
            let mut text = format!("route: {route} (line {})\n", route.line);
            if let Some(host) = &route.host {
                let _ = writeln!(text, "host: {host}");
            }
            text.push_str(&demands(&route.demand));
            (text, true)
        }
        Err(NotFound::NoRoute) => ("403: no route matches\n".to_owned(), false),
        Err(NotFound::Ambiguous(reason)) => (format!("400: the path {reason}\n"), false),
        Err(NotFound::NoHost) => (
            "500: some routes have a host, so a proxy has to send it: see --host\n".to_owned(),
            false,
        ),
    }
}

fn demands(demand: &Demand) -> String {
    let Demand::Key {
        scopes,
        organization,
    } = demand
    else {
        return "demands: nothing, the route is public and no key is read\n".to_owned();
    };
    let mut text = "demands: a valid key of an organization\n".to_owned();
    if let Some(policy) = scopes {
        let alternatives = policy.alternatives().map(|scopes| {
            let names: Vec<_> = scopes.iter().map(Scope::as_str).collect();
            names.join(" and ")
        });
        let alternatives: Vec<_> = alternatives.collect();
        let _ = writeln!(text, "demands: the scopes {}", alternatives.join(", or "));
    }
    if let Some(parameter) = organization {
        let _ = writeln!(
            text,
            "demands: `{{{parameter}}}` is the organization of the key"
        );
    }
    text
}
