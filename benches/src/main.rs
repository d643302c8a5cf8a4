//! See the library, which `benches/peers` shares.

fn main() -> std::process::ExitCode {
    tower_orgkey_benches::main()
}
