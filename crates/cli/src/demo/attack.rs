//! The program that attacks: reads a file of the host, opens a socket, makes a forbidden system call, and says how far it got.
//!
//! It is this binary itself, so that no tool can be missing. Outside the sandbox all three succeed, which is the positive control: only
//! then does a failure inside prove anything.

use std::{net::TcpStream, time::Duration};

use rustix::mount::{MountFlags, mount};

use super::stage::say;

/// First argument that makes this binary the attacker. Not a verb: nobody should find it in the help.
pub const ARGUMENT: &str = "__demo-attack";
/// Printed once the file's content is in the attacker's hands.
pub const READ: &str = "took the file's content";
/// Printed once a connection stands.
pub const CONNECTED: &str = "stands in connection";
/// Printed once the kernel has answered the system call, whatever it said. A killed process prints nothing any more.
pub const ANSWERED: &str = "got an answer to mount(2)";

/// Printed if the file could not be read.
pub const NOT_READ: &str = "could not read the file";
/// Printed if no connection could be opened.
pub const NOT_CONNECTED: &str = "could not open a connection";

/// Becomes the attacker, never to return, if the first argument asks for it.
pub fn run_if_requested() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.get(1).is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let [_, _, file, address] = &arguments[..] else { std::process::exit(2) };
    match std::fs::read_to_string(file) {
        Ok(content) => say(format!("{READ}: {}", content.trim())),
        Err(error) => say(format!("{NOT_READ}: {error}")),
    }
    let connected = address
        .parse()
        .map_err(std::io::Error::other)
        .and_then(|address| TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    match connected {
        Ok(_) => say(CONNECTED),
        Err(error) => say(format!("{NOT_CONNECTED}: {error}")),
    }
    // A target that does not exist: outside, the kernel refuses it by its own rules and nothing is mounted anywhere.
    let answer = mount("none", "/nonexistent/target", "tmpfs", MountFlags::empty(), None);
    say(format!("{ANSWERED}: {answer:?}"));
    std::process::exit(0);
}
