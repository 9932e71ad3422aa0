//! What the images are made of: static binaries, the Dockerfile, nats.conf and an empty directory, in one folder.
//!
//! Left out: any tool from the machine beyond nats-server. An image that holds nothing else can't leak anything else.
//!
//! Invariant: every binary in the folder is statically linked; one that isn't would fail inside a scratch image with a
//! misleading "no such file".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::invoke::{capture, cargo};
use crate::workspace::target_dir;
use crate::{invoke, tools};

/// The packages whose binaries go into images (`exchequer` into the agent's, as a program to execute) or drive them.
const BINARIES: [&str; 4] = ["exchequer-ledger", "exchequer-metering", "sandbox-agent", "exchequer"];

/// Files of docker/ that go into images.
const FILES: [&str; 2] = ["Dockerfile", "nats.conf"];

/// Builds the binaries and lays out the folder; returns the folder and the path of the `exchequer` binary.
pub(crate) fn stage(root: &Path, work: &Path) -> Result<(PathBuf, PathBuf), String> {
    let built = build(root)?;
    let context = work.join("context");
    if context.exists() {
        fs::remove_dir_all(&context).map_err(|error| format!("{}: {error}", context.display()))?;
    }
    // Copied into the images as the owner-writable mount point of a data volume.
    create(&context.join("empty"))?;
    for name in BINARIES {
        copy_static(&built.join(name), &context.join(name))?;
    }
    copy_static(&tools::nats_server(root)?, &context.join("nats-server"))?;
    for name in FILES {
        copy(&root.join("docker").join(name), &context.join(name))?;
    }
    Ok((context, built.join("exchequer")))
}

/// Builds the four packages statically and returns the folder with the binaries.
fn build(root: &Path) -> Result<PathBuf, String> {
    let described = capture(Command::new("rustc").arg("-vV"))?;
    let host =
        described.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let mut command = cargo(root);
    // Only with --target do the flags spare build scripts and procedural macros, which can't be static.
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.args(["build", "--release", "--locked", "--target", host]);
    for package in BINARIES {
        command.args(["-p", package]);
    }
    invoke::run(&mut command)?;
    Ok(target_dir(root).join(host).join("release"))
}

fn copy_static(from: &Path, to: &Path) -> Result<(), String> {
    let bytes = fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    match has_interpreter(&bytes) {
        Some(false) => copy(from, to),
        Some(true) => Err(format!(
            "{} is dynamically linked; an image FROM scratch has nothing to link it with",
            from.display()
        )),
        None => Err(format!("{} is not a 64-bit little-endian ELF file", from.display())),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

/// Whether an ELF file asks for a dynamic loader (has a `PT_INTERP` program header); `None` if it isn't 64-bit
/// little-endian ELF. Offsets are those of the ELF-64 object file format.
fn has_interpreter(file: &[u8]) -> Option<bool> {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(length)?)?;
        bytes.iter().rev().try_fold(0_usize, |sum, byte| Some(sum.checked_mul(256)? + usize::from(*byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == usize::try_from(INTERPRETER).ok()? {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of the given type.
    fn elf(kind: u8) -> Vec<u8> {
        let mut file = vec![0; 0x40 + 0x38];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x20] = 0x40;
        file[0x36] = 0x38;
        file[0x38] = 1;
        file[0x40] = kind;
        file
    }

    #[test]
    fn a_binary_that_needs_a_loader_is_told_from_a_static_one() {
        assert_eq!(has_interpreter(&elf(3)), Some(true));
        assert_eq!(has_interpreter(&elf(1)), Some(false));
        assert_eq!(has_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(has_interpreter(&elf(3)[..0x41]), None, "a truncated file");
    }

    #[test]
    fn this_test_itself_is_read_like_any_other_program() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&own), Some(cfg!(not(target_feature = "crt-static"))));
    }
}
