//! The skeleton of a stream: one pass over the pages of a cache, with running statistics that are rescaled on the way.
//!
//! A tile is some tokens with all rows that read the same keys and values (the axes that only the activations have). For
//! each page that the tile's tokens may see, the cores compute the scores, then every row updates its statistics and
//! turns its scores into weights, then the cores add the weighted values. With one token the pages are split among
//! several tiles, whose partial statistics are merged by a second kernel.

use einfuse_graph::{AxisId, ExprId, TensorId};

use super::contract::flat;
use super::emit::{Emitter, Place, Scope, Span, end_of_positions, widen};
use super::homes::PAGE;
use super::layout::Layout;
use super::{Context, Mode};
use crate::fuse::{Contraction, EqId, Fold, Kernel, Stream, Weighted, is_tokens};
use crate::loops::{self, Address, Arg, Buffer, Core, Elem, Expr, LANES, PANEL, Share, Stmt, Ty, Unary};

/// Rows that a core takes at once.
const GROUP: usize = 4;

/// Rows that a tile has about, where there are many tokens.
const ROWS: usize = 32;

/// Tiles there should be, at least, where there is one token.
const SPLITS: usize = 16;

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
    /// Tiles that share the pages of one token.
    splits: usize,
}

/// The private memory of a tile.
struct Tile {
    /// Weights that several folds share, with their place.
    weights: Vec<(Weighted, Place)>,
    /// For each score contraction that a core computes: its activation's rows and their length.
    queries: Vec<(EqId, Buffer, usize)>,
    /// For each fold its statistic; of a contraction, its accumulated columns.
    stats: Vec<Place>,
}

pub(super) fn schedule(cx: &Context, kernel: &Kernel, stream: &Stream, partial: usize) -> (Vec<loops::Kernel>, usize) {
    let graph = &cx.plan.graph;
    let size = |a: AxisId| graph.size(a).unwrap_or(1);
    let contractions: Vec<&Contraction> = stream
        .scores
        .iter()
        .filter_map(|(_, c)| c.as_ref())
        .chain(stream.folds.iter().filter_map(|f| match f {
            Fold::Sum { over, .. } => over.as_deref(),
            Fold::Max { .. } => None,
        }))
        .collect();
    let tokens = stream.rows.iter().copied().find(|&a| is_tokens(graph, a));
    let is_outer = |a: &AxisId| Some(*a) != tokens && contractions.iter().any(|c| c.batch.contains(a));
    let outer: Vec<AxisId> = stream.rows.iter().filter(|a| is_outer(a)).copied().collect();
    let inner: Vec<AxisId> = stream.rows.iter().filter(|a| Some(**a) != tokens && !is_outer(a)).copied().collect();
    let per_token: usize = inner.iter().map(|&a| size(a)).product();
    let many = matches!(cx.mode(kernel), Mode::Many) && tokens.is_some();
    let most = if many { (ROWS / per_token / GROUP * GROUP).max(GROUP) } else { 1 };
    let heads: usize = outer.iter().map(|&a| size(a)).product();
    let splits = if many { 1 } else { (SPLITS / heads.max(1)).clamp(1, 8) };
    let shape = Shape { stream, outer, tokens, inner, per_token, most, splits };

    let mut e = cx.emitter(kernel);
    let mode = cx.mode(kernel);
    cx.bind_tokens(&mode, &mut e);
    let partials = Partials::of(cx, &shape, partial);
    match (&mode, tokens) {
        (Mode::Many, Some(_)) => {
            let tiles = Expr::from(Arg::Tokens).div_ceil(shape.most as i64);
            e.parallel(tiles * heads, Share::Cyclic, |e, at| {
                let from = e.int(at.clone().div(heads) * shape.most);
                let left = e.int((Expr::from(Arg::Tokens) - from.clone()).min(shape.most));
                tile(cx, kernel, &shape, at.rem(heads), None, (from, left), &partials, e);
            });
        }
        _ => {
            let from = match &mode {
                Mode::One(at) => at.clone(),
                Mode::Many => Expr::Int(0),
            };
            e.parallel((heads * shape.splits).into(), Share::Blocks, |e, at| {
                let split = (shape.splits > 1).then(|| at.clone().rem(shape.splits));
                tile(cx, kernel, &shape, at.div(shape.splits), split, (from, Expr::Int(1)), &partials, e);
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
    let mut scope = Scope::default();
    let mut rest = e.int(number);
    for (i, &a) in shape.outer.iter().enumerate().rev() {
        let count = cx.plan.graph.size(a).unwrap_or(1);
        let digit = if i == 0 { rest.clone() } else { rest.clone().rem(count) };
        let digit = e.int(digit);
        scope.at.insert(a, digit);
        rest = rest.div(count);
    }
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
    let rows = shape.most * shape.per_token;
    let tile = memory(cx, shape, &from, rows, e);
    start(cx, shape, &tile, rows, e);
    for (q, buffer, depth) in &tile.queries {
        queries(cx, shape, &scope, *q, buffer, *depth, &from, e);
    }

    // Which pages the tile's tokens may see.
    let end = e.int(end_of_positions());
    let first = Expr::from(Arg::Past) + from.clone();
    let last = first.clone() + count.clone() - 1;
    let to = match stream.upper {
        Some(upper) => (last + (upper + 1)).min(end.clone()).max(0),
        None => end.clone(),
    };
    let low = match stream.lower {
        Some(lower) => (first + lower).max(0),
        None => Expr::Int(0),
    };
    let mut page_from = e.int(low.div(PAGE));
    let mut page_to = e.int(to.div_ceil(PAGE as i64));
    if let Some(split) = split.clone() {
        let pages = e.int((page_to - page_from.clone()).max(0));
        let begin = page_from.clone() + (pages.clone() * split.clone()).div(shape.splits);
        page_to = e.int(page_from + (pages * (split + 1)).div(shape.splits));
        page_from = e.int(begin);
    }
    e.repeat(page_from, page_to, 1, |e, page| {
        let s = e.int(page.clone() * PAGE);
        let whole = Span { from: s.clone(), to: s.clone() + PAGE, aligned: true, len: Some(PAGE) };
        e.spans.insert(stream.positions, whole);
        scores(cx, shape, &tile, &scope, &s, &end, rows, e);
        each_row(shape, &scope, e, |e, scope| row(cx, shape, &tile, scope, &s, &end, e));
        for fold in &stream.folds {
            let Fold::Sum { weight, over: Some(c), .. } = fold else { continue };
            sum_columns(cx, shape, &tile, weight, c, &scope, &page, &end, rows, e);
        }
        e.spans.remove(&stream.positions);
    });

    match split {
        None => finish(cx, kernel, shape, &tile.stats, &scope, e),
        Some(split) => partials.store(cx, shape, &tile.stats, number * shape.splits + split, e),
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
    let size = |a: AxisId| graph.size(a).unwrap_or(1);
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
    let size = |a: AxisId| cx.plan.graph.size(a).unwrap_or(1);
    let lane = c.cols[c.cols.len() - 1];
    c.cols[..c.cols.len() - 1].iter().map(|&a| size(a)).product::<usize>() * size(lane).next_multiple_of(PANEL)
}

fn memory(cx: &Context, shape: &Shape, from: &Expr, rows: usize, e: &mut Emitter) -> Tile {
    let stream = shape.stream;
    let padded = rows.next_multiple_of(GROUP);
    let mut queries = Vec::new();
    for (q, c) in &stream.scores {
        let buffer = e.floats(padded * PAGE);
        let out = cx.plan.equations[*q].out;
        e.places.insert(out, row_place(cx, shape, buffer, PAGE, out, from, None));
        if let Some(c) = c.as_ref().filter(|c| cx.has_score_panels(c)) {
            let depth = c.depth_size(&cx.plan.graph).unwrap_or(1);
            queries.push((*q, e.floats(padded * depth), depth));
        }
    }
    let mut weights: Vec<(Weighted, Place)> = Vec::new();
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
            let buffer = e.floats(padded * PAGE);
            weights.push((weight.clone(), Place::flat(buffer, Layout::default(), 0)));
        }
        e.places.insert(out, place.clone());
        stats.push(place);
    }
    Tile { weights, queries, stats }
}

/// Gives the statistics their first values.
fn start(cx: &Context, shape: &Shape, tile: &Tile, rows: usize, e: &mut Emitter) {
    for (fold, place) in shape.stream.folds.iter().zip(&tile.stats) {
        let (value, width) = match fold {
            Fold::Max { .. } => (LOWEST, 1),
            Fold::Sum { over: Some(c), .. } => (0.0, columns(cx, c)),
            Fold::Sum { .. } => (0.0, 1),
        };
        let len = rows.next_multiple_of(GROUP) * width;
        let buffer = flat(place);
        e.repeat(Expr::Int(0), len.into(), LANES, |e, at| {
            let at = Address::new(buffer, at);
            e.push(Stmt::Store { elem: Elem::F32, at, value: Expr::Float(value).splat() });
        });
    }
}

/// Copies the activation's rows of a score contraction, one after the other.
#[allow(clippy::too_many_arguments)]
fn queries(
    cx: &Context,
    shape: &Shape,
    scope: &Scope,
    q: EqId,
    buffer: &Buffer,
    depth: usize,
    from: &Expr,
    e: &mut Emitter,
) {
    let graph = &cx.plan.graph;
    let Some((_, Some(c))) = shape.stream.scores.iter().find(|(e, _)| *e == q) else { return };
    let axes = &graph.tensor(c.a).axes;
    let mut layout = Layout::default();
    let mut stride = 1;
    for &a in c.depth.iter().rev() {
        if let Some(dim) = axes.iter().position(|&x| x == a) {
            layout.push(dim, stride);
        }
        stride *= graph.size(a).unwrap_or(1);
    }
    let mut place = row_place(cx, shape, buffer.clone(), depth, c.a, from, None);
    place.layout.terms.extend(layout.terms);
    // Rows that the activation does not tell apart (it lacks one of their axes) get a copy each.
    let missing = |a: &AxisId| !axes.contains(a);
    let mut copies = vec![0];
    let mut stride = depth;
    for &a in shape.inner.iter().rev() {
        let size = graph.size(a).unwrap_or(1);
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
        stride *= cx.plan.graph.size(a).unwrap_or(1);
    }
    number
}

/// Loops over some axes.
fn each_of(axes: &[AxisId], scope: Scope, e: &mut Emitter, f: &mut dyn FnMut(&mut Emitter, Scope)) {
    match axes {
        [] => f(e, scope),
        [a, rest @ ..] => {
            let span = e.span(*a);
            e.repeat(span.from, span.to, 1, |e, at| each_of(rest, scope.with(*a, at), e, f));
        }
    }
}

fn each_row(shape: &Shape, scope: &Scope, e: &mut Emitter, mut f: impl FnMut(&mut Emitter, &Scope)) {
    let all: Vec<AxisId> = shape.tokens.iter().chain(&shape.inner).copied().collect();
    each_of(&all, scope.clone(), e, &mut |e, scope| f(e, &scope));
}

/// The scores of a page.
#[allow(clippy::too_many_arguments)]
fn scores(cx: &Context, shape: &Shape, tile: &Tile, scope: &Scope, s: &Expr, end: &Expr, rows: usize, e: &mut Emitter) {
    let positions = shape.stream.positions;
    for (q, c) in &shape.stream.scores {
        let equation = cx.plan.equations[*q];
        let dim = cx.plan.graph.tensor(equation.out).axes.iter().position(|&a| a == positions);
        let mut place = e.places[&equation.out].clone();
        if let Some(dim) = dim {
            place = place.with_origin(dim, s.clone());
        }
        e.places.insert(equation.out, place.clone());
        let core = tile.queries.iter().find(|(eq, ..)| eq == q).zip(c.as_ref());
        let Some(((_, queries, depth), c)) = core else {
            // Only what is there: positions beyond the end have no rows to read.
            let to = e.int((s.clone() + PAGE).min(end.clone()));
            let part = Span { from: s.clone(), to, aligned: true, len: None };
            let whole = e.spans.insert(positions, part);
            e.equation(scope, equation.out, equation.body, &place);
            if let Some(whole) = whole {
                e.spans.insert(positions, whole);
            }
            continue;
        };
        e.note(format!("{} by cores", super::emit::graph_name(&cx.plan.graph, equation.out)));
        let state = panel_address(cx, c, scope, s, e);
        let to = flat(&place);
        e.repeat(Expr::Int(0), (PAGE / PANEL).into(), 1, |e, panel| {
            let b = state.clone().plus(panel.clone() * (depth * PANEL));
            let core = |rows: usize, row: Expr| {
                Stmt::Core(Core {
                    rows,
                    depth: (*depth).into(),
                    a: Address::new(queries.clone(), row.clone() * *depth),
                    a_stride: (*depth).into(),
                    b: b.clone(),
                    b_elem: Elem::F32,
                    c: Address::new(to.clone(), row * PAGE + panel.clone() * PANEL),
                    c_stride: PAGE.into(),
                    accumulate: false,
                })
            };
            by_groups(rows, e, core);
        });
    }
}

fn by_groups(rows: usize, e: &mut Emitter, core: impl Fn(usize, Expr) -> Stmt) {
    e.repeat(Expr::Int(0), (rows / GROUP * GROUP).into(), GROUP, |e, row| e.push(core(GROUP, row)));
    if !rows.is_multiple_of(GROUP) {
        e.push(core(rows % GROUP, (rows / GROUP * GROUP).into()));
    }
}

/// The address of a state's first panel in the page of position `s`, at the scope's outer coordinates.
fn panel_address(cx: &Context, c: &Contraction, scope: &Scope, s: &Expr, e: &mut Emitter) -> Address {
    let axes = &cx.plan.graph.tensor(c.b).axes;
    let index: Vec<Expr> = axes
        .iter()
        .zip(&c.fixed)
        .enumerate()
        .map(|(dim, (a, fixed))| match (dim, fixed) {
            (0, _) => s.clone(),
            (_, Some(at)) => Expr::Int(*at),
            _ => scope.at.get(a).filter(|_| c.batch.contains(a)).cloned().unwrap_or(Expr::Int(0)),
        })
        .collect();
    e.places[&c.b].address(&index)
}

/// One row of a page: its statistics, and its scores turned into weights.
fn row(cx: &Context, shape: &Shape, tile: &Tile, scope: &Scope, s: &Expr, end: &Expr, e: &mut Emitter) {
    let stream = shape.stream;
    let positions = stream.positions;
    let from = shape.tokens.map_or(Expr::Int(0), |t| e.span(t).from);
    let number = row_number(cx, shape, scope, &from);
    let number = e.int(number);
    // Where the mask already ends at the token, no position lies beyond the end.
    let bounded = stream.upper.is_some_and(|u| u <= 0);
    let mut before: Vec<(TensorId, loops::Var, loops::Var)> = Vec::new();
    let mut done: Vec<(&Weighted, loops::Var)> = Vec::new();
    for (fold, place) in stream.folds.iter().zip(&tile.stats) {
        let out = cx.plan.equations[fold.equation()].out;
        let stat_axes = &cx.plan.graph.tensor(out).axes;
        match fold {
            Fold::Max { value, mask, .. } => {
                let best = e.bind(Ty::Floats, Expr::Float(LOWEST).splat());
                each_vector(scope, positions, s, e, |e, scope| {
                    let value = present(*value, *mask, f32::NEG_INFINITY, bounded, positions, end, scope, e);
                    e.push(Stmt::Set(best, Expr::from(best).max(value)));
                });
                let index: Vec<Expr> = stat_axes.iter().map(|a| scope.at[a].clone()).collect();
                let at = place.address(&index);
                let old = e.bind(Ty::Float, at.clone().load(Elem::F32));
                let most = Expr::from(best).fold(loops::Fold::Max);
                let new = e.bind(Ty::Float, Expr::from(old).max(most));
                e.push(Stmt::Store { elem: Elem::F32, at, value: new.into() });
                let factor = (Expr::from(old) - Expr::from(new)).unary(Unary::Exp);
                let factor = e.bind(Ty::Float, factor);
                before.push((out, new, factor));
            }
            Fold::Sum { weight, over, .. } => {
                let shift = weight.shifted.and_then(|(_, m)| before.iter().find(|(t, ..)| *t == m).copied());
                let total = match done.iter().find(|(w, _)| *w == weight) {
                    Some((_, total)) => *total,
                    None => {
                        let buffer = tile.weights.iter().find(|(w, _)| w == weight).map(|(_, p)| flat(p));
                        let total = e.bind(Ty::Floats, Expr::Float(0.0).splat());
                        let number = number.clone();
                        each_vector(scope, positions, s, e, |e, scope| {
                            let value =
                                weighted(weight, shift.map(|(_, new, _)| new), bounded, positions, end, scope, e);
                            let value = e.bind(Ty::Floats, value);
                            if let Some(buffer) = &buffer {
                                let column = scope.at[&positions].clone() - s.clone();
                                let at = Address::new(buffer.clone(), number.clone() * PAGE + column);
                                e.push(Stmt::Store { elem: Elem::F32, at, value: value.into() });
                            }
                            e.push(Stmt::Set(total, Expr::from(total) + value));
                        });
                        done.push((weight, total));
                        total
                    }
                };
                match over {
                    None => {
                        let index: Vec<Expr> = stat_axes.iter().map(|a| scope.at[a].clone()).collect();
                        let at = place.address(&index);
                        let sum = Expr::from(total).fold(loops::Fold::Sum);
                        let old = at.clone().load(Elem::F32);
                        let value = match shift {
                            Some((_, _, factor)) => old.fma(factor, sum),
                            None => old + sum,
                        };
                        e.push(Stmt::Store { elem: Elem::F32, at, value });
                    }
                    Some(c) => {
                        let Some((_, _, factor)) = shift else { continue };
                        let (buffer, width) = (flat(place), columns(cx, c));
                        let first = e.int(number.clone() * width);
                        e.when(Expr::from(factor).differs(1.0f32), |e| {
                            let factor = e.bind(Ty::Floats, Expr::from(factor).splat());
                            e.repeat(Expr::Int(0), width.into(), LANES, |e, at| {
                                let at = Address::new(buffer, first + at);
                                let value = at.clone().load4(Elem::F32) * factor;
                                e.push(Stmt::Store { elem: Elem::F32, at, value });
                            });
                        });
                    }
                }
            }
        }
    }
}

/// Visits the positions of a page, four at a time.
fn each_vector(scope: &Scope, positions: AxisId, s: &Expr, e: &mut Emitter, mut f: impl FnMut(&mut Emitter, &Scope)) {
    e.repeat(s.clone(), s.clone() + PAGE, LANES, |e, at| {
        let scope = scope.clone().with_lanes(positions, at);
        f(e, &scope);
    });
}

/// A value at four positions where the mask holds and there is one, `absent` elsewhere.
#[allow(clippy::too_many_arguments)]
fn present(
    value: ExprId,
    mask: Option<ExprId>,
    absent: f32,
    bounded: bool,
    positions: AxisId,
    end: &Expr,
    scope: &Scope,
    e: &mut Emitter,
) -> Expr {
    let value = e.value(scope, value);
    let value = e.bind(Ty::Floats, widen(value));
    guard(value.into(), mask, absent, bounded, positions, end, scope, e)
}

#[allow(clippy::too_many_arguments)]
fn guard(
    value: Expr,
    mask: Option<ExprId>,
    absent: f32,
    bounded: bool,
    positions: AxisId,
    end: &Expr,
    scope: &Scope,
    e: &mut Emitter,
) -> Expr {
    let mut masks = Vec::new();
    if let Some(mask) = mask {
        let mask = e.value(scope, mask);
        masks.push(widen(mask));
    }
    if !bounded {
        masks.push(scope.at[&positions].clone().iota().lt(end.clone().splat()));
    }
    match masks.into_iter().reduce(|a, b| a.and(b)) {
        Some(mask) => mask.select(value, Expr::Float(absent).splat()),
        None => value,
    }
}

/// The weights of four positions.
fn weighted(
    weight: &Weighted,
    shift: Option<loops::Var>,
    bounded: bool,
    positions: AxisId,
    end: &Expr,
    scope: &Scope,
    e: &mut Emitter,
) -> Expr {
    let mut product: Option<Expr> = None;
    if let (Some((exponent, _)), Some(shift)) = (weight.shifted, shift) {
        let exponent = e.value(scope, exponent);
        let value = (widen(exponent) - Expr::from(shift).splat()).unary(Unary::Exp);
        product = Some(e.bind(Ty::Floats, value).into());
    }
    for &factor in &weight.factors {
        let factor = e.value(scope, factor);
        let factor = widen(factor);
        product = Some(match product {
            Some(p) => e.bind(Ty::Floats, p * factor).into(),
            None => e.bind(Ty::Floats, factor).into(),
        });
    }
    let value = product.unwrap_or(Expr::Float(1.0).splat());
    guard(value, weight.mask, 0.0, bounded, positions, end, scope, e)
}

/// Adds a page's weighted values to the accumulated columns.
#[allow(clippy::too_many_arguments)]
fn sum_columns(
    cx: &Context,
    shape: &Shape,
    tile: &Tile,
    weight: &Weighted,
    c: &Contraction,
    scope: &Scope,
    page: &Expr,
    end: &Expr,
    rows: usize,
    e: &mut Emitter,
) {
    let Some(weights) = tile.weights.iter().find(|(w, _)| w == weight).map(|(_, p)| flat(p)) else { return };
    let at = shape.stream.folds.iter().position(|f| cx.plan.equations[f.equation()].out == c.out);
    let Some(place) = at.map(|at| &tile.stats[at]) else { return };
    let width = columns(cx, c);
    let s = e.int(page.clone() * PAGE);
    if !cx.has_column_panels(c) {
        return sum_plainly(cx, shape, &weights, place, c, scope, &s, end, e);
    }
    let b = panel_address(cx, c, scope, &s, e);
    let to = flat(place);
    e.repeat(Expr::Int(0), (width / PANEL).into(), 1, |e, panel| {
        let b = b.clone().plus(panel.clone() * (PAGE * PANEL));
        let core = |rows: usize, row: Expr| {
            Stmt::Core(Core {
                rows,
                depth: PAGE.into(),
                a: Address::new(weights.clone(), row.clone() * PAGE),
                a_stride: PAGE.into(),
                b: b.clone(),
                b_elem: Elem::F32,
                c: Address::new(to.clone(), row * width + panel.clone() * PANEL),
                c_stride: width.into(),
                accumulate: true,
            })
        };
        by_groups(rows, e, core);
    });
}

/// The same element by element, where the state lies in another order.
#[allow(clippy::too_many_arguments)]
fn sum_plainly(
    cx: &Context,
    shape: &Shape,
    weights: &Buffer,
    place: &Place,
    c: &Contraction,
    scope: &Scope,
    s: &Expr,
    end: &Expr,
    e: &mut Emitter,
) {
    let out_axes = &cx.plan.graph.tensor(c.out).axes;
    let from = shape.tokens.map_or(Expr::Int(0), |t| e.span(t).from);
    let to = e.int((s.clone() + PAGE).min(end.clone()));
    each_row(shape, scope, e, |e, scope| {
        let number = row_number(cx, shape, scope, &from);
        let row = e.int(number * PAGE);
        each_of(&c.cols, scope.clone(), e, &mut |e, scope| {
            let index: Vec<Expr> = out_axes.iter().map(|a| scope.at[a].clone()).collect();
            let at = place.address(&index);
            let sum = e.bind(Ty::Float, at.clone().load(Elem::F32));
            e.repeat(s.clone(), to.clone(), 1, |e, position| {
                let scope = scope.clone().with(shape.stream.positions, position.clone());
                let value = e.value(&scope, cx.prepared.stored[&c.out]).expr;
                let weight = Address::new(weights.clone(), row.clone() + (position - s.clone())).load(Elem::F32);
                e.push(Stmt::Set(sum, value.fma(weight, sum)));
            });
            e.push(Stmt::Store { elem: Elem::F32, at, value: sum.into() });
        });
    });
}

/// Applies what left the sums, and stores the results that others read.
fn finish(cx: &Context, kernel: &Kernel, shape: &Shape, stats: &[Place], scope: &Scope, e: &mut Emitter) {
    let outputs = cx.plan.outputs(kernel);
    for (fold, place) in shape.stream.folds.iter().zip(stats) {
        let Fold::Sum { eq, scale, divisor, .. } = fold else { continue };
        let out = cx.plan.equations[*eq].out;
        e.places.insert(out, place.clone());
        let scaled = !scale.is_empty() || !divisor.is_empty();
        if !outputs.contains(&out) && !scaled {
            continue;
        }
        let to = if outputs.contains(&out) { cx.home(out) } else { place.clone() };
        e.equation(scope, out, cx.prepared.finished[eq], &to);
    }
}

/// Where the partial statistics of split tiles lie in the arena.
struct Partials {
    /// For each fold: bytes into the arena, and floats per tile.
    at: Vec<(usize, usize)>,
    bytes: usize,
}

impl Partials {
    fn of(cx: &Context, shape: &Shape, from: usize) -> Partials {
        let heads: usize = shape.outer.iter().map(|&a| cx.plan.graph.size(a).unwrap_or(1)).product();
        let rows = (shape.most * shape.per_token).next_multiple_of(GROUP);
        let mut bytes = 0;
        let mut at = Vec::new();
        for fold in &shape.stream.folds {
            let len = match fold {
                Fold::Sum { over: Some(c), .. } => rows * columns(cx, c),
                _ => rows,
            };
            at.push((from + bytes, len));
            bytes += (heads * shape.splits * len * 4).next_multiple_of(64);
        }
        Partials { at, bytes }
    }

    fn store(&self, _cx: &Context, _shape: &Shape, stats: &[Place], number: Expr, e: &mut Emitter) {
        let number = e.int(number);
        for (place, &(at, len)) in stats.iter().zip(&self.at) {
            let from = flat(place);
            let base = number.clone() * len;
            e.repeat(Expr::Int(0), len.into(), LANES, |e, i| {
                let value = Address::new(from, i.clone()).load4(Elem::F32);
                let at = Address::new(Buffer::Arena(at), base + i);
                e.push(Stmt::Store { elem: Elem::F32, at, value });
            });
        }
    }
}

/// Merges the partial statistics of the tiles that shared the pages of one token.
fn merge(cx: &Context, kernel: &Kernel, shape: &Shape, partials: &Partials, heads: usize) -> loops::Kernel {
    let mut e = cx.emitter(kernel);
    let mode = cx.mode(kernel);
    cx.bind_tokens(&mode, &mut e);
    let from = match &mode {
        Mode::One(at) => at.clone(),
        Mode::Many => Expr::Int(0),
    };
    e.parallel(heads.into(), Share::Blocks, |e, number| {
        let scope = outer_scope(cx, shape, number.clone(), e);
        let rows = shape.per_token;
        let tile = memory(cx, shape, &from, rows, e);
        start(cx, shape, &tile, rows, e);
        let factors: Vec<Buffer> = shape.stream.folds.iter().map(|_| e.floats(rows * shape.splits)).collect();
        let address = |fold: usize, split: Expr, offset: Expr| {
            let (at, len) = partials.at[fold];
            Address::new(Buffer::Arena(at), (number.clone() * shape.splits + split) * len + offset)
        };
        // The largest maximum of each row, and each part's factor.
        for (f, fold) in shape.stream.folds.iter().enumerate() {
            let Fold::Max { .. } = fold else { continue };
            let stat = flat(&tile.stats[f]);
            e.repeat(Expr::Int(0), rows.into(), 1, |e, row| {
                let best = e.bind(Ty::Float, Expr::Float(LOWEST));
                e.repeat(Expr::Int(0), shape.splits.into(), 1, |e, split| {
                    let value = address(f, split, row.clone()).load(Elem::F32);
                    e.push(Stmt::Set(best, Expr::from(best).max(value)));
                });
                let at = Address::new(stat, row.clone());
                e.push(Stmt::Store { elem: Elem::F32, at, value: best.into() });
                e.repeat(Expr::Int(0), shape.splits.into(), 1, |e, split| {
                    let part = address(f, split.clone(), row.clone()).load(Elem::F32);
                    let value = (part - Expr::from(best)).unary(Unary::Exp);
                    let at = Address::new(factors[f].clone(), row * shape.splits + split);
                    e.push(Stmt::Store { elem: Elem::F32, at, value });
                });
            });
        }
        for (f, fold) in shape.stream.folds.iter().enumerate() {
            let Fold::Sum { weight, over, .. } = fold else { continue };
            let width = over.as_ref().map_or(1, |c| columns(cx, c));
            let of = |m: TensorId| shape.stream.folds.iter().position(|f| cx.plan.equations[f.equation()].out == m);
            let shift = weight.shifted.and_then(|(_, m)| of(m));
            let stat = flat(&tile.stats[f]);
            e.repeat(Expr::Int(0), rows.into(), 1, |e, row| {
                e.repeat(Expr::Int(0), shape.splits.into(), 1, |e, split| {
                    let factor = match shift {
                        Some(m) => {
                            Address::new(factors[m].clone(), row.clone() * shape.splits + split.clone()).load(Elem::F32)
                        }
                        None => Expr::Float(1.0),
                    };
                    let factor = e.bind(Ty::Float, factor);
                    let add = |e: &mut Emitter, at: Expr, lanes: usize| {
                        let from = address(f, split.clone(), row.clone() * width + at.clone());
                        let to = Address::new(stat.clone(), row.clone() * width + at);
                        let value = match lanes {
                            1 => from.load(Elem::F32).fma(factor, to.clone().load(Elem::F32)),
                            _ => from.load4(Elem::F32).fma(Expr::from(factor).splat(), to.clone().load4(Elem::F32)),
                        };
                        e.push(Stmt::Store { elem: Elem::F32, at: to, value });
                    };
                    match width {
                        1 => add(e, Expr::Int(0), 1),
                        _ => e.repeat(Expr::Int(0), width.into(), LANES, |e, at| add(e, at, LANES)),
                    }
                });
            });
        }
        finish(cx, kernel, shape, &tile.stats, &scope, e);
    });
    cx.close(&format!("{}_merge", kernel.name), e)
}
