//! One run of a stream's positions: scores by the cores, then row by row the statistics and the weights, then the weighted sums by
//! the cores.

use einfuse_graph::{ExprId, TensorId};

use super::super::Context;
use super::super::contract::flat;
use super::super::cores::{Count, Panelled, Products, products};
use super::super::emit::{Emitter, Scope, Span, graph_name, widen};
use super::super::homes::RUN;
use super::super::place::Place;
use super::held::Order;
use super::{LOWEST, Rows, Shape, Tile, columns, row_number};
use crate::fuse::{Along, Contraction, Fold, Kernel, Weighted};
use crate::loops::{self, Address, Elem, Expr, LANES, PANEL, Stmt, Ty, Unary};

/// A run that a tile visits.
pub(super) struct Run<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) kernel: &'a Kernel,
    pub(super) shape: &'a Shape<'a>,
    pub(super) tile: &'a Tile,
    /// The run's first position.
    pub(super) first: Expr,
    /// That of the run that comes next, where cores fetch it meanwhile.
    pub(super) next: Option<Expr>,
    /// The number of positions after this step.
    pub(super) end: Expr,
    /// Rows of the tile.
    pub(super) rows: Expr,
}

impl Run<'_> {
    /// The scores of a run.
    pub(super) fn scores(&self, scope: &Scope, e: &mut Emitter) {
        let (cx, shape, tile, s) = (self.cx, self.shape, self.tile, &self.first);
        let positions = shape.stream.positions;
        for (q, c) in &shape.stream.scores {
            let equation = cx.plan.equations[*q];
            let place = self.at_run(equation.out, &e.places[&equation.out]);
            e.places.insert(equation.out, place.clone());
            let core = tile.queries.iter().find(|(eq, ..)| eq == q).zip(c.as_ref());
            let Some(((_, queries), c)) = core else {
                // Only what is there: positions beyond the end have no rows to read.
                let to = e.int((s.clone() + RUN).min(self.end.clone()));
                let part = Span { from: s.clone(), to, aligned: true, len: None };
                let whole = e.spans.insert(positions, part);
                e.equation(scope, equation.out, equation.body, &place);
                if let Some(whole) = whole {
                    e.spans.insert(positions, whole);
                }
                continue;
            };
            e.note(format!("{} by cores", graph_name(&cx.plan.graph, equation.out)));
            let order = Order::of_scores(cx, c);
            let Some(format) = tile.held.format(cx, c, &order) else { continue };
            let (at, next) = self.panels(c, &order, scope, e);
            let depth = queries.depth;
            let b = Panelled { at, format, depth, count: RUN / PANEL, apart: format.panel(depth), next };
            let to = Address::new(flat(&place), 0);
            let to = Products { at: to, stride: RUN, apart: PANEL, accumulate: false };
            products(cx, &Count::of(self.rows.clone()), &queries.matrix(), &b, &to, e);
        }
    }

    /// A place that holds a run of a tensor's positions: this one.
    pub(super) fn at_run(&self, tensor: TensorId, place: &Place) -> Place {
        let axes = &self.cx.plan.graph.tensor(tensor).axes;
        match axes.iter().position(|&a| a == self.shape.stream.positions) {
            Some(dim) => place.clone().with_origin(dim, self.first.clone()),
            None => place.clone(),
        }
    }

    /// One row of a run: its statistics, and its scores turned into weights.
    pub(super) fn row(&self, scope: &Scope, e: &mut Emitter) {
        let (cx, shape, tile) = (self.cx, self.shape, self.tile);
        let stream = shape.stream;
        let from = shape.tokens.map_or(Expr::Int(0), |t| e.span(t).from);
        let number = row_number(cx, shape, scope, &from);
        let number = e.int(number);
        let mut before: Vec<(TensorId, loops::Var, loops::Var)> = Vec::new();
        let mut done: Vec<(&Weighted, loops::Var)> = Vec::new();
        for (fold, place) in stream.folds.iter().zip(&tile.stats) {
            let out = cx.plan.equations[fold.equation()].out;
            let stat_axes = &cx.plan.graph.tensor(out).axes;
            match fold {
                Fold::Max { value, mask, .. } => {
                    let best = e.bind(Ty::Floats, Expr::Float(LOWEST).splat());
                    let kept = tile.weights.iter().find(|(w, _)| w.is_power_of(*value, *mask, out));
                    self.each_vector(scope, e, |e, scope| {
                        let value = self.present(*value, *mask, scope, e);
                        let value = e.bind(Ty::Floats, value);
                        if let Some((_, rows)) = kept {
                            self.keep(rows, &number, value, scope, e);
                        }
                        e.push(Stmt::Set(best, Expr::from(best).max(value)));
                    });
                    let index: Vec<Expr> = stat_axes.iter().map(|a| scope.at[a].clone()).collect();
                    let at = place.address(&index);
                    let old = e.bind(Ty::Float, at.clone().load(Elem::F32));
                    let most = Expr::from(best).fold(loops::Fold::Max);
                    let new = e.bind(Ty::Float, Expr::from(old).max(most));
                    e.push(Stmt::Store { elem: Elem::F32, at, value: new.into() });
                    // Most runs of a row leave its maximum as it was.
                    let factor = e.bind(Ty::Float, Expr::Float(1.0));
                    e.when(Expr::from(old).differs(new), |e| {
                        e.push(Stmt::Set(factor, (Expr::from(old) - Expr::from(new)).unary(Unary::Exp)));
                    });
                    before.push((out, new, factor));
                }
                Fold::Sum { weight, over, .. } => {
                    let shift = weight.shifted.and_then(|(_, m)| before.iter().find(|(t, ..)| *t == m).copied());
                    let total = match done.iter().find(|(w, _)| *w == weight) {
                        Some((_, total)) => *total,
                        None => {
                            let rows = tile.weights.iter().find(|(w, _)| w == weight).map(|(_, rows)| rows);
                            let total = match (rows, shift) {
                                (Some(rows), Some((m, new, _))) if self.keeps(weight, m) => {
                                    let total = rows.exponentials(number.clone(), new.into(), e);
                                    if rows.format.is_coded() {
                                        self.encode(rows, &number, scope, e);
                                    }
                                    total
                                }
                                _ => {
                                    let total = e.bind(Ty::Floats, Expr::Float(0.0).splat());
                                    self.each_vector(scope, e, |e, scope| {
                                        let value = self.weighted(weight, shift.map(|(_, new, _)| new), scope, e);
                                        let value = e.bind(Ty::Floats, value);
                                        if let Some(rows) = rows {
                                            self.keep(rows, &number, value, scope, e);
                                        }
                                        e.push(Stmt::Set(total, Expr::from(total) + value));
                                    });
                                    if let Some(rows) = rows {
                                        self.encode(rows, &number, scope, e);
                                    }
                                    e.bind(Ty::Float, Expr::from(total).fold(loops::Fold::Sum))
                                }
                            };
                            done.push((weight, total));
                            total
                        }
                    };
                    match over {
                        None => {
                            let index: Vec<Expr> = stat_axes.iter().map(|a| scope.at[a].clone()).collect();
                            let at = place.address(&index);
                            let sum = Expr::from(total);
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

    /// Whether the exponents of a weight were kept when their maximum `m` was taken: nothing but their exponentials is left.
    fn keeps(&self, weight: &Weighted, m: TensorId) -> bool {
        self.shape.stream.folds.iter().any(|fold| match fold {
            Fold::Max { eq, value, mask, .. } => {
                let out = self.cx.plan.equations[*eq].out;
                out == m && weight.is_power_of(*value, *mask, out)
            }
            Fold::Sum { .. } => false,
        })
    }

    /// Stores four neighbours of a row.
    fn keep(&self, rows: &Rows, number: &Expr, value: loops::Var, scope: &Scope, e: &mut Emitter) {
        let column = scope.at[&self.shape.stream.positions].clone() - self.first.clone();
        let at = Address::new(rows.floats.clone(), number.clone() * RUN + column);
        e.push(Stmt::Store { elem: Elem::F32, at, value: value.into() });
    }

    /// Brings a row of weights into the format of the cores, each multiplied with the scale of its position, if it has one.
    fn encode(&self, rows: &Rows, number: &Expr, scope: &Scope, e: &mut Emitter) {
        if let Some(c) = &rows.scaled_by {
            let place = e.places[&c.b].clone();
            let index = self.home_index(&self.first, c, scope);
            let scales = place.coded.as_ref().map(|coded| place.address_in(&coded.scales, &index));
            let first = e.int(number.clone() * RUN);
            e.repeat(Expr::Int(0), RUN.into(), LANES, |e, at| {
                let to = Address::new(rows.floats.clone(), first + at.clone());
                let scale = scales.map(|scales| scales.plus(at).load4(Elem::Bf16));
                let value = to.clone().load4(Elem::F32) * scale.unwrap_or(Expr::Float(1.0).splat());
                e.push(Stmt::Store { elem: Elem::F32, at: to, value });
            });
        }
        rows.encode(number.clone(), e);
    }

    /// Visits the positions of the run, four at a time.
    fn each_vector(&self, scope: &Scope, e: &mut Emitter, mut f: impl FnMut(&mut Emitter, &Scope)) {
        let positions = self.shape.stream.positions;
        e.repeat(self.first.clone(), self.first.clone() + RUN, LANES, |e, at| {
            let scope = scope.clone().with_lanes(positions, at);
            f(e, &scope);
        });
    }

    /// What a maximum is taken of, at four positions.
    fn present(&self, value: ExprId, mask: Option<ExprId>, scope: &Scope, e: &mut Emitter) -> Expr {
        let value = e.value(scope, value);
        let value = e.bind(Ty::Floats, widen(value));
        self.guard(value.into(), mask, f32::NEG_INFINITY, scope, e)
    }

    /// A value at four positions where the mask holds and there is a position, `absent` elsewhere.
    fn guard(&self, value: Expr, mask: Option<ExprId>, absent: f32, scope: &Scope, e: &mut Emitter) -> Expr {
        let mut masks = Vec::new();
        if let Some(mask) = mask {
            let mask = e.value(scope, mask);
            masks.push(widen(mask));
        }
        // Where the mask already ends at the token, no position lies beyond the end.
        if self.shape.stream.upper.is_none_or(|u| u > 0) {
            masks.push(scope.at[&self.shape.stream.positions].clone().iota().lt(self.end.clone().splat()));
        }
        match masks.into_iter().reduce(|a, b| a.and(b)) {
            Some(mask) => mask.select(value, Expr::Float(absent).splat()),
            None => value,
        }
    }

    /// The weights of four positions.
    fn weighted(&self, weight: &Weighted, shift: Option<loops::Var>, scope: &Scope, e: &mut Emitter) -> Expr {
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
        self.guard(value, weight.mask, 0.0, scope, e)
    }

    /// Adds a run's weighted values to the accumulated columns.
    pub(super) fn sum_columns(&self, weight: &Weighted, c: &Contraction, scope: &Scope, e: &mut Emitter) {
        let (cx, shape, tile) = (self.cx, self.shape, self.tile);
        let Some((_, weights)) = tile.weights.iter().find(|(w, _)| w == weight) else { return };
        let at = shape.stream.folds.iter().position(|f| cx.plan.equations[f.equation()].out == c.out);
        let Some(place) = at.map(|at| &tile.stats[at]) else { return };
        let width = columns(cx, c);
        let order = Order::of_sums(c);
        let Some(format) = tile.held.format(cx, c, &order) else { return };
        let (at, next) = self.panels(c, &order, scope, e);
        let b = Panelled { at, format, depth: RUN, count: width / PANEL, apart: format.panel(RUN), next };
        let to = Products { at: Address::new(flat(place), 0), stride: width, apart: PANEL, accumulate: true };
        products(cx, &Count::of(self.rows.clone()), &weights.matrix(), &b, &to, e);
    }

    /// The address of a stored operand's first panel in the run, at the scope's outer coordinates; and in the next run.
    fn panels(&self, c: &Contraction, order: &Order, scope: &Scope, e: &Emitter) -> (Address, Option<Address>) {
        if let Some(place) = self.tile.held.place(c.b, order) {
            return (Address::new(flat(place), 0), None);
        }
        let at = |first: &Expr| e.places[&c.b].address(&self.home_index(first, c, scope));
        (at(&self.first), self.next.as_ref().map(at))
    }

    /// The coordinates of a state's first element in the run that begins there, at the scope's outer coordinates.
    fn home_index(&self, first: &Expr, c: &Contraction, scope: &Scope) -> Vec<Expr> {
        let axes = &self.cx.plan.graph.tensor(c.b).axes;
        axes.iter()
            .zip(&c.along)
            .enumerate()
            .map(|(dim, (a, along))| match (dim, along) {
                (0, _) => first.clone(),
                (_, Along::Fixed(at)) => Expr::from(*at),
                _ => scope.at.get(a).filter(|_| c.batch.contains(a)).cloned().unwrap_or(Expr::Int(0)),
            })
            .collect()
    }
}
