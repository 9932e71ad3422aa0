//! The baseline of `reserve`: Redis with `appendfsync always` and one Lua script per command, pipelined in batches of the same size over as
//! many connections.
//!
//! The scripts do the same job: they keep the idempotency key with its request and its answer for good, check and change three budgets of two
//! meters, keep the hold with its amounts, and let nobody but its holder settle it. Redis is spared what it has no counterpart for: gRPC,
//! authentication per call, expiry of holds, signed records, the history of changes (its append-only file is never rewritten here, but would
//! be), and drawing ids of holds.
//!
//! Left out: a Redis client for anything else. Invariant: a command counts once its answer has come and was the one expected; afterwards the
//! budgets are compared with what was answered.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::load::{self, HOLDER, PLENTY, Pair, SCOPES, Shape, TTL_MS};
use crate::{cpu, rate};

const RESERVE: &str = include_str!("reserve.lua");
const SETTLE: &str = include_str!("settle.lua");
/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const MAX_REPLY_BYTES: usize = 1 << 16;

/// What the baseline came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Baseline {
    pub(super) decisions_per_s: f64,
    pub(super) cpu_us: f64,
    pub(super) client_cpu_us: f64,
}

/// The load for so long.
pub(super) fn measure(shape: Shape, time: Duration) -> anyhow::Result<Baseline> {
    let server = Server::start()?;
    let mut admin = server.connect()?;
    for scope in SCOPES {
        let plenty = PLENTY.to_string();
        admin.push(&["HSET", scope, "cpu_ms", &plenty, "invocations", &plenty, "cpu_ms_spent", "0"]);
        admin.push(&["HSET", scope, "invocations_spent", "0"]);
    }
    admin.push(&["SCRIPT", "LOAD", RESERVE]);
    admin.push(&["SCRIPT", "LOAD", SETTLE]);
    let replies = admin.exchange()?;
    let [.., reserve, settle] = &replies[..] else { bail!("no answers") };
    let mut workers = Vec::new();
    for number in 0..shape.connections {
        let (reserve, settle) = (reserve.clone(), settle.clone());
        workers.push(Worker { number, reserve, settle, connection: server.connect()? });
    }
    let (own, redis) = (cpu::own()?, cpu::of(server.pid())?);
    let started = Instant::now();
    let working: Vec<_> = workers
        .into_iter()
        .map(|worker| std::thread::spawn(move || worker.work(shape.batch, started + time)))
        .collect();
    let (mut decisions, mut spent) = (0, Pair::default());
    for thread in working {
        let done = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        decisions += done.0;
        load::add(&mut spent, done.1);
    }
    let time = started.elapsed();
    for scope in SCOPES {
        admin.push(&["HGET", scope, "cpu_ms_spent"]);
        admin.push(&["HGET", scope, "cpu_ms"]);
        let found = admin.exchange()?;
        let expected = [spent[0].to_string(), (PLENTY - spent[0]).to_string()];
        ensure!(found == expected, "Redis has {found:?} at {scope}, not {expected:?}");
    }
    let per_decision = |time: Duration| time.as_secs_f64() * 1e6 / rate(decisions, Duration::from_secs(1));
    Ok(Baseline {
        decisions_per_s: rate(decisions, time),
        cpu_us: per_decision(cpu::of(server.pid())?.saturating_sub(redis)),
        client_cpu_us: per_decision(cpu::own()?.saturating_sub(own)),
    })
}

/// One connection's client.
struct Worker {
    number: usize,
    reserve: String,
    settle: String,
    connection: Connection,
}

impl Worker {
    /// Batches until it is time; then what is open is settled. Decisions, and what was spent.
    fn work(mut self, batch: usize, until: Instant) -> anyhow::Result<(u64, Pair)> {
        let (mut decisions, mut spent, mut next) = (0, Pair::default(), 0_u64);
        let mut open = 0..0_u64;
        loop {
            let is_last = Instant::now() >= until;
            for hold in open.clone() {
                self.push_settle(hold);
                load::add(&mut spent, load::used(hold));
            }
            let settled = usize::try_from(open.end - open.start)?;
            let reserved = if is_last { 0 } else { batch / 2 };
            let first = next;
            next += reserved as u64;
            for hold in first..next {
                self.push_reserve(hold);
            }
            let replies = self.connection.exchange()?;
            let expected =
                std::iter::repeat_n("settled", settled).chain(std::iter::repeat_n("granted", reserved));
            for (reply, expected) in replies.iter().zip(expected) {
                ensure!(reply == expected, "Redis answered {reply}, not {expected}");
            }
            ensure!(replies.len() == settled + reserved, "answers are missing");
            decisions += replies.len() as u64;
            if is_last {
                return Ok((decisions, spent));
            }
            open = first..next;
        }
    }

    fn push_reserve(&mut self, hold: u64) {
        let [cpu_ms, invocations] = load::asked(hold).map(|amount| amount.to_string());
        let (key, name) = (format!("r-{}-{hold}", self.number), format!("hold-{}-{hold}", self.number));
        // As large as a request's digest; what is hashed into it costs the client, not Redis.
        let digest = format!("{hold:032}");
        let (ttl, scopes) = (TTL_MS.to_string(), SCOPES);
        self.connection.push(&[
            "EVALSHA",
            &self.reserve,
            "5",
            &key,
            &name,
            scopes[0],
            scopes[1],
            scopes[2],
            &digest,
            scopes[2],
            HOLDER,
            &ttl,
            &cpu_ms,
            &invocations,
        ]);
    }

    fn push_settle(&mut self, hold: u64) {
        let [cpu_ms, invocations] = load::used(hold).map(|amount| amount.to_string());
        let (key, name) = (format!("s-{}-{hold}", self.number), format!("hold-{}-{hold}", self.number));
        let digest = format!("{hold:032}");
        let scopes = SCOPES;
        self.connection.push(&[
            "EVALSHA",
            &self.settle,
            "5",
            &key,
            &name,
            scopes[0],
            scopes[1],
            scopes[2],
            &digest,
            HOLDER,
            &cpu_ms,
            &invocations,
        ]);
    }
}

/// A connection that speaks RESP2: commands are gathered, sent at once, and their answers read in order.
struct Connection {
    out: Vec<u8>,
    waiting: usize,
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn push(&mut self, command: &[&str]) {
        let _ = write!(self.out, "*{}\r\n", command.len());
        for word in command {
            let _ = write!(self.out, "${}\r\n", word.len());
            self.out.extend_from_slice(word.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
        self.waiting += 1;
    }

    fn exchange(&mut self) -> anyhow::Result<Vec<String>> {
        self.stream.get_mut().write_all(&self.out)?;
        self.out.clear();
        (0..std::mem::take(&mut self.waiting)).map(|_| self.reply()).collect()
    }

    fn reply(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            Some(("$", length)) => {
                let length: usize = length.parse().with_context(|| format!("Redis answered {line}"))?;
                ensure!(length <= MAX_REPLY_BYTES, "Redis answers with {length} bytes");
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(String::from_utf8(bytes)?)
            }
            Some(_) => bail!("Redis answered {line}"),
            None => bail!("Redis closed the connection"),
        }
    }
}

/// A Redis server of its own; the process ends with the value.
struct Server {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let program = program()?;
        let directory = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(&program)
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &address.port().to_string(),
                "--daemonize",
                "no",
                "--save",
                "",
            ])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"])
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut server = Self { child, address, _directory: directory };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut connection) = server.connect() {
                connection.push(&["CONFIG", "GET", "appendfsync"]);
                connection.stream.get_mut().write_all(&connection.out)?;
                let mut answer = [0; 64];
                let read = connection.stream.read(&mut answer)?;
                ensure!(
                    String::from_utf8_lossy(&answer[..read]).contains("always"),
                    "Redis does not sync always"
                );
                return Ok(server);
            }
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "{} did not start", program.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        Ok(Connection { out: Vec::new(), waiting: 0, stream: BufReader::with_capacity(1 << 16, stream) })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `REDIS_SERVER`, else on `PATH`.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("REDIS_SERVER") {
        let path = PathBuf::from(named);
        ensure!(path.is_file(), "REDIS_SERVER is {}, which is not a file", path.display());
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|path| path.is_file());
    found.context(
        "the baseline needs a redis-server: install one (Debian, Ubuntu: apt-get install redis-server) and put it on PATH, or name \
         it in REDIS_SERVER",
    )
}
