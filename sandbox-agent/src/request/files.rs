//! Which files a request may name: inputs and outputs by path, before anything of the host is looked at.
//!
//! Left out: what lies at a path ([`workspace`](crate::workspace)). Invariant: a path that passed is relative, of plain names only, and
//! names one file once; all paths together fit into a record.

use std::{collections::BTreeSet, path::PathBuf};

use exchequer_event::v1::{self, input_file::Source};

use super::Faults;

/// Most inputs, and most outputs.
pub const MAX_FILES: usize = 64;
/// Longest path, bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// Paths of all inputs together, and of all outputs, bytes: they are recorded.
pub const MAX_PATHS_BYTES: usize = 4096;
/// Longest name of a file or directory, bytes.
const MAX_NAME_BYTES: usize = 255;
/// Contents of all inputs that come with the request, bytes.
pub const MAX_CONTENT_BYTES: usize = 1 << 20;

/// The files of a request.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Where each input goes, relative to the work area.
    pub inputs: Vec<PathBuf>,
    /// What is in them, in the same order.
    pub sources: Vec<Source>,
    /// Where each output is, relative to the work area.
    pub outputs: Vec<PathBuf>,
    /// Where to keep them in the workspace, in the same order; empty to keep them nowhere.
    pub targets: Vec<String>,
}

impl Files {
    /// Whether anything is read from or written to the workspace.
    pub fn use_workspace(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::WorkspacePath(_)))
            || self.targets.iter().any(|target| !target.is_empty())
    }
}

/// Checks a request's files.
pub(super) fn check(inputs: Vec<v1::InputFile>, outputs: Vec<v1::OutputFile>, faults: &mut Faults) -> Files {
    let input_paths = paths("inputs", inputs.iter().map(|input| input.path.as_str()), faults);
    paths("outputs", outputs.iter().map(|output| output.path.as_str()), faults);
    for (place, output) in outputs.iter().enumerate().take(MAX_FILES) {
        faults.check(
            !input_paths.contains(output.path.as_str()),
            &format!("outputs[{place}].path"),
            "is the path of an input",
        );
        let target = &output.workspace_path;
        let field = format!("outputs[{place}].workspace_path");
        if !target.is_empty() {
            check_path(&field, target, faults);
            let once = outputs[..place].iter().all(|other| other.workspace_path != *target);
            faults.check(once, &field, "is there twice");
        }
    }
    for (place, input) in inputs.iter().enumerate().take(MAX_FILES) {
        match &input.source {
            None => faults.check(false, &format!("inputs[{place}]"), "needs content or workspace_path"),
            Some(Source::Content(_)) => {}
            Some(Source::WorkspacePath(path)) => {
                check_path(&format!("inputs[{place}].workspace_path"), path, faults);
            }
        }
    }
    let content = |input: &v1::InputFile| match &input.source {
        Some(Source::Content(bytes)) => bytes.len(),
        _ => 0,
    };
    faults.check(
        inputs.iter().map(content).sum::<usize>() <= MAX_CONTENT_BYTES,
        "inputs",
        format!(
            "at most {MAX_CONTENT_BYTES} bytes of content together; larger files come from the workspace"
        ),
    );
    if !faults.0.is_empty() {
        return Files::default();
    }
    let mut files = Files::default();
    for input in inputs {
        files.inputs.push(input.path.into());
        files.sources.extend(input.source);
    }
    for output in outputs {
        files.outputs.push(output.path.into());
        files.targets.push(output.workspace_path);
    }
    files
}

/// Checks a list of paths in the work area.
fn paths<'a>(
    list: &str,
    paths: impl ExactSizeIterator<Item = &'a str> + Clone,
    faults: &mut Faults,
) -> BTreeSet<&'a str> {
    faults.check(paths.len() <= MAX_FILES, list, format!("at most {MAX_FILES}"));
    let bytes: usize = paths.clone().map(str::len).sum();
    faults.check(
        bytes <= MAX_PATHS_BYTES,
        list,
        format!("at most {MAX_PATHS_BYTES} bytes of paths together"),
    );
    let mut seen = BTreeSet::new();
    for (place, path) in paths.clone().enumerate().take(MAX_FILES) {
        let field = format!("{list}[{place}].path");
        check_path(&field, path, faults);
        faults.check(seen.insert(path), &field, "is there twice");
    }
    for (place, path) in paths.enumerate().take(MAX_FILES) {
        let mut above = path;
        while let Some((parent, _)) = above.rsplit_once('/') {
            above = parent;
            let field = format!("{list}[{place}].path");
            faults.check(!seen.contains(above), &field, "lies below another, which is a file");
        }
    }
    seen
}

/// A file below a directory, by plain names only.
fn check_path(field: &str, path: &str, faults: &mut Faults) {
    let problem = if path.is_empty() {
        "names no file"
    } else if path.len() > MAX_PATH_BYTES {
        "is longer than 1024 bytes"
    } else if path.contains('\0') {
        "contains a NUL byte"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.split('/').any(|name| name == "..") {
        "contains `..`"
    } else if path.split('/').any(|name| name.is_empty() || name == ".") {
        "contains an empty name or `.`"
    } else if path.split('/').any(|name| name.len() > MAX_NAME_BYTES) {
        "has a name that is longer than 255 bytes"
    } else {
        return;
    };
    faults.check(false, field, problem);
}
