//! What a reader returns, and the exact faults that it reports.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use exchequer_config::{Reader, env_name, format_bytes, format_duration, parse_bytes, parse_duration};

fn reader(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Reader {
    let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let flags = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Reader::new(Some(("x.toml", file)), env.into_iter(), flags)
}

/// The lines of `finish()`'s report, without its headline.
fn faults(reader: Reader) -> Vec<String> {
    reader.finish().map_or_else(|f| f.list().iter().map(ToString::to_string).collect(), |()| Vec::new())
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let file = "[ledger]\nbatch = 1\nname = 'file'\norigin = 'file'\n";
    let env = [("EXCHEQUER_LEDGER_BATCH", "2"), ("EXCHEQUER_LEDGER_NAME", "env"), ("HOME", "/")];
    let mut r = reader(file, &env, &[("ledger.batch", "3")]);
    assert_eq!(r.get("ledger.batch", 0u32), 3);
    assert_eq!(r.get("ledger.name", String::new()), "env");
    assert_eq!(r.get("ledger.origin", String::new()), "file");
    assert_eq!(r.get("ledger.absent", 7u8), 7);
    assert_eq!(r.optional::<u8>("ledger.absent"), None);
    assert_eq!(faults(r), Vec::<String>::new());
}

#[test]
fn every_kind_of_value_is_read_from_its_text() {
    let file =
        "a = 0x10\nb = '16'\nc = true\nd = '250ms'\ne = '16MiB'\nf = 1.5\ng = ['x', 'y,z']\nh = [1, 2]\n";
    let mut r = reader(file, &[("EXCHEQUER_I", "1, 2,3")], &[("j", "p"), ("j", "q")]);
    assert_eq!(r.required::<u16>("a"), Some(16));
    assert_eq!(r.required::<u16>("b"), Some(16));
    assert!(r.get("c", false));
    let second = Duration::from_secs(1);
    assert_eq!(r.duration("d", second, Duration::ZERO..=second), Duration::from_millis(250));
    assert_eq!(r.bytes("e", 1, 0..=u64::MAX), 16 * 1024 * 1024);
    assert_eq!(r.in_range("f", 0.5, 0.0..=2.0).to_string(), "1.5");
    assert_eq!(r.list::<String>("g"), ["x", "y,z"]);
    assert_eq!(r.list::<u8>("h"), [1, 2]);
    assert_eq!(r.list::<u8>("i"), [1, 2, 3]);
    assert_eq!(r.list::<String>("j"), ["p", "q"]);
    assert_eq!(r.list::<String>("absent"), Vec::<String>::new());
    assert_eq!(faults(r), Vec::<String>::new());
}

#[test]
fn all_faults_of_all_sources_are_reported_together() {
    let file =
        "[ledger]\ngrpc_lisen = '1'\nbatch = 9000\nflush = '3 parsecs'\nmany = [1, 'x']\nnest = [[1]]\n";
    let env = [
        ("EXCHEQUER_LEDGER_GRPC_LISTEN", "nonsense"),
        ("EXCHEQUER_LEDGER_BATCHES", "1"),
        ("EXCHEQUER_Q", ""),
    ];
    let mut r = reader(file, &env, &[("ledger.once", "1"), ("ledger.once", "2"), ("zzz", "1")]);
    assert_eq!(r.required::<SocketAddr>("ledger.grpc_listen"), None);
    assert_eq!(r.in_range("ledger.batch", 256u32, 1..=512), 256);
    let second = Duration::from_secs(1);
    assert_eq!(r.duration("ledger.flush", second, second..=second), second);
    assert_eq!(r.list::<u8>("ledger.many"), [1]);
    assert_eq!(r.optional::<u8>("ledger.once"), None);
    assert_eq!(r.required::<String>("ledger.origin"), None);
    assert_eq!(
        faults(r),
        [
            "x.toml:6: `ledger.nest`: a list holds plain values only, or tables only",
            "environment EXCHEQUER_LEDGER_GRPC_LISTEN: `ledger.grpc_listen`: `nonsense`: invalid socket address syntax",
            "x.toml:3: `ledger.batch`: `9000`: must lie between 1 and 512",
            "x.toml:4: `ledger.flush`: `3 parsecs`: expected a duration such as `250ms`, `2s`, `5m`, `1h` or `7d`",
            "x.toml:5: `ledger.many`: `x`: invalid digit found in string",
            "flag: `ledger.once`: is given more than once",
            "not set: `ledger.origin`: is required (or set EXCHEQUER_LEDGER_ORIGIN)",
            "x.toml:2: `ledger.grpc_lisen`: unknown key; did you mean `ledger.grpc_listen`?",
            "environment EXCHEQUER_LEDGER_BATCHES: unknown variable; did you mean `EXCHEQUER_LEDGER_BATCH`?",
            "environment EXCHEQUER_Q: unknown variable",
            "flag: `zzz`: unknown key",
        ]
    );
}

#[test]
fn the_report_counts_and_lists_the_faults() {
    let mut r = reader("", &[], &[]);
    r.required::<u8>("a.b");
    let report = r.finish().unwrap_err().to_string();
    assert_eq!(
        report,
        "the configuration has 1 fault:\n  not set: `a.b`: is required (or set EXCHEQUER_A_B)"
    );
}

#[test]
fn syntax_errors_carry_their_lines_and_do_not_hide_other_faults() {
    let mut r = reader("a = 1\nb = = 2\n\nc = 'x'\n", &[], &[]);
    r.optional::<u8>("a");
    r.optional::<u8>("b");
    r.optional::<u8>("c");
    let lines = faults(r);
    assert!(lines.iter().any(|line| line.starts_with("x.toml:2: ")), "{lines:?}");
    assert!(lines.contains(&"x.toml:4: `c`: `x`: invalid digit found in string".to_owned()), "{lines:?}");
}

#[test]
fn arrays_of_tables_are_read_by_prefix_and_checked_like_everything_else() {
    let file = "[[ledger.enroll]]\nagent = 'a'\nweight = 1\n[[ledger.enroll]]\nagnet = 'b'\nweight = 'x'\n";
    let mut r = reader(file, &[], &[]);
    let prefixes = r.tables("ledger.enroll");
    assert_eq!(prefixes, ["ledger.enroll[0]", "ledger.enroll[1]"]);
    let agents: Vec<_> = prefixes.iter().map(|p| r.required::<String>(&format!("{p}.agent"))).collect();
    assert_eq!(agents, [Some("a".to_owned()), None]);
    let weights: Vec<_> = prefixes.iter().map(|p| r.get(&format!("{p}.weight"), 0u8)).collect();
    assert_eq!(weights, [1, 0]);
    assert_eq!(
        faults(r),
        [
            "not set: `ledger.enroll[1].agent`: is required",
            "x.toml:6: `ledger.enroll[1].weight`: `x`: invalid digit found in string",
            "x.toml:5: `ledger.enroll[1].agnet`: unknown key; did you mean `ledger.enroll[1].agent`?",
        ]
    );
}

#[test]
fn an_unknown_array_of_tables_is_one_fault_and_a_plain_value_is_not_tables() {
    let mut r = reader("enrol = 3\n[[ledgr.enroll]]\nagent = 'a'\n", &[], &[]);
    assert_eq!(r.tables("enrol"), Vec::<String>::new());
    assert_eq!(r.tables("absent"), Vec::<String>::new());
    assert_eq!(
        faults(r),
        [
            "x.toml:1: `enrol`: expected tables, written as `[[enrol]]`",
            "x.toml:2: `ledgr.enroll`: unknown key"
        ]
    );
}

#[test]
fn an_empty_section_is_accepted_only_if_something_in_it_is_known() {
    let mut r = reader("[ledger]\n[ledgr]\n", &[], &[]);
    r.get("ledger.batch", 1u8);
    assert_eq!(faults(r), ["x.toml:2: `ledgr`: unknown key"]);
}

#[test]
fn allowed_variables_and_other_components_sections_are_left_alone() {
    let env = [("EXCHEQUER_TEST", "1"), ("EXCHEQUER_METERING_X", "1"), ("EXCHEQUER_METERINGS", "1")];
    let mut r = reader("[metering]\nx = 1\n[[metering.t]]\ny = 1\n", &env, &[]);
    r.allow_env(&["EXCHEQUER_TEST"]);
    r.allow_section("metering");
    assert_eq!(faults(r), ["environment EXCHEQUER_METERINGS: unknown variable"]);
}

#[test]
fn a_component_adds_its_own_fault_at_the_place_of_the_key() {
    let mut r = reader("low = 5\nhigh = 4\n", &[], &[]);
    let (low, high) = (r.get("low", 0u8), r.get("high", 9u8));
    assert!(low > high);
    r.fault("high", "must not lie below `low`");
    assert_eq!(faults(r), ["x.toml:2: `high`: must not lie below `low`"]);
}

#[test]
fn a_fault_quotes_a_long_value_only_in_part() {
    let long = "x".repeat(1000);
    let mut r = reader("", &[("EXCHEQUER_A", &long)], &[]);
    r.optional::<u8>("a");
    let expected =
        format!("environment EXCHEQUER_A: `a`: `{}…`: invalid digit found in string", "x".repeat(64));
    assert_eq!(faults(r), [expected]);
}

#[test]
fn a_file_beyond_the_limit_is_refused_unparsed() {
    let file = "#".repeat(exchequer_config::MAX_FILE_BYTES + 1);
    assert_eq!(faults(reader(&file, &[], &[])), ["x.toml:1: the file is larger than 1048576 bytes"]);
}

#[test]
#[should_panic(expected = "a_b and a.b share the variable EXCHEQUER_A_B")]
fn two_keys_that_share_a_variable_are_a_defect() {
    let mut r = reader("", &[], &[]);
    r.get("a.b", 1u8);
    r.get("a_b", 1u8);
}

#[test]
fn a_set_default_counts_only_where_no_source_gives_the_key() {
    let mut r = reader("[ledger]\nname = 'file'\n", &[], &[]);
    r.set_default("ledger.name", "default");
    r.set_default("ledger.data", "default");
    assert_eq!(r.required::<String>("ledger.name").as_deref(), Some("file"));
    assert_eq!(r.required::<String>("ledger.data").as_deref(), Some("default"));
    assert_eq!(faults(r), Vec::<String>::new());
}

#[test]
fn quantities_round_trip_and_refuse_what_is_ambiguous() {
    for text in ["0ms", "250ms", "2s", "90s", "5m", "1h", "7d"] {
        assert_eq!(format_duration(parse_duration(text).unwrap()), text);
    }
    for text in ["0B", "512B", "64KiB", "16MiB", "3GiB", "1TiB"] {
        assert_eq!(format_bytes(parse_bytes(text).unwrap()), text);
    }
    for text in ["", "5", "s", "-1s", "1.5s", "1h30m", "10 S", "99999999999999999999s"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
    for text in ["", "5", "5kb", "5MB", "-1B", "5mib"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
    assert_eq!(parse_bytes("18446744073709551615TiB"), Err("the number is too large".to_owned()));
    assert_eq!(env_name("ledger.grpc_listen"), "EXCHEQUER_LEDGER_GRPC_LISTEN");
}

#[test]
fn a_variable_with_a_name_of_its_own_gives_a_key_and_the_usual_one_wins() {
    let env = [("AUDIT_LOG_MAX_BYTES", "500"), ("AUDIT_LOG_BACKUP_COUNT", "x"), ("EXCHEQUER_A_SIZE", "7")];
    let mut r = reader("[a]\nsize = 1\ncount = 2\n", &env, &[]);
    assert_eq!(r.get("a.size", 0), 7, "nobody has named it yet");
    r.also_env("a.size", "AUDIT_LOG_MAX_BYTES");
    assert_eq!(r.get("a.size", 0), 7);
    assert_eq!(
        faults(reader("", &env[..2], &[])),
        Vec::<String>::new(),
        "it is nobody's fault where it is not read"
    );
    let mut r = reader("[a]\nsize = 1\ncount = 2\n", &env[..2], &[]);
    r.also_env("a.size", "AUDIT_LOG_MAX_BYTES");
    r.also_env("a.count", "AUDIT_LOG_BACKUP_COUNT");
    assert_eq!((r.get("a.size", 0), r.get("a.count", 9)), (500, 9));
    assert_eq!(
        faults(r),
        ["environment AUDIT_LOG_BACKUP_COUNT: `a.count`: `x`: invalid digit found in string"]
    );
}
