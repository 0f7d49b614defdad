//! Worker threads that run a step together, and the barrier at which they meet.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use einfuse_codegen::Team;
use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::Error;

/// The most threads that can be asked for.
pub const MOST_THREADS: usize = 1024;

/// A pool of workers. A step enters it once; within, workers meet at a barrier that spins for a while, then sleeps.
#[derive(Debug)]
pub struct Threads {
    workers: usize,
    /// None where there is one worker: the caller is it.
    pool: Option<ThreadPool>,
    barrier: Barrier,
    /// Two steps at once would wait for each other's workers for ever.
    busy: Mutex<()>,
}

impl Threads {
    /// Starts `workers` workers, or as many as [`default_threads`] says.
    ///
    /// # Errors
    /// If the number is absurd, or the system does not give so many threads.
    pub fn new(workers: Option<usize>) -> Result<Threads, Error> {
        let workers = workers.unwrap_or_else(default_threads);
        if !(1..=MOST_THREADS).contains(&workers) {
            return Err(Error::Option {
                option: "threads",
                wants: "a number from 1 to 1024",
                got: workers.to_string(),
            });
        }
        let pool = (workers > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(workers);
            builder.thread_name(|worker| format!("einfuse-{worker}")).build()
        });
        let pool = pool.transpose().map_err(|error| Error::Threads { threads: workers, problem: error.to_string() })?;
        let spins = if workers <= available() { MOST_SPINS } else { 0 };
        Ok(Threads { workers, pool, barrier: Barrier::new(workers, spins), busy: Mutex::new(()) })
    }

    /// Does something with each item, on all threads; ends with an error if there is one. Who is done with its items takes
    /// some of another's, down to single ones.
    pub(crate) fn for_each<T: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> Result<(), Error> + Send + Sync,
    ) -> Result<(), Error> {
        match &self.pool {
            Some(pool) => pool.install(|| items.into_par_iter().with_max_len(1).try_for_each(work)),
            None => items.into_iter().try_for_each(work),
        }
    }
}

// SAFETY: the pool has as many threads as there are workers, calls each once with its own number, and waits for all; the barrier
// is for as many. Without a pool there is one worker, who meets nobody.
unsafe impl Team for Threads {
    fn workers(&self) -> usize {
        self.workers
    }

    /// A panic of one worker ends the others at their next meeting, and is passed on to the caller.
    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync)) {
        let Some(pool) = &self.pool else {
            return work(0, &|| {});
        };
        let _busy = lock(&self.busy);
        self.barrier.reset();
        let first_panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        pool.broadcast(|context| {
            let worker = catch_unwind(AssertUnwindSafe(|| work(context.index(), &|| self.barrier.wait())));
            if let Err(panic) = worker {
                if !panic.is::<Poisoned>() {
                    lock(&first_panic).get_or_insert(panic);
                }
                self.barrier.poison();
            }
        });
        if let Some(panic) = lock(&first_panic).take() {
            resume_unwind(panic);
        }
    }
}

/// Does one thing on a thread of its own while the caller's does the other, which is told by a flag when the first has
/// failed: what it does then is not needed. A panic of either is the caller's.
///
/// # Errors
/// The first's before the second's; or if the system does not give a thread.
pub(crate) fn side_by_side<A: Send, B>(
    aside: impl FnOnce() -> Result<A, Error> + Send,
    here: impl FnOnce(&AtomicBool) -> Result<B, Error>,
) -> Result<(A, B), Error> {
    let failed = AtomicBool::new(false);
    let aside = || aside().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    std::thread::scope(|scope| {
        let aside = std::thread::Builder::new().name("einfuse-aside".into()).spawn_scoped(scope, aside);
        let aside = aside.map_err(|error| Error::Threads { threads: 1, problem: error.to_string() })?;
        let here = here(&failed);
        let aside = aside.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((aside, here?))
    })
}

/// As many threads as this process may use at once, but not more than the machine has cores: two threads on one core
/// share what a kernel needs most.
pub fn default_threads() -> usize {
    cores().map_or(available(), |cores| cores.min(available()))
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine's cores, where Linux tells which processors share one.
fn cores() -> Option<usize> {
    let processors = std::fs::read_dir("/sys/devices/system/cpu").ok()?;
    let siblings = processors
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok());
    let cores: std::collections::HashSet<String> = siblings.collect();
    (!cores.is_empty()).then_some(cores.len())
}

/// How often a waiting worker looks before it sleeps, at most: some 50 µs, a long kernel's imbalance.
const MOST_SPINS: u32 = 4000;

/// So often it looks where looking does not pay.
const FEWEST_SPINS: u32 = 50;

/// Who is waited for so long has not got a processor: then spinning only takes it from him.
const DESCHEDULED: Duration = Duration::from_micros(500);

/// The end of a worker because another one has panicked.
struct Poisoned;

/// A value alone in its cache lines (pairs of 64 bytes are fetched together).
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(T);

/// Where all workers wait for the last. Once per round each worker arrives; the last one begins the next round.
#[derive(Debug)]
struct Barrier {
    workers: usize,
    most_spins: u32,
    /// How often to look before sleeping. An eighth more after each short wait, the fewest after a long one: on a machine that
    /// has other work, the system serves those first that sleep.
    spins: Apart<AtomicU32>,
    /// The round's number in the upper half; in the lower, how many have arrived. One word, for it is what the workers'
    /// caches hand around.
    state: Apart<AtomicU64>,
    /// How many have given up spinning, and do not go on yet.
    asleep: AtomicUsize,
    poisoned: AtomicBool,
    door: Mutex<()>,
    opened: Condvar,
}

impl Barrier {
    fn new(workers: usize, most_spins: u32) -> Barrier {
        Barrier {
            workers,
            most_spins,
            spins: Apart(AtomicU32::new(most_spins)),
            state: Apart(AtomicU64::new(0)),
            asleep: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            door: Mutex::new(()),
            opened: Condvar::new(),
        }
    }

    /// As new. No worker may be waiting.
    fn reset(&self) {
        self.state.0.store(0, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
    }

    /// Returns when all workers have called it; what each did before is seen by all afterwards. Unwinds if one of them
    /// has panicked.
    fn wait(&self) {
        let before = self.state.0.fetch_add(1, Ordering::AcqRel);
        let (round, arrived) = (before >> 32, before as u32 as usize);
        if arrived + 1 == self.workers {
            // Sequentially consistent, as are the sleepers' two: either this sees that one is going to sleep, or that one
            // sees the new round.
            self.state.0.store((round + 1) << 32, Ordering::SeqCst);
            if self.asleep.load(Ordering::SeqCst) > 0 {
                self.open();
            }
        } else if !self.spin(round) {
            self.sleep(round);
        }
        if self.poisoned.load(Ordering::SeqCst) {
            resume_unwind(Box::new(Poisoned));
        }
    }

    /// Waits for the round's end with open eyes; false if that takes too long.
    fn spin(&self, round: u64) -> bool {
        let spins = self.spins.0.load(Ordering::Relaxed);
        for _ in 0..spins {
            if self.is_over(round) {
                self.set_spins(spins, more(spins));
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn sleep(&self, round: u64) {
        let start = Instant::now();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let mut door = lock(&self.door);
        while !self.is_over(round) {
            door = self.opened.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        drop(door);
        self.asleep.fetch_sub(1, Ordering::Relaxed);
        let spins = self.spins.0.load(Ordering::Relaxed);
        self.set_spins(spins, if start.elapsed() > DESCHEDULED { FEWEST_SPINS } else { more(spins) });
    }

    fn set_spins(&self, before: u32, spins: u32) {
        let spins = spins.min(self.most_spins);
        if spins != before {
            self.spins.0.store(spins, Ordering::Relaxed);
        }
    }

    fn is_over(&self, round: u64) -> bool {
        self.state.0.load(Ordering::SeqCst) >> 32 != round || self.poisoned.load(Ordering::SeqCst)
    }

    fn open(&self) {
        // Whoever has looked, but does not sleep yet, holds the lock.
        drop(lock(&self.door));
        self.opened.notify_all();
    }

    /// Ends this round and all later ones until a reset.
    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        self.open();
    }
}

/// How often to look next time, after a wait that was short.
fn more(spins: u32) -> u32 {
    spins + spins / 8 + 1
}

/// Locks; a panic elsewhere leaves nothing half done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers add to each other's numbers between meetings; a worker that runs ahead or lags would change the sums.
    fn neighbours(threads: &Threads, rounds: usize) {
        let workers = threads.workers();
        let cells: Vec<[AtomicUsize; 2]> = (0..workers).map(|i| [AtomicUsize::new(i), AtomicUsize::new(0)]).collect();
        threads.run(&|worker, meet| {
            for round in 0..rounds {
                let (from, to) = (round % 2, (round + 1) % 2);
                let neighbour = cells[(worker + 1) % workers][from].load(Ordering::Relaxed);
                cells[worker][to].store(neighbour + 1, Ordering::Relaxed);
                meet();
            }
        });
        for (i, cell) in cells.iter().enumerate() {
            assert_eq!(cell[rounds % 2].load(Ordering::Relaxed), (i + rounds) % workers + rounds);
        }
    }

    #[test]
    fn no_worker_runs_ahead() {
        for workers in [1, 2, 3, 8] {
            let threads = Threads::new(Some(workers)).unwrap();
            neighbours(&threads, 5000);
            neighbours(&threads, 1);
            neighbours(&threads, 0);
        }
    }

    #[test]
    fn both_ways_of_waiting_keep_step() {
        for spins in [0, 1, 1 << 30] {
            let mut threads = Threads::new(Some(2)).unwrap();
            threads.barrier = Barrier::new(2, spins);
            neighbours(&threads, 3000);
        }
    }

    #[test]
    fn each_worker_is_called_once() {
        let threads = Threads::new(Some(5)).unwrap();
        let calls: Vec<AtomicUsize> = (0..5).map(|_| AtomicUsize::new(0)).collect();
        threads.run(&|worker, _| {
            calls[worker].fetch_add(1, Ordering::Relaxed);
        });
        assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn two_callers_take_turns() {
        let threads = Threads::new(Some(3)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| neighbours(&threads, 20)));
            }
        });
    }

    #[test]
    fn a_panic_ends_all_workers_and_is_passed_on() {
        for (workers, culprit, round) in [(1, 0, 3), (2, 0, 0), (2, 1, 700), (6, 4, 20), (6, 5, 0)] {
            let threads = Threads::new(Some(workers)).unwrap();
            let panic = catch_unwind(AssertUnwindSafe(|| {
                threads.run(&|worker, meet| {
                    for meeting in 0..1000 {
                        if worker == culprit && meeting == round {
                            resume_unwind(Box::new("culprit"));
                        }
                        meet();
                    }
                });
            }));
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"culprit"));
            neighbours(&threads, 100);
        }
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for workers in [0, 1025, usize::MAX] {
            let error = Threads::new(Some(workers)).unwrap_err().to_string();
            assert_eq!(error, format!("option threads wants a number from 1 to 1024, got {workers}"));
        }
        assert!(default_threads() >= 1);
        assert_eq!(Threads::new(None).unwrap().workers(), default_threads());
    }
}
