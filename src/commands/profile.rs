//! Where the time of a step goes: kernel by kernel, and outside of them.

use std::time::Duration;

use einfuse::Model;
use einfuse::codegen::Batch;
use einfuse::codegen::cost::Cost;
use serde::Serialize;

use super::output::markdown;
use super::step::{self, Step};
use crate::peak::Peaks;

/// How long something took that was done once.
pub(crate) struct Timed {
    /// From its start to its end.
    pub(crate) whole: Duration,
    /// The calls of each kernel of the program, where that was asked for.
    pub(crate) kernels: Vec<Duration>,
    /// The machine's, just before.
    pub(crate) peaks: Peaks,
}

/// What one decode step takes, or one prompt. Times are in seconds.
#[derive(Serialize)]
pub(crate) struct Profile {
    calls: usize,
    time: f64,
    /// What is left when the kernels' times are taken away: between them, before the first, after the last.
    time_outside_kernels: f64,
    time_outside_per_call: f64,
    kernels: Vec<Share>,
}

/// One kernel's part in it.
#[derive(Serialize)]
struct Share {
    name: String,
    calls: usize,
    time: f64,
    share_of_time: f64,
    /// `memory` or `compute`: what the kernel uses most of, and is compared with, per second: all bytes that it reads and
    /// writes, or operations on floats.
    bound: &'static str,
    unit: &'static str,
    achieved: f64,
    peak: f64,
}

impl Profile {
    /// Out of several runs, in each of which `repeats` times these steps were done.
    pub(crate) fn of(model: &Model, steps: &[Step], runs: &[Timed], repeats: usize) -> Profile {
        let peaks = Peaks::mean(runs.iter().map(|run| run.peaks));
        let repeats = (repeats * runs.len()) as f64;
        let time = runs.iter().map(|run| run.whole.as_secs_f64()).sum::<f64>() / repeats;
        let took = |kernel: usize| {
            let took = runs.iter().filter_map(|run| run.kernels.get(kernel));
            took.map(Duration::as_secs_f64).sum::<f64>() / repeats
        };
        let costs: Vec<_> = steps.iter().map(|&step| step::costs(model, step)).collect();
        let share = |(kernel, runs): (&_, usize)| {
            let cost = costs.iter().map(|cost| cost(kernel, runs)).fold(Cost::default(), |a, b| a + b);
            let parts = |batch| step::parts(model, kernel, batch);
            let calls = |batch| {
                let numbers: Vec<usize> = parts(batch).collect();
                model.program().sequence(batch).filter(|number| numbers.contains(number)).count()
            };
            let calls = steps.iter().map(|step| calls(step.batch(model))).sum();
            // a prompt's last step may be of a single token, which has code of its own; what was not called took no time
            let mut numbers: Vec<usize> = Batch::ALL.into_iter().flat_map(parts).collect();
            numbers.sort_unstable();
            numbers.dedup();
            let seconds: f64 = numbers.into_iter().map(took).sum();
            let (bound, unit, done, peak) = match peaks.bound(kernel, cost) {
                bound @ "memory" => (bound, "B/s", cost.bytes(), peaks.bytes),
                bound => (bound, "FLOP/s", cost.flops, peaks.arithmetic(kernel)),
            };
            let (name, achieved) = (kernel.name.clone(), done / seconds);
            Share { name, calls, time: seconds, share_of_time: seconds / time, bound, unit, achieved, peak }
        };
        // the kernels of the longest step
        let longest = steps.iter().max_by_key(|step| step.tokens);
        let batch = longest.map_or(Batch::One, |step| step.batch(model));
        let kernels: Vec<Share> = model.program().plan(batch).runs().into_iter().map(share).collect();
        let calls = kernels.iter().map(|kernel| kernel.calls).sum();
        let within: f64 = kernels.iter().map(|kernel| kernel.time).sum();
        let outside = time - within;
        Profile { calls, time, time_outside_kernels: outside, time_outside_per_call: outside / calls as f64, kernels }
    }

    /// A table with a line above it.
    pub(crate) fn table(&self, what: &str) -> String {
        let head = ["kernel", "calls", "time", "of time", "bound", "achieved", "peak", "share"];
        let time = |seconds: f64| format!("{:.1} µs", seconds * 1e6);
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut lines = Vec::new();
        for kernel in &self.kernels {
            let giga = |x: f64| format!("{:.1} G{}", x / 1e9, kernel.unit);
            lines.push(vec![
                kernel.name.clone(),
                kernel.calls.to_string(),
                time(kernel.time),
                percent(kernel.share_of_time),
                kernel.bound.to_owned(),
                giga(kernel.achieved),
                giga(kernel.peak),
                percent(kernel.achieved / kernel.peak),
            ]);
        }
        lines.push(vec![
            "outside kernels".to_owned(),
            self.calls.to_string(),
            time(self.time_outside_kernels),
            percent(self.time_outside_kernels / self.time),
            String::new(),
            format!("{:.0} ns a call", self.time_outside_per_call * 1e9),
            String::new(),
            String::new(),
        ]);
        format!("\n{what}: {} calls in {}\n\n{}", self.calls, time(self.time), markdown(&head, &lines, &[0, 4]))
    }
}
