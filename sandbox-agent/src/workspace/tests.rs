//! A tenant's directory on a real file system, with everything in it that must not be opened.

use std::{
    fs::{self as std_fs, Permissions},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
};

use super::*;

struct Place {
    dir: tempfile::TempDir,
    tenant: TenantDir,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    for name in ["acme/sub", "globex"] {
        std_fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    std_fs::write(dir.path().join("globex/secret"), "theirs").unwrap();
    std_fs::write(dir.path().join("acme/sub/file"), "content").unwrap();
    let tenant = Workspace::open(dir.path()).unwrap().tenant("acme").unwrap();
    Place { dir, tenant }
}

impl Place {
    fn at(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("acme").join(path)
    }

    fn read(&self, path: &str) -> Result<String, FileFault> {
        let mut text = String::new();
        self.tenant.open_file(path)?.read_to_string(&mut text)?;
        Ok(text)
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, FileFault>, problem: &'static str) {
    assert_eq!(outcome.unwrap_err(), FileFault::Request(problem));
}

const OUT: &str = "leaves the tenant's workspace, or its file system";
const LINK: &str = "is or passes a symbolic link";

#[test]
fn a_regular_file_is_read_and_nothing_else_is_opened() {
    let place = place();
    assert_eq!(place.read("sub/file").unwrap(), "content");
    refused(place.read("nothing"), "there is no such file in the workspace");
    refused(place.read("sub/file/x"), "a part of the path is no directory");
    refused(place.read("sub"), "is a directory");
    refused(place.read("../globex/secret"), OUT);
    refused(place.read("sub/../../globex/secret"), OUT);
    refused(place.read("/etc/passwd"), OUT);
    symlink("../globex/secret", place.at("link")).unwrap();
    symlink("file", place.at("sub/near")).unwrap();
    symlink("../globex", place.at("theirs")).unwrap();
    refused(place.read("link"), LINK);
    refused(place.read("sub/near"), LINK);
    refused(place.read("theirs/secret"), LINK);
    std_fs::hard_link(place.dir.path().join("globex/secret"), place.at("hard")).unwrap();
    refused(place.read("hard"), "has more than one hard link");
    let _socket = UnixListener::bind(place.at("socket")).unwrap();
    refused(place.read("socket"), "is a socket");
    fs::mknodat(CWD, place.at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    refused(place.read("fifo"), "is a fifo");
    if rustix::process::geteuid().is_root() {
        let null = fs::makedev(1, 3);
        fs::mknodat(CWD, place.at("null"), FileType::CharacterDevice, Mode::RWXU, null).unwrap();
        refused(place.read("null"), "is a device");
    }
}

#[test]
fn another_file_system_and_magic_links_are_not_entered() {
    // `/proc` is a file system of its own below `/`, and full of links that lead anywhere.
    let root = TenantDir(fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap());
    refused(root.open_file("proc/version"), OUT);
    let process = fs::openat(CWD, "/proc/self", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    refused(TenantDir(process).open_file("cwd/Cargo.toml"), LINK);
}

#[test]
fn a_tenant_sees_its_own_directory_only_whatever_it_is_called() {
    let place = place();
    let workspace = Workspace::open(place.dir.path()).unwrap();
    symlink("globex", place.dir.path().join("alias")).unwrap();
    for tenant in [".", "..", ".hidden", "nobody", "alias"] {
        assert!(matches!(workspace.tenant(tenant), Err(FileFault::Host(_))), "{tenant}");
    }
}

#[test]
fn what_was_looked_at_is_what_is_read_even_if_its_name_is_given_to_another() {
    let place = place();
    let mut file = place.tenant.open_file("sub/file").unwrap();
    std_fs::remove_file(place.at("sub/file")).unwrap();
    symlink("../../globex/secret", place.at("sub/file")).unwrap();
    let loaded = load(&mut file, 100).unwrap().unwrap();
    let mut text = String::new();
    File::from(loaded.fd).read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
}

#[test]
fn what_was_loaded_can_not_be_changed_and_is_no_longer_than_allowed() {
    assert!(load(&b"12345"[..], 4).unwrap().is_none());
    let loaded = load(&b"12345"[..], 5).unwrap().unwrap();
    assert_eq!(loaded.digests.size, 5);
    let mut file = File::from(loaded.fd);
    assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert!(file.set_len(0).is_err());
}

#[test]
fn an_output_is_replaced_as_a_whole_or_not_at_all() {
    let place = place();
    let destination = place.tenant.destination("sub/file").unwrap();
    let mut dropped = destination.begin("1").unwrap();
    dropped.write_all(b"half").unwrap();
    drop(dropped);
    assert_eq!(std_fs::read_to_string(place.at("sub/file")).unwrap(), "content");
    let mut whole = destination.begin("2").unwrap();
    whole.write_all(b"new").unwrap();
    whole.commit().unwrap();
    assert_eq!(std_fs::read_to_string(place.at("sub/file")).unwrap(), "new");
    let names: Vec<_> = std_fs::read_dir(place.at("sub")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "nothing else is left");
    let (file, dir) = (place.at("sub/file").metadata().unwrap(), place.at("sub").metadata().unwrap());
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (dir.uid(), dir.gid(), 0o600));
}

#[test]
fn no_output_goes_through_a_link_or_out_of_the_directory() {
    let place = place();
    symlink("../globex", place.at("theirs")).unwrap();
    symlink("../globex/secret", place.at("link")).unwrap();
    refused(place.tenant.destination("theirs/secret"), LINK);
    refused(place.tenant.destination("../globex/secret"), OUT);
    refused(place.tenant.destination("link"), LINK);
    refused(place.tenant.destination("sub"), "is a directory");
    refused(place.tenant.destination("none/x"), "there is no such directory in the workspace");
    // A link that comes later than the look at it.
    let destination = place.tenant.destination("later").unwrap();
    let mut replacement = destination.begin("1").unwrap();
    replacement.write_all(b"new").unwrap();
    symlink("../globex/secret", place.at("later")).unwrap();
    refused(replacement.commit(), LINK);
    assert_eq!(std_fs::read_to_string(place.dir.path().join("globex/secret")).unwrap(), "theirs");
    // A directory that was given another name takes its files along, and that is all.
    let destination = place.tenant.destination("sub/x").unwrap();
    std_fs::rename(place.at("sub"), place.at("moved")).unwrap();
    symlink("../globex", place.at("sub")).unwrap();
    let mut replacement = destination.begin("2").unwrap();
    replacement.write_all(b"new").unwrap();
    replacement.commit().unwrap();
    assert!(place.at("moved/x").exists() && !place.dir.path().join("globex/x").exists());
}

#[test]
fn what_the_host_forbids_is_the_hosts_fault() {
    let place = place();
    std_fs::set_permissions(place.at("sub"), Permissions::from_mode(0o000)).unwrap();
    if !rustix::process::geteuid().is_root() {
        assert!(matches!(place.read("sub/file"), Err(FileFault::Host(_))));
    }
    std_fs::set_permissions(place.at("sub"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        FileFault::of(Errno::ACCESS),
        FileFault::Host("the workspace can't be used: Permission denied (os error 13)".into())
    );
}
