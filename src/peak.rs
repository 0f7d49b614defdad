//! What this machine can do at most, measured: the yardstick of `einfuse bench`.

use std::hint::black_box;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use einfuse_codegen::cost::Cost;
use einfuse_codegen::fuse::{Kernel, Shape};
use einfuse_codegen::lower::LowerError;
use einfuse_codegen::peak::{Multiplier, MultiplyAdds};
use einfuse_codegen::{Format, Team};
use memmap2::MmapMut;

/// Bytes read in one measurement: many times more than any cache holds.
const BUFFER: usize = 512 << 20;

/// How often that is repeated; the best counts.
const READS: usize = 3;

/// Runs of the arithmetic kernel in one measurement, of a quarter of a millisecond each: few, so that some measurement
/// fits between what else runs on the machine.
const RUNS: usize = 10;

/// How often that is repeated.
const REPEATS: usize = 20;

/// The most that some threads do, per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peaks {
    /// Bytes read from main memory.
    pub(crate) bytes: f64,
    /// Multiplications and additions of what multiplies weights.
    pub(crate) weights: f64,
    /// The same of what multiplies that which streams read from caches: keys and values.
    pub(crate) caches: f64,
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

/// What measures peaks, as often as wanted.
pub(crate) struct Gauge<'t> {
    /// Who does it: what runs on other threads disturbs those that compute, and is disturbed.
    team: &'t dyn Team,
    /// What is read.
    buffer: MmapMut,
    weights: MultiplyAdds,
    caches: MultiplyAdds,
}

impl<'t> Gauge<'t> {
    /// Prepares to measure memory, and the arithmetic of what multiplies weights and caches that are stored so.
    pub(crate) fn new(team: &'t dyn Team, [weights, caches]: [Format; 2]) -> Result<Gauge<'t>, PeakError> {
        let mut buffer = MmapMut::map_anon(BUFFER)?;
        #[cfg(target_os = "linux")]
        // only advice: without huge pages the figure is lower
        let _ = buffer.advise(memmap2::Advice::HugePage);
        // pages that were never written are all the same page
        buffer.fill(1);
        Ok(Gauge { team, buffer, weights: MultiplyAdds::of_weights(weights)?, caches: MultiplyAdds::of_cache(caches)? })
    }

    /// What multiplies weights, and what multiplies caches.
    pub(crate) fn multipliers(&self) -> [Multiplier; 2] {
        [self.weights.multiplier(), self.caches.multiplier()]
    }

    /// Measures all, in some tenths of a second.
    pub(crate) fn peaks(&self) -> Peaks {
        let [weights, caches] = self.multipliers();
        let flops = self.flops(&self.weights);
        let of_caches = if weights == caches { flops } else { self.flops(&self.caches) };
        Peaks { bytes: self.bytes(), weights: flops, caches: of_caches }
    }

    /// Bytes per second that the threads read from main memory, each its own part of the buffer from front to back: as the machine
    /// guesses what comes next, or with that told, whichever is faster.
    fn bytes(&self) -> f64 {
        let share = BUFFER / self.team.workers() / CHUNK * CHUNK;
        let seconds = [false, true].map(|ahead| {
            fastest(self.team, READS, |worker| {
                black_box(sum(&self.buffer[worker * share..(worker + 1) * share], ahead));
            })
        });
        (share * self.team.workers()) as f64 / seconds[0].min(seconds[1])
    }

    /// Multiplications and additions per second that the threads do at most, all in registers.
    fn flops(&self, kernel: &MultiplyAdds) -> f64 {
        let seconds = fastest(self.team, REPEATS, |_| {
            for _ in 0..RUNS {
                black_box(kernel.run());
            }
        });
        kernel.operations() * (self.team.workers() * RUNS) as f64 / seconds
    }
}

impl Peaks {
    /// The arithmetic of a kernel.
    pub(crate) fn arithmetic(&self, kernel: &Kernel) -> f64 {
        if matches!(kernel.shape, Shape::Stream(_)) { self.caches } else { self.weights }
    }

    /// Which of the two holds up a kernel that takes this, if it could have all of both: `memory` or `compute`.
    pub(crate) fn bound(&self, kernel: &Kernel, cost: Cost) -> &'static str {
        if cost.intensity() < self.arithmetic(kernel) / self.bytes { "memory" } else { "compute" }
    }

    /// The means of several measurements of the same.
    pub(crate) fn mean(all: impl Iterator<Item = Peaks> + Clone) -> Peaks {
        let mean = |of: fn(Peaks) -> f64| all.clone().map(of).sum::<f64>() / all.clone().count() as f64;
        Peaks {
            bytes: mean(|peaks| peaks.bytes),
            weights: mean(|peaks| peaks.weights),
            caches: mean(|peaks| peaks.caches),
        }
    }
}

/// Bytes that a turn of [`sum`] reads at most: four of the widest vectors.
const CHUNK: usize = 256;

/// How far ahead memory is fetched where that is told, in bytes.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8192;

/// The sum of the 64-bit words, by the widest loads that this machine has, of what is fetched ahead or not.
fn sum(bytes: &[u8], ahead: bool) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has what the function is compiled for.
        return unsafe { if ahead { sum_in_512_bits::<true>(bytes) } else { sum_in_512_bits::<false>(bytes) } };
    }
    // In sixteen lanes: more independent loads than a core can have under way.
    let mut lanes = [0u64; 16];
    for chunk in bytes.chunks_exact(128) {
        if ahead {
            fetch_past(chunk);
        }
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Fetches the lines that lie `AHEAD` of a chunk past all caches but the first, where that can be said.
fn fetch_past(chunk: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in chunk.as_chunks::<64>().0 {
        use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
        // SAFETY: a hint, which reads nothing that the process could notice, and every machine of this kind takes.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(line.as_ptr().wrapping_add(AHEAD).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = chunk;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_in_512_bits<const FETCHES: bool>(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_add_epi64, _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_setzero_si512,
    };
    let mut lanes = [_mm512_setzero_si512(); CHUNK / 64];
    for chunk in bytes.as_chunks::<CHUNK>().0 {
        for (lanes, vector) in lanes.iter_mut().zip(chunk.as_chunks::<64>().0) {
            if FETCHES {
                _mm_prefetch::<_MM_HINT_T0>(vector.as_ptr().wrapping_add(AHEAD).cast());
            }
            // SAFETY: a vector is as long as what is loaded, wherever it begins.
            let words = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
            *lanes = _mm512_add_epi64(*lanes, words);
        }
    }
    lanes.into_iter().fold(0, |sum, lanes| sum.wrapping_add(_mm512_reduce_add_epi64(lanes) as u64))
}

/// Seconds that `work` takes when all workers do it at the same time, from the first start to the last end; the best of
/// `repeats` times.
fn fastest(team: &dyn Team, repeats: usize, work: impl Fn(usize) + Sync) -> f64 {
    let times: Vec<Mutex<Vec<(Instant, Instant)>>> = (0..team.workers()).map(|_| Mutex::default()).collect();
    team.run(&|worker, meet| {
        let took = (0..repeats).map(|_| {
            meet();
            let start = Instant::now();
            work(worker);
            (start, Instant::now())
        });
        let took = took.collect();
        *times[worker].lock().unwrap_or_else(PoisonError::into_inner) = took;
    });
    let times: Vec<_> = times.into_iter().map(|t| t.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    let seconds = |repeat: usize| {
        let start = times.iter().map(|t| t[repeat].0).min();
        let end = times.iter().map(|t| t[repeat].1).max();
        start.zip(end).map_or(f64::INFINITY, |(start, end)| (end - start).as_secs_f64())
    };
    (0..repeats).map(seconds).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        let words = 5 * CHUNK / 8;
        let bytes: Vec<u8> = (0..words as u64).flat_map(|word| (word * 0x0123_4567_89ab).to_le_bytes()).collect();
        let expected = (0..words as u64).fold(0u64, |sum, word| sum.wrapping_add(word * 0x0123_4567_89ab));
        assert_eq!([false, true].map(|ahead| sum(&bytes, ahead)), [expected; 2]);
    }
}
