//! `inputs.json`: what an execution was given, in clear, which is what it takes to run it again.
//!
//! Left out: limits, profile, scope and skill, which are in the bundle. Invariant: what is handed on to an agent from such a file was found
//! to be what the bundle commits to.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use exchequer_event::{
    bundle::{ContentDigests, DigestSet, Execution, Hex, input_digest},
    v1::{self, input_file::Source},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::directory::{self, INPUTS};

/// Version of the file.
const VERSION: u32 = 1;
/// Largest file: standard input and inputs of 1 MiB each in base64, arguments and environment in escapes, with room to spare.
const MAX_INPUTS_BYTES: usize = 4 << 20;

/// What was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    version: u32,
    program: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    stdin: Base64,
    inputs: Vec<GivenFile>,
    outputs: Vec<Taken>,
}

/// A file that was put in: its content, or where it is in the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenFile {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<Base64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workspace_path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taken {
    path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    workspace_path: String,
}

/// Bytes, in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

impl Given {
    /// What this request gives.
    pub fn of(request: &v1::ExecuteRequest) -> Self {
        let file = |input: &v1::InputFile| {
            let (content, workspace_path) = match &input.source {
                Some(Source::WorkspacePath(path)) => (None, Some(path.clone())),
                Some(Source::Content(bytes)) => (Some(Base64(bytes.to_vec())), None),
                None => (Some(Base64(Vec::new())), None),
            };
            GivenFile { path: input.path.clone(), content, workspace_path }
        };
        let taken = |output: &v1::OutputFile| Taken {
            path: output.path.clone(),
            workspace_path: output.workspace_path.clone(),
        };
        Self {
            version: VERSION,
            program: request.program.clone(),
            arguments: request.arguments.clone(),
            environment: request.environment.clone().into_iter().collect(),
            stdin: Base64(request.stdin.to_vec()),
            inputs: request.inputs.iter().map(file).collect(),
            outputs: request.outputs.iter().map(taken).collect(),
        }
    }

    /// Reads a bundle's directory.
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        let bytes = directory::read_within(directory, INPUTS, MAX_INPUTS_BYTES)?;
        let given: Self = serde_json::from_slice(&bytes).context(INPUTS)?;
        if let Some(file) =
            given.inputs.iter().find(|file| file.content.is_some() == file.workspace_path.is_some())
        {
            bail!("{INPUTS}: file {} has either content or a place in the workspace", file.path);
        }
        anyhow::ensure!(given.version == VERSION, "{INPUTS} is of version {}", given.version);
        Ok(given)
    }

    /// In what it is not what the bundle says was given. Files of the workspace are on the agent's host: only their names are compared.
    pub fn differences(&self, said: &Execution) -> Vec<String> {
        let mut differences = Vec::new();
        let environment: Vec<_> = self.environment.clone().into_iter().collect();
        // What is in files of the workspace is known from the bundle alone.
        let of = |(file, signed): (&GivenFile, Option<&Hex<32>>)| match &file.content {
            Some(content) => ContentDigests::of(&content.0).blake3,
            None => signed.map_or([0; 32], |blake3| blake3.0),
        };
        let signed = said.inputs.files.iter().map(|file| file.blake3.as_ref());
        let blake3: Vec<_> = self.inputs.iter().zip(signed.chain(std::iter::repeat(None))).map(of).collect();
        let given: Vec<_> =
            self.inputs.iter().zip(&blake3).map(|(file, blake3)| (file.path.as_str(), &blake3[..])).collect();
        let digest = input_digest(&self.program, &self.arguments, &environment, &self.stdin.0, &given);
        if digest.0 != said.inputs.digest.0 {
            let signed = said.inputs.digest;
            differences.push(format!(
                "{INPUTS}: program, arguments, environment, stdin and files have digest {digest}, signed is {signed}"
            ));
        }
        let files = &said.inputs.files;
        if files.len() != self.inputs.len() {
            differences.push(format!("{INPUTS} has {} files, signed are {}", self.inputs.len(), files.len()));
        }
        for (file, signed) in self.inputs.iter().zip(files) {
            let is_same = file.content.as_ref().is_none_or(|content| {
                let digests = DigestSet::from(ContentDigests::of(&content.0));
                signed.sha256 == Some(digests.sha256) && signed.blake3 == Some(digests.blake3)
            });
            if file.path != signed.path || !is_same {
                differences.push(format!("{INPUTS}: file {} is not the one that was given", file.path));
            }
        }
        let asked = self.outputs.iter().map(|output| &output.path);
        if said.result.stdout.is_some() && !asked.eq(said.result.artifacts.iter().map(|file| &file.path)) {
            differences.push(format!("{INPUTS} asks for other files than were signed"));
        }
        differences
    }

    /// The request that runs it again, as this bundle says that it ran. Artifacts are answered, and not put into the workspace again.
    pub fn request(&self, said: &Execution) -> v1::ExecuteRequest {
        let file = |file: &GivenFile| v1::InputFile {
            path: file.path.clone(),
            source: match (&file.content, &file.workspace_path) {
                (Some(content), _) => Some(Source::Content(content.0.clone().into())),
                (None, path) => path.clone().map(Source::WorkspacePath),
            },
        };
        let limits = &said.limits;
        v1::ExecuteRequest {
            tenant: said.tenant.clone(),
            scope: said.scope.split_once('/').map(|(_, below)| below.to_owned()).unwrap_or_default(),
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            environment: self.environment.clone().into_iter().collect(),
            stdin: self.stdin.0.clone().into(),
            limits: Some(v1::Limits {
                cpu_ms: limits.cpu_ms,
                wall_ms: limits.wall_ms,
                memory_bytes: limits.memory_bytes,
                output_bytes: limits.output_bytes,
                egress_bytes: limits.egress_bytes,
            }),
            skill: said.skill.clone(),
            profile: said.profile.name.clone(),
            inputs: self.inputs.iter().map(file).collect(),
            outputs: self
                .outputs
                .iter()
                .map(|output| v1::OutputFile { path: output.path.clone(), workspace_path: String::new() })
                .collect(),
            ..v1::ExecuteRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_read_as_it_was_written_and_a_slip_is_an_error() {
        let input = |path: &str, source| v1::InputFile { path: path.into(), source: Some(source) };
        let request = v1::ExecuteRequest {
            program: "/bin/cat".into(),
            arguments: vec!["-".into(), "\u{0}é".into()],
            environment: [("A".to_owned(), "b".to_owned())].into(),
            stdin: vec![0, 255].into(),
            inputs: vec![
                input("a", Source::Content(vec![1].into())),
                input("b", Source::WorkspacePath("w/b".into())),
            ],
            outputs: vec![v1::OutputFile { path: "o".into(), workspace_path: "w/o".into() }],
            ..v1::ExecuteRequest::default()
        };
        let given = Given::of(&request);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(INPUTS);
        let text = serde_json::to_string(&given).unwrap();
        std::fs::write(&file, &text).unwrap();
        assert_eq!(Given::read(dir.path()).unwrap(), given);
        let slips = [
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("\"outputs\"", "\"output\""),
            text.replace(&STANDARD.encode([0, 255]), "AP8"),
            text.replace("\"workspace_path\":\"w/b\"", "\"url\":\"w/b\""),
            text.replace("\"workspace_path\":\"w/b\"", "\"content\":\"\",\"workspace_path\":\"w/b\""),
            text.replace("\"path\":\"a\",", "\"path\":\"a\",\"path\":\"a\","),
        ];
        for slip in slips {
            assert_ne!(slip, text);
            std::fs::write(&file, &slip).unwrap();
            assert!(Given::read(dir.path()).is_err(), "{slip}");
        }
    }
}
