//! A file system in memory that fails on demand: what is seen, what would be left after a power cut, and a fault at any operation.
//!
//! Left out: what is checked with it. Invariant: the content of a file is durable once it was written (that is what
//! [`Files::write`] and [`Files::append`] promise), its name only after its directory was synced, unless the fault says otherwise.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::super::files::{Files, NewFile};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// The operation is not performed; everything that was not synced is lost.
    CrashBefore,
    /// The operation is performed, the caller does not learn it; everything that was not synced is lost.
    CrashAfter,
    /// The operation is performed and the caller does not learn it; the kernel had written everything out by itself.
    CrashAfterButPersisted,
    /// The operation is performed and the caller does not learn it; of the names that were not synced the kernel had written out
    /// some and not others, in no order. The number picks which.
    CrashScattered(u8),
    /// Half of what was to be written is there, durably.
    Torn,
    /// The operation fails once, the process goes on.
    Eio,
    /// From this operation on the disk is full: the first write leaves half of its bytes, later ones leave nothing, the process
    /// goes on. What needs no space (renames, removals, syncs) is still done.
    Full,
}

/// Files by path.
pub(super) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Is shown each renaming before it happens, with what is durable at that moment: (durable, new name, content).
pub(super) type Watch = fn(&Tree, &Path, &[u8]);

#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) seen: Tree,
    pub(super) durable: Tree,
    pub(super) operations: u64,
    pub(super) fault: Option<(u64, Fault)>,
    pub(super) is_down: bool,
    pub(super) reads: u64,
    /// This read fails, once.
    pub(super) read_fault: Option<u64>,
    pub(super) watch: Option<Watch>,
    is_full: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Memory>>);

/// How much of an operation is done.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    All,
    Half,
    Nothing,
}

impl Part {
    fn of(self, bytes: &[u8]) -> &[u8] {
        match self {
            Self::All => bytes,
            Self::Half => &bytes[..bytes.len() / 2],
            Self::Nothing => &[],
        }
    }
}

impl Memory {
    /// Performs one operation that changes something; `perform` gets how much of it to do.
    fn change(&mut self, takes_space: bool, perform: impl FnOnce(&mut Self, Part)) -> io::Result<()> {
        if self.is_down {
            return Err(io::Error::other("the machine is down"));
        }
        let number = self.operations;
        self.operations += 1;
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        if self.is_full || fault == Some(Fault::Full) {
            let part = if self.is_full { Part::Nothing } else { Part::Half };
            self.is_full = true;
            perform(self, if takes_space { part } else { Part::All });
            return if takes_space { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
        }
        let Some(fault) = fault else {
            perform(self, Part::All);
            return Ok(());
        };
        match fault {
            Fault::CrashBefore | Fault::Eio | Fault::Full => {}
            Fault::CrashAfter | Fault::CrashAfterButPersisted | Fault::CrashScattered(_) => {
                perform(self, Part::All);
            }
            Fault::Torn => perform(self, Part::Half),
        }
        self.is_down = fault != Fault::Eio;
        match fault {
            Fault::CrashAfterButPersisted | Fault::Torn => self.durable = self.seen.clone(),
            Fault::CrashScattered(pick) => self.scatter(pick, number),
            _ => {}
        }
        Err(io::Error::other(format!("{fault:?} at operation {number}")))
    }

    /// Makes some of the changed names durable.
    fn scatter(&mut self, pick: u8, number: u64) {
        let names: Vec<PathBuf> = self.seen.keys().chain(self.durable.keys()).cloned().collect();
        for path in names {
            let text = format!("{pick} {number} {}", path.display());
            if blake3::hash(text.as_bytes()).as_bytes()[0].is_multiple_of(2) {
                continue;
            }
            match self.seen.get(&path) {
                Some(bytes) => drop(self.durable.insert(path, bytes.clone())),
                None => drop(self.durable.remove(&path)),
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let number = self.reads;
        self.reads += 1;
        if self.read_fault == Some(number) {
            self.read_fault = None;
            return Err(io::Error::other(format!("EIO at read {number}")));
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// A file system without a past that will fail at this operation.
    pub(super) fn failing(at: u64, fault: Fault) -> Self {
        let files = Self::default();
        files.with(|memory| memory.fault = Some((at, fault)));
        files
    }

    /// The next operation fails, the process goes on.
    pub(crate) fn fail_once(&self) {
        self.with(|memory| memory.fault = Some((memory.operations, Fault::Eio)));
    }

    /// Changes a file behind the store's back.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.with(|memory| change(memory.seen.get_mut(Path::new(path)).unwrap()));
    }

    /// Whether an operation failed since.
    pub(crate) fn has_failed(&self) -> bool {
        self.with(|memory| memory.fault.is_some_and(|(at, _)| memory.operations > at))
    }

    /// Operations that changed something.
    pub(crate) fn operations(&self) -> u64 {
        self.with(|memory| memory.operations)
    }

    /// There is space again.
    pub(super) fn free_space(&self) {
        self.with(|memory| (memory.is_full, memory.fault) = (false, None));
    }

    /// Power is cut and comes back: what was durable is there, and nothing fails any more.
    pub(super) fn cut_power(&self) {
        self.with(|memory| memory.is_down = true);
        self.reboot();
    }

    /// If the machine went down it comes up with what was durable. Nothing fails any more.
    pub(crate) fn reboot(&self) {
        self.with(|memory| {
            if memory.is_down {
                memory.seen = memory.durable.clone();
            }
            (memory.is_down, memory.fault, memory.is_full) = (false, None, false);
        });
    }
}

impl Files for Shared {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.with(|memory| {
            memory.read()?;
            memory.seen.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let name = |path: &PathBuf| Some(path.strip_prefix(dir).ok()?.to_str()?.to_owned());
        self.with(|memory| {
            memory.read()?;
            // In the order of paths, what is below a directory follows it.
            let below = memory.seen.range(dir.to_owned()..).map(|(path, _)| path);
            let below = below.take_while(|path| path.starts_with(dir));
            Ok(below.filter_map(name).filter(|name| !name.contains('/')).collect())
        })
    }

    fn create_dirs(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, files: &[NewFile]) -> io::Result<()> {
        for NewFile { path, bytes } in files {
            self.with(|memory| {
                memory.change(true, |memory, part| {
                    memory.seen.insert(path.clone(), part.of(bytes).to_vec());
                })
            })?;
        }
        Ok(())
    }

    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|memory| {
            memory.change(true, |memory, part| {
                let file = memory.seen.entry(path.to_owned()).or_default();
                file.resize(usize::try_from(at).unwrap(), 0);
                file.extend(part.of(bytes));
                // The content of a file whose name is durable is durable with it.
                let content = file.clone();
                if let Some(durable) = memory.durable.get_mut(path) {
                    *durable = content;
                }
            })
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|memory| {
            if let (Some(watch), Some(bytes)) = (memory.watch, memory.seen.get(from)) {
                watch(&memory.durable, to, bytes);
            }
            memory.change(false, |memory, part| {
                if let Some(bytes) = memory.seen.remove(from).filter(|_| part == Part::All) {
                    memory.seen.insert(to.to_owned(), bytes);
                }
            })
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|memory| {
            memory.change(false, |memory, _| {
                memory.seen.remove(path);
            })
        })
    }

    fn remove_empty_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|memory| {
            memory.change(false, |memory, part| {
                if part != Part::All {
                    return;
                }
                let inside = |path: &PathBuf| path.parent() == Some(dir);
                memory.durable.retain(|path, _| !inside(path));
                let synced = memory.seen.iter().filter(|(path, _)| inside(path));
                memory.durable.extend(synced.map(|(path, bytes)| (path.clone(), bytes.clone())));
            })
        })
    }
}
