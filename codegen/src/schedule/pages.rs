//! Pages: how the states of all layers lie in the pages of a cache.
//!
//! Where a state is read by cores, it lies in panels: over positions, where it yields scores, or over columns, where it is
//! summed along the positions. In codes, the scales of the first are those of the panels. Of the second these would belong
//! to several positions, which come one by one: there each position has a scale of its own, which multiplies its weight in
//! the sum, and those of the panels are 1.

use einfuse_graph::{AxisId, Graph, Kind, TensorId, Type};

use super::homes::{Entry, Group, Homes, PAGE, RUN, scope_layers, streams_scores, sums_columns};
use super::layout::{Layout, Term};
use super::place::{Coded, Memory, Place};
use super::weights::fitting;
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Contraction, Fold, Kernel, Plan, Shape, is_positions};
use crate::loops::{Arg, Expr, LANES};

/// How a state lies in its part of a page.
struct Stored {
    elem: Elem,
    layout: Layout,
    coded: Option<Coded>,
    /// Its elements, with their scales.
    len: usize,
}

impl Homes {
    /// Gives states their places: as in another plan of the same graph, where there is one.
    pub(super) fn pages(&mut self, plan: &Plan, cache: Format, like: Option<&Homes>) {
        if let Some(like) = like {
            (self.groups, self.frame_len) = (like.groups.clone(), like.frame_len);
            self.states = like.states.clone();
            (self.scores, self.columns) = (like.scores.clone(), like.columns.clone());
        }
        let graph = &plan.graph;
        let kernels: Vec<&Kernel> = plan.scopes().into_iter().flatten().collect();
        let mut appended: Vec<(TensorId, TensorId, Vec<Option<usize>>)> = Vec::new();
        for (scope, layers) in scope_layers(plan).into_iter().enumerate() {
            for &e in plan.scopes()[scope].iter().flat_map(|k| &k.equations) {
                let rows = plan.equations[e].out;
                if let Some(&state) = plan.states.get(&rows) {
                    appended.push((rows, state, layers.clone()));
                }
            }
        }
        for (rows, state, layers) in appended {
            let window = match graph.tensor(state).kind {
                Kind::State { window } => window,
                _ => None,
            };
            let group = self.groups.iter().position(|g| g.window == window).unwrap_or_else(|| {
                self.groups.push(Group { window, page_bytes: 0, slot: self.frame_len });
                self.frame_len += 1;
                self.groups.len() - 1
            });
            let known = like.and_then(|like| like.places.iter().find_map(|places| places.get(&state)));
            let (elem, layout, coded) = match known {
                Some(place) => (place.elem, place.layout.clone(), place.coded.clone()),
                None => {
                    let Stored { elem, layout, coded, len } = self.stored(plan, &kernels, state, cache);
                    for &layer in &layers {
                        let at = self.groups[group].page_bytes;
                        self.states.insert((state, layer), (group, at));
                        self.groups[group].page_bytes += (len * elem.bytes()).next_multiple_of(64);
                    }
                    (elem, layout, coded)
                }
            };
            let dims = graph.tensor(state).axes.len();
            for (scope, kernels) in plan.scopes().into_iter().enumerate() {
                let mut equations = kernels.iter().flat_map(|k| &k.equations).map(|&e| plan.equations[e]);
                let touches = |e: crate::fuse::Equation| {
                    let loads = graph.loaded(e.body);
                    e.out == rows || loads.contains(&rows) || loads.contains(&state)
                };
                if !equations.any(touches) {
                    continue;
                }
                let slot = self.slot(scope, Entry::State(state));
                let memory = Memory::Paged { table: self.groups[group].slot, slot, positions: PAGE };
                let (layout, coded) = (layout.clone(), coded.clone());
                let place = Place { memory, elem, layout, origin: vec![Expr::Int(0); dims], coded };
                // The appended rows live in the state, at the positions that follow the past.
                let here = place.clone().with_origin(0, Expr::Int(0) - Arg::Past);
                self.places[scope].insert(state, place);
                self.places[scope].insert(rows, here);
            }
        }
    }

    /// How a state is stored, by its first use in a stream: in panels over positions where it yields scores, in panels over
    /// columns where it is summed along the positions, else in rows of floats, one after the other.
    fn stored(&mut self, plan: &Plan, kernels: &[&Kernel], state: TensorId, cache: Format) -> Stored {
        let graph = &plan.graph;
        let axes = &graph.tensor(state).axes;
        for kernel in kernels {
            let Shape::Stream(stream) = &kernel.shape else { continue };
            for (_, c) in &stream.scores {
                if let Some(c) = c.as_ref().filter(|c| c.b == state && streams_scores(plan, c)) {
                    self.scores.insert(state, c.depth.clone());
                    return over_positions(graph, axes, c, fitting(graph, c, cache));
                }
            }
            for fold in &stream.folds {
                if let Fold::Sum { over: Some(c), .. } = fold
                    && c.b == state
                    && sums_columns(c)
                {
                    self.columns.insert(state, c.cols.clone());
                    let columns: usize = c.cols.iter().map(|&a| graph.fixed_size(a)).product();
                    let fits = !cache.is_coded() || columns.is_multiple_of(LANES);
                    return over_columns(graph, axes, c, if fits { cache } else { Format::Bf16 });
                }
            }
        }
        let mut sizes: Vec<usize> = axes.iter().map(|&a| graph.fixed_size(a)).collect();
        sizes[0] = PAGE;
        let elem = match graph.tensor(state).ty {
            Type::Int => Elem::I32,
            _ if cache.is_coded() => Elem::Bf16,
            _ => cache.elem(),
        };
        Stored { elem, layout: Layout::row_major(&sizes), coded: None, len: sizes.iter().product() }
    }
}

/// Panels whose columns are positions, and whose rows are what scores sum over.
fn over_positions(graph: &Graph, axes: &[AxisId], c: &Contraction, format: Format) -> Stored {
    let (mut layout, page) = score_panels(graph, axes, &c.depth, format, PAGE);
    let len = push_rest(graph, axes, &mut layout, page);
    let Some(codes) = format.codes() else { return Stored { elem: format.elem(), layout, coded: None, len } };
    let mut scales = Layout { base: format.values() / 2, terms: Vec::new() };
    let mut rows = 1;
    for (i, &a) in c.depth.iter().rev().enumerate() {
        let dim = axes.iter().position(|&d| d == a).unwrap_or(0);
        match i {
            0 => scales.push_blocks(&dim.into(), format),
            _ => scales.push(dim, format.rows(rows) / 2),
        }
        rows *= graph.fixed_size(a);
    }
    scales.push_panels(positions_dim(graph, axes), format.panel(rows) / 2, Format::F32);
    push_rest(graph, axes, &mut scales, page / 2);
    let rows = c.depth.last().and_then(|&a| axes.iter().position(|&d| d == a)).unwrap_or(0);
    let coded = Coded { codes, rows: rows.into(), planes: vec![layout.clone()], scales, parts: None, ones: None };
    Stored { elem: format.elem(), layout, coded: Some(coded), len }
}

/// Panels whose rows are the positions of a run, and whose columns are those of a sum.
fn over_columns(graph: &Graph, axes: &[AxisId], c: &Contraction, format: Format) -> Stored {
    let (mut layout, page) = column_panels(graph, axes, &c.cols, format, PAGE);
    let len = push_rest(graph, axes, &mut layout, page);
    let Some(codes) = format.codes() else { return Stored { elem: format.elem(), layout, coded: None, len } };
    let size = |a: AxisId| graph.fixed_size(a);
    let mut ones = Layout { base: format.values() / 2, terms: Vec::new() };
    let mut run = format.panel(RUN) / 2;
    for (i, &a) in c.cols.iter().rev().enumerate() {
        let dim = axes.iter().position(|&d| d == a).unwrap_or(0);
        match i {
            0 => ones.push_panels(dim, run, Format::F32),
            _ => ones.push(dim, run),
        }
        run *= if i == 0 { size(a).div_ceil(PANEL) } else { size(a) };
    }
    ones.terms.push(Term { dims: positions_dim(graph, axes).into(), div: RUN, modulo: None, stride: run });
    push_rest(graph, axes, &mut ones, page / 2);
    let mut scales = Layout { base: len / 2, terms: Vec::new() };
    scales.push(positions_dim(graph, axes), 1);
    let mut stride = PAGE;
    for (dim, &a) in axes.iter().enumerate().filter(|(_, a)| !c.cols.contains(a) && !is_positions(graph, **a)) {
        scales.push(dim, stride);
        stride *= size(a);
    }
    let rows = positions_dim(graph, axes).into();
    let coded = Coded { codes, rows, planes: vec![layout.clone()], scales, parts: None, ones: Some(ones) };
    Stored { elem: format.elem(), layout, coded: Some(coded), len: len + 2 * stride }
}

/// So many positions in panels, of which the rows are `depth`, as cores want them for scores. And the elements of all.
pub(crate) fn score_panels(
    graph: &Graph,
    axes: &[AxisId],
    depth: &[AxisId],
    format: Format,
    positions: usize,
) -> (Layout, usize) {
    let dim = |axis: AxisId| axes.iter().position(|&a| a == axis).unwrap_or(0);
    let (mut layout, mut rows) = (Layout::default(), 1);
    for (i, &a) in depth.iter().rev().enumerate() {
        match i {
            0 => push_rows(&mut layout, dim(a), format),
            _ => layout.push(dim(a), format.rows(rows)),
        }
        rows *= graph.fixed_size(a);
    }
    let panel = format.panel(rows);
    layout.push_panels(positions_dim(graph, axes), panel, format);
    (layout, panel * (positions / PANEL))
}

/// Some columns in panels, of which the rows are a run of positions, as cores want them for weighted sums; so many positions,
/// run by run. And the elements of all.
pub(crate) fn column_panels(
    graph: &Graph,
    axes: &[AxisId],
    columns: &[AxisId],
    format: Format,
    positions: usize,
) -> (Layout, usize) {
    let dim = |axis: AxisId| axes.iter().position(|&a| a == axis).unwrap_or(0);
    let size = |a: AxisId| graph.fixed_size(a);
    let (mut layout, mut stride) = (Layout::default(), format.panel(RUN));
    push_rows(&mut layout, positions_dim(graph, axes), format);
    for (i, &a) in columns.iter().rev().enumerate() {
        match i {
            0 => layout.push_panels(dim(a), stride, format),
            _ => layout.push(dim(a), stride),
        }
        stride *= if i == 0 { size(a).div_ceil(PANEL) } else { size(a) };
    }
    if positions > RUN {
        // Between the runs of a panel lie the other panels.
        layout.terms.push(Term {
            dims: positions_dim(graph, axes).into(),
            div: RUN,
            modulo: None,
            stride: stride - format.rows(RUN),
        });
    }
    (layout, stride * (positions / RUN))
}

/// The rows of a panel, of floats or of codes of whole bytes.
fn push_rows(layout: &mut Layout, dim: usize, format: Format) {
    let rows = dim.into();
    match format.codes() {
        Some(codes) => codes.planes().into_iter().take(1).for_each(|plane| layout.push_plane(&rows, codes, plane)),
        None => layout.push_depth(&rows, format),
    }
}

fn positions_dim(graph: &Graph, axes: &[AxisId]) -> usize {
    axes.iter().position(|&a| is_positions(graph, a)).unwrap_or(0)
}

/// Adds the dimensions that have no term yet, outermost.
fn push_rest(graph: &Graph, axes: &[AxisId], layout: &mut Layout, stride: usize) -> usize {
    let mut stride = stride;
    for dim in (0..axes.len()).rev() {
        if layout.terms_along(dim).next().is_none() {
            layout.push(dim, stride);
            stride *= graph.fixed_size(axes[dim]);
        }
    }
    stride
}
