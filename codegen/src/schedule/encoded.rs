//! Values that are left in the format in which cores multiply them: rounded, or encoded block by block, where they are computed.

use einfuse_graph::{AxisId, TensorId};

use super::cores::odd_lines;
use super::emit::{Emitter, Scope};
use super::homes::Multiplied;
use super::place::Place;
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
        let fits = block <= MOST && multiplied.neighbours.is_multiple_of(block) && multiplied.neighbours > 0;
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

/// How a value is left that cores multiply.
pub(super) enum Left<'a> {
    Floats,
    /// As rows of bf16, there.
    Rounded(&'a Place),
    Encoded(Encoded),
}

impl Context<'_> {
    /// How a value is left for many tokens, or a few. If contractions alone read it: rounded where cores of many rows multiply
    /// pairs of bf16, and encoded where cores multiply it as codes or words, be its rows few or many. One token's is multiplied as
    /// it is.
    pub(super) fn left(&self, tensor: TensorId) -> Left<'_> {
        let mut all = self.homes.multiplied.iter().filter(|_| !matches!(self.step, Mode::One(_)));
        let Some(value) = all.find(|value| value.tensor == tensor) else { return Left::Floats };
        let formats = || value.panels.iter().map(|&(format, depth)| self.formats(format, depth, &Mode::Many));
        if formats().all(|[_, many]| many == Format::Bf16) {
            return value.rounded.as_ref().map_or(Left::Floats, Left::Rounded);
        }
        let mut each = formats().flatten();
        let format = each.next().filter(|format| format.is_coded() && each.all(|other| other == *format));
        format.and_then(|format| Encoded::of(value, format)).map_or(Left::Floats, Left::Encoded)
    }

    /// The same, where it is encoded.
    pub(super) fn encoded(&self, tensor: TensorId) -> Option<Encoded> {
        match self.left(tensor) {
            Left::Encoded(encoded) => Some(encoded),
            Left::Floats | Left::Rounded(_) => None,
        }
    }

    /// The same, where it is rounded.
    pub(super) fn rounded(&self, tensor: TensorId) -> Option<&Place> {
        match self.left(tensor) {
            Left::Rounded(place) => Some(place),
            Left::Floats | Left::Encoded(_) => None,
        }
    }
}
