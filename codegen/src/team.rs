//! Who runs a step.

/// Workers that run a step together.
///
/// # Safety
/// Compiled code divides memory between workers by their numbers: what [`Team::workers`] and [`Team::run`] promise must be so.
pub unsafe trait Team: Sync {
    /// How many there are, at least 1; always as many.
    fn workers(&self) -> usize;

    /// Calls `work(worker, meet)` once for each number below [`Team::workers`], at the same time, and returns when all have
    /// returned. `meet()` returns when all workers have called it
    /// as often; what any of them wrote before is then seen by all.
    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync));
}

/// A single worker: the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

// SAFETY: there is one worker, of number 0, who meets nobody.
unsafe impl Team for Alone {
    fn workers(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync)) {
        work(0, &|| {});
    }
}
