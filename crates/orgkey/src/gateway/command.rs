use std::path::PathBuf;
use std::process::ExitCode;

/// Answers nginx, Traefik, Caddy and Envoy whether a request may pass.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, default_value = "gateway.toml")]
    config: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match std::fs::read_to_string(&args.config) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.config.display());
            ExitCode::FAILURE
        }
    }
}
