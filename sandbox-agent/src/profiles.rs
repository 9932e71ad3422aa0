//! The profiles that an agent offers: the built-in ones, and the operator's own over them, none wider than the configuration's ceiling.
//!
//! Leaves out what the sandbox makes of a profile ([`crate::sandbox`]) and which one a request asks for ([`crate::request`]).
//!
//! Invariant: what [`Profiles::get`] answers is within the ceiling, and its digest is that of what is enforced: paths that the
//! configuration adds to every profile, and limits that only its ceiling has, included.

mod ceiling;
mod definition;

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use exchequer_config::Reader;
use exchequer_event::digest::Digest;

pub use ceiling::Ceiling;
pub use definition::{BUILT_IN, Ceilings, Definition, MAX_FILE_BYTES};

/// Most files that an operator's directory may have.
const MAX_FILES: usize = 256;

/// A built-in profile.
pub fn built_in(name: &str) -> Option<&'static Arc<Definition>> {
    BUILT_IN.iter().find(|profile| profile.sandbox.name == name)
}

/// A profile that requests can ask for.
#[derive(Clone, Debug)]
pub struct Offered {
    /// What it is.
    pub definition: Arc<Definition>,
    /// Digest of its canonical form.
    pub digest: Digest,
    /// Where it came from; `None`: built in.
    pub file: Option<PathBuf>,
}

/// The profiles of one agent.
#[derive(Clone, Debug)]
pub struct Profiles {
    offered: BTreeMap<String, Offered>,
    withheld: BTreeMap<String, Vec<String>>,
    default: String,
}

impl Default for Profiles {
    /// The built-in ones under the default ceiling.
    fn default() -> Self {
        Self::built_in(&[])
    }
}

impl Profiles {
    /// The built-in ones under the default ceiling, with further paths in each of them.
    pub fn built_in(read_only: &[PathBuf]) -> Self {
        let mut profiles = Self::none("strict".to_owned());
        let ceiling = Ceiling::of_built_in(read_only);
        for profile in BUILT_IN.iter() {
            profiles.offer_built_in(profile, &ceiling, read_only);
        }
        profiles
    }

    fn none(default: String) -> Self {
        Self { offered: BTreeMap::new(), withheld: BTreeMap::new(), default }
    }

    /// Takes them from section `[agent]`, whose `read_only` is given; faults stay with the reader.
    pub fn read(reader: &mut Reader, read_only: &[PathBuf]) -> Self {
        let ceiling = Ceiling::read(reader, read_only);
        let mut profiles = Self::none(reader.get("agent.default_profile", "strict".to_owned()));
        for (file, profile) in own(reader, &ceiling) {
            let name = profile.sandbox.name.clone();
            let offered = Offered::new(&profile, &ceiling, read_only, Some(file));
            profiles.offered.insert(name, offered);
        }
        for profile in BUILT_IN.iter() {
            if !profiles.offered.contains_key(&profile.sandbox.name) {
                profiles.offer_built_in(profile, &ceiling, read_only);
            }
        }
        for (name, offered) in &profiles.offered {
            let work = &offered.definition.sandbox.work.path;
            if let Some(path) = read_only.iter().find(|path| work.starts_with(path)) {
                let problem = format!("`{}` holds the work area of profile `{name}`", path.display());
                reader.fault("agent.read_only", problem);
            }
        }
        if let Err(problem) = profiles.get("") {
            reader.fault("agent.default_profile", problem);
        }
        profiles
    }

    fn offer_built_in(&mut self, profile: &Definition, ceiling: &Ceiling, read_only: &[PathBuf]) {
        let name = profile.sandbox.name.clone();
        let excess = ceiling.excess(profile);
        if excess.is_empty() {
            self.offered.insert(name, Offered::new(profile, ceiling, read_only, None));
        } else {
            self.withheld.insert(name, excess);
        }
    }

    /// The profile of this name, or the default for an empty one. The error says which there are.
    pub fn get(&self, name: &str) -> Result<&Offered, String> {
        let name = if name.is_empty() { &self.default } else { name };
        self.offered.get(name).ok_or_else(|| match self.withheld.get(name) {
            Some(excess) => format!("is wider than this agent allows: {}", excess.join("; ")),
            None => format!("has to be one of {}", self.names().collect::<Vec<_>>().join(", ")),
        })
    }

    /// The name of the default.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// The names of those offered.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.offered.keys().map(String::as_str)
    }

    /// All of them in order of name: offered, or built in and withheld, with what they exceed the ceiling by.
    pub fn list(&self) -> impl Iterator<Item = (&str, Result<&Offered, &[String]>)> {
        let offered = self.offered.iter().map(|(name, offered)| (name.as_str(), Ok(offered)));
        let withheld = self.withheld.iter().map(|(name, excess)| (name.as_str(), Err(excess.as_slice())));
        offered.chain(withheld).collect::<BTreeMap<_, _>>().into_iter()
    }
}

impl Offered {
    /// As an agent offers it whose ceiling it is within: with the limits that only the ceiling has, and these paths.
    pub fn new(
        profile: &Definition,
        ceiling: &Ceiling,
        read_only: &[PathBuf],
        file: Option<PathBuf>,
    ) -> Self {
        let mut profile = profile.clone();
        ceiling.narrow(&mut profile.limits);
        profile.sandbox.read_only.extend_from_slice(read_only);
        profile.sandbox.read_only.sort();
        profile.sandbox.read_only.dedup();
        Self { digest: profile.digest(), definition: Arc::new(profile), file }
    }
}

/// The operator's own profiles: the `*.toml` files of `agent.profiles`.
fn own(reader: &mut Reader, ceiling: &Ceiling) -> Vec<(PathBuf, Definition)> {
    const KEY: &str = "agent.profiles";
    let Some(directory) = reader.optional::<PathBuf>(KEY) else { return Vec::new() };
    let files = match files_of(&directory) {
        Ok(files) => files,
        Err(problem) => {
            reader.fault(KEY, problem);
            return Vec::new();
        }
    };
    let mut read = Vec::new();
    for file in files {
        match load(&file) {
            Ok(profile) => {
                for excess in ceiling.excess(&profile) {
                    reader.fault(KEY, format!("{}: {excess}", file.display()));
                }
                read.push((file, profile));
            }
            Err(problems) => problems.into_iter().for_each(|problem| reader.fault(KEY, problem)),
        }
    }
    read
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{}: {error}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    if files.len() > MAX_FILES {
        return Err(format!("{}: more than {MAX_FILES} profiles", directory.display()));
    }
    files.sort();
    Ok(files)
}

/// Reads one profile file. Every fault of it, each with the file's name.
pub fn load(file: &Path) -> Result<Definition, Vec<String>> {
    let shown = file.display().to_string();
    let failed = |error: std::io::Error| vec![format!("{shown}: {error}")];
    let mut text = String::new();
    let opened = fs::File::open(file).map_err(failed)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(vec![format!("{shown}: larger than {MAX_FILE_BYTES} bytes")]);
    }
    let profile = Definition::parse(&shown, &text)
        .map_err(|faults| faults.list().iter().map(ToString::to_string).collect::<Vec<_>>())?;
    // Two files can't have one name, then.
    if file.file_stem().is_none_or(|stem| stem != profile.sandbox.name.as_str()) {
        return Err(vec![format!("{shown}: `name`: `{}` is not the file's name", profile.sandbox.name)]);
    }
    Ok(profile)
}

#[cfg(test)]
mod tests;
