//! Profile files: what is read of them, and every fault with its line.

use super::*;

fn parsed(text: &str) -> Definition {
    Definition::parse("p.toml", text).unwrap_or_else(|faults| panic!("{faults}"))
}

fn faults(text: &str) -> Vec<String> {
    let faults = Definition::parse("p.toml", text).expect_err("it has faults");
    faults.list().iter().map(ToString::to_string).collect()
}

#[test]
fn the_built_in_profiles_are_there_and_strict_is_the_narrowest() {
    let names = BUILT_IN.iter().map(|profile| profile.sandbox.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["strict", "network", "python", "node", "build"]);
    let strict = &BUILT_IN[0];
    assert_eq!((strict.sandbox.network, strict.sandbox.work.executable), (Network::None, false));
    assert!(strict.sandbox.seccomp.is_empty());
    for profile in BUILT_IN.iter() {
        assert_eq!(profile.sandbox.read_only, strict.sandbox.read_only, "{}", profile.sandbox.name);
        assert_eq!(profile.sandbox.devices, strict.sandbox.devices, "{}", profile.sandbox.name);
        assert!(profile.egress.is_empty() && !profile.description.is_empty(), "{}", profile.sandbox.name);
    }
    let limits = crate::sandbox::Limits::default();
    let Ceilings { processes, open_files, file_bytes, .. } = strict.limits;
    assert_eq!((processes, open_files, file_bytes), (limits.pids, limits.open_files, limits.file_bytes));
}

#[test]
fn a_profile_begins_with_what_it_extends_adds_to_lists_and_replaces_the_rest() {
    let text = "name = \"p\"\nextends = \"python\"\nread_only = [\"/srv/b\", \"/srv/a\", \"/usr\"]\nnetwork = \"egress\"\n\
                egress = [\"Index.example.org:443\", \"*.a.org:80\"]\n[environment]\nPATH = \"/srv/a/bin\"\n[limits]\nwall = \"5s\"\n";
    let (profile, python) = (parsed(text), &BUILT_IN[2]);
    let mut paths = python.sandbox.read_only.clone();
    paths.extend(["/srv/a", "/srv/b"].map(PathBuf::from));
    paths.sort();
    assert_eq!(profile.sandbox.read_only, paths);
    assert_eq!(profile.sandbox.network, Network::Egress);
    assert_eq!(
        profile.egress.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["index.example.org:443", "*.a.org:80"]
    );
    assert_eq!(profile.environment["PATH"], "/srv/a/bin");
    assert_eq!(profile.environment["PYTHONNOUSERSITE"], "1");
    assert_eq!(profile.limits, Ceilings { wall_ms: Some(5000), ..python.limits });
    assert_eq!(profile.sandbox.work, python.sandbox.work);

    let bare = parsed("name = \"bare\"\nextends = \"nothing\"\nread_only = [\"/opt/tool\"]\n");
    assert_eq!(bare.sandbox.read_only, [PathBuf::from("/opt/tool")]);
    assert!(bare.sandbox.devices.is_empty() && bare.environment.is_empty());
    assert_eq!(bare.environment()["HOME"], "/tmp");
    assert_eq!(parsed("name = \"p\"\n").sandbox.devices, BUILT_IN[0].sandbox.devices);
}

#[test]
fn every_fault_of_a_file_is_told_at_once_with_its_line() {
    let text = r#"name = "P!"
extends = "lax"
hostname = ""
read_only = ["usr", "/", "/usr/../etc", "/srv/"]
devices = ["../sda"]
network = "open"
egress = ["index.example.org", "*:443"]
seccomp = ["everything", "network"]
colour = "red"
[work]
path = "/proc/x"
size = "64"
max_files = 0
executable = "perhaps"
[environment]
"A-B" = "1"
[limits]
cpu = "2d"
memory = "1KiB"
processes = 100000
"#;
    let faults = faults(text);
    for expected in [
        "p.toml:1: `name`: has to match",
        "p.toml:2: `extends`: has to be one of strict, network, python, node, build, nothing",
        "p.toml:3: `hostname`",
        "p.toml:4: `read_only`: `usr` is not an absolute path",
        "p.toml:4: `read_only`: `/` is the root",
        "p.toml:4: `read_only`: `/usr/../etc` is not",
        "p.toml:4: `read_only`: `/srv/` has",
        "p.toml:5: `devices`",
        "p.toml:6: `network`: `open`: has to be one of none, loopback, egress",
        "p.toml:7: `egress`: `index.example.org`: needs a port",
        "p.toml:7: `egress`: `*:443`: needs a host",
        "p.toml:8: `seccomp`: `everything`: has to be one of threads, build",
        "p.toml:8: `seccomp`: `base` is always on",
        "p.toml:9: `colour`: unknown key",
        "p.toml:11: `work.path`: is in /proc",
        "p.toml:12: `work.size`: `64`: expected a size",
        "p.toml:13: `work.max_files`",
        "p.toml:14: `work.executable`",
        "p.toml:16: `environment.A-B`",
        "p.toml:18: `limits.cpu`: must lie between 1ms and 1d",
        "p.toml:19: `limits.memory`: must lie between 4MiB",
        "p.toml:20: `limits.processes`: `100000`: must lie between 1 and 4096",
    ] {
        assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{expected} is not in {faults:#?}");
    }
    assert_eq!(faults.len(), 22, "{faults:#?}");
}

#[test]
fn processors_are_a_decimal_number_and_input_and_output_a_size() {
    for (text, milli) in
        [("2", 2000), ("0.5", 500), ("\"1.25\"", 1250), ("0.01", 10), ("0.125", 125), ("4096.0", 4_096_000)]
    {
        let limits = parsed(&format!("name = \"p\"\n[limits]\ncpus = {text}\n")).limits;
        assert_eq!((limits.cpus_milli, limits.io_bytes_per_s), (Some(milli), None), "{text}");
    }
    let limits = parsed("name = \"p\"\n[limits]\nio_per_second = \"32MiB\"\n").limits;
    assert_eq!((limits.cpus_milli, limits.io_bytes_per_s), (None, Some(32 << 20)));

    let (odd, range) = ("expected a number of processors such as `0.5`", "must lie between 0.01 and 4096");
    for (text, expected) in [
        ("0", range),
        ("0.0", range),
        ("0.009", range),
        ("4096.001", range),
        ("\"99999999999999999999\"", range),
        ("-1", odd),
        ("-0.5", odd),
        ("nan", odd),
        ("inf", odd),
        ("1e3", odd),
        ("0.0001", odd),
        ("\"\"", odd),
        ("\".5\"", odd),
        ("\"1.\"", odd),
        ("\"half\"", odd),
    ] {
        let faults = faults(&format!("name = \"p\"\n[limits]\ncpus = {text}\n"));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(
            faults[0].starts_with("p.toml:3: `limits.cpus`: ") && faults[0].contains(expected),
            "{faults:?}"
        );
    }
    for (text, expected) in [
        ("0B", "must lie between 1MiB and 1TiB"),
        ("1023KiB", "must lie between 1MiB and 1TiB"),
        ("2TiB", "must lie between 1MiB and 1TiB"),
        ("-1MiB", "expected a size"),
        ("32", "expected a size"),
    ] {
        let faults = faults(&format!("name = \"p\"\n[limits]\nio_per_second = \"{text}\"\n"));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains("`limits.io_per_second`: ") && faults[0].contains(expected), "{faults:?}");
    }
}

#[test]
fn contradictions_within_a_file_are_faults() {
    for (text, expected) in [
        ("", "not set: `name`: is required"),
        ("name = \"p\"\negress = [\"a.org:443\"]\n", "p.toml:2: `egress`: has rules, but `network` is not"),
        ("name = \"p\"\n[work]\npath = \"/usr/tmp\"\n", "p.toml:3: `work.path`: is in `/usr`"),
        ("name = \"p\"\nread_only = [\"/tmp\"]\n", "not set: `work.path`: is in `/tmp`"),
        ("name = \"p\"\nenvironment = \"x\"\n", "p.toml:2: `environment`: expected a table"),
        ("name = \"p\"\n[environment]\na.b = \"x\"\n", "p.toml:3: `environment.a.b`: has to be named"),
        (
            "name = \"p\"\nlimit.cpu = \"1s\"\n",
            "p.toml:2: `limit.cpu`: unknown key; did you mean `limits.cpu`?",
        ),
        ("name = ", "p.toml:1: "),
    ] {
        let faults = faults(text);
        assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{expected} is not in {faults:?}");
        assert!(faults.iter().all(|fault| !fault.contains("EXCHEQUER_")), "{faults:?}");
    }
}

#[test]
fn a_profile_written_out_reads_back_as_itself() {
    let text = "name = \"p\"\ndescription = \"a \\\"quoted\\\" one\"\nextends = \"build\"\nnetwork = \"egress\"\negress = [\"[::1]:80\"]\n\
                [environment]\nX = \"a\\nb\\\\\"\n[limits]\ncpu = \"90s\"\nmemory = \"3GiB\"\negress = \"0B\"\n\
                cpus = 0.25\nio_per_second = \"3MiB\"\n";
    for profile in BUILT_IN.iter().map(|profile| Definition::clone(profile)).chain([parsed(text)]) {
        assert_eq!(parsed(&profile.to_toml()), profile);
    }
}

#[test]
fn every_enforced_field_is_in_the_digest_and_the_description_is_not() {
    let base = parsed("name = \"p\"\nextends = \"nothing\"\n");
    let with = |change: &dyn Fn(&mut Definition)| {
        let mut changed = base.clone();
        change(&mut changed);
        changed.digest()
    };
    assert_eq!(with(&|p| p.description.push('x')), base.digest());
    let rule = || "a.org:443".parse::<Rule>().unwrap();
    let changes: &[&dyn Fn(&mut Definition)] = &[
        &|p| p.sandbox.name.push('x'),
        &|p| p.sandbox.hostname.push('x'),
        &|p| p.sandbox.read_only.push("/usr".into()),
        &|p| p.sandbox.devices.push("null".into()),
        &|p| p.sandbox.network = Network::Loopback,
        &|p| p.sandbox.seccomp.push(Group::Threads),
        &|p| p.sandbox.work.path.push("x"),
        &|p| p.sandbox.work.size_bytes += 1,
        &|p| p.sandbox.work.max_files += 1,
        &|p| p.sandbox.work.executable = true,
        &|p| p.egress.push(rule()),
        &|p| drop(p.environment.insert("A".into(), "B".into())),
        &|p| drop(p.environment.insert("A".into(), "C".into())),
        &|p| p.limits.cpu_ms = Some(1),
        &|p| p.limits.wall_ms = Some(1),
        &|p| p.limits.memory_bytes = Some(1),
        &|p| p.limits.output_bytes = Some(1),
        &|p| p.limits.egress_bytes = Some(1),
        &|p| p.limits.processes += 1,
        &|p| p.limits.open_files += 1,
        &|p| p.limits.file_bytes += 1,
        &|p| p.limits.cpus_milli = Some(1),
        &|p| p.limits.io_bytes_per_s = Some(1),
    ];
    let digests = changes.iter().map(|change| with(change)).chain([base.digest()]);
    let distinct = digests.collect::<std::collections::BTreeSet<_>>();
    assert_eq!(distinct.len(), changes.len() + 1);
}

#[test]
fn the_canonical_form_is_the_documented_one() {
    let base = parsed(
        "name = \"p\"\nextends = \"nothing\"\n[limits]\ncpu = \"1s\"\ncpus = 1.5\n[environment]\nA = \"B\"\n",
    );
    let one = 1_u64.to_be_bytes();
    let (none, two) = (0_u64.to_be_bytes(), 2_u64.to_be_bytes());
    let fields: &[&[u8]] = &[
        b"name",
        &one,
        b"p",
        b"hostname",
        &one,
        b"sandbox",
        b"read_only",
        &none,
        b"devices",
        &none,
        b"network",
        &one,
        b"none",
        b"egress",
        &none,
        b"seccomp",
        &none,
        b"work.path",
        &one,
        b"/tmp",
        b"work.size",
        &one,
        b"67108864",
        b"work.max_files",
        &one,
        b"16384",
        b"work.executable",
        &one,
        b"false",
        b"environment",
        &two,
        b"A",
        b"B",
        b"limits.cpu",
        &one,
        b"1000",
        b"limits.wall",
        &none,
        b"limits.memory",
        &none,
        b"limits.output",
        &none,
        b"limits.egress",
        &none,
        b"limits.processes",
        &one,
        b"64",
        b"limits.open_files",
        &one,
        b"256",
        b"limits.file_size",
        &one,
        b"67108864",
        b"limits.cpus",
        &one,
        b"1500",
    ];
    let digest = |fields: &[&[u8]]| Purpose::Profile.digest_fields(fields.iter().copied());
    assert_eq!(base.digest(), digest(fields));
    let mut both = base.clone();
    both.limits.io_bytes_per_s = Some(1 << 20);
    let io: [&[u8]; 3] = [b"limits.io_per_second", &one, b"1048576"];
    assert_eq!(both.digest(), digest(&[fields, &io[..]].concat()));
    let mut neither = base.clone();
    neither.limits.cpus_milli = None;
    assert_eq!(neither.digest(), digest(&fields[..fields.len() - 3]));
}

#[test]
fn a_profile_keeps_the_digest_that_it_had_before_there_were_limits_that_it_does_not_set() {
    let strict = "4243b0c9211a969421b78297f2bd6081695bb30e757dcda7ddbae3f419ed7eaf";
    assert_eq!(BUILT_IN[0].digest().to_string(), strict);
}

#[test]
fn a_profile_has_each_limit_of_what_it_extends_that_it_does_not_set_itself() {
    let base = parsed(
        "name = \"base\"\n[limits]\ncpu = \"1s\"\nwall = \"2s\"\nmemory = \"64MiB\"\noutput = \"1MiB\"\negress = \"1KiB\"\n\
         processes = 3\nopen_files = 16\nfile_size = \"2MiB\"\ncpus = 0.5\nio_per_second = \"4MiB\"\n",
    );
    let bases = [Arc::new(base.clone())];
    let extended = |limits: &str| {
        let text = format!("name = \"p\"\nextends = \"base\"\n[limits]\n{limits}");
        parse("p.toml", &text, &bases).unwrap_or_else(|faults| panic!("{faults}")).limits
    };
    assert_eq!(extended(""), base.limits);
    assert_eq!(extended("cpus = 2\n"), Ceilings { cpus_milli: Some(2000), ..base.limits });
    let most = Some(8 << 20);
    assert_eq!(extended("io_per_second = \"8MiB\"\n"), Ceilings { io_bytes_per_s: most, ..base.limits });
}
