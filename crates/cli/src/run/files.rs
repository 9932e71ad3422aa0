//! Files of `exchequer run`: what goes into the work area, from here or from the tenant's workspace, and what comes out of it.
//!
//! Left out: which paths are taken, which the agent decides. Invariant: a file that is written here is whole and has the recorded size, or
//! keeps its old content.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use exchequer_event::v1::{self, input_file::Source};

/// Largest content of all inputs together that an agent takes.
const MAX_INPUT_BYTES: u64 = 1 << 20;
/// What a place in the workspace begins with.
const WORKSPACE: &str = "workspace:";

/// A path in the work area, and where its file comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: String,
    at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    /// A file here.
    Here(PathBuf),
    /// A file of the tenant's workspace on the agent's host.
    Workspace(String),
    /// Nowhere but in the answer.
    Answer,
}

/// Reads `PATH[=FILE]` or `PATH=workspace:NAME` of an input.
pub fn input(text: &str) -> Result<Place, String> {
    place(text, |path| At::Here(path.into()))
}

/// Reads `PATH[=FILE]` or `PATH=workspace:NAME` of an output.
pub fn output(text: &str) -> Result<Place, String> {
    place(text, |_| At::Answer)
}

fn place(text: &str, otherwise: impl FnOnce(&str) -> At) -> Result<Place, String> {
    let (path, at) = match text.split_once('=') {
        None => (text, otherwise(text)),
        Some((path, file)) => match file.strip_prefix(WORKSPACE) {
            Some(name) => (path, At::Workspace(name.to_owned())),
            None => (path, At::Here(file.into())),
        },
    };
    if path.is_empty() {
        return Err("expected PATH, PATH=FILE or PATH=workspace:NAME".to_owned());
    }
    Ok(Place { path: path.to_owned(), at })
}

/// The inputs as they are asked for, with the content of those that are here.
pub fn inputs(places: Vec<Place>) -> anyhow::Result<Vec<v1::InputFile>> {
    let mut room = MAX_INPUT_BYTES;
    let mut read = |place: Place| {
        let source = match place.at {
            At::Workspace(name) => Source::WorkspacePath(name),
            At::Here(file) => Source::Content(content(&file, &mut room)?.into()),
            At::Answer => bail!("{}: an input needs a file", place.path),
        };
        Ok(v1::InputFile { path: place.path, source: Some(source) })
    };
    places.into_iter().map(&mut read).collect()
}

fn content(file: &Path, room: &mut u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let open = File::open(file).with_context(|| file.display().to_string())?;
    open.take(*room + 1).read_to_end(&mut bytes).with_context(|| file.display().to_string())?;
    let Some(left) = room.checked_sub(bytes.len() as u64) else {
        bail!(
            "{}: all inputs together have more than 1 MiB; larger files come from the workspace (PATH=workspace:NAME)",
            file.display()
        );
    };
    *room = left;
    Ok(bytes)
}

/// The outputs as they are asked for.
pub fn outputs(places: &[Place]) -> Vec<v1::OutputFile> {
    let asked = |place: &Place| {
        let workspace_path = match &place.at {
            At::Workspace(name) => name.clone(),
            At::Here(_) | At::Answer => String::new(),
        };
        v1::OutputFile { path: place.path.clone(), workspace_path }
    };
    places.iter().map(asked).collect()
}

/// Outputs on their way into files here.
pub struct Writing {
    files: Vec<Option<(PathBuf, PathBuf, File)>>,
}

impl Writing {
    /// Begins a file beside each that is to be written, so that a place that can't be written is found before anything runs.
    pub fn begin(places: &[Place]) -> anyhow::Result<Self> {
        let mut writing = Self { files: Vec::new() };
        for place in places {
            let At::Here(target) = &place.at else {
                writing.files.push(None);
                continue;
            };
            let mut name = target
                .file_name()
                .with_context(|| format!("{}: names no file", target.display()))?
                .to_owned();
            name.push(format!(".{}.partial", std::process::id()));
            let partial = target.with_file_name(name);
            let file = File::create_new(&partial).with_context(|| partial.display().to_string())?;
            writing.files.push(Some((target.clone(), partial, file)));
        }
        Ok(writing)
    }

    /// More of an output.
    pub fn chunk(&mut self, chunk: &v1::ArtifactChunk) -> anyhow::Result<()> {
        let place = usize::try_from(chunk.output).unwrap_or(usize::MAX);
        if let Some(Some((_, partial, file))) = self.files.get_mut(place) {
            file.write_all(&chunk.data).with_context(|| partial.display().to_string())?;
        }
        Ok(())
    }

    /// Puts those in their place that came whole; what is wrong with the others, and with those that were not for here.
    pub fn finish(mut self, artifacts: &[v1::File]) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        for (place, artifact) in artifacts.iter().enumerate() {
            if !artifact.problem.is_empty() {
                problems.push(format!("output {}: {}", artifact.path, artifact.problem));
                continue;
            }
            let Some((target, partial, file)) = self.files.get_mut(place).and_then(Option::take) else {
                continue;
            };
            let size = file.metadata().with_context(|| partial.display().to_string())?.len();
            if size == artifact.size {
                fs::rename(&partial, &target).with_context(|| target.display().to_string())?;
            } else {
                let _ = fs::remove_file(&partial);
                problems.push(format!("output {}: {size} of {} bytes came", artifact.path, artifact.size));
            }
        }
        Ok(problems)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        for (_, partial, _) in self.files.iter().flatten() {
            // What is left of it is of no use.
            let _ = fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_here_in_the_workspace_or_in_the_answer_only() {
        let of = |place: Place| (place.path, place.at);
        assert_eq!(of(input("a/b").unwrap()), ("a/b".to_owned(), At::Here("a/b".into())));
        assert_eq!(of(input("a=b=c").unwrap()), ("a".to_owned(), At::Here("b=c".into())));
        assert_eq!(of(input("a=workspace:b").unwrap()), ("a".to_owned(), At::Workspace("b".to_owned())));
        assert_eq!(of(output("a").unwrap()), ("a".to_owned(), At::Answer));
        assert_eq!(
            of(output("a=./workspace:b").unwrap()),
            ("a".to_owned(), At::Here("./workspace:b".into()))
        );
    }

    #[test]
    fn an_output_is_written_whole_or_keeps_its_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("whole"), "old").unwrap();
        fs::write(at("short"), "old").unwrap();
        let places =
            ["whole", "short", "none"].map(|name| Place { path: name.into(), at: At::Here(at(name)) });
        let mut writing = Writing::begin(&places).unwrap();
        for output in 0..2 {
            writing.chunk(&v1::ArtifactChunk { output, data: "new".into() }).unwrap();
        }
        let file = |path: &str, size, problem: &str| v1::File {
            path: path.into(),
            size,
            problem: problem.into(),
            ..v1::File::default()
        };
        let problems = writing
            .finish(&[file("whole", 3, ""), file("short", 4, ""), file("none", 0, "is a fifo")])
            .unwrap();
        assert_eq!(problems, ["output short: 3 of 4 bytes came", "output none: is a fifo"]);
        assert_eq!(fs::read_to_string(at("whole")).unwrap(), "new");
        assert_eq!(fs::read_to_string(at("short")).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }
}
