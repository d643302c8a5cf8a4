//! Generates the service, and the descriptor set that `GrpcMethods` is compared with.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let set = protox::compile(["proto/reports.proto"], ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("reports.bin");
    fs::write(path, set.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(set)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
