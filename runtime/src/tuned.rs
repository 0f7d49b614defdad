//! Schedules that measurements found better than the compiler's own, kept in a file from run to run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use einfuse_codegen::{Cpu, REVISION, Schedules, Tiling};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The first line of a file, so to speak.
const FORMAT: &str = "einfuse schedules 1";

/// The file with the schedules that were found, on whatever processor.
#[derive(Clone, Debug)]
pub struct Tuned {
    path: PathBuf,
}

/// One schedule that is better than the compiler's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Winner {
    /// The kernel's identity.
    pub kernel: String,
    /// The numbers that it is best scheduled with.
    pub tiling: Tiling,
    /// The share of its time that these save.
    pub gain: f64,
}

/// For whom winners hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    /// The processor's name and features.
    cpu: String,
    /// The compiler's version, and that of its schedules.
    compiler: String,
    threads: usize,
}

impl Key {
    fn of(threads: usize) -> Result<Key, Error> {
        let cpu = Cpu::host().map_err(einfuse_codegen::CompileError::from)?;
        let cpu = format!("{}: {}", cpu.name, cpu.features.join(" "));
        Ok(Key { cpu, compiler: format!("{} {REVISION}", env!("CARGO_PKG_VERSION")), threads })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: String,
    found: Vec<Found>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    on: Key,
    winners: Vec<Winner>,
}

impl Tuned {
    /// The user's: `$XDG_CACHE_HOME/einfuse/schedules.json`, or that in `~/.cache`. `None` where neither is known.
    pub fn of_user() -> Option<Tuned> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Tuned::at(folder.join("einfuse/schedules.json")))
    }

    /// A file of one's own.
    pub fn at(path: impl Into<PathBuf>) -> Tuned {
        Tuned { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was found on this processor, by this version of the compiler, with so many threads. Nothing if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what [`Tuned::keep`] writes.
    pub fn schedules(&self, threads: usize) -> Result<Schedules, Error> {
        let contents = self.read()?;
        if contents.found.is_empty() {
            return Ok(Schedules::new());
        }
        let key = Key::of(threads)?;
        let winners = contents.found.into_iter().filter(|found| found.on == key).flat_map(|found| found.winners);
        Ok(winners.map(|winner| (winner.kernel, winner.tiling)).collect())
    }

    /// Keeps what was found for some kernels with so many threads: the winners of those that have one, and nothing for
    /// the others. Several processes may do so at once.
    ///
    /// # Errors
    /// If the file is not one that this has written, or cannot be written.
    pub fn keep(&self, threads: usize, tried: &[String], winners: &[Winner]) -> Result<(), Error> {
        let failed = |source| Error::Write { file: self.path.display().to_string(), source };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        // Held until the file is closed; who only reads finds the old file or the new one.
        let lock = File::create(self.path.with_extension("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut contents = self.read()?;
        let key = Key::of(threads)?;
        let mut all: BTreeMap<Key, BTreeMap<String, Winner>> = BTreeMap::new();
        for Found { on, winners } in contents.found {
            all.entry(on).or_default().extend(winners.into_iter().map(|winner| (winner.kernel.clone(), winner)));
        }
        let own = all.entry(key).or_default();
        own.retain(|kernel, _| !tried.contains(kernel));
        own.extend(winners.iter().map(|winner| (winner.kernel.clone(), winner.clone())));
        let found = all.into_iter().filter(|(_, winners)| !winners.is_empty());
        contents.found = found.map(|(on, winners)| Found { on, winners: winners.into_values().collect() }).collect();
        let text = serde_json::to_string_pretty(&contents).map_err(|e| failed(io::Error::other(e)))?;
        let draft = self.path.with_extension(format!("{}.draft", std::process::id()));
        let written = write(&draft, &text).and_then(|()| fs::rename(&draft, &self.path));
        written.map_err(|source| {
            // Of a draft that was not written there is nothing to keep, nor to say.
            let _ = fs::remove_file(&draft);
            failed(source)
        })
    }

    fn read(&self) -> Result<Contents, Error> {
        let file = || self.path.display().to_string();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Contents { format: FORMAT.to_owned(), found: Vec::new() });
            }
            Err(source) => return Err(Error::Read { file: file(), source }),
        };
        let wrong = |problem| Error::File { file: file(), problem: format!("{problem}; remove the file to tune anew") };
        let contents: Contents =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("holds no tuned schedules: {e}")))?;
        if contents.format != FORMAT {
            return Err(wrong(format!("has the format `{}`, not `{FORMAT}`", contents.format)));
        }
        for winner in contents.found.iter().flat_map(|found| &found.winners) {
            winner
                .tiling
                .check()
                .map_err(|problem| wrong(format!("{problem} in the schedule of `{}`", winner.kernel)))?;
        }
        Ok(contents)
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILING: Tiling = Tiling { block: 128, core: 8, prepared: 4, tile: 48, parts: 2 };

    fn winner(kernel: &str, block: usize) -> Winner {
        Winner { kernel: kernel.to_owned(), tiling: Tiling { block, ..TILING }, gain: 0.25 }
    }

    #[test]
    fn keeps_what_was_found_per_threads() {
        let folder = tempfile::tempdir().unwrap();
        let tuned = Tuned::at(folder.path().join("deep/er/schedules.json"));
        assert_eq!(tuned.schedules(1).unwrap(), Schedules::new());
        let tried = ["a".to_owned(), "b".to_owned()];
        tuned.keep(1, &tried, &[winner("a", 32), winner("b", 64)]).unwrap();
        tuned.keep(2, &tried, &[winner("a", 16)]).unwrap();
        // what is tried again and does not win is forgotten, what is not tried stays
        tuned.keep(1, &tried[..1], &[]).unwrap();
        assert_eq!(tuned.schedules(1).unwrap(), Schedules::from([("b".to_owned(), winner("b", 64).tiling)]));
        assert_eq!(tuned.schedules(2).unwrap(), Schedules::from([("a".to_owned(), winner("a", 16).tiling)]));
        assert_eq!(tuned.schedules(3).unwrap(), Schedules::new());
        let left: Vec<_> =
            fs::read_dir(tuned.path().parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("draft")), "{left:?}");
    }

    #[test]
    fn what_others_have_found_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let tuned = Tuned::at(folder.path().join("schedules.json"));
        tuned.keep(1, &[], &[winner("a", 32)]).unwrap();
        let text = fs::read_to_string(tuned.path()).unwrap().replace(&Key::of(1).unwrap().cpu, "another");
        fs::write(tuned.path(), text).unwrap();
        assert_eq!(tuned.schedules(1).unwrap(), Schedules::new());
        tuned.keep(1, &[], &[winner("a", 64)]).unwrap();
        let contents = tuned.read().unwrap();
        let mut blocks: Vec<_> = contents.found.iter().map(|found| found.winners[0].tiling.block).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, [32, 64]);
    }

    #[test]
    fn many_writers_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("schedules.json");
        std::thread::scope(|scope| {
            for i in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for j in 0..5 {
                        // Each with a handle of its own, as processes have.
                        Tuned::at(path).keep(1, &[], &[winner(&format!("{i} {j}"), 32)]).unwrap();
                    }
                });
            }
        });
        assert_eq!(Tuned::at(&path).schedules(1).unwrap().len(), 20);
    }

    #[test]
    fn refuses_what_it_has_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let tuned = Tuned::at(folder.path().join("schedules.json"));
        tuned.keep(1, &[], &[winner("a", 32)]).unwrap();
        let good = fs::read_to_string(tuned.path()).unwrap();
        let cases = [
            (String::new(), "holds no tuned schedules"),
            ("[]".to_owned(), "holds no tuned schedules"),
            (good[..good.len() / 2].to_owned(), "holds no tuned schedules"),
            (good.replace("schedules 1", "schedules 2"), "has the format `einfuse schedules 2`"),
            (good.replace("\"block\": 32", "\"block\": 0"), "`block` is 0, not 1 to 1024 in the schedule of `a`"),
            (good.replace("\"block\": 32", "\"block\": 100000"), "`block` is 100000"),
            (good.replace("\"block\": 32", "\"block\": -1"), "holds no tuned schedules"),
            (good.replace("\"block\"", "\"blocks\""), "unknown field `blocks`"),
        ];
        for (text, problem) in cases {
            fs::write(tuned.path(), &text).unwrap();
            for error in [tuned.schedules(1).unwrap_err(), tuned.keep(1, &[], &[]).unwrap_err()] {
                let error = error.to_string();
                assert!(error.contains(problem) && error.contains("schedules.json"), "{error}\nis not: {problem}");
            }
            assert_eq!(fs::read_to_string(tuned.path()).unwrap(), text, "the file is as it was");
        }
        fs::remove_file(tuned.path()).unwrap();
        fs::create_dir(tuned.path()).unwrap();
        assert!(tuned.schedules(1).unwrap_err().to_string().contains("cannot be read"));
    }
}
