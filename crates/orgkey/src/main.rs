//! The program `orgkey`. Each command is a module of the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Organization API keys for services in any language.
#[derive(Parser)]
#[command(name = "orgkey", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Gateway(orgkey::gateway::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Gateway(args) => orgkey::gateway::run(args),
    }
}
