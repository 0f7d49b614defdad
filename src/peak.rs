//! What this machine can do at most, measured: the yardstick of `einfuse bench`.

use std::hint::black_box;
use std::io;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use einfuse_codegen::Format;
use einfuse_codegen::cost::Cost;
use einfuse_codegen::fuse::{Kernel, Shape};
use einfuse_codegen::lower::LowerError;
use einfuse_codegen::peak::{Multiplier, MultiplyAdds};
use memmap2::MmapMut;

/// Bytes read by [`read_bandwidth`]: many times more than any cache holds.
const BUFFER: usize = 512 << 20;

/// How often that is repeated; the best counts.
const READS: usize = 5;

/// Runs of the arithmetic kernel in one measurement, of a quarter of a millisecond each: few, so that some measurement
/// fits between what else runs on the machine.
const RUNS: usize = 10;

/// How often that is repeated.
const REPEATS: usize = 50;

/// The most that some threads do, per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peaks {
    /// Bytes read from main memory.
    pub(crate) bytes: f64,
    /// Arithmetic with weights.
    pub(crate) weights: Arithmetic,
    /// Arithmetic with what streams read from caches: keys and values.
    pub(crate) caches: Arithmetic,
}

/// Multiplications and additions per second, and by what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arithmetic {
    pub(crate) flops: f64,
    pub(crate) multiplier: Multiplier,
}

/// A peak could not be measured.
#[derive(Debug, thiserror::Error)]
#[error("cannot measure the machine's peak: {0}")]
pub(crate) enum PeakError {
    /// For want of memory.
    Memory(#[from] io::Error),
    /// For want of code.
    Code(#[from] LowerError),
}

impl Peaks {
    /// Measures memory, and the arithmetic of what multiplies weights and caches that are stored so.
    pub(crate) fn measure(threads: usize, [weights, caches]: [Format; 2]) -> Result<Peaks, PeakError> {
        let bytes = read_bandwidth(threads)?;
        let kernels = [MultiplyAdds::new(weights)?, MultiplyAdds::new(caches)?];
        let measured = |kernel: &MultiplyAdds| Arithmetic {
            flops: multiply_adds(threads, kernel),
            multiplier: kernel.multiplier(),
        };
        let weights = measured(&kernels[0]);
        let alike = kernels[1].multiplier() == weights.multiplier;
        Ok(Peaks { bytes, weights, caches: if alike { weights } else { measured(&kernels[1]) } })
    }

    /// The arithmetic of a kernel.
    pub(crate) fn arithmetic(&self, kernel: &Kernel) -> Arithmetic {
        if matches!(kernel.shape, Shape::Stream(_)) { self.caches } else { self.weights }
    }

    /// Which of the two holds up a kernel that takes this, if it could have all of both: `memory` or `compute`.
    pub(crate) fn bound(&self, kernel: &Kernel, cost: Cost) -> &'static str {
        if cost.intensity() < self.arithmetic(kernel).flops / self.bytes { "memory" } else { "compute" }
    }

    /// The better of two measurements of the same.
    pub(crate) fn or(self, other: Peaks) -> Peaks {
        Peaks {
            bytes: self.bytes.max(other.bytes),
            weights: self.weights.or(other.weights),
            caches: self.caches.or(other.caches),
        }
    }
}

impl Arithmetic {
    fn or(self, other: Arithmetic) -> Arithmetic {
        Arithmetic { flops: self.flops.max(other.flops), ..self }
    }
}

/// Bytes per second that `threads` threads read from main memory, each its own part of one large buffer from front to
/// back.
fn read_bandwidth(threads: usize) -> io::Result<f64> {
    let mut buffer = MmapMut::map_anon(BUFFER)?;
    #[cfg(target_os = "linux")]
    // only advice: without huge pages the figure is lower
    let _ = buffer.advise(memmap2::Advice::HugePage);
    // pages that were never written are all the same page
    buffer.fill(1);
    let share = BUFFER / threads / 128 * 128;
    let seconds = fastest(threads, READS, |worker| {
        black_box(sum(&buffer[worker * share..(worker + 1) * share]));
    });
    Ok((share * threads) as f64 / seconds)
}

/// Multiplications and additions per second that `threads` threads do at most, all in registers.
fn multiply_adds(threads: usize, kernel: &MultiplyAdds) -> f64 {
    let seconds = fastest(threads, REPEATS, |_| {
        for _ in 0..RUNS {
            black_box(kernel.run());
        }
    });
    kernel.operations() * (threads * RUNS) as f64 / seconds
}

/// The sum of the 64-bit words, in sixteen lanes: more independent loads than a core can have under way.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    for chunk in bytes.chunks_exact(128) {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Seconds that `work` takes when all threads do it at the same time, from the first start to the last end; the best of
/// `repeats` times.
fn fastest(threads: usize, repeats: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = &Barrier::new(threads);
    let work = &work;
    let worker = move |worker: usize| {
        (0..repeats).map(move |_| {
            barrier.wait();
            let start = Instant::now();
            work(worker);
            (start, Instant::now())
        })
    };
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|w| scope.spawn(move || worker(w).collect())).collect();
        handles.into_iter().filter_map(|h| h.join().ok()).collect()
    });
    let seconds = |repeat: usize| {
        let start = times.iter().map(|t| t[repeat].0).min();
        let end = times.iter().map(|t| t[repeat].1).max();
        start.zip(end).map_or(f64::INFINITY, |(start, end)| (end - start).as_secs_f64())
    };
    (0..repeats).map(seconds).fold(f64::INFINITY, f64::min)
}
