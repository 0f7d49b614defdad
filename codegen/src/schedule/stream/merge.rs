//! Split tiles: their partial statistics, and the kernel that merges them.

use einfuse_graph::TensorId;

use super::super::Context;
use super::super::contract::flat;
use super::super::emit::Emitter;
use super::super::place::Place;
use super::{LOWEST, Shape, columns, finish, memory, outer_scope, start};
use crate::fuse::{Fold, Kernel};
use crate::loops::{self, Address, Buffer, Elem, Expr, LANES, Share, Stmt, Ty, Unary};

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
    let (from, tokens) = cx.tokens(kernel);
    e.parallel(heads.into(), Share::Blocks, |e, number| {
        let scope = outer_scope(cx, shape, number.clone(), e);
        let rows = e.int(tokens.rows * shape.per_token);
        let tile = memory(cx, kernel, shape, &from, e);
        start(cx, shape, &tile, e);
        let factors: Vec<Buffer> = shape.stream.folds.iter().map(|_| e.floats(shape.padded * shape.splits)).collect();
        let address = |fold: usize, split: Expr, offset: Expr| {
            let (at, len) = partials.at[fold];
            Address::new(Buffer::Arena(at), (number.clone() * shape.splits + split) * len + offset)
        };
        // The largest maximum of each row, and each part's factor.
        for (f, fold) in shape.stream.folds.iter().enumerate() {
            let Fold::Max { .. } = fold else { continue };
            let stat = flat(&tile.stats[f]);
            e.repeat(Expr::Int(0), rows.clone(), 1, |e, row| {
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
            e.repeat(Expr::Int(0), rows.clone(), 1, |e, row| {
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
