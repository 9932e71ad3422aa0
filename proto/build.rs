//! Compiles `exchequer/v1/*.proto` with protox (no protoc on the machine) into prost messages, and into tonic services when the
//! `grpc` feature asks for them. The descriptor set is kept for reflection.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=exchequer");
    let files = ["event", "ledger", "metering", "agent"].map(|name| format!("exchequer/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".exchequer.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
