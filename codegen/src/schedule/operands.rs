//! The activations that cores multiply: where they are, if they were left so, or copies in the format that the cores want.

use einfuse_graph::{AxisId, TensorId};

use super::contract::Block;
use super::cores::{When, apart};
use super::emit::{Emitter, Scope};
use super::encoded::units_and_stride;
use super::layout::Layout;
use super::place::Place;
use super::{Context, Mode};
use crate::format::{Elem, Format};
use crate::fuse::{Contract, Contraction, Kernel, is_tokens};
use crate::loops::{Address, Buffer, Encode, Expr, GROUP, Stmt};

/// The first operand of some cores.
#[derive(Clone)]
pub(super) struct Operand {
    memory: Memory,
    pub(super) format: Format,
    /// Units from row to row.
    pub(super) stride: usize,
}

#[derive(Clone)]
enum Memory {
    /// Numbers where a tensor's elements are.
    Place(Box<Place>),
    /// Rows in another format, one after the other: for each row, one for each coordinate of the batch, of so many units.
    Encoded {
        buffer: Buffer,
        units: usize,
        /// Whether the first row is the step's, not the block's.
        shared: bool,
    },
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
            Memory::Encoded { buffer, units, shared } => {
                let mut at = Expr::Int(0);
                for x in batch(cx, c) {
                    at = at * cx.plan.graph.fixed_size(x) + of_batch(&x);
                }
                let first = if *shared { block.first_row() * self.stride } else { Expr::Int(0) };
                Address::new(buffer.clone(), first + at * *units)
            }
        }
    }
}

/// The batch of a contraction, in the order of the operand's axes.
fn batch(cx: &Context, c: &Contraction) -> Vec<AxisId> {
    cx.plan.graph.tensor(c.a).axes.iter().filter(|a| c.batch.contains(a)).copied().collect()
}

fn product(cx: &Context, axes: &[AxisId]) -> usize {
    axes.iter().map(|&a| cx.plan.graph.fixed_size(a)).product()
}

/// Where operands are put.
pub(super) enum Room<'a> {
    /// The worker's private memory, for the block alone.
    Private,
    /// The arena from here on, for all tokens of the step.
    Arena(&'a mut usize),
}

/// Whether there is something to compute before the cores can multiply a kernel's rows, or to copy.
pub(super) fn are_prepared(cx: &Context, kernel: &Kernel, contract: &Contract) -> bool {
    let mode = cx.mode(kernel);
    let copied = |(q, c): &(_, Contraction)| {
        let row = product(cx, &c.depth) * product(cx, &c.batch);
        let stored = cx.stored(c.a);
        cx.rows_of(&cx.variant.panels[q], &mode)
            .iter()
            .any(|&format| format != stored || format == Format::F32 && apart(row, format) != row)
    };
    !contract.prologue.is_empty() || contract.tasks.iter().flat_map(|t| &t.contractions).any(copied)
}

/// Whether the rows of a kernel that has many are better computed once, for all workers: there is something to compute, and
/// nothing but the cores reads it.
pub(super) fn are_shared(cx: &Context, kernel: &Kernel, contract: &Contract) -> bool {
    let graph = &cx.plan.graph;
    let contractions = || contract.tasks.iter().flat_map(|t| &t.contractions);
    let computed: Vec<TensorId> = contract.prologue.iter().map(|&q| cx.plan.equations[q].out).collect();
    let others = kernel
        .equations
        .iter()
        .filter(|&&q| !contract.prologue.contains(&q) && !contractions().any(|(contraction, _)| *contraction == q));
    let read = |q: &usize| graph.loaded(cx.plan.equations[*q].body).iter().any(|t| computed.contains(t));
    cx.mode(kernel) == Mode::Many && are_prepared(cx, kernel, contract) && !others.into_iter().any(read)
}

/// Computes the prologue of a block, and copies what the cores want in another form.
pub(super) fn operands(
    cx: &Context,
    kernel: &Kernel,
    contract: &Contract,
    block: &mut Block,
    mut room: Room,
    e: &mut Emitter,
) {
    let mode = cx.mode(kernel);
    let contractions = || contract.tasks.iter().flat_map(|t| &t.contractions);
    for &q in &contract.prologue {
        let equation = cx.plan.equations[q];
        let of_core = contractions().find(|(_, c)| c.a == equation.out);
        // What is only to be encoded is needed in the block alone.
        let is_last = of_core.is_some_and(|(q, _)| cx.rows_of(&cx.variant.panels[q], &mode).contains(&Format::F32));
        let (place, _) = match &mut room {
            Room::Arena(_) if !is_last => {
                block_place(cx, equation.out, of_core.map(|(_, c)| c), block, &mut Room::Private, e)
            }
            room => block_place(cx, equation.out, of_core.map(|(_, c)| c), block, room, e),
        };
        e.places.insert(equation.out, place.clone());
        e.equation(&Scope::default(), equation.out, equation.body, &place);
    }
    for (c, format) in
        contractions().flat_map(|(q, c)| cx.rows_of(&cx.variant.panels[q], &mode).map(|format| (c, format)))
    {
        let needed = needed(cx, contract, &mode, block, (c.a, format));
        if block.operands.contains_key(&(c.a, format)) || matches!(needed, When::Never) {
            continue;
        }
        if let Some(encoded) = cx.encoded(c.a) {
            let memory = Memory::Encoded { buffer: encoded.buffer, units: encoded.units, shared: true };
            block.operands.insert((c.a, format), Operand { memory, format, stride: encoded.stride });
            continue;
        }
        let row = product(cx, &c.depth) * product(cx, &c.batch);
        let computed = contract.prologue.iter().any(|&q| cx.plan.equations[q].out == c.a);
        let stride = if computed { apart(row, Format::F32) } else { row };
        let place = e.places[&c.a].clone();
        let stored = Format::of(place.elem);
        if stored == format && stored != Format::F32 {
            let second: Vec<usize> = (0..place.origin.len()).map(|dim| usize::from(dim == 0)).collect();
            let stride = place.layout.offset_of(&second) - place.layout.base;
            block.operands.insert((c.a, format), Operand { memory: Memory::Place(place.into()), format, stride });
            continue;
        }
        let mut floats = Operand { memory: Memory::Place(place.into()), format: Format::F32, stride };
        // Few rows stay in the nearest cache as they lie.
        let many = mode == Mode::Many && matches!(needed, When::Always);
        let is_apart = format == Format::F32 && many && apart(row, format) != row;
        if !computed && (is_apart || stored != Format::F32) {
            let (place, stride) = block_place(cx, c.a, Some(c), block, &mut room, e);
            e.equation(&Scope::default(), c.a, cx.load(c.a), &place);
            floats = Operand { memory: Memory::Place(place.into()), stride, ..floats };
        }
        let operand = match format {
            Format::F32 => floats,
            format => encoded(cx, c, &floats, (format, needed), block, &mut room, e),
        };
        block.operands.insert((c.a, format), operand);
    }
}

/// When a step needs an activation in a format: if it has few rows, for the panels as they are, or if it has more, for unpacked
/// ones.
fn needed(cx: &Context, contract: &Contract, mode: &Mode, block: &Block, (of, format): (TensorId, Format)) -> When {
    let panels = contract.tasks.iter().flat_map(|t| &t.contractions).filter(|(_, c)| c.a == of);
    let uses: Vec<(Format, [bool; 2])> = panels
        .map(|(q, _)| (cx.variant.panels[q].format, cx.rows_of(&cx.variant.panels[q], mode).map(|rows| rows == format)))
        .collect();
    match uses.iter().find(|(_, used)| *used != [false, false]) {
        _ if uses.iter().any(|(_, used)| *used == [true, true]) => When::Always,
        Some((panel, [true, false])) => cx.are_few(&block.of_step, *panel),
        Some((panel, _)) => cx.are_many(&block.of_step, *panel),
        None => When::Never,
    }
}

/// A copy in another format, made when it is needed.
fn encoded(
    cx: &Context,
    c: &Contraction,
    floats: &Operand,
    (format, needed): (Format, When),
    block: &Block,
    room: &mut Room,
    e: &mut Emitter,
) -> Operand {
    let (depth, batches) = (product(cx, &c.depth), product(cx, &c.batch));
    let (units, stride) = units_and_stride(depth, batches, format);
    let (rows, first) = room.rows(cx, block);
    let buffer = room.memory(stride * rows, format.elem(), e);
    let from = floats.at(cx, c, block, &Scope::default());
    e.note(format!("{} as {format}", super::emit::graph_name(&cx.plan.graph, c.a)));
    let first = e.int(first);
    let to = |row| Address::new(buffer.clone(), (first.clone() + row) * stride);
    let encode = |e: &mut Emitter| {
        e.repeat(Expr::Int(0), block.rows(), 1, |e, row| {
            let (from, to) = (from.plus(row.clone() * floats.stride), to(row));
            e.repeat(Expr::Int(0), batches.into(), 1, |e, b| {
                let (from, to) = (from.plus(b.clone() * depth), to.plus(b * units));
                e.push(Stmt::Encode(Encode { depth, from, to, format, part: None }));
            });
        });
    };
    match needed {
        When::If(mask) => e.when(mask, encode),
        _ => encode(e),
    }
    let shared = matches!(room, Room::Arena(_));
    Operand { memory: Memory::Encoded { buffer, units, shared }, format, stride }
}

impl Room<'_> {
    /// How many rows there is room for, and which is the block's first.
    fn rows(&self, cx: &Context, block: &Block) -> (usize, Expr) {
        match self {
            Room::Private => (block.most_rows(), Expr::Int(0)),
            Room::Arena(_) => (cx.homes.tokens * block.per_token + GROUP, block.first_row()),
        }
    }

    fn memory(&mut self, count: usize, elem: Elem, e: &mut Emitter) -> Buffer {
        match self {
            Room::Private => e.memory(count, elem),
            Room::Arena(at) => {
                let buffer = Buffer::Arena(**at);
                **at += (count * elem.bytes()).next_multiple_of(64);
                buffer
            }
        }
    }
}

/// Memory for a tensor of the block, with the elements from row to row. The rows of a contraction's operand are kept apart
/// in the cache.
fn block_place(
    cx: &Context,
    tensor: TensorId,
    operand: Option<&Contraction>,
    block: &Block,
    room: &mut Room,
    e: &mut Emitter,
) -> (Place, usize) {
    let graph = &cx.plan.graph;
    let axes = &graph.tensor(tensor).axes;
    let mut layout = Layout::default();
    let mut stride = 1;
    let mut row = None;
    let tokens = if matches!(room, Room::Arena(_)) { cx.homes.tokens } else { block.most };
    for (dim, &a) in axes.iter().enumerate().rev() {
        if operand.is_some_and(|c| !c.depth.contains(&a) && !c.batch.contains(&a)) && row.is_none() {
            stride = apart(stride, Format::F32);
            row = Some(stride);
        }
        layout.push(dim, stride);
        stride *= if is_tokens(graph, a) { tokens } else { graph.fixed_size(a) };
    }
    let row = row.unwrap_or(stride);
    let beyond = (room.rows(cx, block).0 - tokens * block.per_token) * row;
    let elem = cx.elem(tensor);
    let mut place = Place::flat(room.memory(stride + beyond, elem, e), layout, axes.len());
    place.elem = elem;
    if let (Room::Private, Some((t, from))) = (&room, &block.tokens)
        && let Some(dim) = axes.iter().position(|a| a == t)
    {
        place = place.with_origin(dim, from.clone());
    }
    (place, row)
}
