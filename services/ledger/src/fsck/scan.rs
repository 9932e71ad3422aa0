//! Files that the tree does not need: left over, cut off by a crash, or somebody else's.
//!
//! Left out: what the tree needs, which the walk compares. Invariant: a file that a kept size needs is never named.

use std::{collections::BTreeSet, io, path::Path};

use exchequer_tlog::{BundleId, TileId};

use super::{
    report::{Class, Finding, RepairSource},
    signed::names,
};
use crate::store::Places;

/// Files under `log/`, `staging/` and in the history that a log of these kept sizes does not have. What is `changed` was named already.
pub(super) fn strays(
    places: &Places,
    kept: &[u64],
    size: u64,
    changed: &BTreeSet<String>,
    foreign: &[String],
) -> io::Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut find = |path: String, class, detail: &str| {
        found.push(Finding::new(path, class, detail, Some(RepairSource::Removal)));
    };
    for path in foreign {
        find(path.clone(), Class::ForeignFile, "it is no segment of the history");
    }
    for name in names(&places.staging)? {
        find(format!("staging/{name}"), Class::Leftover, "a write that did not come to its end");
    }
    let mut paths = Vec::new();
    files_under(&places.log, "", &mut paths)?;
    for path in paths {
        let full = format!("log/{path}");
        if path == "checkpoint" || changed.contains(&full) {
            continue;
        }
        let (is_kept, is_beyond) = if let Ok(id) = path.parse::<BundleId>() {
            let at = |size| BundleId::in_tree(id.index(), size);
            (
                kept.iter().any(|size| at(*size) == Some(id)),
                at(size).is_none_or(|there| there.width() < id.width()),
            )
        } else if let Ok(id) = path.parse::<TileId>() {
            let at = |size| TileId::in_tree(id.level(), id.index(), size);
            (
                kept.iter().any(|size| at(*size) == Some(id)),
                at(size).is_none_or(|there| there.width() < id.width()),
            )
        } else {
            find(full, Class::ForeignFile, "no file of a log has this name");
            continue;
        };
        if is_kept {
            continue;
        }
        if is_beyond {
            find(full, Class::Beyond, "it is beyond the log's end");
        } else {
            find(full, Class::Leftover, "a wider version has taken its place");
        }
    }
    Ok(found)
}

/// Whether there is any file of a tree.
pub(super) fn has_tiles(places: &Places) -> io::Result<bool> {
    let mut paths = Vec::new();
    files_under(&places.log.join("tile"), "", &mut paths)?;
    Ok(!paths.is_empty())
}

fn files_under(dir: &Path, prefix: &str, found: &mut Vec<String>) -> io::Result<()> {
    for name in names(dir)? {
        let path = dir.join(&name);
        if path.is_dir() {
            files_under(&path, &format!("{prefix}{name}/"), found)?;
        } else {
            found.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}
