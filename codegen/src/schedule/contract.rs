//! The skeleton of contractions: blocks of rows against panels.
//!
//! Workers share the units of columns; each walks its units' panels, which lie one after the other, for one block of rows
//! after another, and when it is done takes what others have left. Where the kernel has a prologue, or the cores want the
//! activation in another form than it was left in, it is computed first: of many rows once, by a kernel before, which shares the
//! rows among the workers; of one row by each worker. The cores leave a tile of the result in private memory, from which the
//! epilogue computes what others read, and encodes it where these are cores of codes.

use std::collections::HashMap;

use einfuse_graph::{AxisId, TensorId};

use super::cores::{Count, Matrix, Products, When, beside, multiply};
use super::emit::{Emitter, Scope, Span};
use super::encoded::Encoded;
use super::layout::Layout;
use super::operands::{Operand, Room, are_prepared, are_shared, operands};
use super::place::Place;
use super::select;
use super::weights::{Panels, Units};
use super::{Context, Mode};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contract, Contraction, Kernel, Task, is_tokens};
use crate::loops::{self, Address, Buffer, Cores, Expr, FEW, GROUP, Share, Stmt};

/// So many bytes of panels a worker takes at a time, where there is one row. Taking is an exchange, beyond which a core does
/// not load ahead: panel by panel it would cost 3 % of SmolLM2's step of one token. Several rows take longer for a panel, and
/// wait longer for who has the last.
const AT_A_TIME: usize = 64 << 10;

/// The fewest times that are worth it.
const LEAST: usize = 8;

/// The rows at hand.
#[derive(Clone)]
pub(super) struct Block<'a> {
    pub(super) cores: &'a Cores,
    /// The tokens' axis among the rows, and the block's first token.
    pub(super) tokens: Option<(AxisId, Expr)>,
    /// Tokens in the block: how many there are, and at most.
    pub(super) count: Expr,
    pub(super) most: usize,
    /// Rows per token: the product of the other rows' axes.
    pub(super) per_token: usize,
    /// Rows of the whole step.
    pub(super) of_step: Expr,
    /// Whether the step has no more than [`FEW`] rows.
    pub(super) few: bool,
    /// The first operands of the cores.
    pub(super) operands: HashMap<(TensorId, Format), Operand>,
}

impl Block<'_> {
    pub(super) fn rows(&self) -> Expr {
        self.count.clone() * self.per_token
    }

    /// The number of the first row among the step's.
    pub(super) fn first_row(&self) -> Expr {
        self.tokens.as_ref().map_or(Expr::Int(0), |(_, from)| from.clone() * self.per_token)
    }

    /// How many rows there may be, with those that the last core takes beyond.
    pub(super) fn most_rows(&self) -> usize {
        let rows = self.most * self.per_token;
        if self.count.as_int().is_some() { rows } else { rows + self.cores.rows() - 1 }
    }
}

/// The loops of a kernel; where the rows are computed once for all workers, in a kernel before it. And the bytes of the
/// arena, from `partial` on, that pass between them.
pub(super) fn schedule(
    cx: &Context,
    kernel: &Kernel,
    contract: &Contract,
    partial: usize,
) -> (Vec<loops::Kernel>, usize) {
    let graph = &cx.plan.graph;
    let first = &contract.tasks[0].contractions[0].1;
    let tokens = first.rows.iter().copied().find(|&a| is_tokens(graph, a));
    let own = first.rows.iter().filter(|a| Some(**a) != tokens);
    let per_token = own.map(|&a| graph.fixed_size(a)).product();
    let mode = cx.mode(kernel);
    if let (Some((_, by)), Mode::Few | Mode::Many) = (first.chosen, &mode) {
        return select::schedule(cx, kernel, contract, by, partial);
    }
    let work = Work { cx, kernel, contract, per_token };
    match (tokens, mode) {
        (Some(t), Mode::Many) => work.of_many(t, partial),
        (tokens, Mode::One(at)) => (vec![work.of_one(tokens.map(|t| (t, at)))], 0),
        (_, Mode::Few | Mode::Many) => (vec![work.of_one(None)], 0),
    }
}

/// A kernel of contractions to be scheduled.
struct Work<'a> {
    cx: &'a Context<'a>,
    kernel: &'a Kernel,
    contract: &'a Contract,
    /// Rows of each token.
    per_token: usize,
}

impl Work<'_> {
    /// How many rows there are.
    fn rows(&self) -> Count {
        let (_, tokens) = self.cx.tokens(self.kernel);
        let most = tokens.most.map(|most| most * self.per_token);
        Count { rows: tokens.rows * self.per_token, most }
    }

    /// The most rows that a core takes at once, where there are many.
    fn rows_at_once(&self) -> usize {
        let cx = self.cx;
        let rows = self.contract.tasks.iter().flat_map(|task| &task.contractions).map(|(q, _)| {
            let panels = &cx.variant.panels[q];
            let (a, b) = cx.multiplied_as(panels, &Mode::Many);
            let tiles = cx.cores.tiles_serve(a, b, panels.depth);
            if tiles { GROUP } else { cx.cores.rows_by(a, b, cx.cores.panels(a, b, panels.depth)) }
        });
        rows.max().unwrap_or(1).min(cx.tiling.core)
    }

    fn emitter(&self) -> Emitter<'_> {
        let mut e = self.cx.emitter();
        self.cx.bind_tokens(self.kernel, &mut e);
        e
    }

    /// The rows of so many tokens from one on, at most this many.
    fn block(&self, tokens: Option<(AxisId, Expr)>, count: Expr, most: usize) -> Block<'_> {
        Block {
            cores: self.cx.cores,
            tokens,
            count,
            most,
            per_token: self.per_token,
            of_step: self.rows().rows,
            few: false,
            operands: HashMap::new(),
        }
    }

    /// The `nth` block of so many tokens.
    fn nth(&self, t: AxisId, nth: Expr, most: usize, e: &mut Emitter) -> Block<'_> {
        let (begin, all) = self.cx.tokens(self.kernel);
        let before = e.int(nth * most);
        let left = e.int((all.rows - before.clone()).min(most));
        let from = begin + before;
        let to = from.clone() + left.clone();
        e.spans.insert(t, Span { from: from.clone(), to, aligned: true, len: None });
        self.block(Some((t, from)), left, most)
    }

    fn operands(&self, block: &mut Block, room: Room, e: &mut Emitter) {
        operands(self.cx, self.kernel, self.contract, block, room, e);
    }

    fn parts(&self, few: bool) -> Vec<(Units, usize)> {
        parts(self.cx, self.kernel, self.contract, few)
    }

    fn turn(&self, parts: &[(Units, usize)], block: &Block, at: Expr, e: &mut Emitter) {
        choose(self.cx, self.kernel, &self.contract.tasks, parts, 0, block, at, e);
    }

    /// The rows of one token, or of none.
    fn of_one(&self, token: Option<(AxisId, Expr)>) -> loops::Kernel {
        let (cx, first) = (self.cx, &self.contract.tasks[0].contractions[0].1);
        let mut e = self.emitter();
        let mut block = self.block(token, Expr::Int(1), 1);
        // Rows that differ by what they choose alone have one activation. They are multiplied one by one.
        block.per_token = select::per_token(cx, first);
        if first.chosen.is_some() {
            block.of_step = 1.into();
        }
        self.operands(&mut block, Room::Private, &mut e);
        block.per_token = self.per_token;
        by_rows(&Count::of(block.rows()), &mut e, |few, e| {
            let (block, parts) = (Block { few, ..block.clone() }, self.parts(few));
            let turn = |e: &mut Emitter, at| self.turn(&parts, &block, at, e);
            let turns = turns(&parts);
            let together = AT_A_TIME.div_ceil((bytes(cx, self.contract, &parts) / turns).max(1));
            let times = turns.div_ceil(together);
            if times < LEAST {
                return e.parallel(turns.into(), Share::Blocks, turn);
            }
            e.parallel(times.into(), Share::Balanced(times), |e, nth| {
                let from = e.int(nth * together);
                let to = e.int((from.clone() + together).min(turns));
                e.repeat(from, to, 1, turn);
            });
        });
        cx.close(&self.kernel.name, e)
    }

    /// The rows of many tokens, block by block.
    fn of_many(&self, t: AxisId, partial: usize) -> (Vec<loops::Kernel>, usize) {
        let (cx, kernel) = (self.cx, self.kernel);
        let (_, tokens) = cx.tokens(kernel);
        let rows = self.rows();
        let mut kernels = Vec::new();
        let mut end = partial;
        let mut shared = HashMap::new();
        if are_shared(cx, kernel, self.contract) {
            let mut e = self.emitter();
            let most = (cx.tiling.prepared / self.per_token).max(1);
            e.parallel(tokens.rows.clone().div_ceil(most as i64), Share::Blocks, |e, at| {
                let mut block = self.nth(t, at, most, e);
                self.operands(&mut block, Room::Arena(&mut end), e);
                shared = block.operands;
            });
            kernels.push(cx.close(&format!("{}_rows", kernel.name), e));
        }
        let most = (cx.tiling.block.next_multiple_of(self.rows_at_once()) / self.per_token).max(1);
        let blocks = tokens.rows.div_ceil(most as i64);
        let mut e = self.emitter();
        if are_prepared(cx, kernel, self.contract) && shared.is_empty() {
            // Each worker has the rows of a block for itself.
            e.repeat(Expr::Int(0), blocks, 1, |e, nth| {
                let mut block = self.nth(t, nth, most, e);
                self.operands(&mut block, Room::Private, e);
                by_rows(&rows, e, |few, e| {
                    let (block, parts) = (Block { few, ..block.clone() }, self.parts(few));
                    e.parallel(turns(&parts).into(), Share::Blocks, |e, at| self.turn(&parts, &block, at, e));
                });
            });
        } else {
            by_rows(&rows, &mut e, |few, e| {
                let parts = self.parts(few);
                e.balanced(blocks.clone(), turns(&parts), |e, nth, at| {
                    let mut block = Block { few, operands: shared.clone(), ..self.nth(t, nth, most, e) };
                    if block.operands.is_empty() {
                        // Nothing is computed: these are only where the rows lie.
                        self.operands(&mut block, Room::Private, e);
                    }
                    self.turn(&parts, &block, at, e);
                });
            });
        }
        kernels.push(cx.close(&kernel.name, e));
        (kernels, end - partial)
    }
}

/// A step of few rows waits for memory: it takes units as they are stored, one after the other.
fn by_rows(rows: &Count, e: &mut Emitter, of: impl Fn(bool, &mut Emitter)) {
    match rows.few() {
        When::Always => of(true, e),
        When::Never => of(false, e),
        When::If(mask) => {
            let (then, otherwise) = (e.block(|e| of(true, e)), e.block(|e| of(false, e)));
            e.push(Stmt::If { mask, then, otherwise });
        }
    }
}

/// The units of each task, and as how many turns each of them counts: units of different tasks have different numbers of
/// panels, and stand for as many turns as they have more than others.
fn parts(cx: &Context, kernel: &Kernel, contract: &Contract, few: bool) -> Vec<(Units, usize)> {
    let mode = cx.mode(kernel);
    let units: Vec<Units> = contract.tasks.iter().map(|t| cx.units_of_blocks(t, &mode, few)).collect();
    let panels: Vec<usize> = contract.tasks.iter().zip(&units).map(|(t, u)| u.panels * t.contractions.len()).collect();
    let common = (1..=panels[0]).rev().find(|n| panels.iter().all(|p| p.is_multiple_of(*n))).unwrap_or(1);
    units.into_iter().zip(panels).map(|(u, panels)| (u, panels / common)).collect()
}

/// Bytes of all panels that a kernel reads, once each.
fn bytes(cx: &Context, contract: &Contract, parts: &[(Units, usize)]) -> usize {
    let of = |(task, (units, _)): (&Task, &(Units, usize))| {
        let panel = |panels: &Panels| panels.format.panel(panels.depth) * panels.format.elem().bytes();
        let all = task.contractions.iter().map(|(q, _)| panel(&cx.variant.panels[q]));
        units.count * units.panels * all.sum::<usize>()
    };
    contract.tasks.iter().zip(parts).map(of).sum()
}

fn turns(parts: &[(Units, usize)]) -> usize {
    parts.iter().map(|(units, turns)| units.count * turns).sum()
}

/// Finds the task that a turn belongs to: the tasks' turns are numbered one after the other. The first turn of a unit does
/// all of it.
#[allow(clippy::too_many_arguments)]
fn choose(
    cx: &Context,
    kernel: &Kernel,
    tasks: &[Task],
    parts: &[(Units, usize)],
    before: usize,
    block: &Block,
    at: Expr,
    e: &mut Emitter,
) {
    let ([task, more @ ..], [(units, turns), others @ ..]) = (tasks, parts) else { return };
    let turn = at.clone() - before;
    let unit = |e: &mut Emitter| match turns {
        1 => tile(cx, kernel, task, units, block, turn.clone(), e),
        turns => e.when(turn.clone().rem(*turns).lt(1), |e| {
            tile(cx, kernel, task, units, block, turn.div(*turns), e);
        }),
    };
    if more.is_empty() {
        return unit(e);
    }
    let end = before + units.count * turns;
    let then = e.block(unit);
    let otherwise = e.block(|e| choose(cx, kernel, more, others, end, block, at.clone(), e));
    e.push(Stmt::If { mask: at.lt(end), then, otherwise });
}

/// Binds the columns of a unit.
pub(super) fn enter(units: &Units, unit: &Expr, scope: &mut Scope, e: &mut Emitter) {
    let counts: Vec<usize> = units.digits.iter().map(|(_, count)| *count).collect();
    let digits = e.digits(unit.clone(), &counts);
    for (&(axis, _), digit) in units.digits.iter().zip(digits) {
        if axis == units.lane {
            let width = units.joined * PANEL;
            let from = e.int(digit * width);
            let even = units.lane_size.is_multiple_of(width);
            let to = from.clone() + width;
            let to = if even { to } else { e.int(to.min(units.lane_size)) };
            e.spans.insert(axis, Span { from, to, aligned: true, len: even.then_some(width) });
        } else {
            scope.at.insert(axis, digit);
        }
    }
}

/// One unit. Where what it computes is encoded, some panels at a time, and then the rows of all.
fn tile(cx: &Context, kernel: &Kernel, task: &Task, units: &Units, block: &Block, unit: Expr, e: &mut Emitter) {
    let unit = e.int(unit);
    let (spans, places, before) = (e.spans.clone(), e.places.clone(), e.scratch);
    let outputs = cx.plan.outputs(kernel);
    let all = outs(cx, task).filter(|out| outputs.contains(out));
    let encoded: Vec<(TensorId, Encoded)> = all.filter_map(|out| Some((out, cx.encoded(out)?))).collect();
    let mut scope = Scope::default();
    if !encoded.is_empty() {
        enter(units, &unit, &mut scope, e);
    }
    for (out, _) in &encoded {
        let place = tile_place(cx, *out, units, block, e);
        e.places.insert(*out, place);
    }
    let narrow = cx.units(task, &cx.mode(kernel), block.few);
    let together = units.joined / narrow.joined;
    e.repeat(Expr::Int(0), together.into(), 1, |e, nth| {
        cores_and_epilogue(cx, kernel, task, &narrow, block, unit.clone() * together + nth, e);
    });
    for (out, encoded) in &encoded {
        let tile = e.places[out].clone();
        encode(cx, encoded, *out, units, block, &scope, &tile, e);
    }
    // The next task's tiles may lie where this one's were.
    e.release(before);
    (e.spans, e.places) = (spans, places);
}

/// What a task computes.
fn outs(cx: &Context, task: &Task) -> impl Iterator<Item = TensorId> {
    task.equations().into_iter().map(|q| cx.plan.equations[q].out)
}

/// The cores of a unit, and what is computed from their tile.
fn cores_and_epilogue(
    cx: &Context,
    kernel: &Kernel,
    task: &Task,
    units: &Units,
    block: &Block,
    unit: Expr,
    e: &mut Emitter,
) {
    let unit = e.int(unit);
    let mut scope = Scope::default();
    let (spans, places, before) = (e.spans.clone(), e.places.clone(), e.scratch);
    enter(units, &unit, &mut scope, e);
    let outputs = cx.plan.outputs(kernel);
    for (q, c) in &task.contractions {
        let place = tile_place(cx, c.out, units, block, e);
        cores(cx, kernel, c, &cx.variant.panels[q], units, block, &unit, &scope, &place, e);
        let home = e.places.insert(c.out, place);
        if outputs.contains(&c.out)
            && let Some(home) = home
        {
            let body = cx.load(c.out);
            e.equation(&scope, c.out, body, &home);
        }
    }
    for &q in &task.epilogue {
        let equation = cx.plan.equations[q];
        let to = match outputs.contains(&equation.out) {
            true => e.places[&equation.out].clone(),
            false => {
                let place = tile_place(cx, equation.out, units, block, e);
                e.places.insert(equation.out, place.clone());
                place
            }
        };
        e.equation(&scope, equation.out, equation.body, &to);
    }
    e.release(before);
    (e.spans, e.places) = (spans, places);
}

/// Encodes a tile's rows.
#[allow(clippy::too_many_arguments)]
fn encode(
    cx: &Context,
    encoded: &Encoded,
    tensor: TensorId,
    units: &Units,
    block: &Block,
    scope: &Scope,
    tile: &Place,
    e: &mut Emitter,
) {
    let (mut scope, width) = (scope.clone(), units.panels * PANEL);
    if !units.lane_whole {
        scope.at.insert(units.lane, e.span(units.lane).from);
    }
    e.repeat(Expr::Int(0), block.rows(), 1, |e, row| {
        let from = Address::new(flat(tile), row.clone() * width);
        encoded.push(cx, tensor, &scope, block.first_row() + row, (from, width), e);
    });
}

/// A tile in private memory: rows one after the other, each with the unit's columns, panel by panel.
fn tile_place(cx: &Context, tensor: TensorId, units: &Units, block: &Block, e: &mut Emitter) -> Place {
    let graph = &cx.plan.graph;
    let size = |a: AxisId| graph.fixed_size(a);
    let axes = &graph.tensor(tensor).axes;
    let width = units.panels * PANEL;
    let mut layout = columns(cx, tensor, units);
    let mut origins: Vec<(usize, Expr)> = Vec::new();
    let mut stride = width;
    let row_axes: Vec<AxisId> = cx.row_axes(axes, units);
    for &a in row_axes.iter().rev() {
        let Some(dim) = axes.iter().position(|&x| x == a) else { continue };
        layout.push(dim, stride);
        match &block.tokens {
            Some((t, from)) if *t == a => origins.push((dim, from.clone())),
            _ => stride *= size(a),
        }
    }
    if let Some(dim) = axes.iter().position(|&a| a == units.lane && !units.lane_whole) {
        origins.push((dim, e.span(units.lane).from));
    }
    let buffer = e.floats(block.most_rows() * width);
    let mut place = Place::flat(buffer, layout, axes.len());
    place.elem = cx.elem(tensor);
    for (dim, from) in origins {
        place = place.with_origin(dim, from);
    }
    place
}

/// Where the columns of a unit lie within a row of its tile.
pub(super) fn columns(cx: &Context, tensor: TensorId, units: &Units) -> Layout {
    let graph = &cx.plan.graph;
    let axes = &graph.tensor(tensor).axes;
    let mut layout = Layout::default();
    if let Some(dim) = axes.iter().position(|&a| a == units.lane) {
        layout.push(dim, 1);
    }
    let mut stride = if units.lane_whole { units.lane_size.next_multiple_of(PANEL) } else { PANEL };
    for &a in units.whole.iter().rev() {
        if let Some(dim) = axes.iter().position(|&x| x == a) {
            layout.push(dim, stride);
        }
        stride *= graph.fixed_size(a);
    }
    layout
}

/// All cores of a unit for one contraction.
#[allow(clippy::too_many_arguments)]
fn cores(
    cx: &Context,
    kernel: &Kernel,
    c: &Contraction,
    panels: &Panels,
    units: &Units,
    block: &Block,
    unit: &Expr,
    scope: &Scope,
    tile: &Place,
    e: &mut Emitter,
) {
    let formats = cx.rows_of(panels, &cx.mode(kernel));
    let [few, many] = formats.map(|format| block.operands.get(&(c.a, format)));
    let Some(operand) = few.or(many) else { return };
    let rows = [few, many].map(|rows| rows.unwrap_or(operand)).map(|rows| Matrix {
        at: rows.at(cx, c, block, scope),
        format: rows.format,
        stride: rows.stride,
    });
    let mut b = units.panelled(panels, unit, Expr::Int(0));
    if cx.cores.fetch.is_some_and(|fetch| fetch.many) && !block.few && cx.mode(kernel) == Mode::Many {
        b.next = Some(units.next(panels, unit));
        b.spread = Some(block.most_rows());
    }
    let c_at = Address::new(flat(tile), 0);
    if c.chosen.is_some() {
        return select::row_by_row(cx, c, panels, units, block, &rows[0], &b.at, &c_at, e);
    }
    let to = Products { at: c_at, stride: units.panels * PANEL, apart: PANEL, accumulate: false };
    let count = Count { rows: block.rows(), most: block.few.then_some(FEW) };
    multiply(cx, (&count, &block.of_step), rows.each_ref(), &b, &to, e);
}

/// The buffer of a place that is one stretch.
pub(super) fn flat(place: &Place) -> Buffer {
    match &place.memory {
        super::place::Memory::Flat(buffer) => buffer.clone(),
        super::place::Memory::Paged { .. } => unreachable!("only caches have pages, and none is a tile's"),
    }
}

impl Context<'_> {
    /// The axes of a tile's tensor that number its rows, the tokens first: all that are neither columns nor batch.
    fn row_axes(&self, axes: &[AxisId], units: &Units) -> Vec<AxisId> {
        let column = |a: &AxisId| {
            *a == units.lane || units.whole.contains(a) || units.digits.iter().any(|(digit, _)| digit == a)
        };
        let mut rows: Vec<AxisId> = axes.iter().filter(|a| !column(a)).copied().collect();
        rows.sort_by_key(|&a| !is_tokens(&self.plan.graph, a));
        rows
    }

    /// The units of a task's columns: as wide as cores are, where rows are many.
    pub(super) fn units(&self, task: &Task, mode: &Mode, few: bool) -> Units {
        Units::of(&self.plan.graph, task).joined(self.panels_at_once(task, mode, few))
    }

    fn panels_at_once(&self, task: &Task, mode: &Mode, few: bool) -> usize {
        let at_once = task.contractions.iter().map(|(q, _)| {
            let panels = &self.variant.panels[q];
            let (a, b) = self.multiplied_as(panels, mode);
            self.cores.panels(a, b, panels.depth)
        });
        if few || *mode != Mode::Many { 1 } else { at_once.min().unwrap_or(1) }
    }

    /// In which formats cores multiply many rows with such panels.
    fn multiplied_as(&self, panels: &Panels, mode: &Mode) -> (Format, Format) {
        let unpacked = self.cores.unpacked(panels.format, panels.depth);
        (beside(self.rows_of(panels, mode)[1], unpacked), unpacked)
    }

    /// The same units together, so that each has whole blocks of what is encoded.
    fn units_of_blocks(&self, task: &Task, mode: &Mode, few: bool) -> Units {
        let panels = outs(self, task).filter_map(|out| Some(self.encoded(out)?.format.block() / PANEL)).max();
        let at_once = self.panels_at_once(task, mode, few);
        Units::of(&self.plan.graph, task).joined(panels.map_or(at_once, |panels| panels.max(at_once)))
    }

    /// How a value's elements are stored.
    pub(super) fn elem(&self, tensor: TensorId) -> Elem {
        match self.plan.graph.tensor(tensor).ty {
            einfuse_graph::Type::Int => Elem::I32,
            _ => Elem::F32,
        }
    }
}
