//! docs/sandbox.md says of the probes what the table says, and of the layers what the suite sees.
//!
//! With `EXCHEQUER_WRITE_DOCS` set the tables are written instead of compared; with one thread, since they are in one file.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use sandbox_agent::probes::{Contrast, Guard, Mutation, Probe, Seen, table};
use sandbox_agent::sandbox::Layer;

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/sandbox.md")
}

/// The text between two marks.
fn between<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (before, rest) = text.split_once(&format!("<!-- {name} -->\n")).unwrap();
    let (inner, after) = rest.split_once(&format!("<!-- end of {name} -->")).unwrap();
    (before, inner, after)
}

/// Replaces it, if that was asked for. Says whether it was.
fn write(name: &str, inner: &str) -> bool {
    if std::env::var_os("EXCHEQUER_WRITE_DOCS").is_none() {
        return false;
    }
    let text = fs::read_to_string(docs()).unwrap();
    let (before, _, after) = between(&text, name);
    fs::write(docs(), format!("{before}<!-- {name} -->\n{inner}<!-- end of {name} -->{after}")).unwrap();
    true
}

fn row(probe: &Probe) -> String {
    let stop = |stop: &table::Stop| {
        let seen = match &stop.seen {
            Seen::Killed(libc::SIGSYS) => "SIGSYS".to_owned(),
            Seen::Killed(libc::SIGXFSZ) => "SIGXFSZ".to_owned(),
            other => other.to_string(),
        };
        match stop.guard {
            Guard::Layer(layer) => format!("`{layer}` {seen}"),
            Guard::Engine => format!("the engine: {seen}"),
        }
    };
    let mut stops = probe.stops.iter().map(stop).collect::<Vec<_>>().join("; ");
    if !probe.without.is_empty() {
        let off = probe.without.iter().map(|layer| format!("`{layer}`")).collect::<Vec<_>>().join(", ");
        write!(stops, " ({off} off)").unwrap();
    }
    let control = match probe.contrast {
        Contrast::Inside => "inside",
        Contrast::Outside => "outside",
        Contrast::Answers => "inside, another answer",
    };
    let root = if probe.root_only { " (root only)" } else { "" };
    format!("| `{}` | {}{root} | {stops} | {control} |\n", probe.name, probe.what)
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_table_of_probes_is_the_documented_one() {
    let head = "| Probe | The attack | What stops it, each by itself | Control |\n|---|---|---|---|\n";
    let made = head.to_owned() + &table::all().map(row).collect::<String>();
    if !write("probes", &made) {
        assert_eq!(between(&fs::read_to_string(docs()).unwrap(), "probes").1, made);
    }
}

/// The results are of a run on one host; what can be compared are names.
#[test]
fn documented_results_are_of_probes() {
    let text = fs::read_to_string(docs()).unwrap();
    let names =
        between(&text, "results").1.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for name in names {
        assert!(table::named(name.split('/').next().unwrap()).is_some(), "{name}");
    }
}

/// For each layer the documented names are of probes, and one of them at least noticed; a host that lacks other layers may notice by fewer.
pub fn mutations_are_documented(mutations: &[Mutation]) {
    let names = |noticed: &[(String, Seen)]| {
        noticed.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let mut made =
        "| Layer off | Noticed by | Noticed by probes with only this layer in their way |\n|---|---|---|\n"
            .to_owned();
    for mutation in mutations {
        let seen = (names(&mutation.noticed), names(&mutation.noticed_alone));
        writeln!(made, "| `{}` | {} | {} |", mutation.layer, seen.0, seen.1).unwrap();
    }
    if write("mutations", &made) {
        return;
    }
    let text = fs::read_to_string(docs()).unwrap();
    let documented = between(&text, "mutations").1;
    for mutation in mutations.iter().filter(|mutation| mutation.available) {
        let start = format!("| `{}` |", mutation.layer);
        let row =
            documented.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{start}"));
        let documented = row[start.len()..].split('`').skip(1).step_by(2).collect::<Vec<_>>();
        let probes = documented.iter().map(|name| name.split('/').next().unwrap());
        assert!(probes.clone().all(|name| table::named(name).is_some()), "{row}");
        let noticed = mutation.noticed.iter().chain(&mutation.noticed_alone).map(|(name, _)| name.as_str());
        assert!(noticed.clone().any(|name| documented.contains(&name)), "{row}: {mutation:?}");
    }
    assert_eq!(documented.lines().count(), Layer::ALL.len() + 2);
}
