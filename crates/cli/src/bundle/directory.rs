//! The directory of a bundle: `bundle.dsse.json`, `inputs.json`, and a file for each subject under the subject's name.
//!
//! Left out: what inputs are ([`inputs`](super::inputs)). Invariant: nothing outside the directory is read or written, whatever a bundle
//! says: names are plain paths below it, and symbolic links are not followed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use exchequer_event::{
    bundle::{self, ARTIFACTS, ContentHasher, DigestSet, Hex, RESULT, STDERR, STDOUT, Statement},
    digest::{Digest, Purpose},
    v1,
};

use super::{Report, inputs::Given, refused};
use crate::client::Refused;

/// The bundle.
pub const BUNDLE: &str = "bundle.dsse.json";
/// What the program was given.
pub const INPUTS: &str = "inputs.json";
/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// Most entries of `artifacts/` that are looked at: more than there can be artifacts, with their directories.
const MAX_FOUND: usize = 16_384;

/// A file of at most so many bytes.
pub fn read(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    read_file(file, path, max)
}

/// A regular file of at most so many bytes in a directory that may be anybody's: no link is followed, and no pipe waited for.
pub fn read_within(directory: &Path, name: &str, max: usize) -> anyhow::Result<Vec<u8>> {
    let path = directory.join(name);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).with_context(at(&path))?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).with_context(at(&path))?;
    if !file.metadata().with_context(at(&path))?.is_file() {
        bail!("{} is no regular file", path.display());
    }
    read_file(file, &path, max)
}

fn read_file(file: File, path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    if bytes.len() > max {
        bail!("{} is longer than {max} bytes", path.display());
    }
    Ok(bytes)
}

/// The path of a subject's file; `None` if its name is no plain path below the directory.
pub fn path_of(directory: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    let relative = Path::new(name);
    (!name.is_empty() && relative.components().all(is_plain)).then(|| directory.join(relative))
}

/// Opens a regular file below the directory without following a symbolic link on the way.
fn open_plain(directory: &Path, name: &str) -> Result<File, String> {
    let path = path_of(directory, name).ok_or("is no plain path")?;
    let mut above = path.as_path();
    while above != directory {
        let found = fs::symlink_metadata(above).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "is missing".to_owned(),
            _ => error.to_string(),
        })?;
        let is_right = if above == path { found.is_file() } else { found.is_dir() };
        if !is_right {
            return Err("is no regular file".to_owned());
        }
        above = above.parent().unwrap_or(directory);
    }
    File::open(&path).map_err(|error| error.to_string())
}

/// A subject's file, if it is the one that was signed.
pub fn open_signed(directory: &Path, statement: &Statement, name: &str) -> Option<File> {
    let digest = statement.subject(name)?.digest;
    (digests(open_plain(directory, name).ok()?).ok()?.0 == digest)
        .then(|| open_plain(directory, name).ok())?
}

/// What anybody's tools say of a file, and its output digest.
fn digests(mut file: File) -> io::Result<(DigestSet, Digest)> {
    let (mut hasher, mut output) = (ContentHasher::default(), Purpose::Output.hasher());
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((hasher.finish().into(), output.finish())),
            read => {
                hasher.update(&chunk[..read]);
                output.update(&chunk[..read]);
            }
        }
    }
}

/// Compares the files with what was signed.
pub fn check(directory: &Path, statement: &Statement, report: &mut Report) -> anyhow::Result<()> {
    check_subjects(directory, statement, report);
    if directory.join(INPUTS).exists() {
        let given = Given::read(directory)?;
        report.differences.extend(given.differences(&statement.predicate));
        report.checked.push("inputs.json against the digests of what was given".to_owned());
    } else {
        report.notes.push("there is no inputs.json: what was given could not be compared".to_owned());
    }
    Ok(())
}

fn check_subjects(directory: &Path, statement: &Statement, report: &mut Report) {
    let recorded = &statement.predicate.recorded;
    for subject in &statement.subject {
        let found = open_plain(directory, &subject.name)
            .and_then(|file| digests(file).map_err(|error| error.to_string()));
        match found {
            Ok((digest, output)) => {
                report.compare(digest == subject.digest, || {
                    let (found, signed) = (digest.sha256, subject.digest.sha256);
                    format!("{} has SHA-256 {found}, signed is {signed}", subject.name)
                });
                // The output digest is what the log's event has: it binds the stream to the log.
                let logged = match &*subject.name {
                    STDOUT => recorded.stdout_digest,
                    STDERR => recorded.stderr_digest,
                    _ => None,
                };
                report.compare(logged.is_none_or(|logged| logged == Hex(output.0)), || {
                    format!("{} has output digest {output}, recorded is another", subject.name)
                });
            }
            Err(problem) => report.differences.push(format!("{} {problem}", subject.name)),
        }
    }
    let mut open = vec![PathBuf::from(ARTIFACTS)];
    let mut found = 0;
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(directory.join(&next)).into_iter().flatten().flatten() {
            found += 1;
            let name = next.join(entry.file_name());
            if found > MAX_FOUND {
                report.differences.push(format!("{ARTIFACTS} holds more than any bundle names"));
                return;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(name);
            } else if !statement.subject.iter().any(|subject| Path::new(&subject.name) == name) {
                report
                    .differences
                    .push(format!("{} is in the directory and not in the bundle", name.display()));
            }
        }
    }
    report.checked.push(format!("{} files against the digests that were signed", statement.subject.len()));
}

/// A directory that is being written while an execution runs.
pub struct Saving {
    directory: PathBuf,
    /// Whether it was not there before.
    is_new: bool,
    stdout: File,
    stderr: File,
    artifacts: Vec<(String, Option<File>)>,
}

impl Saving {
    /// Makes the directory, which must not hold anything, and writes down what is given. What is given may be secret, so the directory is
    /// its owner's only.
    pub fn begin(directory: &Path, request: &v1::ExecuteRequest) -> anyhow::Result<Self> {
        let made = fs::DirBuilder::new().mode(0o700).create(directory);
        let is_new = made.is_ok();
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_dir(directory).with_context(at(directory))?.next().is_some() {
                    bail!("--bundle: {} is not empty", directory.display());
                }
            }
            made => made.with_context(at(directory))?,
        }
        let given = serde_json::to_vec_pretty(&Given::of(request)).context(INPUTS)?;
        create(directory, INPUTS)?.write_all(&given).context(INPUTS)?;
        Ok(Self {
            stdout: create(directory, STDOUT)?,
            stderr: create(directory, STDERR)?,
            artifacts: request.outputs.iter().map(|output| (output.path.clone(), None)).collect(),
            directory: directory.to_owned(),
            is_new,
        })
    }

    /// Takes everything away again: nothing ran.
    pub fn discard(self) {
        // What can't be removed is empty, or what the caller gave.
        for name in [INPUTS, STDOUT, STDERR] {
            let _ = fs::remove_file(self.directory.join(name));
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.directory);
        }
    }

    /// More standard output.
    pub fn stdout(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stdout.write_all(bytes).context(STDOUT)
    }

    /// More standard error.
    pub fn stderr(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stderr.write_all(bytes).context(STDERR)
    }

    /// More of an artifact.
    pub fn artifact(&mut self, chunk: &v1::ArtifactChunk) -> anyhow::Result<()> {
        let place = usize::try_from(chunk.output).ok();
        let Some((path, file)) = place.and_then(|place| self.artifacts.get_mut(place)) else {
            bail!(Refused(format!("the agent answered output {}, which was not asked for", chunk.output)));
        };
        let file = match file {
            Some(file) => file,
            None => file.insert(create(&self.directory, &format!("{ARTIFACTS}{path}"))?),
        };
        file.write_all(&chunk.data).with_context(|| path.clone())
    }

    /// Writes the bundle and the result, and makes sure that the files are those which were signed.
    pub fn finish(self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.is_empty() {
            bail!(Refused("the agent answered no bundle".to_owned()));
        }
        let (statement, _) = bundle::read_unverified(bytes).map_err(refused)?;
        create(&self.directory, BUNDLE)?.write_all(bytes).context(BUNDLE)?;
        let result = statement.predicate.result.encode();
        create(&self.directory, RESULT)?.write_all(&result).context(RESULT)?;
        // An empty file comes in no piece, and streams whose end nobody saw are in no bundle.
        for (path, file) in &self.artifacts {
            let name = format!("{ARTIFACTS}{path}");
            if file.is_none() && statement.subject(&name).is_some() {
                create(&self.directory, &name)?;
            }
        }
        let mut report = Report::default();
        check_subjects(&self.directory, &statement, &mut report);
        if !report.differences.is_empty() {
            let differences = report.differences.join("; ");
            bail!(Refused(format!("what the agent answered is not what it signed: {differences}")));
        }
        Ok(())
    }
}

fn at(path: &Path) -> impl Fn() -> String + '_ {
    || path.display().to_string()
}

/// A new file below the directory, readable by its owner only.
fn create(directory: &Path, name: &str) -> anyhow::Result<File> {
    let Some(path) = path_of(directory, name) else { bail!("{name} is no plain path") };
    if let Some(above) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(above).with_context(at(above))?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(at(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_below_the_directory_or_nowhere() {
        let directory = Path::new("/d");
        assert_eq!(path_of(directory, "artifacts/a/b"), Some(PathBuf::from("/d/artifacts/a/b")));
        for bad in ["", "/etc/passwd", "artifacts/../../x", "..", "artifacts/./../.."] {
            assert_eq!(path_of(directory, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_symbolic_link_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/x"), "x").unwrap();
        std::os::unix::fs::symlink("real/x", dir.path().join("stdout")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("artifacts")).unwrap();
        assert!(open_plain(dir.path(), "real/x").is_ok());
        assert_eq!(open_plain(dir.path(), "stdout").unwrap_err(), "is no regular file");
        assert_eq!(open_plain(dir.path(), "artifacts/x").unwrap_err(), "is no regular file");
        assert_eq!(open_plain(dir.path(), "stderr").unwrap_err(), "is missing");
        assert_eq!(read_within(&dir.path().join("real"), "x", 1).unwrap(), b"x");
        assert!(read_within(dir.path(), "stdout", 1).is_err());
        assert!(read_within(dir.path(), "real", 1).unwrap_err().to_string().contains("is no regular file"));
    }
}
