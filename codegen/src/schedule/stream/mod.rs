//! The skeleton of a stream: one pass over the positions of a cache, with running statistics that are rescaled on the way.
//!
//! A tile is some tokens with all rows that read the same keys and values (the axes that only the activations have). For
//! each run of positions that the tile's tokens may see, the cores compute the scores, then every row updates its statistics and
//! turns its scores into weights, then the cores add the weighted values. With one token, or a few, the runs are split
//! among several tiles, whose partial statistics are merged by a second kernel.

use einfuse_graph::{AxisId, Graph, TensorId};

mod held;
mod merge;
mod run;

use super::contract::flat;
use super::cores::{Matrix, When};
use super::emit::{Emitter, Scope, Span, end_of_positions, positions_within};
use super::homes::RUN;
use super::layout::Layout;
use super::place::Place;
use super::{Context, Mode};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contraction, EqId, Fold, Kernel, Stream, Weighted, is_tokens};
use crate::loops::{self, Address, Arg, Buffer, Encode, Expr, Exps, FEW, LANES, Share, Stmt, Ty};
use held::{Held, Order};
use merge::{Partials, merge};
use run::Run;

/// What a running maximum starts from: below every score, yet finite, so that its difference to itself is 0.
const LOWEST: f32 = -1e30;

/// What is the same for the whole kernel.
struct Shape<'s> {
    stream: &'s Stream,
    outer: Vec<AxisId>,
    /// The tokens' axis among the rows.
    tokens: Option<AxisId>,
    /// The rows' axes other than the tokens and the outer ones.
    inner: Vec<AxisId>,
    /// Their number per token.
    per_token: usize,
    /// Tokens in a tile, at most.
    most: usize,
    /// Tiles that share the runs of one token, or a few.
    splits: usize,
    /// Rows of a tile, filled up to whole vectors, and with those that the last core takes beyond.
    padded: usize,
}

/// The private memory of a tile.
struct Tile {
    /// Stored operands that no cache has as the cores want them.
    held: Held,
    /// Weights that several folds share.
    weights: Vec<(Weighted, Rows)>,
    /// For each score contraction that a core computes its activation.
    queries: Vec<(EqId, Rows)>,
    /// For each fold its statistic; of a contraction, its accumulated columns.
    stats: Vec<Place>,
}

/// Rows that cores multiply: floats, and the same in the format that the cores want.
struct Rows {
    floats: Buffer,
    depth: usize,
    format: Format,
    encoded: Buffer,
    /// Of weights that are encoded: the sum whose stored operand has scales, which multiply the weights.
    scaled_by: Option<Box<Contraction>>,
}

impl Rows {
    fn new(rows: usize, depth: usize, format: Format, e: &mut Emitter) -> Rows {
        let floats = e.floats(rows * depth);
        let encoded = match format {
            Format::F32 => floats.clone(),
            format => e.memory(rows * format.row(depth), format.elem()),
        };
        Rows { floats, depth, format, encoded, scaled_by: None }
    }

    /// Units from row to row, as the cores take them.
    fn stride(&self) -> usize {
        self.format.row(self.depth)
    }

    /// All of them as the cores take them.
    fn matrix(&self) -> Matrix {
        Matrix { at: Address::new(self.encoded.clone(), 0), format: self.format, stride: self.stride() }
    }

    /// A row as the cores take it.
    fn row(&self, row: Expr) -> Address {
        Address::new(self.encoded.clone(), row * self.stride())
    }

    /// Turns a row into exponentials of what it has above a shift, in the format of the cores if that is one of floats;
    /// returns their sum.
    fn exponentials(&self, row: Expr, shift: Expr, e: &mut Emitter) -> loops::Var {
        let total = e.var(Ty::Float);
        let from = Address::new(self.floats.clone(), row.clone() * self.depth);
        let (to, format) = match self.format.is_coded() {
            true => (from.clone(), Format::F32),
            false => (self.row(row), self.format),
        };
        e.push(Stmt::Exps(Exps { total, depth: self.depth, from, shift, to, format }));
        total
    }

    /// Brings a row into the format of the cores.
    fn encode(&self, row: Expr, e: &mut Emitter) {
        if self.format != Format::F32 {
            let (from, to) = (Address::new(self.floats.clone(), row.clone() * self.depth), self.row(row));
            e.push(Stmt::Encode(Encode { depth: self.depth, from, to, format: self.format, part: None }));
        }
    }
}

impl Shape<'_> {
    /// The first token of a tile that is the only one of its heads, and how many it has; one where no row is a token's.
    fn few(&self, cx: &Context, kernel: &Kernel) -> (Expr, Expr) {
        let (from, tokens) = cx.tokens(kernel);
        (from, if self.most > 1 { tokens.rows } else { Expr::Int(1) })
    }
}

/// The axes of the rows, other than the tokens', whose coordinates have keys or values of their own.
pub(super) fn outer(graph: &Graph, stream: &Stream) -> Vec<AxisId> {
    let of_folds = stream.folds.iter().filter_map(|f| match f {
        Fold::Sum { over, .. } => over.as_deref(),
        Fold::Max { .. } => None,
    });
    let contractions: Vec<&Contraction> =
        stream.scores.iter().filter_map(|(_, c)| c.as_ref()).chain(of_folds).collect();
    let is_outer = |a: &&AxisId| !is_tokens(graph, **a) && contractions.iter().any(|c| c.batch.contains(a));
    stream.rows.iter().filter(is_outer).copied().collect()
}

pub(super) fn schedule(cx: &Context, kernel: &Kernel, stream: &Stream, partial: usize) -> (Vec<loops::Kernel>, usize) {
    let graph = &cx.plan.graph;
    let size = |a: AxisId| graph.fixed_size(a);
    let tokens = stream.rows.iter().copied().find(|&a| is_tokens(graph, a));
    let outer = outer(graph, stream);
    let is_inner = |a: &&AxisId| Some(**a) != tokens && !outer.contains(a);
    let inner: Vec<AxisId> = stream.rows.iter().filter(is_inner).copied().collect();
    let per_token: usize = inner.iter().map(|&a| size(a)).product();
    let group = cx.cores.rows();
    let mode = cx.mode(kernel);
    let many = mode == Mode::Many && tokens.is_some();
    // As many tokens as fill whole cores.
    let whole = (1..=group).find(|n| (n * per_token).is_multiple_of(group)).unwrap_or(group);
    let most = match mode {
        Mode::Many if tokens.is_some() => (cx.tiling.tile / per_token / whole * whole).max(whole),
        Mode::Few if tokens.is_some() => FEW,
        _ => 1,
    };
    let heads: usize = outer.iter().map(|&a| size(a)).product();
    let splits = if many { 1 } else { cx.tiling.parts };
    let shape = Shape {
        stream,
        outer,
        tokens,
        inner,
        per_token,
        most,
        splits,
        padded: (most * per_token + if mode == Mode::Few { group } else { 0 }).next_multiple_of(LANES),
    };

    let mut e = cx.emitter();
    cx.bind_tokens(kernel, &mut e);
    let partials = Partials::of(cx, &shape, partial);
    match (&mode, tokens) {
        (Mode::Many, Some(_)) => {
            let tiles = Expr::from(Arg::Tokens).div_ceil(shape.most as i64);
            e.balanced(tiles, heads, |e, nth, head| {
                let from = e.int(nth * shape.most);
                let left = e.int((Expr::from(Arg::Tokens) - from.clone()).min(shape.most));
                tile(cx, kernel, &shape, head, None, (from, left), &partials, e);
            });
        }
        _ => {
            let (from, count) = shape.few(cx, kernel);
            e.parallel((heads * shape.splits).into(), Share::Blocks, |e, at| {
                let split = (shape.splits > 1).then(|| at.clone().rem(shape.splits));
                tile(cx, kernel, &shape, at.div(shape.splits), split, (from, count), &partials, e);
            });
        }
    }
    let mut kernels = vec![cx.close(&kernel.name, e)];
    if shape.splits > 1 {
        kernels.push(merge(cx, kernel, &shape, &partials, heads));
    }
    (kernels, if shape.splits > 1 { partials.bytes } else { 0 })
}

/// Coordinates of the outer axes out of their number.
fn outer_scope(cx: &Context, shape: &Shape, number: Expr, e: &mut Emitter) -> Scope {
    let counts: Vec<usize> = shape.outer.iter().map(|&a| cx.plan.graph.fixed_size(a)).collect();
    let number = e.int(number);
    let mut scope = Scope::default();
    scope.at.extend(shape.outer.iter().copied().zip(e.digits(number, &counts)));
    scope
}

#[allow(clippy::too_many_arguments)]
fn tile(
    cx: &Context,
    kernel: &Kernel,
    shape: &Shape,
    number: Expr,
    split: Option<Expr>,
    (from, count): (Expr, Expr),
    partials: &Partials,
    e: &mut Emitter,
) {
    let stream = shape.stream;
    let number = e.int(number);
    let scope = outer_scope(cx, shape, number.clone(), e);
    if let Some(t) = shape.tokens {
        let len = count.as_int().map(|n| n as usize);
        e.spans.insert(t, Span { from: from.clone(), to: from.clone() + count.clone(), aligned: false, len });
    }
    let rows = match cx.mode(kernel) {
        Mode::Few => e.int(count.clone() * shape.per_token),
        _ => Expr::from(shape.most * shape.per_token),
    };
    let tile = memory(cx, kernel, shape, &from, e);
    start(cx, shape, &tile, e);
    tile.held.clear(e);
    for (q, rows) in &tile.queries {
        queries(cx, shape, &scope, *q, rows, &from, e);
    }

    // Which runs the tile's tokens may see.
    let end = e.int(end_of_positions());
    let first = Expr::from(Arg::Past) + from.clone();
    let last = first.clone() + count.clone() - 1;
    let (low, to) = positions_within(stream.bounds, first, last, end.clone());
    let seen = e.int(to);
    let mut from_run = e.int(low.div(RUN));
    let mut to_run = e.int(seen.clone().div_ceil(RUN as i64));
    if let Some(split) = split.clone() {
        let runs = e.int((to_run - from_run.clone()).max(0));
        let begin = from_run.clone() + (runs.clone() * split.clone()).div(shape.splits);
        to_run = e.int(from_run + (runs * (split + 1)).div(shape.splits));
        from_run = e.int(begin);
    }
    let last = to_run.clone() - 1;
    e.repeat(from_run, to_run, 1, |e, run| {
        let first = e.int(run.clone() * RUN);
        // Few rows wait for memory.
        let fetches = cx.cores.fetch.is_some() && cx.mode(kernel) != Mode::Many;
        let next = fetches.then(|| e.int((run + 1).min(last) * RUN));
        let whole = Span { from: first.clone(), to: first.clone() + RUN, aligned: true, len: Some(RUN) };
        e.spans.insert(stream.positions, whole);
        let (end, seen, rows) = (end.clone(), seen.clone(), rows.clone());
        let run = Run { cx, kernel, shape, tile: &tile, first, next, end, seen, rows };
        tile.held.fill(&run, &scope, e);
        run.scores(&scope, e);
        run.statistics(&scope, e);
        for fold in &stream.folds {
            let Fold::Sum { weight, over: Some(c), .. } = fold else { continue };
            run.sum_columns(weight, c, &scope, e);
        }
        e.spans.remove(&stream.positions);
    });

    match split {
        None => finish(cx, kernel, shape, &tile.stats, &scope, e),
        Some(split) => partials.store(&tile.stats, number * shape.splits + split, e),
    }
}

/// The place of a value per row (and, with `width` more than 1, per position or column) of a tile.
fn row_place(
    cx: &Context,
    shape: &Shape,
    buffer: Buffer,
    width: usize,
    tensor: TensorId,
    from: &Expr,
    columns: Option<&Contraction>,
) -> Place {
    let graph = &cx.plan.graph;
    let axes = &graph.tensor(tensor).axes;
    let size = |a: AxisId| graph.fixed_size(a);
    let dim = |a: AxisId| axes.iter().position(|&x| x == a);
    let mut layout = Layout::default();
    let mut stride = width;
    for &a in shape.inner.iter().rev() {
        if let Some(dim) = dim(a) {
            layout.push(dim, stride);
        }
        stride *= size(a);
    }
    if let Some(dim) = shape.tokens.and_then(dim) {
        layout.push(dim, stride);
    }
    if let Some(c) = columns {
        let mut stride = 1;
        for (i, &a) in c.cols.iter().enumerate().rev() {
            if let Some(dim) = dim(a) {
                layout.push(dim, stride);
            }
            stride *= if i + 1 == c.cols.len() { size(a).next_multiple_of(PANEL) } else { size(a) };
        }
    } else if let Some(dim) = dim(shape.stream.positions)
        && width > 1
    {
        layout.push(dim, 1);
    }
    let mut place = Place::flat(buffer, layout, axes.len());
    if let Some(dim) = shape.tokens.and_then(dim) {
        place = place.with_origin(dim, from.clone());
    }
    place
}

/// How many columns a fold's contraction has, each lane axis filled up to whole panels.
fn columns(cx: &Context, c: &Contraction) -> usize {
    let size = |a: AxisId| cx.plan.graph.fixed_size(a);
    let lane = c.cols[c.cols.len() - 1];
    c.cols[..c.cols.len() - 1].iter().map(|&a| size(a)).product::<usize>() * size(lane).next_multiple_of(PANEL)
}

fn memory(cx: &Context, kernel: &Kernel, shape: &Shape, from: &Expr, e: &mut Emitter) -> Tile {
    let (stream, padded) = (shape.stream, shape.padded);
    let held = Held::of(cx, kernel, shape, e);
    // The format of so deep rows that cores multiply with a stored operand, if they do.
    let wanted = |c: &Contraction, order: &Order, depth: usize| {
        let format = held.format(cx, c, order)?;
        let many = cx.mode(kernel) == Mode::Many
            && matches!(cx.are_few(&Expr::from(shape.most * shape.per_token), format), When::Never);
        let unpacked = if many { cx.cores.unpacked_run(format, depth) } else { format };
        Some(cx.multiplied(unpacked, &cx.mode(kernel)))
    };
    let mut queries = Vec::new();
    for (q, c) in &stream.scores {
        let buffer = e.floats(padded * RUN);
        let out = cx.plan.equations[*q].out;
        e.places.insert(out, row_place(cx, shape, buffer, RUN, out, from, None));
        if let Some(c) = c
            && let depth = c.depth_size(&cx.plan.graph).unwrap_or(1)
            && let Some(format) = wanted(c, &Order::of_scores(cx, c), depth)
        {
            queries.push((*q, Rows::new(padded, depth, format, e)));
        }
    }
    let mut weights: Vec<(Weighted, Rows)> = Vec::new();
    let mut stats = Vec::new();
    for fold in &stream.folds {
        let out = cx.plan.equations[fold.equation()].out;
        let place = match fold {
            Fold::Sum { over: Some(c), .. } => {
                let width = columns(cx, c);
                let buffer = e.floats(padded * width);
                row_place(cx, shape, buffer, width, out, from, Some(c))
            }
            _ => {
                let buffer = e.floats(padded);
                row_place(cx, shape, buffer, 1, out, from, None)
            }
        };
        if let Fold::Sum { weight, .. } = fold
            && !weights.iter().any(|(w, _)| w == weight)
        {
            let mut all = sums(stream, weight);
            let first = all.next();
            let format = first.and_then(|c| wanted(c, &Order::of_sums(c), RUN));
            let alike = all.all(|c| wanted(c, &Order::of_sums(c), RUN) == format);
            let mut rows = Rows::new(padded, RUN, format.filter(|_| alike).unwrap_or(Format::F32), e);
            let has_scales = |c: &Contraction| held.format(cx, c, &Order::of_sums(c)).is_some_and(Format::is_coded);
            rows.scaled_by = first.filter(|c| rows.format.is_coded() && has_scales(c)).cloned();
            weights.push((weight.clone(), rows));
        }
        e.places.insert(out, place.clone());
        stats.push(place);
    }
    Tile { held, weights, queries, stats }
}

/// The contractions that sum with these weights.
fn sums<'s>(stream: &'s Stream, weight: &'s Weighted) -> impl Iterator<Item = &'s Box<Contraction>> {
    stream.folds.iter().filter_map(move |fold| match fold {
        Fold::Sum { weight: other, over: Some(c), .. } if other == weight => Some(c),
        _ => None,
    })
}

/// Gives the statistics their first values.
fn start(cx: &Context, shape: &Shape, tile: &Tile, e: &mut Emitter) {
    for (fold, place) in shape.stream.folds.iter().zip(&tile.stats) {
        let (value, width) = match fold {
            Fold::Max { .. } => (LOWEST, 1),
            Fold::Sum { over: Some(c), .. } => (0.0, columns(cx, c)),
            Fold::Sum { .. } => (0.0, 1),
        };
        let len = shape.padded * width;
        let buffer = flat(place);
        e.repeat(Expr::Int(0), len.into(), LANES, |e, at| {
            let at = Address::new(buffer, at);
            e.push(Stmt::Store { elem: Elem::F32, at, value: Expr::Float(value).splat() });
        });
    }
}

/// Copies the activation's rows of a score contraction, one after the other.
#[allow(clippy::too_many_arguments)]
fn queries(cx: &Context, shape: &Shape, scope: &Scope, q: EqId, rows: &Rows, from: &Expr, e: &mut Emitter) {
    let graph = &cx.plan.graph;
    let Some((_, Some(c))) = shape.stream.scores.iter().find(|(e, _)| *e == q) else { return };
    let axes = &graph.tensor(c.a).axes;
    let mut layout = Layout::default();
    let mut stride = 1;
    for &a in c.depth.iter().rev() {
        if let Some(dim) = axes.iter().position(|&x| x == a) {
            layout.push(dim, stride);
        }
        stride *= graph.fixed_size(a);
    }
    let mut place = row_place(cx, shape, rows.floats.clone(), rows.depth, c.a, from, None);
    place.layout.terms.extend(layout.terms);
    // Rows that the activation does not tell apart (it lacks one of their axes) get a copy each.
    let missing = |a: &AxisId| !axes.contains(a);
    let mut copies = vec![0];
    let mut stride = rows.depth;
    for &a in shape.inner.iter().rev() {
        let size = graph.fixed_size(a);
        if missing(&a) {
            copies = copies.iter().flat_map(|&at| (0..size).map(move |i| at + i * stride)).collect();
        }
        stride *= size;
    }
    if shape.tokens.as_ref().is_some_and(missing) {
        copies = copies.iter().flat_map(|&at| (0..shape.most).map(move |i| at + i * stride)).collect();
    }
    for base in copies {
        let mut to = place.clone();
        to.layout.base = base;
        e.equation(scope, c.a, cx.load(c.a), &to);
    }
    let count = e.int(shape.tokens.map_or(Expr::Int(1), |t| e.span(t).to - e.span(t).from) * shape.per_token);
    if rows.format != Format::F32 {
        e.repeat(Expr::Int(0), count, 1, |e, row| rows.encode(row, e));
    }
}

/// The number of a row in its tile, of the coordinates in the scope; others count as 0.
fn row_number(cx: &Context, shape: &Shape, scope: &Scope, from: &Expr) -> Expr {
    let mut number = Expr::Int(0);
    if let Some(at) = shape.tokens.and_then(|t| scope.at.get(&t)) {
        number = (at.clone() - from.clone()) * shape.per_token;
    }
    let mut stride = 1;
    for &a in shape.inner.iter().rev() {
        if let Some(at) = scope.at.get(&a) {
            number = number + at.clone() * stride;
        }
        stride *= cx.plan.graph.fixed_size(a);
    }
    number
}

fn each_row(shape: &Shape, scope: &Scope, e: &mut Emitter, mut f: impl FnMut(&mut Emitter, &Scope)) {
    let all: Vec<AxisId> = shape.tokens.iter().chain(&shape.inner).copied().collect();
    e.over(scope.clone(), &all, &mut |e, scope| f(e, &scope));
}

/// Applies what left the sums, and stores the results that others read.
fn finish(cx: &Context, kernel: &Kernel, shape: &Shape, stats: &[Place], scope: &Scope, e: &mut Emitter) {
    let outputs = cx.plan.outputs(kernel);
    for (fold, place) in shape.stream.folds.iter().zip(stats) {
        let Fold::Sum { eq, scale, divisor, .. } = fold else { continue };
        let out = cx.plan.equations[*eq].out;
        e.places.insert(out, place.clone());
        let scaled = !scale.is_empty() || !divisor.is_empty();
        let encoded = cx.encoded(out).filter(|_| outputs.contains(&out));
        let to = if outputs.contains(&out) && encoded.is_none() { cx.home(out) } else { place.clone() };
        if scaled || to != *place {
            e.equation(scope, out, cx.prepared.finished[eq], &to);
        }
        if let (Some(encoded), Fold::Sum { over: Some(c), .. }) = (encoded, fold) {
            let (width, first) = (columns(cx, c), shape.tokens.map_or(Expr::Int(0), |t| e.span(t).from));
            each_row(shape, scope, e, |e, scope| {
                let number = row_number(cx, shape, scope, &first);
                let token = shape.tokens.and_then(|t| scope.at.get(&t)).cloned().unwrap_or(Expr::Int(0));
                let from = Address::new(flat(place), number * width);
                encoded.push(cx, out, scope, token, (from, width), e);
            });
        }
    }
}
