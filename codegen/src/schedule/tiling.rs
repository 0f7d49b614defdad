//! Tilings: the numbers of a schedule that are a choice, and which there are for a kernel.

use einfuse_graph::AxisId;
use serde::{Deserialize, Serialize};

use super::Mode;
use super::homes::Homes;
use super::weights::Variant;
use crate::format::Elem;
use crate::fuse::{Fold, Kernel, Plan, Shape};
use crate::loops::{Cores, MAX_ROWS};

/// The numbers of one kernel's schedule: whatever they are, the answer is the same up to rounding. A kernel takes note of
/// those that its skeleton has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiling {
    /// Of a contraction of many rows: rows that meet a panel before the next one is read, about.
    pub block: usize,
    /// The most rows that a core takes at once.
    pub core: usize,
    /// Where the rows of a contraction are prepared for all workers: rows that one prepares at a time, about.
    pub prepared: usize,
    /// Of a stream of many tokens: rows of a tile, about.
    pub tile: usize,
    /// Of a stream of one token, or a few: parts that the positions are cut into for each of the outer coordinates.
    pub parts: usize,
}

/// The sizes of a kernel that its best tiling depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows that a token has; of a stream, those that read the same keys and values.
    pub rows: usize,
    /// Products that a core sums up; of a stream, for a score.
    pub depth: usize,
    /// Columns of all contractions together; of a stream, of its weighted sums.
    pub columns: usize,
    /// Of a stream: how many there are that read keys and values of their own.
    pub outer: usize,
    /// Of a stream: operands that each tile computes itself.
    pub operands: usize,
    /// Bits of an element of the stored operand.
    pub bits: usize,
}

impl Sizes {
    pub(crate) fn of(plan: &Plan, homes: &Homes, scope: usize, kernel: &Kernel, variant: &Variant) -> Sizes {
        let graph = &plan.graph;
        let product = |axes: &[AxisId]| axes.iter().map(|&a| graph.fixed_size(a)).product::<usize>();
        let none = Sizes { rows: 1, depth: 1, columns: 1, outer: 1, operands: 0, bits: 32 };
        match &kernel.shape {
            Shape::Rows => none,
            Shape::Contract(contract) => {
                let all: Vec<_> = contract.tasks.iter().flat_map(|task| &task.contractions).collect();
                let Some((eq, first)) = all.first() else { return none };
                Sizes {
                    rows: product(&first.rows),
                    depth: product(&first.depth),
                    columns: all.iter().map(|(_, c)| product(&c.cols) * product(&c.batch)).sum(),
                    outer: 1,
                    operands: 0,
                    bits: variant.panels.get(eq).map_or(32, |panels| panels.format.bits()),
                }
            }
            Shape::Stream(stream) => {
                let outer = product(&super::stream::outer(graph, stream));
                let scores = stream.scores.iter().find_map(|(_, c)| c.as_ref());
                let sums: Vec<_> = stream
                    .folds
                    .iter()
                    .filter_map(|fold| match fold {
                        Fold::Sum { over, .. } => over.as_deref(),
                        Fold::Max { .. } => None,
                    })
                    .collect();
                let state = scores.or(sums.first().copied()).and_then(|c| homes.places[scope].get(&c.b));
                Sizes {
                    rows: product(&stream.rows) / outer.max(1),
                    depth: scores.map_or(1, |c| product(&c.depth)),
                    columns: sums.iter().map(|c| product(&c.cols)).sum(),
                    outer,
                    operands: stream.operands.len(),
                    bits: state.map_or(32, |place| place.format().bits()),
                }
            }
        }
    }
}

/// Rows of a tile that computes operands: so many that these cost less than what is done with them, and that private memory stays
/// in the second cache.
pub(crate) const EXPANDING: usize = 384;

/// Bytes of rows that stay in the second cache while panels go by.
const SECOND: usize = 1 << 20;

/// Tiles that each worker should have, at least, where there is one token or a few.
const TILES: usize = 2;

/// Names and largest values, in the order of the fields; the least is 1.
const NAMES: [(&str, usize); 5] =
    [("block", 1024), ("core", MAX_ROWS), ("prepared", 1024), ("tile", 1024), ("parts", MOST_PARTS)];

/// The most parts that positions are cut into.
const MOST_PARTS: usize = 64;

impl Tiling {
    fn numbers(&self) -> [usize; 5] {
        [self.block, self.core, self.prepared, self.tile, self.parts]
    }

    /// Whether every number is one that a schedule can have.
    ///
    /// # Errors
    /// Names the number that is not, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        for ((name, most), number) in NAMES.into_iter().zip(self.numbers()) {
            if !(1..=most).contains(&number) {
                return Err(format!("`{name}` is {number}, not 1 to {most}"));
            }
        }
        Ok(())
    }

    /// The numbers that differ from others', with their names, as in `block 128, core 8`; empty where none does.
    pub fn beside(&self, others: &Tiling) -> String {
        let numbers = NAMES.into_iter().zip(self.numbers().into_iter().zip(others.numbers()));
        let different = numbers.filter(|(_, (own, other))| own != other);
        different.map(|((name, _), (own, _))| format!("{name} {own}")).collect::<Vec<_>>().join(", ")
    }

    /// What a kernel gets where nobody says otherwise: what was fastest on what `einfuse tune` measured.
    pub(crate) fn by_default(sizes: &Sizes, cores: &Cores, workers: usize) -> Tiling {
        // Not one more than there is work for: each reads a shorter stretch of the cache, and is merged.
        let parts = (TILES * workers).div_ceil(sizes.outer.max(1)).next_power_of_two().min(MOST_PARTS);
        // What a tile computes for each page it computes for all of its rows.
        let tile = if sizes.operands > 0 { EXPANDING } else { 48 };
        // As many rows as stay near are best; but panels are read anew for each block, and wide cores multiply faster than memory
        // brings them.
        let tiles = cores.tiles && sizes.bits <= 16;
        let elem = match sizes.bits {
            ..=8 if !tiles => Elem::U8,
            ..=16 if cores.bf16 || cores.i16 => Elem::Bf16,
            _ => Elem::F32,
        };
        let (least, most) = if tiles { (64, 512) } else { (128, 256) };
        let near = SECOND / (elem.bytes() * sizes.depth.max(1));
        let block = if cores.bits == 512 { 1 << near.clamp(least, most).ilog2() } else { 64 };
        Tiling { block, core: cores.most_rows(), prepared: 1, tile, parts }
    }

    /// The same where no core takes more rows than this machine's.
    pub(crate) fn within(self, cores: &Cores) -> Tiling {
        Tiling { core: self.core.min(cores.most_rows()), block: self.block.max(cores.rows()), ..self }
    }

    /// What else is worth a trial: other values of the numbers that the kernel's skeleton has.
    pub(crate) fn alternatives(self, kernel: &Kernel, mode: &Mode, cores: &Cores) -> Vec<Tiling> {
        let mut all = Vec::new();
        let narrower = [cores.most_rows(), cores.most_rows().div_ceil(2)];
        match (&kernel.shape, mode) {
            (Shape::Contract(_), Mode::Many) if !kernel.last_rows => {
                for core in narrower {
                    all.extend([32, 64, 128, 256, 512].map(|block| Tiling { block, core, ..self }));
                }
                all.extend([4, 16].map(|prepared| Tiling { prepared, ..self }));
            }
            (Shape::Stream(_), Mode::Many) if !kernel.last_rows => {
                for core in narrower {
                    all.extend([16, 32, 48, 96, 192].map(|tile| Tiling { tile, core, ..self }));
                }
            }
            (Shape::Stream(_), _) => all.extend([1, 2, 4, 8, 16].map(|parts| Tiling { parts, ..self })),
            _ => {}
        }
        all.retain(|tiling| *tiling != self);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What `einfuse tune --data` measured, on some models and numbers of threads: `docs/benchmarks.md` says how.
    const MEASURED: &str = include_str!("measured.csv");

    /// By how much another default would have to be faster, beyond the noise, before it is one.
    const TOLERANCE: f64 = 0.02;

    /// The measurements of one kernel in one run: tilings with the time each takes in that of the default of then, and how
    /// far that may be off.
    struct Measured {
        shape: String,
        batch: String,
        workers: usize,
        sizes: Sizes,
        times: Vec<(Tiling, f64, f64)>,
    }

    impl Measured {
        fn of(&self, tiling: Tiling) -> Option<(f64, f64)> {
            let alike = |other: &Tiling| self.noted(*other) == self.noted(tiling);
            self.times.iter().find(|(tried, ..)| alike(tried)).map(|(_, time, noise)| (*time, *noise))
        }

        /// The numbers that its skeleton takes note of.
        fn noted(&self, Tiling { block, core, prepared, tile, parts }: Tiling) -> [usize; 3] {
            match (self.shape.as_str(), self.batch.as_str()) {
                ("contract", _) => [block, core, prepared],
                (_, "many") => [core, tile, 0],
                _ => [parts, 0, 0],
            }
        }
    }

    fn measured() -> Vec<Measured> {
        let mut lines = MEASURED.lines();
        let columns: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let mut kernels: BTreeMap<String, Measured> = BTreeMap::new();
        for line in lines {
            let row: BTreeMap<&str, &str> = columns.iter().copied().zip(line.split(',')).collect();
            let number = |name: &str| row[name].parse::<usize>().unwrap();
            let sizes = Sizes {
                rows: number("rows"),
                depth: number("depth"),
                columns: number("columns"),
                outer: number("outer"),
                bits: number("bits"),
                operands: 0,
            };
            let tiling = Tiling {
                block: number("block"),
                core: number("core"),
                prepared: number("prepared"),
                tile: number("tile"),
                parts: number("parts"),
            };
            let of = ["cpu", "batch", "shape", "threads", "tokens", "past"].map(|name| row[name]).join(" ");
            let kernel = kernels.entry(format!("{of} {sizes:?}")).or_insert_with(|| Measured {
                shape: row["shape"].to_owned(),
                batch: row["batch"].to_owned(),
                workers: number("threads"),
                sizes,
                times: Vec::new(),
            });
            kernel.times.push((tiling, row["ratio"].parse().unwrap(), row["noise"].parse().unwrap()));
        }
        kernels.into_values().collect()
    }

    /// The time that the defaults take, with a change, in that of the defaults: the geometric mean over the kernels of a
    /// kind that were measured with both; and how far it may be off.
    fn time(
        kernels: &[Measured],
        (shape, batch): (&str, &str),
        change: impl Fn(Tiling) -> Tiling,
    ) -> Option<(f64, f64)> {
        let cores = Cores { bits: 512, ..Cores::PORTABLE };
        let ratios = kernels.iter().filter(|k| k.shape == shape && k.batch == batch).filter_map(|k| {
            let default = Tiling::by_default(&k.sizes, &cores, k.workers);
            let changed = change(default);
            // Rows are prepared by a kernel of its own: beside other numbers it was measured with a default of before.
            let measured = |tiling: Tiling| match changed.prepared == default.prepared {
                true => Tiling { prepared: 4, ..tiling },
                false => tiling,
            };
            let ((time, noise), (before, _)) = (k.of(measured(changed))?, k.of(measured(default))?);
            Some(((time / before).ln(), noise))
        });
        let ratios: Vec<(f64, f64)> = ratios.collect();
        let count = ratios.len() as f64;
        let mean = ratios.iter().map(|(ratio, _)| ratio).sum::<f64>() / count;
        let noise = ratios.iter().map(|(_, noise)| noise * noise).sum::<f64>().sqrt() / count;
        (count > 0.0).then_some((mean.exp(), noise))
    }

    #[test]
    fn no_other_default_would_have_been_faster() {
        let kernels = measured();
        let (contract, stream) = (("contract", "many"), ("stream", "many"));
        let mut changes = Vec::new();
        for block in [32, 64, 128, 256] {
            changes.push((format!("block {block}"), time(&kernels, contract, |t| Tiling { block, ..t })));
        }
        for core in [8, 16] {
            changes.push((format!("core {core}"), time(&kernels, contract, |t| Tiling { core, ..t })));
            changes.push((format!("core {core} of a stream"), time(&kernels, stream, |t| Tiling { core, ..t })));
        }
        for prepared in [1, 4, 16] {
            changes.push((format!("prepared {prepared}"), time(&kernels, contract, |t| Tiling { prepared, ..t })));
        }
        for tile in [16, 32, 48, 96, 192] {
            changes.push((format!("tile {tile}"), time(&kernels, stream, |t| Tiling { tile, ..t })));
        }
        for batch in ["one", "few"] {
            for halves in [-1i32, 0, 1] {
                let of = |t: Tiling| Tiling { parts: (t.parts as f64 * 2f64.powi(halves)) as usize, ..t };
                changes.push((format!("parts of {batch} × 2^{halves}"), time(&kernels, ("stream", batch), of)));
            }
        }
        let table: String = changes.iter().map(|(change, time)| format!("{change}: {time:.3?}\n")).collect();
        let slower =
            |(_, time): &(String, Option<(f64, f64)>)| time.is_some_and(|(time, noise)| time > 1.0 - TOLERANCE - noise);
        assert!(changes.iter().all(slower), "{table}");
    }
}
