//! Appending to states in codes: a kernel leaves its rows as floats in the arena, from where they are encoded once all that
//! share a scale are there.

use std::collections::BTreeMap;

use einfuse_graph::TensorId;

use super::Context;
use super::emit::Emitter;
use super::homes::RUN;
use super::layout::{Layout, Step};
use super::place::{Coded, Place};
use crate::format::{Elem, Format, SMALLEST};
use crate::fuse::{Kernel, is_tokens};
use crate::loops::{self, Arg, Buffer, Expr, Fold, LANES, Share, Stmt, Ty, Unary};

/// The largest magnitude of a code of 8 bits.
const LARGEST: f32 = 127.0;

/// Rows that share scales.
struct Rows<'a> {
    to: &'a Place,
    coded: &'a Coded,
    /// For each dimension how many neighbours share a scale.
    shared: Vec<usize>,
}

impl<'a> Rows<'a> {
    fn of(cx: &'a Context, rows: TensorId) -> Option<Rows<'a>> {
        let to = cx.homes.places[cx.scope].get(&rows)?;
        let coded = to.coded.as_ref()?;
        let neighbours = |(dim, &axis)| {
            let shared = coded.scales.terms_along(dim).map(|term| term.div).min();
            shared.unwrap_or_else(|| cx.plan.graph.fixed_size(axis))
        };
        let shared = cx.plan.graph.tensor(rows).axes.iter().enumerate().map(neighbours).collect();
        Some(Rows { to, coded, shared })
    }
}

/// Where a kernel leaves what it appends to states in codes, and where these places end: those that share a scale lie one
/// after the other.
pub(super) fn staged(cx: &Context, kernel: &Kernel, from: usize) -> (BTreeMap<TensorId, Place>, usize) {
    let graph = &cx.plan.graph;
    let (mut places, mut at) = (BTreeMap::new(), from);
    for out in cx.plan.outputs(kernel) {
        let Some(rows) = cx.plan.states.get(&out).and_then(|_| Rows::of(cx, out)) else { continue };
        let axes = &graph.tensor(out).axes;
        let mut order: Vec<usize> = (0..axes.len()).collect();
        order.sort_by_key(|&dim| rows.shared[dim] > 1);
        let (mut layout, mut stride) = (Layout::default(), 1);
        for &dim in order.iter().rev() {
            layout.push(dim, stride);
            stride *= if is_tokens(graph, axes[dim]) { cx.homes.tokens } else { graph.fixed_size(axes[dim]) };
        }
        places.insert(out, Place::flat(Buffer::Arena(at), layout, axes.len()));
        at += (stride * Elem::F32.bytes()).next_multiple_of(64);
    }
    (places, at)
}

/// Encodes what a kernel has left.
pub(super) fn append(cx: &Context, kernel: &Kernel) -> loops::Kernel {
    let mut e = cx.emitter();
    cx.bind_tokens(kernel, &mut e);
    for (&out, from) in &cx.staged {
        let Some(rows) = Rows::of(cx, out) else { continue };
        let axes = &cx.plan.graph.tensor(out).axes;
        let counts: Vec<usize> = axes.iter().zip(&rows.shared).map(|(&a, n)| cx.plan.graph.fixed_size(a) / n).collect();
        let each: usize = counts[1..].iter().product();
        let tokens = e.span(axes[0]);
        let count = tokens.len.map_or(tokens.to - tokens.from.clone(), Expr::from);
        e.note(format!("{} as {}", super::emit::graph_name(&cx.plan.graph, out), Format::Codes(rows.coded.codes)));
        e.parallel(count * each, Share::Blocks, |e, at| {
            let digits = e.digits(at, &counts);
            let firsts = digits.into_iter().zip(&rows.shared).enumerate().map(|(dim, (digit, &shared))| {
                e.int(if dim == 0 { digit + tokens.from.clone() } else { digit * shared })
            });
            let index = firsts.collect();
            encode(&rows, from, index, e);
        });
    }
    cx.close(&format!("{}_append", kernel.name), e)
}

/// Encodes all that share the scale of the element at these coordinates, the first of them.
fn encode(rows: &Rows, from: &Place, index: Vec<Expr>, e: &mut Emitter) {
    let Rows { to, coded, shared } = rows;
    let length: usize = shared.iter().product();
    let first = from.address(&index);
    let best = e.bind(Ty::Floats, Expr::Float(SMALLEST).splat());
    e.repeat(Expr::Int(0), length.into(), LANES, |e, at| {
        let magnitude = first.plus(at).load4(Elem::F32).unary(Unary::Abs);
        e.push(Stmt::Set(best, Expr::from(best).max(magnitude)));
    });
    let scale = Expr::from(best).fold(Fold::Max) * Expr::Float(1.0 / LARGEST);
    let at = to.address_in(&coded.scales, &index);
    e.push(Stmt::Store { elem: Elem::Bf16, at: at.clone(), value: scale });
    // By the scale as it is kept.
    let factor = e.bind(Ty::Float, Expr::Float(1.0) / at.load(Elem::Bf16));
    let offset = Expr::Float(coded.codes.offset as f32);
    each(&to.layout, shared, 0, index.clone(), e, &mut |e, index, lanes| {
        let (at, from) = (to.address(index), from.address(index));
        let value = match lanes {
            1 => from.load(Elem::F32).fma(factor, offset.clone()),
            _ => from.load4(Elem::F32).fma(Expr::from(factor).splat(), offset.clone().splat()),
        };
        e.push(Stmt::Store { elem: Elem::U8, at, value });
    });
    if let Some(ones) = &coded.ones {
        // The first of a run prepares its panels.
        let within = (index[0].clone() + Arg::Past).rem(RUN);
        e.when(within.lt(1), |e| {
            each(ones, shared, 0, index, e, &mut |e, index, lanes| {
                let one = Expr::Float(1.0);
                let value = if lanes == 1 { one } else { one.splat() };
                e.push(Stmt::Store { elem: Elem::Bf16, at: to.address_in(ones, index), value });
            });
        });
    }
}

/// Visits all that share a scale, four at a time where they are neighbours in this layout.
fn each(
    layout: &Layout,
    shared: &[usize],
    dim: usize,
    index: Vec<Expr>,
    e: &mut Emitter,
    f: &mut dyn FnMut(&mut Emitter, &[Expr], usize),
) {
    let Some(dim) = (dim..shared.len()).find(|&dim| shared[dim] > 1) else { return f(e, &index, 1) };
    let is_last = shared[dim + 1..].iter().all(|n| *n == 1);
    let step = |i| if i == dim { Step::One { aligned: true } } else { Step::Still };
    let steps: Vec<Step> = (0..shared.len()).map(step).collect();
    let vector = is_last && shared[dim].is_multiple_of(LANES) && layout.is_contiguous(&steps);
    let lanes = if vector { LANES } else { 1 };
    let from = index[dim].clone();
    e.repeat(from.clone(), from + shared[dim], lanes, |e, at| {
        let mut index = index;
        index[dim] = at;
        match vector {
            true => f(e, &index, LANES),
            false => each(layout, shared, dim + 1, index, e, f),
        }
    });
}
