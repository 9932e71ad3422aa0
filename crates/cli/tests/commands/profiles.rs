//! `exchequer profile`, which needs no agent.

use std::fs;

use serde_json::Value as Json;

use crate::up::exchequer;

#[test]
fn a_profile_is_checked_by_itself_and_against_a_configuration() {
    let dir = exchequer_testkit::temp_dir();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pip =
        "name = \"pip\"\nextends = \"python\"\nnetwork = \"egress\"\negress = [\"index.example.org:443\"]\n";
    let pip = file("pip.toml", pip);
    assert!(
        exchequer(["profile", "check", &pip]).ok().starts_with("pip: no faults; digest of the file alone ")
    );

    let closed = file("closed.toml", "[agent]\nid = \"a\"\n");
    let said = exchequer(["profile", "check", &pip, "--config", &closed]);
    assert_eq!(said.status, 1, "{}", said.stderr);
    assert!(
        said.stdout.contains("`egress`: \"index.example.org:443\" is beyond agent.ceiling.egress"),
        "{}",
        said.stdout
    );
    let open = file(
        "open.toml",
        "[agent]\nid = \"a\"\nceiling.egress = [\"*.index.example.org:443\", \"index.example.org:443\"]\n",
    );
    exchequer(["profile", "check", &pip, "--config", &open]).ok();

    let broken = file("broken.toml", "name = \"broken\"\nnetwork = \"open\"\n[work]\nsize = 1\n");
    let said = exchequer(["profile", "check", &broken]);
    assert_eq!((said.status, said.stdout.lines().count()), (1, 2), "{}", said.stdout);
    assert!(
        said.stdout.contains("broken.toml:2: `network`")
            && said.stdout.contains("broken.toml:4: `work.size`")
    );
    let said = exchequer(["profile", "check", &broken, "--format", "json"]);
    let said: Json = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said["faults"].as_array().unwrap().len(), 2);
    exchequer(["profile", "check", "/no/such/file.toml"]).fails(2, &["/no/such/file.toml"]);
    let odd = file("odd.toml", "[agent]\nceiling.networks = [\"all\"]\n");
    exchequer(["profile", "check", &pip, "--config", &odd])
        .fails(2, &["agent.ceiling.networks", "has to be one of"]);
}

#[test]
fn the_digest_under_a_configuration_is_the_one_that_its_agent_offers() {
    let dir = exchequer_testkit::temp_dir();
    let (own, config) = (dir.path().join("own"), dir.path().join("exchequer.toml"));
    fs::create_dir(&own).unwrap();
    let file = own.join("slow.toml");
    fs::write(&file, "name = \"slow\"\nextends = \"python\"\n").unwrap();
    let (file, shown) = (file.to_str().unwrap(), config.to_str().unwrap());
    let check = |rest: &[&str]| {
        let mut said =
            exchequer([&["profile", "check", file, "--format", "json"], rest].concat()).json_lines();
        said.remove(0)
    };
    let alone = check(&[]);
    assert_eq!(alone["digest_of"], "file");
    for narrowing in ["ceiling.cpus = 0.5", "ceiling.io_per_second = \"8MiB\"", "read_only = [\"/opt\"]"] {
        fs::write(&config, format!("[agent]\nprofiles = {own:?}\n{narrowing}\n")).unwrap();
        let listed = exchequer(["profile", "list", "--format", "json", "--config", shown]).json_lines();
        let offered = listed.iter().find(|line| line["name"] == "slow").unwrap();
        let checked = check(&["--config", shown]);
        assert_eq!(
            (&checked["digest"], &checked["digest_of"]),
            (&offered["digest"], &"agent".into()),
            "{narrowing}"
        );
        assert_ne!(checked["digest"], alone["digest"], "{narrowing}");
    }
    // Nothing is narrowed.
    fs::write(&config, format!("[agent]\nprofiles = {own:?}\n")).unwrap();
    assert_eq!(check(&["--config", shown])["digest"], alone["digest"]);
}

#[test]
fn profiles_are_listed_with_what_is_withheld_and_shown_with_every_call_and_its_reason() {
    let listed = exchequer(["profile", "list"]).ok();
    for name in ["build", "network", "node", "python", "strict (default)"] {
        assert!(
            listed.lines().any(|line| line.starts_with(&format!("{name} "))),
            "{name} is not in {listed}"
        );
    }
    let dir = exchequer_testkit::temp_dir();
    let config = dir.path().join("exchequer.toml");
    fs::write(&config, "[agent]\ndefault_profile = \"python\"\nceiling.executable_work = false\n").unwrap();
    let listed =
        exchequer(["profile", "list", "--format", "json", "--config", config.to_str().unwrap()]).json_lines();
    let of = |name: &str| listed.iter().find(|line| line["name"] == name).unwrap();
    assert_eq!(of("python")["default"], true);
    assert!(of("build")["withheld"].as_str().unwrap().contains("agent.ceiling.executable_work"));

    let strict = exchequer(["profile", "show", "strict"]).ok();
    for line in ["read_only = [", "size = \"64MiB\"", "PATH = \"/usr/local/bin:/usr/bin:/bin\""] {
        assert!(strict.contains(line), "{line} is not in {strict}");
    }
    let row = |shown: &str, call: &str| {
        let found = shown.lines().find(|line| line.split_whitespace().nth(1) == Some(call));
        found.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(row(&strict, "read").unwrap(), "base read allow input");
    assert_eq!(
        row(&strict, "io_uring_setup").unwrap(),
        "- io_uring_setup kill system calls that no filter sees"
    );
    assert_eq!(row(&strict, "socket"), None);
    let node = exchequer(["profile", "show", "node"]).ok();
    assert!(row(&node, "io_uring_setup").unwrap().starts_with("threads io_uring_setup ENOSYS"));
    let network = exchequer(["profile", "show", "network", "--format", "json"]).json_lines();
    let calls = network[0]["calls"].as_array().unwrap();
    let socket = calls.iter().find(|call| call["call"] == "socket").unwrap();
    assert_eq!((&socket["group"], &socket["answer"]), (&"network".into(), &"by argument, else EPERM".into()));
    assert_eq!(socket["cases"][0], "TCP over IPv4");
    // What is shown is a profile file.
    let shown = strict.split("# Anything").next().unwrap();
    fs::write(dir.path().join("strict.toml"), shown).unwrap();
    exchequer(["profile", "check", dir.path().join("strict.toml").to_str().unwrap()]).ok();
    exchequer(["profile", "show", "lax"]).fails(2, &["has to be one of build"]);
}
