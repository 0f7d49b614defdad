//! The skeleton of contractions whose weight each row chooses: [`contract`](super::contract) for weights by the row.
//!
//! Of one token, each worker walks its units of columns, and in each the panels of every choice. The rows of several tokens are
//! sorted by their choice first: one worker counts them, which gives for each choice a stretch of sorted rows, cut into blocks;
//! then all copy the activations in this order, in the form that the cores want; then they share the blocks' units of columns,
//! weighed by rows, and the epilogue writes each row where it belongs. What reduces over the rows of a token comes last, row by
//! row.

use std::collections::HashMap;

use einfuse_graph::{AxisId, TensorId};

use super::Context;
use super::contract::{Block, columns, enter};
use super::cores::{Count, Matrix, Products, apart, multiply};
use super::emit::{Emitter, Scope, graph_name};
use super::layout::Layout;
use super::place::Place;
use super::rows;
use super::weights::{Panels, Units};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contract, Contraction, EqId, Kernel, Task, is_tokens};
use crate::loops::{self, Address, Buffer, Core, Encode, Expr, GROUP, LANES, Share, Stmt, Ty};

/// The axes of a contraction's rows beside the tokens.
fn inner_rows(cx: &Context, c: &Contraction) -> Vec<AxisId> {
    c.rows.iter().copied().filter(|&a| !is_tokens(&cx.plan.graph, a)).collect()
}

fn size(cx: &Context, axis: AxisId) -> usize {
    cx.plan.graph.fixed_size(axis)
}

/// How many rows the activation of a contraction has for a token.
pub(super) fn per_token(cx: &Context, c: &Contraction) -> usize {
    let axes = &cx.plan.graph.tensor(c.a).axes;
    inner_rows(cx, c).into_iter().filter(|a| axes.contains(a)).map(|a| size(cx, a)).product()
}

/// The coordinates of a row, numbered within its token, along the axes of the rows beside the tokens.
fn coordinates(cx: &Context, c: &Contraction, row: &Expr, e: &mut Emitter) -> HashMap<AxisId, Expr> {
    let axes = inner_rows(cx, c);
    let counts: Vec<usize> = axes.iter().map(|&axis| size(cx, axis)).collect();
    let digits = e.digits(row.clone(), &counts);
    axes.into_iter().zip(digits).collect()
}

/// What a row chooses, kept within the axis.
fn choice(cx: &Context, c: &Contraction, at: &HashMap<AxisId, Expr>, e: &mut Emitter) -> Expr {
    let Some((axis, by)) = c.chosen else { return Expr::Int(0) };
    let axes = &cx.plan.graph.tensor(by).axes;
    let index: Vec<Expr> = axes.iter().map(|a| at.get(a).cloned().unwrap_or(Expr::Int(0))).collect();
    let chosen = e.places[&by].load(&index);
    e.int(chosen.max(0).min(size(cx, axis) as i64 - 1))
}

/// The cores of a unit for the rows of one token, each with the panels that it chooses.
#[allow(clippy::too_many_arguments)]
pub(super) fn row_by_row(
    cx: &Context,
    c: &Contraction,
    panels: &Panels,
    units: &Units,
    block: &Block,
    operand: &Matrix,
    b: &Address,
    c_at: &Address,
    e: &mut Emitter,
) {
    let axes = &cx.plan.graph.tensor(c.a).axes;
    e.repeat(Expr::Int(0), block.rows(), 1, |e, row| {
        let mut at = coordinates(cx, c, &row, e);
        let inner = inner_rows(cx, c).into_iter().filter(|x| axes.contains(x));
        let a_row = inner.fold(Expr::Int(0), |sum, x| sum * size(cx, x) + at[&x].clone());
        if let Some((t, from)) = &block.tokens {
            at.insert(*t, from.clone());
        }
        let chosen = choice(cx, c, &at, e);
        let a = operand.row(a_row);
        let b = b.clone().plus(chosen * panels.choice_stride);
        let c_at = c_at.clone().plus(row * (units.panels * PANEL));
        e.repeat(Expr::Int(0), units.panels.into(), 1, |e, panel| {
            let core = Core {
                rows: 1,
                depth: panels.depth.into(),
                a: a.clone(),
                a_format: operand.format,
                a_stride: operand.stride.into(),
                panels: 1,
                b: b.clone().plus(panel.clone() * panels.panel),
                b_format: panels.format,
                b_stride: 0.into(),
                next: None,
                c: c_at.clone().plus(panel * PANEL),
                c_stride: (units.panels * PANEL).into(),
                accumulate: false,
            };
            e.push(Stmt::Core(core));
        });
    });
}

/// The rows of a step, sorted by what they choose: tables of integers in the arena.
struct Sorted {
    /// For each sorted row its number: the token's, from the first on, times the rows of a token, plus its number among them.
    row: Buffer,
    /// For each group of [`Cores::rows`](loops::Cores::rows) rows of a block the block.
    block: Buffer,
    /// For each block what its rows choose, its first sorted row, how many it has, and its first group.
    chosen: Buffer,
    first: Buffer,
    count: Buffer,
    group: Buffer,
    /// How many groups there are.
    groups: Buffer,
}

fn cell(buffer: &Buffer, at: impl Into<Expr>) -> Address {
    Address::new(buffer.clone(), at)
}

fn read(buffer: &Buffer, at: impl Into<Expr>, e: &mut Emitter) -> Expr {
    e.int(cell(buffer, at).load(Elem::I32))
}

fn write(buffer: &Buffer, at: impl Into<Expr>, value: impl Into<Expr>, e: &mut Emitter) {
    e.push(Stmt::Store { elem: Elem::I32, at: cell(buffer, at), value: value.into() });
}

/// Room in the arena, in bytes from its start.
struct Room {
    end: usize,
}

impl Room {
    fn take(&mut self, count: usize, elem: Elem) -> Buffer {
        let at = self.end;
        self.end += (count * elem.bytes()).next_multiple_of(64);
        Buffer::Arena(at)
    }
}

/// The rows of a kernel.
struct Rows<'a> {
    /// The first contraction, which stands for all.
    c: &'a Contraction,
    tokens: AxisId,
    /// The first token, and how many.
    from: Expr,
    count: Expr,
    /// Rows of a token.
    per_token: usize,
    /// The most rows of a step.
    most: usize,
    /// The most rows of a block.
    block: usize,
}

impl Rows<'_> {
    fn count(&self) -> Expr {
        self.count.clone() * self.per_token
    }

    /// The coordinates of a row by its number.
    fn at(&self, cx: &Context, row: &Expr, e: &mut Emitter) -> HashMap<AxisId, Expr> {
        let within = e.int(row.clone().rem(self.per_token));
        let mut at = coordinates(cx, self.c, &within, e);
        at.insert(self.tokens, e.int(self.from.clone() + row.clone().div(self.per_token)));
        at
    }
}

/// The loops of a kernel for several tokens, and the bytes of the arena, from `partial` on, that pass between them.
pub(super) fn schedule(
    cx: &Context,
    kernel: &Kernel,
    contract: &Contract,
    by: TensorId,
    partial: usize,
) -> (Vec<loops::Kernel>, usize) {
    let c = &contract.tasks[0].contractions[0].1;
    let Some(&tokens) = c.rows.first() else { return (Vec::new(), 0) };
    let per_token = inner_rows(cx, c).into_iter().map(|a| size(cx, a)).product();
    let most = cx.homes.tokens * per_token;
    let group = cx.cores.rows();
    let (from, Count { rows: count, .. }) = cx.tokens(kernel);
    let rows = Rows { c, tokens, from, count, per_token, most, block: cx.tiling.block / group * group };
    let mut room = Room { end: partial };
    let choices = c.chosen.map_or(1, |(axis, _)| size(cx, axis));
    let blocks = most / rows.block + choices;
    let sorted = Sorted {
        row: room.take(most, Elem::I32),
        block: room.take(most / group + choices, Elem::I32),
        chosen: room.take(blocks, Elem::I32),
        first: room.take(blocks, Elem::I32),
        count: room.take(blocks, Elem::I32),
        group: room.take(blocks, Elem::I32),
        groups: room.take(1, Elem::I32),
    };
    let mut kernels = Vec::new();
    let mut e = cx.emitter();
    e.note(format!("the rows by {}", graph_name(&cx.plan.graph, by)));
    e.parallel(1.into(), Share::Blocks, |e, _| sort(cx, &rows, choices, group, &sorted, e));
    kernels.push(cx.close(&format!("{}_sort", kernel.name), e));

    let mut e = cx.emitter();
    let operands = gather(cx, contract, &rows, &sorted, &mut room, &mut e);
    kernels.push(cx.close(&format!("{}_rows", kernel.name), e));

    let mut e = cx.emitter();
    let mut late = Vec::new();
    let mut kept: HashMap<TensorId, Place> = HashMap::new();
    for task in &contract.tasks {
        let rest = late_equations(cx, task);
        keep(cx, kernel, task, &rest, &mut room, &mut kept);
        late.extend(rest);
        let groups = read(&sorted.groups, 0, &mut e);
        let units = cx.units(task, &cx.mode(kernel), false);
        let turn = |e: &mut Emitter, turn| unit(cx, kernel, task, &units, &rows, &sorted, &operands, &kept, turn, e);
        // A kernel has no more than one loop that is balanced.
        match contract.tasks.len() {
            1 => e.balanced(groups, units.count, |e, group, at| turn(e, group * units.count + at)),
            _ => e.parallel(groups * units.count, Share::Blocks, turn),
        }
    }
    kernels.push(cx.close(&kernel.name, e));
    if !late.is_empty() {
        let mut e = cx.emitter();
        e.places.extend(kept);
        rows::rows(cx, kernel, &late, &mut e);
        kernels.push(cx.close(&format!("{}_rest", kernel.name), e));
    }
    (kernels, room.end - partial)
}

/// Sorts the rows, by counting, and cuts the rows of each choice into blocks.
fn sort(cx: &Context, rows: &Rows, choices: usize, group: usize, sorted: &Sorted, e: &mut Emitter) {
    let count = e.memory(choices, Elem::I32);
    let next = e.memory(choices, Elem::I32);
    e.repeat(0.into(), choices.into(), 1, |e, choice| write(&count, choice, 0, e));
    e.repeat(0.into(), rows.count(), 1, |e, row| {
        let at = rows.at(cx, &row, e);
        let chosen = choice(cx, rows.c, &at, e);
        let so_far = read(&count, chosen.clone(), e);
        write(&count, chosen, so_far + 1, e);
    });
    let (row, block, groups) = (e.bind(Ty::Int, 0.into()), e.bind(Ty::Int, 0.into()), e.bind(Ty::Int, 0.into()));
    e.repeat(0.into(), choices.into(), 1, |e, chosen| {
        write(&next, chosen.clone(), row, e);
        let all = read(&count, chosen.clone(), e);
        e.repeat(0.into(), all.clone(), rows.block, |e, from| {
            let some = e.int((all.clone() - from.clone()).min(rows.block as i64));
            write(&sorted.chosen, block, chosen.clone(), e);
            write(&sorted.first, block, Expr::from(row) + from, e);
            write(&sorted.count, block, some.clone(), e);
            write(&sorted.group, block, groups, e);
            e.repeat(0.into(), some.div_ceil(group as i64), 1, |e, _| {
                write(&sorted.block, groups, block, e);
                e.push(Stmt::Set(groups, Expr::from(groups) + 1));
            });
            e.push(Stmt::Set(block, Expr::from(block) + 1));
        });
        e.push(Stmt::Set(row, Expr::from(row) + all));
    });
    write(&sorted.groups, 0, groups, e);
    e.repeat(0.into(), rows.count(), 1, |e, row| {
        let at = rows.at(cx, &row, e);
        let chosen = choice(cx, rows.c, &at, e);
        let place = read(&next, chosen.clone(), e);
        write(&sorted.row, place.clone(), row, e);
        write(&next, chosen, place + 1, e);
    });
}

/// The activations in the sorted order: where they begin, in which format, and how far apart.
type Gathered = HashMap<(TensorId, Format), (Buffer, usize)>;

/// Copies the activations in the sorted order.
fn gather(
    cx: &Context,
    contract: &Contract,
    rows: &Rows,
    sorted: &Sorted,
    room: &mut Room,
    e: &mut Emitter,
) -> Gathered {
    let mut gathered = Gathered::new();
    let mut copies = Vec::new();
    let contractions = contract.tasks.iter().flat_map(|t| &t.contractions);
    for (c, format) in
        contractions.flat_map(|(q, c)| cx.rows_of(&cx.variant.panels[q], &cx.step).map(|format| (c, format)))
    {
        if gathered.contains_key(&(c.a, format)) {
            continue;
        }
        let depth: usize = c.depth.iter().map(|&a| size(cx, a)).product();
        let line = 64 / format.elem().bytes();
        let stride = apart(format.row(depth).next_multiple_of(line), format);
        let buffer = room.take(stride * (rows.most + GROUP), format.elem());
        gathered.insert((c.a, format), (buffer.clone(), stride));
        copies.push((c, format, depth, buffer, stride));
    }
    for (c, format, ..) in &copies {
        e.note(format!("{} as {format}, row by row", graph_name(&cx.plan.graph, c.a)));
    }
    e.parallel(rows.count(), Share::Blocks, |e, place| {
        let row = read(&sorted.row, place.clone(), e);
        let at = rows.at(cx, &row, e);
        for (c, format, depth, buffer, stride) in &copies {
            let axes = &cx.plan.graph.tensor(c.a).axes;
            let index: Vec<Expr> = axes.iter().map(|a| at.get(a).cloned().unwrap_or(Expr::Int(0))).collect();
            let from = e.places[&c.a].address(&index);
            let to = Address::new(buffer.clone(), place.clone() * *stride);
            match format {
                Format::F32 => copy(*depth, &from, &to, e),
                format => e.push(Stmt::Encode(Encode { depth: *depth, from, to, format: *format, part: None })),
            }
        }
    });
    gathered
}

/// Copies floats.
fn copy(count: usize, from: &Address, to: &Address, e: &mut Emitter) {
    let whole = count / LANES * LANES;
    let (elem, at) = (Elem::F32, |address: &Address, at: &Expr| address.clone().plus(at.clone()));
    e.repeat(0.into(), whole.into(), LANES, |e, i| {
        e.push(Stmt::Store { elem, at: at(to, &i), value: at(from, &i).load4(elem) });
    });
    e.repeat(whole.into(), count.into(), 1, |e, i| {
        e.push(Stmt::Store { elem, at: at(to, &i), value: at(from, &i).load(elem) });
    });
}

/// The equations of an epilogue that need all rows of a token: they reduce over them, or read what did.
fn late_equations(cx: &Context, task: &Task) -> Vec<EqId> {
    let graph = &cx.plan.graph;
    let rows = &task.contractions[0].1.rows;
    let mut late: Vec<EqId> = Vec::new();
    for &q in &task.epilogue {
        let equation = cx.plan.equations[q];
        let reads = graph.loaded(equation.body);
        let reads_late = late.iter().any(|&l| reads.contains(&cx.plan.equations[l].out));
        if reads_late || !rows.iter().all(|a| graph.tensor(equation.out).axes.contains(a)) {
            late.push(q);
        }
    }
    late
}

/// Gives what the late equations read of the others, and what others keep from unit to unit, room in the arena.
fn keep(
    cx: &Context,
    kernel: &Kernel,
    task: &Task,
    late: &[EqId],
    room: &mut Room,
    kept: &mut HashMap<TensorId, Place>,
) {
    let graph = &cx.plan.graph;
    let outputs = cx.plan.outputs(kernel);
    for q in task.equations().into_iter().filter(|q| !late.contains(q)) {
        let out = cx.plan.equations[q].out;
        let is_read = late.iter().any(|&l| graph.loaded(cx.plan.equations[l].body).contains(&out));
        if !is_read || outputs.contains(&out) {
            continue;
        }
        let axes = &graph.tensor(out).axes;
        let sizes: Vec<usize> =
            axes.iter().map(|&a| if is_tokens(graph, a) { cx.homes.tokens } else { size(cx, a) }).collect();
        let elem = cx.elem(out);
        let mut place = Place::flat(room.take(sizes.iter().product(), elem), Layout::row_major(&sizes), axes.len());
        place.elem = elem;
        kept.insert(out, place);
    }
}

/// A turn of a task: turns are numbered by block, then unit of columns, then group of rows; the first turn of a unit does
/// all of it.
#[allow(clippy::too_many_arguments)]
fn unit(
    cx: &Context,
    kernel: &Kernel,
    task: &Task,
    units: &Units,
    rows: &Rows,
    sorted: &Sorted,
    operands: &Gathered,
    kept: &HashMap<TensorId, Place>,
    turn: Expr,
    e: &mut Emitter,
) {
    let block = read(&sorted.block, turn.clone().div(units.count), e);
    let group = read(&sorted.group, block.clone(), e);
    let count = read(&sorted.count, block.clone(), e);
    let within = e.int(turn - group * units.count);
    let groups = e.int(count.clone().div_ceil(cx.cores.rows() as i64));
    let is_first = within.clone().rem(groups.clone()).lt(1);
    e.when(is_first, |e| {
        let number = e.int(within.div(groups));
        let (first, chosen) = (read(&sorted.first, block.clone(), e), read(&sorted.chosen, block, e));
        let mut scope = Scope::default();
        let (spans, places, before) = (e.spans.clone(), e.places.clone(), e.scratch);
        enter(units, &number, &mut scope, e);
        let width = units.panels * PANEL;
        let mut tiles: HashMap<TensorId, Buffer> = HashMap::new();
        for (q, c) in &task.contractions {
            let panels = &cx.variant.panels[q];
            let tile = e.floats(rows.block.next_multiple_of(cx.cores.rows()) * width);
            let a = cx.rows_of(panels, &cx.step).map(|format| {
                let (buffer, stride) = &operands[&(c.a, format)];
                Matrix { at: Address::new(buffer.clone(), first.clone() * *stride), format, stride: *stride }
            });
            let from = e.int(chosen.clone() * panels.choice_stride);
            let b = units.panelled(panels, &number, from);
            let to = Address::new(tile.clone(), 0);
            let to = Products { at: to, stride: width, apart: PANEL, accumulate: false };
            multiply(cx, (&Count::of(count.clone()), &count), a.each_ref(), &b, &to, e);
            tiles.insert(c.out, tile);
        }
        e.repeat(0.into(), count, 1, |e, row| {
            let number = read(&sorted.row, first.clone() + row.clone(), e);
            for (axis, at) in rows.at(cx, &number, e) {
                scope.at.insert(axis, at);
            }
            epilogue(cx, kernel, task, units, kept, &scope, &tiles, &row, e);
        });
        e.release(before);
        (e.spans, e.places) = (spans, places);
    });
}

/// What is computed from one row of a tile.
#[allow(clippy::too_many_arguments)]
fn epilogue(
    cx: &Context,
    kernel: &Kernel,
    task: &Task,
    units: &Units,
    kept: &HashMap<TensorId, Place>,
    scope: &Scope,
    tiles: &HashMap<TensorId, Buffer>,
    row: &Expr,
    e: &mut Emitter,
) {
    let outputs = cx.plan.outputs(kernel);
    let late = late_equations(cx, task);
    let width = units.panels * PANEL;
    for q in task.equations().into_iter().filter(|q| !late.contains(q)) {
        let equation = cx.plan.equations[q];
        let out = equation.out;
        let home = match outputs.contains(&out) {
            true => Some(e.places[&out].clone()),
            false => kept.get(&out).cloned(),
        };
        match tiles.get(&out) {
            Some(tile) => {
                let place = row_place(cx, out, units, tile.clone(), &(row.clone() * width), e);
                e.places.insert(out, place);
                if let Some(home) = home {
                    e.equation(scope, out, cx.load(out), &home);
                }
            }
            None => {
                let place = home.unwrap_or_else(|| {
                    let buffer = e.floats(width);
                    row_place(cx, out, units, buffer, &Expr::Int(0), e)
                });
                e.equation(scope, out, equation.body, &place);
                e.places.insert(out, place);
            }
        }
    }
}

/// A row of a tile, so many elements from its start.
fn row_place(cx: &Context, tensor: TensorId, units: &Units, buffer: Buffer, from: &Expr, e: &Emitter) -> Place {
    let axes = &cx.plan.graph.tensor(tensor).axes;
    let mut place = Place::flat(buffer, columns(cx, tensor, units), axes.len());
    place.elem = cx.elem(tensor);
    if let Some(dim) = axes.iter().position(|&a| a == units.lane) {
        let lane = if units.lane_whole { Expr::Int(0) } else { e.span(units.lane).from };
        place = place.with_origin(dim, lane - from.clone());
    }
    place
}
