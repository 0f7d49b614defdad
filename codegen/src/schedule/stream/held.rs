//! Stored operands that a tile holds itself: what is computed of each position, and caches that lie in another order. They are
//! brought into panels run by run, once for all rows of the tile.

use einfuse_graph::{AxisId, Kind, TensorId};

use super::super::Context;
use super::super::contract::{columns, flat};
use super::super::cores::{Count, Matrix, Products, multiply};
use super::super::emit::{Emitter, Scope, Span};
use super::super::homes::{RUN, streams_scores};
use super::super::layout::Layout;
use super::super::pages::{column_panels, score_panels};
use super::super::place::Place;
use super::super::weights::{Panels, Units, expansion};
use super::run::Run;
use super::{Shape, sums};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contraction, Fold, Kernel, Operand, Stream};
use crate::loops::{Address, Buffer, Encode, Expr, LANES, Stmt};

/// The order of a stored operand in a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    /// Panels over positions, with these axes for rows: scores are taken from it.
    Scores(Vec<AxisId>),
    /// Panels over these columns, with the positions for rows: it is summed along them.
    Columns(Vec<AxisId>),
    /// No panels.
    Elements,
}

impl Order {
    pub(super) fn of_scores(cx: &Context, c: &Contraction) -> Order {
        match streams_scores(cx.plan, c) {
            true => Order::Scores(c.depth.clone()),
            false => Order::Elements,
        }
    }

    pub(super) fn of_sums(c: &Contraction) -> Order {
        Order::Columns(c.cols.clone())
    }
}

/// What a tile holds.
pub(super) struct Held {
    all: Vec<One>,
    sources: Vec<Source>,
    /// What is expanded before it is brought into order: so many columns for each position of a run.
    expanded: Option<Buffer>,
}

/// A stored operand in an order.
struct One {
    of: TensorId,
    order: Order,
    place: Place,
    /// Elements of the place.
    len: usize,
}

/// The rows of a cache in a run, as cores multiply them with weights.
struct Source {
    of: TensorId,
    depth: Vec<AxisId>,
    /// As floats.
    floats: Place,
    len: usize,
    /// As the cores want them.
    format: Format,
    rows: Buffer,
    /// Units from row to row.
    stride: usize,
}

impl Held {
    pub(super) fn of(cx: &Context, kernel: &Kernel, shape: &Shape, e: &mut Emitter) -> Held {
        let graph = &cx.plan.graph;
        let stream = shape.stream;
        let mut held = Held { all: Vec::new(), sources: Vec::new(), expanded: None };
        let scores = stream.scores.iter().filter_map(|(_, c)| c.as_ref()).map(|c| (c, Order::of_scores(cx, c)));
        let sums = stream.folds.iter().filter_map(|fold| match fold {
            Fold::Sum { over: Some(c), .. } => Some((&**c, Order::of_sums(c))),
            _ => None,
        });
        for (c, order) in scores.chain(sums) {
            let is_state = matches!(graph.tensor(c.b).kind, Kind::State { .. });
            let codes = is_state && cx.home(c.b).coded.is_some();
            let elem = match (&graph.tensor(c.b).kind, &order) {
                (Kind::State { .. }, Order::Scores(_)) if cx.has_score_panels(c) => continue,
                (Kind::State { .. }, Order::Columns(_)) if cx.has_column_panels(c) && !(codes && shares(stream, c)) => {
                    continue;
                }
                (Kind::State { .. }, Order::Elements) | (Kind::Weight(_) | Kind::Made(_), _) => continue,
                (Kind::State { .. }, _) if !codes => cx.home(c.b).elem,
                _ => Elem::F32,
            };
            if held.place(c.b, &order).is_some() {
                continue;
            }
            // Rows of a panel that lie together have to be there.
            let block = Format::of(elem).block();
            let even =
                |depth: &[AxisId]| depth.last().and_then(|&a| graph.size(a)).is_some_and(|n| n.is_multiple_of(block));
            let elem = if matches!(&order, Order::Scores(depth) if !even(depth)) { Elem::F32 } else { elem };
            let axes = &graph.tensor(c.b).axes;
            let (layout, len) = match &order {
                Order::Scores(depth) => score_panels(graph, axes, depth, Format::of(elem), RUN),
                Order::Columns(columns) => column_panels(graph, axes, columns, Format::of(elem), RUN),
                Order::Elements => rows(cx, shape, c.b, None),
            };
            let mut place = Place::flat(e.memory(len, elem), layout, axes.len());
            place.elem = elem;
            held.all.push(One { of: c.b, order, place, len });
        }
        for out in stream.operands.iter().map(|operand| cx.plan.equations[operand.eq].out) {
            if !held.all.iter().any(|one| one.of == out) {
                let (layout, len) = rows(cx, shape, out, None);
                let place = Place::flat(e.floats(len), layout, graph.tensor(out).axes.len());
                held.all.push(One { of: out, order: Order::Elements, place, len });
            }
        }
        for (eq, c) in stream.expansions() {
            let format = of_run(cx, kernel, &cx.variant.panels[&eq]);
            if held.source(c, format).is_none() {
                let (layout, len) = rows(cx, shape, c.a, Some(&c.depth));
                let depth = len / RUN;
                let floats = Place::flat(e.floats(len), layout, graph.tensor(c.a).axes.len());
                let (rows, stride) = match format {
                    Format::F32 => (flat(&floats), depth),
                    format => {
                        let line = 64 / format.elem().bytes();
                        let stride = format.row(depth).next_multiple_of(line);
                        (e.memory(stride * RUN, format.elem()), stride)
                    }
                };
                held.sources.push(Source { of: c.a, depth: c.depth.clone(), floats, len, format, rows, stride });
            }
        }
        let units = stream.expansions().map(|(eq, c)| Units::of(graph, &expansion(eq, c, &shape.outer)));
        let widths = units.map(|units| units.panels * PANEL);
        held.expanded = widths.max().map(|width| e.floats(width * RUN));
        held
    }

    /// Where an operand is held in an order, if it is.
    pub(super) fn place(&self, tensor: TensorId, order: &Order) -> Option<&Place> {
        self.all.iter().find(|one| one.of == tensor && one.order == *order).map(|one| &one.place)
    }

    /// How the panels of a contraction's stored operand are stored, here or in its cache; `None` where it has no panels.
    pub(super) fn format(&self, cx: &Context, c: &Contraction, order: &Order) -> Option<Format> {
        let home = || Some(cx.home(c.b).format());
        match (self.place(c.b, order), order) {
            (_, Order::Elements) => None,
            (Some(place), _) => Some(Format::of(place.elem)),
            (None, Order::Scores(_)) if cx.has_score_panels(c) => home(),
            (None, Order::Columns(_)) if cx.has_column_panels(c) => home(),
            (None, _) => None,
        }
    }

    fn source(&self, c: &Contraction, format: Format) -> Option<&Source> {
        self.sources.iter().find(|source| source.of == c.a && source.depth == c.depth && source.format == format)
    }

    /// Where there is no position, nothing is written: what is there has to be a number.
    pub(super) fn clear(&self, e: &mut Emitter) {
        let sources = self.sources.iter().map(|source| (&source.floats, source.len));
        for (place, len) in self.all.iter().map(|one| (&one.place, one.len)).chain(sources) {
            e.repeat(Expr::Int(0), (len * place.elem.bytes() / 4).into(), LANES, |e, at| {
                let at = Address::new(flat(place), at);
                e.push(Stmt::Store { elem: Elem::F32, at, value: Expr::Float(0.0).splat() });
            });
        }
    }

    /// Brings everything that is held of a run into order.
    pub(super) fn fill(&self, run: &Run, scope: &Scope, e: &mut Emitter) {
        let Run { cx, shape, .. } = *run;
        let positions = shape.stream.positions;
        if self.all.is_empty() {
            return;
        }
        // Only what is there: positions beyond the end have no rows to read.
        let to = e.int((run.first.clone() + RUN).min(run.end.clone()));
        let whole = e.spans.insert(positions, Span { from: run.first.clone(), to, aligned: true, len: None });
        for source in &self.sources {
            let to = run.at_run(source.of, &source.floats);
            e.equation(scope, source.of, cx.load(source.of), &to);
            if source.format != Format::F32 {
                let depth = source.depth.iter().filter_map(|&a| cx.plan.graph.size(a)).product();
                e.repeat(Expr::Int(0), RUN.into(), 1, |e, row| {
                    let from = Address::new(flat(&source.floats), row.clone() * depth);
                    let to = Address::new(source.rows.clone(), row * source.stride);
                    e.push(Stmt::Encode(Encode { depth, from, to, format: source.format, part: None }));
                });
            }
        }
        for operand in &shape.stream.operands {
            let out = cx.plan.equations[operand.eq].out;
            let mut first = None;
            for One { order, place, .. } in self.all.iter().filter(|one| one.of == out) {
                let to = run.at_run(out, place);
                match (&first, &operand.contraction) {
                    (Some(_), _) => e.equation(scope, out, cx.load(out), &to),
                    (None, Some(c)) => self.expand(run, operand, c, order, &to, scope, e),
                    (None, None) => e.equation(scope, out, operand.body, &to),
                }
                if first.is_none() {
                    e.places.insert(out, to.clone());
                    first = Some(to);
                }
            }
        }
        for One { of, place, .. } in &self.all {
            if matches!(cx.plan.graph.tensor(*of).kind, Kind::State { .. }) {
                e.equation(scope, *of, cx.load(*of), &run.at_run(*of, place));
            }
        }
        if let Some(whole) = whole {
            e.spans.insert(positions, whole);
        }
    }

    /// Computes an operand by cores, from the rows of a cache and the panels of a weight.
    #[allow(clippy::too_many_arguments)]
    fn expand(
        &self,
        run: &Run,
        operand: &Operand,
        c: &Contraction,
        order: &Order,
        to: &Place,
        scope: &Scope,
        e: &mut Emitter,
    ) {
        let Run { cx, shape, .. } = *run;
        let graph = &cx.plan.graph;
        let panels = &cx.variant.panels[&operand.eq];
        let format = of_run(cx, run.kernel, panels);
        let (Some(source), Some(expanded)) = (self.source(c, format), &self.expanded) else { return };
        let task = expansion(operand.eq, c, &shape.outer);
        let units = Units::of(graph, &task);
        let unit = units.digits.iter().fold(Expr::Int(0), |unit, &(a, count)| unit * count + scope.at[&a].clone());
        let unit = e.int(unit);
        let b = units.panelled(panels, &unit, Expr::Int(0));
        // Panels over the same columns are what a core writes.
        let direct = *order == Order::Columns(task.whole);
        let width = units.panels * PANEL;
        let (buffer, row, panel_apart) =
            if direct { (flat(to), PANEL, RUN * PANEL) } else { (expanded.clone(), width, PANEL) };
        let rows = Matrix { at: Address::new(source.rows.clone(), 0), format: source.format, stride: source.stride };
        e.note(format!("{} by cores", super::super::emit::graph_name(graph, c.out)));
        let at = Address::new(buffer.clone(), 0);
        let results = Products { at, stride: row, apart: panel_apart, accumulate: false };
        multiply(cx, (&Count::of(RUN.into()), &RUN.into()), [&rows, &rows], &b, &results, e);
        if !direct {
            let mut layout = columns(cx, c.out, &units);
            let axes = &graph.tensor(c.out).axes;
            if let Some(dim) = axes.iter().position(|&a| a == shape.stream.positions) {
                layout.push(dim, width);
            }
            let from = run.at_run(c.out, &Place::flat(buffer, layout, axes.len()));
            e.places.insert(c.out, from);
            e.equation(scope, c.out, cx.load(c.out), to);
        }
    }
}

/// The format in which the positions of a run are multiplied with a weight: they are many.
fn of_run(cx: &Context, kernel: &Kernel, panels: &Panels) -> Format {
    let [_, many] = cx.rows_of(panels, &cx.mode(kernel));
    many
}

/// Whether a sum's weights are those of a sum of something else: scales of either can't be part of them.
fn shares(stream: &Stream, c: &Contraction) -> bool {
    let same = |other: &Contraction| other.b == c.b && other.along == c.along;
    stream.folds.iter().any(|fold| match fold {
        Fold::Sum { weight, over: Some(own), .. } if own.out == c.out => sums(stream, weight).any(|c| !same(c)),
        _ => false,
    })
}

/// A run's positions one after the other, of the axes that are not bound outside, or of some. And the elements of all.
fn rows(cx: &Context, shape: &Shape, tensor: TensorId, depth: Option<&[AxisId]>) -> (Layout, usize) {
    let graph = &cx.plan.graph;
    let (mut layout, mut stride) = (Layout::default(), 1);
    let axes = &graph.tensor(tensor).axes;
    let within = |a: &AxisId| depth.map_or(!shape.outer.contains(a), |depth| depth.contains(a));
    for (dim, &a) in axes.iter().enumerate().rev().filter(|(_, a)| within(a)) {
        if a != shape.stream.positions {
            layout.push(dim, stride);
            stride *= graph.fixed_size(a);
        }
    }
    if let Some(dim) = axes.iter().position(|&a| a == shape.stream.positions) {
        layout.push(dim, stride);
    }
    (layout, stride * RUN)
}
