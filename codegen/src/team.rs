//! Who runs a step.

/// Workers that run a step together.
pub trait Team: Sync {
    /// How many there are, at least 1.
    fn workers(&self) -> usize;

    /// Calls `work(worker, meet)` once on each worker, at the same time. `meet()` returns when all workers have called it
    /// as often; what any of them wrote before is then seen by all.
    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync));
}

/// A single worker: the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Team for Alone {
    fn workers(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn(usize, &dyn Fn()) + Sync)) {
        work(0, &|| {});
    }
}
