//! What the kernel's files say is read as they mean it, and real leaves limit, count, kill and disappear.

use std::process::{Child, Command, Stdio};

use super::super::control::ControlStatus;
use super::super::spec::Limits;
use super::places::{Found, find, member_path};
use super::*;

fn places(cgroup: &str, mountinfo: &str) -> Vec<(Version, Vec<Controller>, String)> {
    find(cgroup, mountinfo)
        .into_iter()
        .map(|Found { version, controllers, own, .. }| {
            (version, controllers, own.to_str().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn a_hybrid_host_has_each_controller_where_it_is_mounted() {
    let cgroup = "9:name=systemd:/\n8:pids:/\n4:memory:/slice/a b\n2:cpu,cpuacct:/x\n0::/unit\n";
    let mountinfo = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw,relatime - cgroup cgroup rw,memory\n\
        39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        42 31 0:36 / /elsewhere/pids rw,relatime - cgroup cgroup rw,pids\n";
    let expected = [
        (Version::V1, vec![Controller::Cpu, Controller::CpuTime], "/sys/fs/cgroup/cpu,cpuacct/x"),
        (Version::V1, vec![Controller::Memory], "/sys/fs/cgroup/mem ory/slice/a b"),
        (Version::V1, vec![Controller::Pids], "/sys/fs/cgroup/pids"),
        (Version::V2, vec![], "/sys/fs/cgroup/unified/unit"),
    ];
    assert_eq!(places(cgroup, mountinfo), expected.map(|(v, c, path)| (v, c, path.to_owned())));
}

#[test]
fn what_a_container_sees_of_its_hierarchy_starts_at_its_own_root() {
    let mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    let own = |path: &str| places(&format!("4:memory:{path}\n"), mount);
    let memory = |path: &str| vec![(Version::V1, vec![Controller::Memory], path.to_owned())];
    assert_eq!(own("/docker/abc"), memory("/sys/fs/cgroup/memory"));
    assert_eq!(own("/docker/abc/below"), memory("/sys/fs/cgroup/memory/below"));
    // Neither a neighbour's, nor one outside of what may be named.
    assert_eq!(own("/docker/abcd"), []);
    assert_eq!(own("/docker/abc/../x"), []);
    assert_eq!(own("/"), []);
}

#[test]
fn a_members_path_is_that_of_the_hierarchy_asked_for() {
    let list = "4:memory:/m\n2:cpu,cpuacct:/c\n0::/two:odd\n";
    assert_eq!(member_path(list, Version::V1, "cpuacct"), Some("/c"));
    assert_eq!(member_path(list, Version::V1, "pids"), None);
    assert_eq!(member_path(list, Version::V2, "memory"), Some("/two:odd"));
}

#[test]
fn counters_are_read_by_their_whole_names() {
    let events = "low 0\noom 7\noom_kill 3\noom_group_kill 1";
    assert_eq!(keyed(events, "oom_kill"), Some(3));
    assert_eq!(keyed(events, "oom"), Some(7));
    assert_eq!(keyed(events, "oom_ki"), None);
    let v1 = "8:0 Read 10\n8:0 Write 4\n8:0 Sync 14\n8:0 Total 14\n8:16 Read 1\nTotal 15";
    assert_eq!(v1::parse_io(v1), IoBytes { read: 11, written: 4 });
    let v2 = "8:16 rbytes=1459200 wbytes=314773504 rios=192 dbytes=0\n8:0 rbytes=100 wbytes=1 wios=9";
    assert_eq!(v2::parse_io(v2), IoBytes { read: 1_459_300, written: 314_773_505 });
}

#[test]
fn a_limit_counts_as_set_only_if_no_more_than_a_page_was_rounded_away() {
    assert!(is_rounded(Some(8192), 8192) && is_rounded(Some(8192), 9000));
    assert!(!is_rounded(Some(8193), 8192) && !is_rounded(Some(0), 1 << 20) && !is_rounded(None, 8192));
    assert!(swap_is_limited(Some(true)) && !swap_is_limited(Some(false)));
}

fn limits() -> Limits {
    Limits { memory_bytes: 64 << 20, pids: 17, ..Limits::default() }
}

fn parent_of(hierarchy: Hierarchy) -> Parent {
    Parent { name: "exchequer-1-2".to_owned(), hierarchies: vec![hierarchy], problems: vec![] }
}

fn owned(devices: &[&str]) -> Vec<String> {
    devices.iter().map(|device| (*device).to_owned()).collect()
}

/// A leaf over directories of plain files, as a kernel of version 2 would make them.
fn version_2_leaf(dir: &Path, swap: bool) -> Leaf {
    let files = ["memory.max", "memory.oom.group", "pids.max", "cpu.max", "io.max", PROCS];
    for file in files.iter().copied().chain(swap.then_some("memory.swap.max")) {
        fs::write(dir.join(file), "").unwrap();
    }
    fs::write(dir.join("cpu.stat"), "usage_usec 5\nuser_usec 2000\nsystem_usec 3000\n").unwrap();
    let hierarchy = Hierarchy {
        version: Version::V2,
        holds: Controller::ALL.to_vec(),
        dir: dir.parent().unwrap().to_owned(),
        lock: open_dir(dir).unwrap(),
    };
    let mut refusals = vec![];
    let mut leaf = Leaf::open(&parent_of(hierarchy), 7).unwrap();
    let limits = Limits { cpus_milli: 1500, io_bytes_per_s: 1 << 20, ..limits() };
    leaf.limit_with(&limits, &Ok(owned(&["8:0"])), &mut refusals);
    assert!(refusals.is_empty(), "{refusals:?}");
    leaf
}

#[test]
fn version_2_gets_its_limits_and_is_judged_by_what_its_files_say() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    let leaf = version_2_leaf(&dir, true);
    let inside = "0::/slice/exchequer-1-2/7\n";
    let devices = Ok(owned(&["8:0"]));
    let Held { status, evidence, .. } = leaf.judge(inside, &devices);
    assert_eq!(status, ControlStatus::Enforced, "{evidence}");
    for held in [
        "memory.max=67108864, memory.swap.max=0, memory.oom.group=1",
        "pids.max=17",
        "cpu.max=150000 100000",
        ": 1048576 bytes/s each way, block devices: 1 (8:0)",
    ] {
        assert!(evidence.contains(held), "{held} is not in {evidence}");
    }
    // Another leaf's member.
    assert_eq!(leaf.judge("0::/slice/exchequer-1-2/77\n", &devices).status, ControlStatus::Unavailable);
    assert_eq!(leaf.cpu_used(), Some(CpuTime { user_us: 2000, system_us: 3000 }));
    // As the kernel prints it.
    fs::write(dir.join("io.max"), "7:0 rbps=5 wbps=5\n8:0 rbps=1048576 wbps=1048576 riops=max wiops=max\n")
        .unwrap();
    assert_eq!(leaf.judge(inside, &devices).status, ControlStatus::Enforced);
    for (file, value) in [
        ("memory.swap.max", "max"),
        ("pids.max", "max"),
        ("cpu.max", "max 100000"),
        ("io.max", ""),
        ("io.max", "8:0 rbps=1048576 wbps=max riops=max wiops=max"),
        ("io.max", "8:0 rbps=10485760 wbps=1048576 riops=max wiops=max"),
        ("io.max", "8:01 rbps=1048576 wbps=1048576 riops=max wiops=max"),
    ] {
        let before = fs::read_to_string(dir.join(file)).unwrap();
        fs::write(dir.join(file), value).unwrap();
        let Held { status, evidence, .. } = leaf.judge(inside, &devices);
        assert_eq!(status, ControlStatus::Degraded, "{file}: {evidence}");
        assert!(evidence.contains("not limited as asked"), "{file}: {evidence}");
        fs::write(dir.join(file), before).unwrap();
    }
}

const V1_READS: &str = "blkio.throttle.read_bps_device";
const V1_WRITES: &str = "blkio.throttle.write_bps_device";
const V1_PERIOD: &str = "cpu.cfs_period_us";
const V1_QUOTA: &str = "cpu.cfs_quota_us";

/// A leaf over plain files of version 1's controllers of input and output and of processors, with its limits set.
fn version_1_leaf(dir: &Path, devices: &devices::Known) -> Leaf {
    for file in [V1_READS, V1_WRITES, V1_PERIOD, V1_QUOTA, PROCS] {
        fs::write(dir.join(file), "").unwrap();
    }
    let (leaf, refusals) = open_version_1(dir, devices);
    assert!(refusals.is_empty(), "{refusals:?}");
    leaf
}

fn open_version_1(dir: &Path, devices: &devices::Known) -> (Leaf, Vec<Refusal>) {
    let hierarchy = Hierarchy {
        version: Version::V1,
        holds: vec![Controller::Io, Controller::Cpu],
        dir: dir.parent().unwrap().to_owned(),
        lock: open_dir(dir).unwrap(),
    };
    let mut refusals = vec![];
    let mut leaf = Leaf::open(&parent_of(hierarchy), 7).unwrap();
    let limits = Limits { cpus_milli: 10, io_bytes_per_s: 5000, ..limits() };
    leaf.limit_with(&limits, devices, &mut refusals);
    (leaf, refusals)
}

const V1_INSIDE: &str = "7:blkio:/exchequer-1-2/7\n4:cpu:/exchequer-1-2/7\n";
const V1_UNLIMITED: &str = "blkio is not limited as asked";

#[test]
fn version_1_limits_each_device_in_two_files_and_all_of_them_have_to_be_there() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    let one = Ok(owned(&["8:0"]));
    let leaf = version_1_leaf(&dir, &one);
    for file in [V1_READS, V1_WRITES] {
        assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), "8:0 5000");
    }
    let evidence = leaf.judge(V1_INSIDE, &one).evidence;
    assert!(!evidence.contains(V1_UNLIMITED), "{evidence}");
    assert!(evidence.contains(": 5000 bytes/s each way, block devices: 1 (8:0)"), "{evidence}");

    let two = Ok(owned(&["254:0", "8:0"]));
    for (read, written, unlimited) in [
        ("8:0 5000\n254:0 5000\n", "254:0 5000\n8:0 5000\n", None),
        ("8:0 5000\n254:0 5000\n", "254:0 5000\n", Some("1 (8:0)")),
        ("8:0 5000\n254:0 50000\n", "254:0 5000\n8:0 5000\n", Some("1 (254:0)")),
        ("", "", Some("2 (254:0, 8:0)")),
    ] {
        fs::write(dir.join(V1_READS), read).unwrap();
        fs::write(dir.join(V1_WRITES), written).unwrap();
        let evidence = leaf.judge(V1_INSIDE, &two).evidence;
        let missing = unlimited.map(|devices| format!("{V1_UNLIMITED}, block devices: {devices};"));
        let told = missing.as_ref().is_none_or(|missing| evidence.contains(missing));
        assert!(told, "{read:?}, {written:?}: {evidence}");
        assert_eq!(evidence.contains(V1_UNLIMITED), missing.is_some(), "{evidence}");
    }
}

#[test]
fn devices_are_judged_as_they_are_when_the_limits_are_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    let leaf = version_1_leaf(&dir, &Ok(owned(&["8:0"])));
    let unlimited = |devices: devices::Known| leaf.judge(V1_INSIDE, &devices).evidence.contains(V1_UNLIMITED);
    assert!(!unlimited(Ok(owned(&["8:0"]))));
    assert!(unlimited(Ok(owned(&["8:0", "8:16"]))), "one that came");
    fs::write(dir.join(V1_READS), "8:0 5000\n8:16 5000\n").unwrap();
    fs::write(dir.join(V1_WRITES), "8:0 5000\n8:16 5000\n").unwrap();
    assert!(!unlimited(Ok(owned(&["8:16"]))), "one that went");

    // Nothing is known to be limited.
    let none = Err("more than 64 block devices".to_owned());
    let evidence = version_1_leaf(&dir, &none).judge(V1_INSIDE, &none).evidence;
    assert!(evidence.contains(&format!("{V1_UNLIMITED}: more than 64 block devices")), "{evidence}");
    assert_eq!(fs::read_to_string(dir.join(V1_READS)).unwrap(), "");
}

#[test]
fn of_many_devices_the_evidence_names_a_few_and_each_file_is_refused_once() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    let names = (0..60).map(|minor| format!("259:{minor}")).collect::<Vec<_>>();
    let limits = names.iter().map(|device| format!("{device} 5000\n")).collect::<Vec<_>>().concat();
    let devices = Ok(names.clone());
    let leaf = version_1_leaf(&dir, &devices);
    for file in [V1_READS, V1_WRITES] {
        fs::write(dir.join(file), &limits).unwrap();
    }
    let evidence = leaf.judge(V1_INSIDE, &devices).evidence;
    let few = format!("block devices: 60 ({}, and 44 more)", names[..16].join(", "));
    assert!(evidence.contains(&few) && !evidence.contains(V1_UNLIMITED), "{evidence}");

    // A file that takes nothing.
    fs::remove_file(dir.join(V1_READS)).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.join(V1_READS)).unwrap();
    let (_, refusals) = open_version_1(&dir, &devices);
    let steps = refusals.iter().map(|refusal| refusal.step.as_str()).collect::<Vec<_>>();
    assert_eq!(steps, [format!("writing {V1_READS}")]);
}

#[test]
fn limits_without_a_controller_are_missing_only_if_they_were_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    for file in ["memory.max", "memory.oom.group", "memory.swap.max", "pids.max", PROCS] {
        fs::write(dir.join(file), "").unwrap();
    }
    let hierarchy = Hierarchy {
        version: Version::V2,
        holds: vec![Controller::Memory, Controller::Pids],
        dir: temp.path().to_owned(),
        lock: open_dir(&dir).unwrap(),
    };
    let parent = parent_of(hierarchy);
    let devices = Ok(owned(&["8:0"]));
    for (cpus_milli, io_bytes_per_s, missing) in
        [(0, 0, None), (500, 0, Some("no cpu controller")), (0, 1 << 20, Some("no io controller"))]
    {
        let mut leaf = Leaf::open(&parent, 7).unwrap();
        let mut refusals = vec![];
        leaf.limit_with(&Limits { cpus_milli, io_bytes_per_s, ..limits() }, &devices, &mut refusals);
        assert!(refusals.is_empty(), "{refusals:?}");
        let Held { status, evidence, .. } = leaf.judge("0::/slice/exchequer-1-2/7\n", &devices);
        let expected = if missing.is_some() { ControlStatus::Degraded } else { ControlStatus::Enforced };
        assert_eq!(status, expected, "{evidence}");
        assert!(missing.is_none_or(|missing| evidence.contains(missing)), "{evidence}");
    }
}

/// A process number that no kernel gives.
const NOBODY: &str = "2147483647\n";

/// Whether a leaf's directory of plain files has no limit that delays an end. A plain file keeps what a shorter write leaves.
fn is_lifted(dir: &Path) -> bool {
    let lifted = [
        (V1_READS, "8:0 0"),
        (V1_WRITES, "8:0 0"),
        (V1_QUOTA, "-1"),
        ("cpu.max", "max 100000"),
        ("io.max", "8:0 rbps=max wbps=max"),
    ];
    let files =
        lifted.iter().filter_map(|(file, value)| Some((fs::read_to_string(dir.join(file)).ok()?, *value)));
    let states = files.map(|(text, value)| text.starts_with(value)).collect::<Vec<_>>();
    assert!(states.iter().all(|state| *state == states[0]), "some are and some are not");
    states[0]
}

#[test]
fn what_is_killed_does_not_wait_for_its_part_of_a_device_or_of_the_processors() {
    let temp = tempfile::tempdir().unwrap();
    let dir = |version: &str| {
        let dir = temp.path().join(version).join("7");
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    // One by one: what raced the first kill is not to be without limits.
    let one = dir("1");
    let mut leaf = version_1_leaf(&one, &Ok(owned(&["8:0"])));
    assert!(!is_lifted(&one));
    leaf.kill();
    assert!(!is_lifted(&one));
    leaf.kill();
    assert!(is_lifted(&one));
    // At once, if anything is left; if not, and it takes longer all the same, then.
    for (left, at_once) in [(NOBODY, true), ("", false)] {
        let two = dir(if at_once { "2" } else { "2-empty" });
        fs::write(two.join(KILL), "").unwrap();
        let mut leaf = version_2_leaf(&two, true);
        fs::write(two.join(PROCS), left).unwrap();
        leaf.kill();
        assert_eq!(is_lifted(&two), at_once);
        leaf.kill();
        assert!(is_lifted(&two));
    }
}

#[test]
fn what_lost_its_supervisor_is_killed_with_its_limits_lifted_too() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    drop(version_1_leaf(&dir, &Ok(owned(&["8:0"]))));
    end_members(&dir, false);
    assert!(!is_lifted(&dir));
    end_members(&dir, true);
    assert!(is_lifted(&dir));
    let two = temp.path().join("two").join("7");
    fs::create_dir_all(&two).unwrap();
    fs::write(two.join(KILL), "").unwrap();
    drop(version_2_leaf(&two, true));
    end_members(&two, false);
    assert!(is_lifted(&two));
    assert_eq!(fs::read_to_string(two.join(KILL)).unwrap(), "1");
}

fn make_device(list: &Path, name: &str, dev: &str, size: &str) {
    let dir = list.join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("size"), size).unwrap();
    fs::write(dir.join("dev"), dev).unwrap();
}

#[test]
fn the_devices_are_whole_ones_that_can_hold_a_request() {
    let temp = tempfile::tempdir().unwrap();
    for (name, dev, size) in [
        ("sda", "8:0\n", "1000\n"),
        ("nvme0n1", "259:1\n", "8\n"),
        ("loop0", "7:0\n", "0\n"),
        ("loop1", "7:1\n", "64\n"),
        ("ram0", "1:0\n", "8192\n"),
        ("ramdisk", "250:0\n", "8192\n"),
        ("zram0", "253:0\n", "0\n"),
        ("zram1", "253:1\n", "8192\n"),
        ("odd", "x:0\n", "8\n"),
        ("hidden", "", "8\n"),
    ] {
        make_device(temp.path(), name, dev, size);
    }
    fs::remove_file(temp.path().join("hidden/dev")).unwrap();
    assert_eq!(devices::whole(temp.path()), Ok(owned(&["250:0", "253:1", "259:1", "7:1", "8:0"])));
    let absent = temp.path().join("absent");
    let reason = devices::whole(&absent).unwrap_err();
    assert!(reason.starts_with(&format!("{}: ", absent.display())), "{reason}");
    fs::create_dir(&absent).unwrap();
    assert_eq!(devices::whole(&absent), Err("no block device is known".to_owned()));
}

#[test]
fn more_devices_than_are_limited_are_none() {
    let temp = tempfile::tempdir().unwrap();
    for minor in 0..64 {
        make_device(temp.path(), &format!("loop{minor}"), &format!("7:{minor}\n"), "8\n");
    }
    assert_eq!(devices::whole(temp.path()).map(|devices| devices.len()), Ok(64));
    // One without content is none.
    make_device(temp.path(), "loop64", "7:64\n", "0\n");
    assert_eq!(devices::whole(temp.path()).map(|devices| devices.len()), Ok(64));
    make_device(temp.path(), "loop65", "7:65\n", "8\n");
    assert_eq!(devices::whole(temp.path()), Err("more than 64 block devices".to_owned()));
}

#[test]
fn a_kernel_that_does_not_count_swap_limits_memory_only_where_there_is_no_swap() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("7");
    fs::create_dir(&dir).unwrap();
    let leaf = version_2_leaf(&dir, false);
    let inside = "0::/slice/exchequer-1-2/7\n";
    let devices = Ok(owned(&["8:0"]));
    assert_eq!(leaf.judge(inside, &devices).limits_memory, swap_is_limited(None));
    fs::write(dir.join("memory.max"), "max").unwrap();
    assert!(!leaf.judge(inside, &devices).limits_memory);
}

/// This host's own parent. Where it gives none, the reason is named, and there is nothing more to test.
fn parent() -> Option<Parent> {
    let parent = Parent::make();
    if parent.is_of_use() {
        return Some(parent);
    }
    assert!(!parent.problems.is_empty(), "nothing to be had, and nobody says why");
    parent.remove().unwrap();
    None
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_leaf_limits_its_member_counts_for_it_and_kills_it() {
    let Some(parent) = parent() else { return };
    parent.make_leaf(1).unwrap();
    let mut refusals = vec![];
    let mut leaf = Leaf::open(&parent, 1).unwrap();
    leaf.limit(&limits(), &mut refusals);
    assert!(refusals.is_empty(), "{refusals:?}");
    let mut member = sleeper();
    let pid = i32::try_from(member.id()).unwrap();
    let Held { status, evidence, limits_memory } = leaf.read_back(pid).unwrap();
    assert_eq!((status, limits_memory), (ControlStatus::Unavailable, false), "not attached yet: {evidence}");
    leaf.attach(pid).refused.unwrap();
    let Held { status, evidence, limits_memory } = leaf.read_back(pid).unwrap();
    assert_eq!(status, ControlStatus::Enforced, "{evidence}; {:?}", parent.problems);
    assert!(evidence.contains("pids.max=17") && evidence.contains("67108864"), "{evidence}");
    assert!(limits_memory);
    assert!(parent.remove_leaf(1).is_err(), "a leaf with a member can't be removed");
    leaf.kill();
    assert!(!member.wait().unwrap().success());
    let counted = leaf.counted();
    assert!(counted.cpu.is_some() && !counted.out_of_memory, "{counted:?}");
    parent.remove_leaf(1).unwrap();
    parent.remove().unwrap();
}

fn sweep_all(places: &[PathBuf]) {
    for place in places {
        sweep(place);
    }
}

#[test]
fn what_a_dead_helper_left_is_ended_and_removed_and_what_a_living_one_has_is_not() {
    let Some(parent) = parent() else { return };
    parent.make_leaf(3).unwrap();
    let leaf = Leaf::open(&parent, 3).unwrap();
    let mut member = sleeper();
    leaf.attach(i32::try_from(member.id()).unwrap()).refused.unwrap();
    let dirs = parent.hierarchies.iter().map(|it| it.dir.clone()).collect::<Vec<_>>();
    let places = dirs.iter().map(|dir| dir.parent().unwrap().to_owned()).collect::<Vec<_>>();
    sweep_all(&places);
    assert!(dirs.iter().all(|dir| dir.is_dir()) && member.try_wait().unwrap().is_none());
    // Its death is the end of its locks.
    drop(parent);
    sweep_all(&places);
    assert!(!member.wait().unwrap().success());
    sweep_all(&places);
    assert_eq!(dirs.iter().filter(|dir| dir.exists()).count(), 0);
}
