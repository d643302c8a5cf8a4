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
    Doctor(orgkey::doctor::Args),
    Emulator(orgkey::emulator::Args),
    Gateway(orgkey::gateway::Args),
    Review(orgkey::review::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Doctor(args) => orgkey::doctor::run(&args),
        Command::Emulator(args) => orgkey::emulator::run(&args),
        Command::Gateway(args) => orgkey::gateway::run(args),
        Command::Review(args) => orgkey::review::run(&args),
    }
}
