//! Split tiles: their partial statistics, and the kernel that merges them.

use einfuse_graph::TensorId;

use super::super::Context;
use super::super::contract::flat;
use super::super::emit::Emitter;
use super::super::place::Place;
use super::{LOWEST, Shape, columns, finish, memory, outer_scope, start};
use crate::format::Elem;
use crate::fuse::{Fold, Kernel};
use crate::loops::{self, Address, Buffer, Expr, LANES, Share, Stmt, Ty, Unary};

/// Where the partial statistics of split tiles lie in the arena.
pub(super) struct Partials {
    /// For each fold: bytes into the arena, and floats per tile.
    at: Vec<(usize, usize)>,
    pub(super) bytes: usize,
}

impl Partials {
    pub(super) fn of(cx: &Context, shape: &Shape, from: usize) -> Partials {
        let heads: usize = shape.outer.iter().map(|&a| cx.plan.graph.fixed_size(a)).product();
        let rows = shape.padded;
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

    /// Stores the statistics of the tile of this number.
    pub(super) fn store(&self, stats: &[Place], number: Expr, e: &mut Emitter) {
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

/// Merges the partial statistics of the tiles that shared the runs of one token, or a few.
pub(super) fn merge(cx: &Context, kernel: &Kernel, shape: &Shape, partials: &Partials, heads: usize) -> loops::Kernel {
    let mut e = cx.emitter();
    cx.bind_tokens(kernel, &mut e);
    let (from, count) = shape.few(cx, kernel);
    e.parallel(heads.into(), Share::Blocks, |e, number| {
        let scope = outer_scope(cx, shape, number.clone(), e);
        let rows = e.int(count.clone() * shape.per_token);
        let tile = memory(cx, kernel, shape, &from, e);
        start(cx, shape, &tile, e);
        let folds = &shape.stream.folds;
        let factors = folds.iter().map(|_| e.floats(shape.padded * shape.splits)).collect();
        let merge = Merge { cx, shape, partials, stats: &tile.stats, number, rows, factors };
        let of_fold = |maximum: bool| {
            let folds = folds.iter().enumerate();
            folds.filter(move |(_, fold)| matches!(fold, Fold::Max { .. }) == maximum).map(|(number, _)| number)
        };
        of_fold(true).for_each(|fold| merge.largest(fold, e));
        of_fold(false).for_each(|fold| merge.sum(fold, e));
        finish(cx, kernel, shape, &tile.stats, &scope, e);
    });
    cx.close(&format!("{}_merge", kernel.name), e)
}

/// The parts of one tile that are merged.
struct Merge<'a> {
    cx: &'a Context<'a>,
    shape: &'a Shape<'a>,
    partials: &'a Partials,
    /// What they become.
    stats: &'a [Place],
    /// The tile.
    number: Expr,
    rows: Expr,
    /// For each maximum, row by row, what scales each part's sums.
    factors: Vec<Buffer>,
}

impl Merge<'_> {
    /// Where a part's statistics of a fold are.
    fn part(&self, fold: usize, split: Expr, offset: Expr) -> Address {
        let (at, len) = self.partials.at[fold];
        Address::new(Buffer::Arena(at), (self.number.clone() * self.shape.splits + split) * len + offset)
    }

    fn factor(&self, fold: usize, split: Expr, row: Expr) -> Address {
        Address::new(self.factors[fold].clone(), row * self.shape.splits + split)
    }

    fn for_each_part(&self, e: &mut Emitter, with: impl FnOnce(&mut Emitter, Expr)) {
        e.repeat(0.into(), self.shape.splits.into(), 1, with);
    }

    /// The largest maximum of each row, and each part's factor.
    fn largest(&self, fold: usize, e: &mut Emitter) {
        let (stat, elem) = (flat(&self.stats[fold]), Elem::F32);
        e.repeat(0.into(), self.rows.clone(), 1, |e, row| {
            let best = e.bind(Ty::Float, Expr::Float(LOWEST));
            self.for_each_part(e, |e, split| {
                let value = self.part(fold, split, row.clone()).load(elem);
                e.push(Stmt::Set(best, Expr::from(best).max(value)));
            });
            e.push(Stmt::Store { elem, at: Address::new(stat, row.clone()), value: best.into() });
            self.for_each_part(e, |e, split| {
                let value = self.part(fold, split.clone(), row.clone()).load(elem);
                let value = (value - Expr::from(best)).unary(Unary::Exp);
                e.push(Stmt::Store { elem, at: self.factor(fold, split, row), value });
            });
        });
    }

    /// The sum of the parts' sums, each scaled as its maximum says.
    fn sum(&self, fold: usize, e: &mut Emitter) {
        let Fold::Sum { weight, over, .. } = &self.shape.stream.folds[fold] else { return };
        let width = over.as_ref().map_or(1, |c| columns(self.cx, c));
        let is_maximum = |m: TensorId| move |f: &Fold| self.cx.plan.equations[f.equation()].out == m;
        let shift = weight.shifted.and_then(|(_, m)| self.shape.stream.folds.iter().position(is_maximum(m)));
        let (stat, elem) = (flat(&self.stats[fold]), Elem::F32);
        e.repeat(0.into(), self.rows.clone(), 1, |e, row| {
            self.for_each_part(e, |e, split| {
                let factor = shift.map_or(Expr::Float(1.0), |m| self.factor(m, split.clone(), row.clone()).load(elem));
                let factor = e.bind(Ty::Float, factor);
                let add = |e: &mut Emitter, at: Expr, lanes: usize| {
                    let from = self.part(fold, split.clone(), row.clone() * width + at.clone());
                    let to = Address::new(stat.clone(), row.clone() * width + at);
                    let value = match lanes {
                        1 => from.load(elem).fma(factor, to.clone().load(elem)),
                        _ => from.load4(elem).fma(Expr::from(factor).splat(), to.clone().load4(elem)),
                    };
                    e.push(Stmt::Store { elem, at: to, value });
                };
                match width {
                    1 => add(e, 0.into(), 1),
                    _ => e.repeat(0.into(), width.into(), LANES, |e, at| add(e, at, LANES)),
                }
            });
        });
    }
}
