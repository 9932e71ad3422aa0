//! The operator's profiles under the ceiling.

use super::*;
use crate::sandbox::Network;

/// Profiles read with `[agent]` as given and a directory with these files, and all faults.
fn read(section: &str, files: &[(&str, &str)]) -> (Profiles, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let text = format!("[agent]\nprofiles = {:?}\n{section}", directory.path());
    let mut reader = Reader::new(Some(("exchequer.toml", &text)), std::iter::empty(), Vec::new());
    let profiles = Profiles::read(&mut reader, &[PathBuf::from("/opt/tools")]);
    let faults = reader.finish().err().map(|faults| faults.list().iter().map(ToString::to_string).collect());
    (profiles, faults.unwrap_or_default())
}

fn names(profiles: &Profiles) -> Vec<&str> {
    profiles.names().collect()
}

#[test]
fn without_configuration_the_built_in_profiles_are_offered_and_strict_is_the_default() {
    let profiles = Profiles::default();
    assert_eq!(names(&profiles), ["build", "network", "node", "python", "strict"]);
    let default = profiles.get("").unwrap();
    assert_eq!(default.definition, *built_in("strict").unwrap());
    assert_eq!(default.digest, default.definition.digest());
    assert_eq!(profiles.get("lax").unwrap_err(), "has to be one of build, network, node, python, strict");
}

#[test]
fn a_file_adds_a_profile_or_replaces_one_of_its_name() {
    let files = [
        ("tool.toml", "name = \"tool\"\nread_only = [\"/opt/tools/x\"]\n"),
        ("python.toml", "name = \"python\"\nextends = \"python\"\n[limits]\nwall = \"5s\"\n"),
        ("notes.txt", "not a profile"),
    ];
    let (profiles, faults) = read("default_profile = \"tool\"\n", &files);
    assert_eq!(faults, [""; 0]);
    assert_eq!(names(&profiles), ["build", "network", "node", "python", "strict", "tool"]);
    assert_eq!(profiles.get("python").unwrap().definition.limits.wall_ms, Some(5000));
    let default = profiles.get("").unwrap();
    assert_eq!(default.definition.sandbox.name, "tool");
    assert!(default.file.is_some() && profiles.get("strict").unwrap().file.is_none());
}

#[test]
fn paths_that_the_configuration_adds_are_in_every_profile_and_its_digest() {
    let (profiles, faults) = read("", &[]);
    assert_eq!(faults, [""; 0]);
    for (name, offered) in profiles.list() {
        let offered = offered.unwrap();
        assert!(offered.definition.sandbox.read_only.contains(&PathBuf::from("/opt/tools")), "{name}");
        assert_eq!(offered.digest, offered.definition.digest(), "{name}");
        assert_ne!(offered.digest, built_in(name).unwrap().digest(), "{name}");
    }
}

#[test]
fn every_profile_wider_than_the_ceiling_is_told_at_once() {
    let wide = "name = \"wide\"\nread_only = [\"/home\", \"/usr/share\", \"/usrlocal\"]\ndevices = [\"kvm\"]\nnetwork = \"egress\"\n\
                egress = [\"a.org:443\", \"b.a.org:443\", \"b.org:443\"]\nseccomp = [\"threads\", \"build\"]\n\
                [work]\nsize = \"2GiB\"\nexecutable = true\nmax_files = 262145\n\
                [limits]\nprocesses = 257\nopen_files = 1025\nfile_size = \"1GiB\"\n\
                cpus = 2.5\nio_per_second = \"3MiB\"\n";
    let section = "ceiling.networks = [\"none\"]\nceiling.egress = [\"*.a.org:443\"]\nceiling.seccomp = [\"threads\"]\n\
                   ceiling.executable_work = false\nceiling.cpus = 2\nceiling.io_per_second = \"2MiB\"\n";
    let broken = "name = \"other\"\nsize = 1\n";
    let (_, faults) = read(section, &[("wide.toml", wide), ("broken.toml", broken)]);
    let expected = [
        "`size`: unknown key",
        "`network`: \"egress\" is beyond agent.ceiling.networks",
        "`egress`: \"a.org:443\" is beyond agent.ceiling.egress",
        "`egress`: \"b.org:443\" is beyond agent.ceiling.egress",
        "`read_only`: \"/home\" is beyond agent.ceiling.read_only",
        "`read_only`: \"/usrlocal\" is beyond agent.ceiling.read_only",
        "`devices`: \"kvm\" is beyond agent.ceiling.devices",
        "`seccomp`: \"build\" is beyond agent.ceiling.seccomp",
        "`work.executable`: true is beyond agent.ceiling.executable_work",
        "`work.size`: 2GiB is beyond agent.ceiling.work_size",
        "`work.max_files`: 262145 is beyond agent.ceiling.max_files",
        "`limits.processes`: 257 is beyond agent.ceiling.processes",
        "`limits.open_files`: 1025 is beyond agent.ceiling.open_files",
        "`limits.file_size`: 1GiB is beyond agent.ceiling.file_size",
        "`limits.cpus`: 2.5 is beyond agent.ceiling.cpus",
        "`limits.io_per_second`: 3MiB is beyond agent.ceiling.io_per_second",
    ];
    for expected in expected {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected} is not in {faults:#?}");
    }
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
}

#[test]
fn a_profile_without_rates_has_those_of_the_ceiling_and_its_digest_says_so() {
    let files = [
        ("free.toml", "name = \"free\"\n"),
        ("slow.toml", "name = \"slow\"\n[limits]\ncpus = 0.25\nio_per_second = \"1MiB\"\n"),
    ];
    let section = "ceiling.cpus = 1.5\nceiling.io_per_second = \"8MiB\"\n";
    for (section, free, slow) in [
        (section, (Some(1500), Some(8 << 20)), (Some(250), Some(1 << 20))),
        ("", (None, None), (Some(250), Some(1 << 20))),
    ] {
        let (profiles, faults) = read(section, &files);
        assert_eq!(faults, [""; 0]);
        for (name, expected) in [("free", free), ("strict", free), ("slow", slow)] {
            let offered = profiles.get(name).unwrap();
            let Ceilings { cpus_milli, io_bytes_per_s, .. } = offered.definition.limits;
            assert_eq!((cpus_milli, io_bytes_per_s), expected, "{name} under {section:?}");
            assert_eq!(offered.digest, offered.definition.digest(), "{name} under {section:?}");
        }
    }
    let digest = |section: &str, name: &str| read(section, &files).0.get(name).unwrap().digest;
    assert_ne!(digest(section, "free"), digest("", "free"));
    assert_eq!(digest(section, "slow"), digest("", "slow"));
}

#[test]
fn a_ceiling_over_rates_is_read_as_profiles_write_them() {
    let (_, faults) = read("ceiling.cpus = 0\nceiling.io_per_second = \"1KiB\"\n", &[]);
    for expected in [
        "`agent.ceiling.cpus`: `0`: must lie between 0.01 and 4096",
        "`agent.ceiling.io_per_second`: must lie between 1MiB and 1TiB",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected} is not in {faults:?}");
    }
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn a_read_only_path_that_holds_a_work_area_is_a_fault() {
    let mut reader = Reader::new(Some(("exchequer.toml", "[agent]\n")), std::iter::empty(), Vec::new());
    let _ = Profiles::read(&mut reader, &[PathBuf::from("/opt"), PathBuf::from("/tmp")]);
    let faults = reader.finish().unwrap_err().to_string();
    assert!(faults.contains("`/tmp` holds the work area of profile `strict`"), "{faults}");
}

#[test]
fn a_built_in_profile_wider_than_the_ceiling_is_withheld_and_only_as_the_default_a_fault() {
    let (profiles, faults) = read("ceiling.executable_work = false\nceiling.networks = [\"none\"]\n", &[]);
    assert_eq!(faults, [""; 0]);
    assert_eq!(names(&profiles), ["node", "python", "strict"]);
    let refused = profiles.get("build").unwrap_err();
    assert!(refused.contains("wider than this agent allows: `work.executable`"), "{refused}");
    let (_, faults) = read("ceiling.executable_work = false\ndefault_profile = \"build\"\n", &[]);
    assert!(faults.len() == 1 && faults[0].contains("`agent.default_profile`: is wider"), "{faults:?}");
    let (_, faults) = read("default_profile = \"lax\"\n", &[]);
    assert!(
        faults.len() == 1 && faults[0].contains("`agent.default_profile`: has to be one of"),
        "{faults:?}"
    );
    // An empty list is a ceiling too, not the default.
    let (profiles, faults) = read("ceiling.seccomp = []\n", &[]);
    assert_eq!((names(&profiles), faults.len()), (vec!["network", "strict"], 0));
}

#[test]
fn an_egress_rule_within_the_ceiling_is_allowed() {
    let text = "name = \"pip\"\nextends = \"python\"\nnetwork = \"egress\"\negress = [\"index.example.org:443\", \"files.files.example.org:443\"]\n";
    let ceiling = "ceiling.egress = [\"index.example.org:443\", \"*.files.example.org:443\"]\n";
    let (profiles, faults) = read(ceiling, &[("pip.toml", text)]);
    assert_eq!(faults, [""; 0]);
    assert_eq!(profiles.get("pip").unwrap().definition.sandbox.network, Network::Egress);
}

#[test]
fn a_file_that_can_not_be_a_profile_is_a_fault_with_its_name() {
    for (file, text, expected) in [
        ("a.toml", "name = \"b\"\n".to_owned(), "a.toml: `name`: `b` is not the file's name"),
        ("a.toml", "#".repeat(70_000), "a.toml: larger than 65536 bytes"),
        ("a.toml", "name = [".to_owned(), "a.toml:1: "),
    ] {
        let (_, faults) = read("", &[(file, &text)]);
        assert!(
            !faults.is_empty() && faults.iter().any(|fault| fault.contains(expected)),
            "{expected}: {faults:?}"
        );
    }
    let mut reader = Reader::new(
        Some(("exchequer.toml", "[agent]\nprofiles = \"/nowhere/at/all\"\n")),
        std::iter::empty(),
        Vec::new(),
    );
    let _ = Profiles::read(&mut reader, &[]);
    assert!(reader.finish().unwrap_err().to_string().contains("/nowhere/at/all: No such file"));
}
