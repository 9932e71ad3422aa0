//! `exchequer profile`: what executions may see and do, checked, listed and shown.
//!
//! Left out: a running agent; this reads files. Invariant: a file that `check` passes with a configuration is one that an agent with that
//! configuration starts with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use exchequer_config::Reader;
use sandbox_agent::{
    profiles::{Ceiling, Definition, Offered, Profiles, load},
    sandbox::{
        Network, Profile as Sandbox,
        syscalls::{Answer, Arch, Call, Group, hostile},
    },
};
use serde_json::json;

use crate::print::{self, Format};

/// Check, list and show sandbox profiles
#[derive(clap::Subcommand)]
pub enum Profile {
    /// Tell every fault of a profile file, and what of it a configuration does not allow
    #[command(after_help = "\
Examples:
  exchequer profile check pip.toml
  exchequer profile check pip.toml --config exchequer.toml      also against its [agent.ceiling],
                                                                with the digest under that

docs/profiles.md has the format. Exit status: 0 no faults, 1 faults, 2 it could not be read.")]
    Check(Check),
    /// List the profiles that an agent offers, and those it withholds because they are wider than its ceiling
    #[command(after_help = "Example:\n  exchequer profile list --config exchequer.toml")]
    List(List),
    /// Show a profile whole: its file, and each system call that it allows, with the reason
    #[command(after_help = "Example:\n  exchequer profile show python")]
    Show(Show),
}

/// Arguments of `profile check`.
#[derive(clap::Args)]
pub struct Check {
    /// The profile, a TOML file named as the profile is
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `profile list`.
#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    common: Common,
}

/// Arguments of `profile show`.
#[derive(clap::Args)]
pub struct Show {
    /// The profile's name
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// The agent's configuration; without it, the built-in profiles under the default ceiling
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Profile {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(check) => run_check(&check),
            Self::List(list) => run_list(&list.common).map(|()| ExitCode::SUCCESS),
            Self::Show(show) => run_show(&show).map(|()| ExitCode::SUCCESS),
        }
    }
}

fn run_check(check: &Check) -> anyhow::Result<ExitCode> {
    // Not to be read is another answer than to be faulty.
    fs::File::open(&check.file).with_context(|| check.file.display().to_string())?;
    let read = |reader: &mut Reader, read_only: &[PathBuf]| {
        // Known keys, and about other files than this one.
        let _ = reader.optional::<PathBuf>("agent.profiles");
        let _ = reader.optional::<String>("agent.default_profile");
        (Ceiling::read(reader, read_only), read_only.to_vec())
    };
    let config = check.common.config.as_deref().map(|config| configured(config, read)).transpose()?;
    let checked = load(&check.file).and_then(|profile| {
        let name = profile.sandbox.name.clone();
        let Some((ceiling, read_only)) = &config else { return Ok((name, profile.digest())) };
        let excess = ceiling.excess(&profile).into_iter();
        let excess = excess.map(|excess| format!("{}: {excess}", check.file.display())).collect::<Vec<_>>();
        // The one that this agent records.
        let offered = || Offered::new(&profile, ceiling, read_only, None);
        if excess.is_empty() { Ok((name, offered().digest)) } else { Err(excess) }
    });
    let is_alone = config.is_none();
    match (check.common.format, &checked) {
        (Format::Json, _) => print::json(&json!({
            "faults": checked.as_ref().err().map_or(&[][..], Vec::as_slice),
            "name": checked.as_ref().ok().map(|(name, _)| name),
            "digest": checked.as_ref().ok().map(|(_, digest)| digest.to_string()),
            "digest_of": if is_alone { "file" } else { "agent" },
        }))?,
        (Format::Text, Ok((name, digest))) => {
            let of = if is_alone { " of the file alone" } else { "" };
            print::text(&format!("{name}: no faults; digest{of} {digest}"))?;
        }
        (Format::Text, Err(faults)) => faults.iter().try_for_each(|fault| print::text(fault))?,
    }
    Ok(ExitCode::from(u8::from(checked.is_err())))
}

fn run_list(common: &Common) -> anyhow::Result<()> {
    let profiles = profiles(common)?;
    let mut rows = Vec::new();
    for (name, state) in profiles.list() {
        let from = match state {
            Ok(offered) => {
                offered.file.as_ref().map_or("built in".to_owned(), |file| file.display().to_string())
            }
            Err(_) => "built in, withheld".to_owned(),
        };
        let (digest, about) = match state {
            Ok(offered) => (offered.digest.to_string(), offered.definition.description.clone()),
            Err(excess) => (String::new(), excess.join("; ")),
        };
        if common.format == Format::Json {
            let is_default = name == profiles.default_name();
            let about_key = if state.is_ok() { "description" } else { "withheld" };
            print::json(&json!({
                "name": name, "default": is_default, "from": from, "digest": digest, about_key: about,
            }))?;
            continue;
        }
        let mark = if name == profiles.default_name() { " (default)" } else { "" };
        rows.push([format!("{name}{mark}"), from, digest.chars().take(16).collect(), about]);
    }
    if common.format == Format::Text {
        print::table(["PROFILE", "FROM", "DIGEST", "WHAT FOR"], &rows)?;
    }
    Ok(())
}

fn run_show(show: &Show) -> anyhow::Result<()> {
    let profiles = profiles(&show.common)?;
    let offered = match profiles.get(&show.name) {
        Ok(offered) => offered,
        Err(problem) => bail!("profile {} {problem}", show.name),
    };
    let definition = &offered.definition;
    let calls = calls(&definition.sandbox);
    if show.common.format == Format::Json {
        let calls = calls.iter().map(|(group, call)| {
            let cases = match call.answer {
                Answer::When { cases, .. } => cases.iter().map(|case| case.1).collect(),
                _ => Vec::new(),
            };
            json!({"group": group, "call": call.name, "answer": call.answer.to_string(), "cases": cases, "reason": call.reason})
        });
        return Ok(print::json(&json!({
            "name": definition.sandbox.name,
            "digest": offered.digest.to_string(),
            "file": definition.to_toml(),
            "calls": calls.collect::<Vec<_>>(),
        }))?);
    }
    print::text(&format!("# digest {}\n{}", offered.digest, definition.to_toml()))?;
    print::text(&format!("# Anything that is not below answers EPERM. {}", network(definition)))?;
    let mut rows = Vec::new();
    for (group, call) in calls {
        rows.push([group.to_owned(), call.name.to_owned(), call.answer.to_string(), call.reason.to_owned()]);
        if let Answer::When { cases, .. } = call.answer {
            let case = |text: &str| [String::new(), String::new(), "allow".to_owned(), format!("  {text}")];
            rows.extend(cases.iter().map(|case_| case(case_.1)));
        }
    }
    Ok(print::table(["GROUP", "CALL", "ANSWER", "WHY"], &rows)?)
}

fn network(profile: &Definition) -> &'static str {
    match profile.sandbox.network {
        Network::None => "No socket with an address can be made.",
        Network::Loopback => "TCP reaches a loopback of the sandbox's own, and nothing else.",
        Network::Egress => "TCP reaches the agent's proxy, which connects to what `egress` names.",
    }
}

/// What a profile's filter answers otherwise than with EPERM, each call once: as its last group has it.
fn calls(profile: &Sandbox) -> Vec<(&'static str, &'static Call)> {
    let groups = [vec![Group::Base], profile.groups()].concat();
    let lists = groups.iter().map(|group| (group.name(), group.calls())).chain([("-", hostile())]);
    let all = lists.flat_map(|(name, calls)| calls.iter().map(move |call| (name, call)));
    let here = all.filter(|(_, call)| Arch::HOST.is_none_or(|arch| call.number(arch).is_some()));
    let overruled = |name: &str, group: &str| {
        let rank = |of: &str| groups.iter().position(|own| own.name() == of).map_or(0, |place| place + 1);
        groups
            .iter()
            .any(|own| rank(own.name()) > rank(group) && own.calls().iter().any(|call| call.name == name))
    };
    here.filter(|(group, call)| !overruled(call.name, group)).collect()
}

fn profiles(common: &Common) -> anyhow::Result<Profiles> {
    match &common.config {
        Some(config) => configured(config, Profiles::read),
        None => Ok(Profiles::default()),
    }
}

/// Reads what a configuration says of profiles; the faults of all else are other commands' business.
fn configured<T>(config: &Path, read: impl FnOnce(&mut Reader, &[PathBuf]) -> T) -> anyhow::Result<T> {
    const KEYS: [&str; 4] = ["agent.read_only", "agent.profiles", "agent.default_profile", "agent.ceiling"];
    let shown = config.display().to_string();
    let text = fs::read_to_string(config).with_context(|| shown.clone())?;
    let mut reader = Reader::new(Some((&shown, &text)), std::env::vars(), Vec::new());
    let read_only = reader.list::<PathBuf>("agent.read_only");
    let read = read(&mut reader, &read_only);
    let faults = reader.finish().err().map_or_else(Vec::new, |faults| faults.list().to_vec());
    let is_ours = |key: &str| key.is_empty() || KEYS.iter().any(|own| key.starts_with(own));
    let ours = faults.iter().filter(|fault| is_ours(&fault.key)).map(ToString::to_string).collect::<Vec<_>>();
    // A fault without a key is one of the file's syntax, or a variable that somebody else reads.
    let ours = ours.into_iter().filter(|fault| !fault.starts_with("environment ")).collect::<Vec<_>>();
    if ours.is_empty() { Ok(read) } else { bail!("{}", ours.join("\n")) }
}
