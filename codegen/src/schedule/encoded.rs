//! Values that are left as rows in the format in which cores multiply them: encoded where they are computed, block by block.

use einfuse_graph::{AxisId, TensorId};

use super::cores::odd_lines;
use super::emit::{Emitter, Scope};
use super::homes::Multiplied;
use super::{Context, Mode};
use crate::format::Format;
use crate::fuse::is_tokens;
use crate::loops::{Address, Buffer, Encode, Expr, Part, Stmt};

/// Of larger blocks there are too few to share out among the workers.
const MOST: usize = 64;

/// Rows of one value, in the memory of its floats.
#[derive(Clone)]
pub(super) struct Encoded {
    pub(super) format: Format,
    pub(super) buffer: Buffer,
    /// Numbers of a row.
    depth: usize,
    /// Units of a row, and from row to row.
    pub(super) units: usize,
    pub(super) stride: usize,
}

/// Units of a row that is multiplied, of whole lines, and from one such row to the next, each with so many parts.
pub(super) fn units_and_stride(depth: usize, parts: usize, format: Format) -> (usize, usize) {
    let units = format.row(depth).next_multiple_of(64 / format.elem().bytes());
    (units, odd_lines(units * parts, format))
}

impl Encoded {
    fn of(multiplied: &Multiplied, format: Format) -> Option<Encoded> {
        let block = format.block();
        let depth = multiplied.row;
        let (units, stride) = units_and_stride(depth, 1, format);
        let fits = block <= MOST && multiplied.together.is_multiple_of(block) && multiplied.together > 0;
        (fits && stride * format.elem().bytes() <= 4 * depth).then(|| Encoded {
            format,
            buffer: multiplied.buffer.clone(),
            depth,
            units,
            stride,
        })
    }

    /// Encodes neighbours of the row of a token, from the one on that stands at the scope's coordinates: those of axes that it
    /// does not have are 0.
    pub(super) fn push(
        &self,
        cx: &Context,
        tensor: TensorId,
        scope: &Scope,
        token: Expr,
        (from, count): (Address, usize),
        e: &mut Emitter,
    ) {
        let graph = &cx.plan.graph;
        let at = |a: &AxisId| scope.at.get(a).cloned().unwrap_or(Expr::Int(0));
        let own = graph.tensor(tensor).axes.iter().filter(|&&a| !is_tokens(graph, a));
        let first = own.fold(Expr::Int(0), |first, a| first * graph.fixed_size(*a) + at(a));
        let part = (count < self.depth).then(|| Part { of: self.depth, block: first.div(self.format.block()) });
        let to = Address::new(self.buffer.clone(), token * self.stride);
        e.push(Stmt::Encode(Encode { depth: count, from, to, format: self.format, part }));
    }
}

impl Context<'_> {
    /// How a value is left, if not as floats: as rows of codes, words or numbers of 16 bits, where all cores multiply it so, be its
    /// rows few or many, and nothing else reads it. One token's is multiplied as it is.
    pub(super) fn encoded(&self, tensor: TensorId) -> Option<Encoded> {
        if matches!(self.step, Mode::One(_)) {
            return None;
        }
        let multiplied = self.homes.multiplied.iter().find(|multiplied| multiplied.tensor == tensor)?;
        let mut formats =
            multiplied.panels.iter().flat_map(|&(format, depth)| self.formats(format, depth, &Mode::Many));
        let format = formats.next().filter(|format| format.is_coded())?;
        formats.all(|other| other == format).then(|| Encoded::of(multiplied, format)).flatten()
    }
}
