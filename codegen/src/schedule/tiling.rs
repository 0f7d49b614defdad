//! Tilings: the numbers of a schedule that are a choice, and which there are for a kernel.

use einfuse_graph::AxisId;
use serde::{Deserialize, Serialize};

use super::Mode;
use super::homes::Homes;
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
    pub(crate) fn of(plan: &Plan, homes: &Homes, scope: usize, kernel: &Kernel) -> Sizes {
        let graph = &plan.graph;
        let product = |axes: &[AxisId]| axes.iter().map(|&a| graph.size(a).unwrap_or(1)).product::<usize>();
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
                    bits: homes.panels.get(eq).map_or(32, |panels| panels.format.bits()),
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
                    bits: state.map_or(32, |place| 8 * place.elem.bytes()),
                }
            }
        }
    }
}

/// Rows of a tile that computes operands: so many that these cost less than what is done with them, and that private memory stays
/// in the second cache.
const EXPANDING: usize = 384;

/// Tiles there should be, at least, where there is one token or a few.
const TILES: usize = 16;

/// Names and largest values, in the order of the fields; the least is 1.
const NAMES: [(&str, usize); 5] =
    [("block", 1024), ("core", MAX_ROWS), ("prepared", 1024), ("tile", 1024), ("parts", 64)];

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

    /// What a kernel gets where nobody says otherwise.
    pub(crate) fn by_default(sizes: &Sizes, cores: &Cores) -> Tiling {
        // A power of two, so that few workers get equal shares.
        let parts = 1 << (TILES / sizes.outer.max(1)).clamp(1, 8).ilog2();
        // What a tile computes for each page it computes for all of its rows.
        let tile = if sizes.operands > 0 { EXPANDING } else { 48 };
        Tiling { block: 64, core: cores.rows(), prepared: 4, tile, parts }
    }

    /// The same where no core takes more rows than this machine's.
    pub(crate) fn within(self, cores: &Cores) -> Tiling {
        Tiling { core: self.core.min(cores.rows()), block: self.block.max(cores.rows()), ..self }
    }

    /// What else is worth a trial: other values of the numbers that the kernel's skeleton has.
    pub(crate) fn alternatives(self, kernel: &Kernel, mode: &Mode, cores: &Cores) -> Vec<Tiling> {
        let mut all = Vec::new();
        let narrower = [cores.rows(), cores.rows().div_ceil(2)];
        match (&kernel.shape, mode) {
            (Shape::Contract(_), Mode::Many) if !kernel.last_rows => {
                for core in narrower {
                    all.extend([32, 64, 128, 256].map(|block| Tiling { block, core, ..self }));
                }
                all.extend([1, 16].map(|prepared| Tiling { prepared, ..self }));
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
