//! The activations that cores multiply: where they are, or copies in private memory in the format that the cores want.

use einfuse_graph::{AxisId, TensorId};

use super::contract::Block;
use super::cores::apart;
use super::emit::{Emitter, Scope};
use super::layout::Layout;
use super::place::Place;
use super::{Context, Mode};
use crate::fuse::{Contract, Contraction, Kernel, is_tokens};
use crate::loops::{Address, Buffer, Encode, Expr, Format, Stmt};

/// The first operand of some cores.
pub(super) struct Operand {
    memory: Memory,
    pub(super) format: Format,
    /// Units from row to row.
    pub(super) stride: usize,
}

enum Memory {
    /// Floats where a tensor's elements are.
    Place(Place),
    /// Rows in another format, one after the other: for each row, one for each coordinate of the batch, of so many units.
    Encoded(Buffer, usize),
}

impl Operand {
    /// The address of the block's first row, at the scope's coordinates of the batch.
    pub(super) fn at(&self, cx: &Context, c: &Contraction, block: &Block, scope: &Scope) -> Address {
        let of_batch = |x: &AxisId| scope.at.get(x).filter(|_| c.batch.contains(x)).cloned().unwrap_or(Expr::Int(0));
        match &self.memory {
            Memory::Place(place) => {
                let axes = &cx.plan.graph.tensor(c.a).axes;
                let first: Vec<Expr> = axes
                    .iter()
                    .map(|x| match &block.tokens {
                        Some((t, from)) if t == x => from.clone(),
                        _ => of_batch(x),
                    })
                    .collect();
                place.address(&first)
            }
            Memory::Encoded(buffer, units) => {
                let mut at = Expr::Int(0);
                for x in batch(cx, c) {
                    at = at * cx.plan.graph.size(x).unwrap_or(1) + of_batch(&x);
                }
                Address::new(buffer.clone(), at * *units)
            }
        }
    }
}

/// The batch of a contraction, in the order of the operand's axes.
fn batch(cx: &Context, c: &Contraction) -> Vec<AxisId> {
    cx.plan.graph.tensor(c.a).axes.iter().filter(|a| c.batch.contains(a)).copied().collect()
}

fn product(cx: &Context, axes: &[AxisId]) -> usize {
    axes.iter().map(|&a| cx.plan.graph.size(a).unwrap_or(1)).product()
}

/// Computes the prologue of a block, and copies what the cores want in another form.
pub(super) fn operands(cx: &Context, kernel: &Kernel, contract: &Contract, block: &mut Block, e: &mut Emitter) {
    let mode = cx.mode(kernel);
    let contractions = || contract.tasks.iter().flat_map(|t| &t.contractions);
    for &q in &contract.prologue {
        let equation = cx.plan.equations[q];
        let of_core = contractions().find(|(_, c)| c.a == equation.out).map(|(_, c)| c);
        let (place, _) = block_place(cx, equation.out, of_core, block, e);
        e.places.insert(equation.out, place.clone());
        e.equation(&Scope::default(), equation.out, equation.body, &place);
    }
    for (q, c) in contractions() {
        let format = cx.multiplied(cx.homes.panels[q].format, &mode);
        if block.operands.contains_key(&(c.a, format)) {
            continue;
        }
        let row = product(cx, &c.depth) * product(cx, &c.batch);
        let computed = contract.prologue.iter().any(|&q| cx.plan.equations[q].out == c.a);
        let stride = if computed { apart(row, Format::F32) } else { row };
        let place = e.places[&c.a].clone();
        let mut floats = Operand { memory: Memory::Place(place), format: Format::F32, stride };
        if !computed && format == Format::F32 && mode == Mode::Many && apart(row, format) != row {
            let (place, stride) = block_place(cx, c.a, Some(c), block, e);
            e.equation(&Scope::default(), c.a, cx.load(c.a), &place);
            floats = Operand { memory: Memory::Place(place), stride, ..floats };
        }
        let operand = if format == Format::F32 { floats } else { encoded(cx, c, &floats, format, block, e) };
        block.operands.insert((c.a, format), operand);
    }
}

/// A copy in another format.
fn encoded(cx: &Context, c: &Contraction, floats: &Operand, format: Format, block: &Block, e: &mut Emitter) -> Operand {
    let (depth, batches) = (product(cx, &c.depth), product(cx, &c.batch));
    let line = 64 / format.elem().bytes();
    let units = format.row(depth).next_multiple_of(line);
    let stride = apart(units * batches, format);
    let buffer = e.memory(stride * block.most_rows(), format.elem());
    let from = floats.at(cx, c, block, &Scope::default());
    e.note(format!("{} as {format}", super::emit::graph_name(&cx.plan.graph, c.a)));
    e.repeat(Expr::Int(0), block.rows(), 1, |e, row| {
        let (from, to) = (from.plus(row.clone() * floats.stride), Address::new(buffer.clone(), row * stride));
        e.repeat(Expr::Int(0), batches.into(), 1, |e, b| {
            let (from, to) = (from.plus(b.clone() * depth), to.plus(b * units));
            e.push(Stmt::Encode(Encode { depth, from, to, format }));
        });
    });
    Operand { memory: Memory::Encoded(buffer, units), format, stride }
}

/// Private memory for a tensor of the block, with the elements from row to row. The rows of a contraction's operand are
/// kept apart in the cache.
fn block_place(
    cx: &Context,
    tensor: TensorId,
    operand: Option<&Contraction>,
    block: &Block,
    e: &mut Emitter,
) -> (Place, usize) {
    let graph = &cx.plan.graph;
    let axes = &graph.tensor(tensor).axes;
    let mut layout = Layout::default();
    let mut stride = 1;
    let mut row = None;
    for (dim, &a) in axes.iter().enumerate().rev() {
        if operand.is_some_and(|c| !c.depth.contains(&a) && !c.batch.contains(&a)) && row.is_none() {
            stride = apart(stride, Format::F32);
            row = Some(stride);
        }
        layout.push(dim, stride);
        stride *= if is_tokens(graph, a) { block.most } else { graph.size(a).unwrap_or(1) };
    }
    let row = row.unwrap_or(stride);
    let beyond = (block.most_rows() - block.most * block.per_token) * row;
    let elem = cx.elem(tensor);
    let mut place = Place::flat(e.memory(stride + beyond, elem), layout, axes.len());
    place.elem = elem;
    if let Some((t, from)) = &block.tokens
        && let Some(dim) = axes.iter().position(|a| a == t)
    {
        place = place.with_origin(dim, from.clone());
    }
    (place, row)
}
