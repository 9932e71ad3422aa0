//! The files of an execution: inputs into sealed memory before anything is held, outputs by digest, and into the workspace, when its
//! processes are gone.
//!
//! Left out: confinement ([`workspace`](crate::workspace)). Blocks. Invariant: what is recorded of a file is what was given, or is answered
//! and kept: nobody can change either any more.

use std::{
    fs::File,
    io::{self, Seek as _},
    os::fd::OwnedFd,
    path::PathBuf,
};

use exchequer_event::v1::{self, input_file::Source};

use super::denial::Denial;
use crate::{
    record,
    request::{Faults, files::Files},
    sandbox::FileProblem,
    workspace::{self, Destination, FileFault, TenantDir, Workspace},
};

/// What a file takes up is a multiple of this.
const PAGE_BYTES: u64 = 4096;

/// Why a file that an execution left is not put in the place of another: it may be half of what it was to be.
const NOT_KEPT: &str = "not kept: the execution did not end by itself";

/// What an execution is given, and where its outputs go.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Contents of the inputs, in order.
    pub(super) contents: Vec<OwnedFd>,
    /// What is recorded of them.
    pub(super) recorded: Vec<v1::File>,
    /// Where each output is kept in the workspace.
    pub(super) destinations: Vec<Option<Destination>>,
}

/// An output: what is recorded of it, and what is answered.
pub(super) struct Taken {
    pub(super) record: v1::File,
    /// From its beginning; none if there is a problem.
    pub(super) content: Option<File>,
}

/// Reads the inputs, at most `room` bytes together, and finds the outputs' places.
pub(super) fn load(
    files: &Files,
    paths: &[PathBuf],
    tenant: &str,
    workspace: Option<&Workspace>,
    mut room: u64,
) -> Result<Given, Denial> {
    let dir = match workspace {
        _ if !files.use_workspace() => None,
        None => return Err(Denial::host(field_of_workspace(files), "this agent has no workspace")),
        Some(workspace) => {
            let dir = workspace.tenant(tenant);
            Some(dir.map_err(|fault| refuse(field_of_workspace(files), &fault))?)
        }
    };
    let mut given = Given::default();
    for (place, (source, path)) in files.sources.iter().zip(paths).enumerate() {
        let loaded = match source {
            Source::Content(bytes) => workspace::load(&bytes[..], room).map_err(FileFault::from),
            Source::WorkspacePath(name) => {
                open(dir.as_ref(), name).and_then(|file| workspace::load(file, room).map_err(FileFault::from))
            }
        };
        let field = match source {
            Source::Content(_) => format!("inputs[{place}].content"),
            Source::WorkspacePath(_) => format!("inputs[{place}].workspace_path"),
        };
        let Some(loaded) = loaded.map_err(|fault| refuse(&field, &fault))? else {
            let problem = "with the inputs before it, is larger than the agent or the work area takes";
            return Err(Denial::request(Faults::one(&field, problem)));
        };
        room = room.saturating_sub(loaded.digests.size.next_multiple_of(PAGE_BYTES));
        given.recorded.push(record::file(&path.to_string_lossy(), &loaded.digests));
        given.contents.push(loaded.fd);
    }
    for (place, target) in files.targets.iter().enumerate() {
        let destination = match &dir {
            Some(dir) if !target.is_empty() => {
                let field = format!("outputs[{place}].workspace_path");
                Some(dir.destination(target).map_err(|fault| refuse(&field, &fault))?)
            }
            _ => None,
        };
        given.destinations.push(destination);
    }
    Ok(given)
}

fn open(dir: Option<&TenantDir>, name: &str) -> Result<File, FileFault> {
    dir.ok_or_else(|| FileFault::Host("there is no workspace".to_owned()))?.open_file(name)
}

fn refuse(field: &str, fault: &FileFault) -> Denial {
    match fault {
        FileFault::Request(problem) => Denial::request(Faults::one(field, *problem)),
        FileFault::Host(problem) => Denial::host(field, problem),
    }
}

/// The first field that asks for the workspace.
fn field_of_workspace(files: &Files) -> &'static str {
    let is_input = files.sources.iter().any(|source| matches!(source, Source::WorkspacePath(_)));
    if is_input { "inputs" } else { "outputs" }
}

/// Takes the outputs out, at most `room` bytes together, and keeps those in the workspace that are to be kept, unless the execution did
/// not end by itself.
pub(super) fn take_out(
    paths: &[PathBuf],
    found: Vec<Result<OwnedFd, FileProblem>>,
    destinations: &[Option<Destination>],
    execution_id: &str,
    ended_by_itself: bool,
    mut room: u64,
) -> Vec<Taken> {
    let mut taken = Vec::with_capacity(paths.len());
    for (place, (path, found)) in paths.iter().zip(found).enumerate() {
        let path = path.to_string_lossy();
        let destination = destinations.get(place).and_then(Option::as_ref);
        let outcome = found.map_err(|problem| problem.0).and_then(|fd| {
            if destination.is_some() && !ended_by_itself {
                return Err(NOT_KEPT.to_owned());
            }
            let mut file = File::from(fd);
            let record = keep(&mut file, destination, &path, &format!("{execution_id}-{place}"), room)?;
            room -= record.size;
            Ok((record, file))
        });
        taken.push(match outcome {
            Ok((record, file)) => Taken { record, content: Some(file) },
            Err(problem) => Taken { record: record::problem(&path, &problem), content: None },
        });
    }
    taken
}

fn keep(
    file: &mut File,
    destination: Option<&Destination>,
    path: &str,
    id: &str,
    room: u64,
) -> Result<v1::File, String> {
    let unread = |error: io::Error| format!("can't be read: {error}");
    file.rewind().map_err(unread)?;
    let digests = match destination {
        None => workspace::copy(file, room, &mut io::sink()).map_err(unread)?,
        Some(destination) => {
            let unkept = |fault: FileFault| format!("can't be kept: {fault}");
            let mut replacement = destination.begin(id).map_err(unkept)?;
            let copied = workspace::copy(file, room, &mut replacement);
            let copied = copied.map_err(|error| format!("can't be kept: {error}"))?;
            if copied.is_some() {
                replacement.commit().map_err(unkept)?;
            }
            copied
        }
    };
    let digests = digests.ok_or("with the outputs before it, is larger than the agent hands out")?;
    file.rewind().map_err(unread)?;
    Ok(record::file(path, &digests))
}
