//! What the demo does to files: copying a log, taking a member out of a pack, changing one bit of an entry.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use exchequer_tlog::BundleId;

/// Copies a directory with all that is in it.
pub fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// One member of a pack.
pub fn tar_member(pack: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(pack)?);
    for member in archive.entries()? {
        let mut member = member?;
        if member.path()?.to_str() == Some(name) {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut member, &mut bytes)?;
            return Ok(bytes);
        }
    }
    bail!("the pack has no {name}")
}

/// Flips one bit in the middle of an entry; the file that it is in.
pub fn flip_byte(log: &Path, index: u64, size: u64) -> anyhow::Result<String> {
    let bundle = BundleId::in_tree(index / 256, size).context("the entry is not in the tree")?;
    let name = bundle.to_string();
    let path = log.join(&name);
    let mut bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let mut at = 0;
    for _ in 0..index % 256 {
        at += 2 + entry_len(&bytes, at)?;
    }
    let middle = at + 2 + entry_len(&bytes, at)? / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes)?;
    Ok(name)
}

fn entry_len(bundle: &[u8], at: usize) -> anyhow::Result<usize> {
    let length = bundle.get(at..at + 2).and_then(|two| two.try_into().ok()).context("the bundle is cut")?;
    Ok(usize::from(u16::from_be_bytes(length)))
}
