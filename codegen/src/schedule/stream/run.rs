//! One run of a stream's positions: scores by the cores, then row by row the statistics and the weights, then the weighted sums by
//! the cores.

use einfuse_graph::{ExprId, TensorId};

use super::super::Context;
use super::super::contract::flat;
use super::super::cores::{Count, Panelled, Products, multiply, products};
use super::super::emit::{Emitter, Scope, Span, graph_name, widen};
use super::super::homes::RUN;
use super::super::place::Place;
use super::held::Order;
use super::{LOWEST, Rows, Shape, Tile, columns, each_row, row_number};
use crate::format::{Elem, Format, PANEL};
use crate::fuse::{Along, Contraction, Fold, Kernel, Weighted};
use crate::loops::{self, Address, Buffer, Expr, LANES, Next, Stmt, Ty, Unary};

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
    /// Where the positions end that some row of the tile may see.
    pub(super) seen: Expr,
    /// Rows of the tile.
    pub(super) rows: Expr,
}

/// A running maximum.
struct Maximum {
    of: TensorId,
    /// What it is so far, of each row.
    is: Buffer,
    /// Of each row, by what it scales what was summed before this run.
    factors: Buffer,
}

/// Where a buffer has what belongs to a row.
fn at_number(buffer: &Buffer, number: &Expr) -> Address {
    Address::new(buffer.clone(), number.clone())
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
            let mut b = self.panels(c, &order, (format, queries.depth, RUN / PANEL), scope, e);
            // What no row sees is masked, whatever its scores are.
            b.wanted = Some(e.int((self.seen.clone() - s.clone()).div_ceil(PANEL as i64)));
            let to = Address::new(flat(&place), 0);
            let to = Products { at: to, stride: RUN, apart: PANEL, accumulate: false };
            self.multiply(queries, &b, &to, e);
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

    /// The statistics of all rows of a run, and their scores turned into weights: one thing after the other for all rows, so
    /// that no row waits for what is found out about itself.
    pub(super) fn statistics(&self, scope: &Scope, e: &mut Emitter) {
        let (cx, shape, tile) = (self.cx, self.shape, self.tile);
        let mut maxima: Vec<Maximum> = Vec::new();
        let mut totals: Vec<(&Weighted, Buffer)> = Vec::new();
        let before = e.scratch;
        for (fold, place) in shape.stream.folds.iter().zip(&tile.stats) {
            let stat = flat(place);
            match fold {
                Fold::Max { eq, value, mask, .. } => {
                    let of = cx.plan.equations[*eq].out;
                    let maximum = Maximum { of, is: stat, factors: e.floats(shape.padded) };
                    self.maxima(&maximum, *value, *mask, scope, e);
                    maxima.push(maximum);
                }
                Fold::Sum { weight, over, .. } => {
                    let shift = weight.shifted.and_then(|(_, m)| maxima.iter().find(|maximum| maximum.of == m));
                    let known = totals.iter().find(|(w, _)| *w == weight).map(|(_, total)| total.clone());
                    let total = known.unwrap_or_else(|| {
                        let total = e.floats(shape.padded);
                        self.totals(&total, weight, shift, scope, e);
                        totals.push((weight, total.clone()));
                        total
                    });
                    match (over, shift) {
                        (None, _) => self.all_rows(e, |e, at| {
                            let [old, sum] = [&stat, &total].map(|of| at_number(of, &at).load4(Elem::F32));
                            let value = match shift {
                                Some(maximum) => old.fma(at_number(&maximum.factors, &at).load4(Elem::F32), sum),
                                None => old + sum,
                            };
                            e.push(Stmt::Store { elem: Elem::F32, at: at_number(&stat, &at), value });
                        }),
                        (Some(c), Some(maximum)) => self.rescale(&stat, columns(cx, c), maximum, scope, e),
                        (Some(_), None) => {}
                    }
                }
            }
        }
        e.release(before);
    }

    /// The maxima so far, and by what they scale what was summed before.
    fn maxima(&self, maximum: &Maximum, value: ExprId, mask: Option<ExprId>, scope: &Scope, e: &mut Emitter) {
        let of_run = e.floats(self.shape.padded);
        let kept = self.tile.weights.iter().find(|(w, _)| w.is_power_of(value, mask, maximum.of));
        self.each_row(scope, e, |e, scope, number| {
            let best = e.bind(Ty::Floats, Expr::Float(LOWEST).splat());
            self.each_vector(scope, e, |e, scope| {
                let value = self.present(value, mask, scope, e);
                let value = e.bind(Ty::Floats, value);
                if let Some((_, rows)) = kept {
                    self.keep(rows, number, value, scope, e);
                }
                e.push(Stmt::Set(best, Expr::from(best).max(value)));
            });
            let value = Expr::from(best).fold(loops::Fold::Max);
            e.push(Stmt::Store { elem: Elem::F32, at: at_number(&of_run, number), value });
        });
        self.all_rows(e, |e, at| {
            let old = e.bind(Ty::Floats, at_number(&maximum.is, &at).load4(Elem::F32));
            let new = e.bind(Ty::Floats, Expr::from(old).max(at_number(&of_run, &at).load4(Elem::F32)));
            e.push(Stmt::Store { elem: Elem::F32, at: at_number(&maximum.is, &at), value: new.into() });
            let factor = (Expr::from(old) - Expr::from(new)).unary(Unary::Exp);
            e.push(Stmt::Store { elem: Elem::F32, at: at_number(&maximum.factors, &at), value: factor });
        });
    }

    /// Turns the rows' scores into weights, and sums each row.
    fn totals(&self, to: &Buffer, weight: &Weighted, shift: Option<&Maximum>, scope: &Scope, e: &mut Emitter) {
        let rows = self.tile.weights.iter().find(|(w, _)| w == weight).map(|(_, rows)| rows);
        let kept = shift.is_some_and(|maximum| self.keeps(weight, maximum.of));
        self.each_row(scope, e, |e, scope, number| {
            let shift = shift.map(|maximum| e.bind(Ty::Float, at_number(&maximum.is, number).load(Elem::F32)));
            let value: Expr = match (rows, shift) {
                (Some(rows), Some(shift)) if kept => rows.exponentials(number.clone(), shift.into(), e).into(),
                _ => {
                    let total = e.bind(Ty::Floats, Expr::Float(0.0).splat());
                    self.each_vector(scope, e, |e, scope| {
                        let value = self.weighted(weight, shift, scope, e);
                        let value = e.bind(Ty::Floats, value);
                        if let Some(rows) = rows {
                            self.keep(rows, number, value, scope, e);
                        }
                        e.push(Stmt::Set(total, Expr::from(total) + value));
                    });
                    Expr::from(total).fold(loops::Fold::Sum)
                }
            };
            e.push(Stmt::Store { elem: Elem::F32, at: at_number(to, number), value });
            if let Some(rows) = rows.filter(|rows| !kept || rows.format.is_coded()) {
                self.encode(rows, number, scope, e);
            }
        });
    }

    /// Scales the sums of rows whose maximum is another: of most runs it is as it was.
    fn rescale(&self, sums: &Buffer, width: usize, maximum: &Maximum, scope: &Scope, e: &mut Emitter) {
        self.each_row(scope, e, |e, _, number| {
            let factor = e.bind(Ty::Float, at_number(&maximum.factors, number).load(Elem::F32));
            let first = number.clone() * width;
            e.when(Expr::from(factor).differs(1.0f32), |e| {
                let factor = e.bind(Ty::Floats, Expr::from(factor).splat());
                e.repeat(Expr::Int(0), width.into(), LANES, |e, at| {
                    let at = at_number(sums, &(first + at));
                    let value = at.clone().load4(Elem::F32) * factor;
                    e.push(Stmt::Store { elem: Elem::F32, at, value });
                });
            });
        });
    }

    /// Visits the rows of the tile: its coordinates, and its number.
    fn each_row(&self, scope: &Scope, e: &mut Emitter, mut f: impl FnMut(&mut Emitter, &Scope, &Expr)) {
        let from = self.shape.tokens.map_or(Expr::Int(0), |t| e.span(t).from);
        each_row(self.shape, scope, e, |e, scope| {
            let number = row_number(self.cx, self.shape, scope, &from);
            let number = e.int(number);
            f(e, scope, &number);
        });
    }

    /// Visits the numbers of all rows that there is room for, four at a time.
    fn all_rows(&self, e: &mut Emitter, f: impl FnOnce(&mut Emitter, Expr)) {
        e.repeat(Expr::Int(0), self.shape.padded.into(), LANES, f);
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
        if self.shape.stream.bounds.upper.is_none_or(|u| u > 0) {
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
        let b = self.panels(c, &order, (format, RUN, width / PANEL), scope, e);
        let to = Products { at: Address::new(flat(place), 0), stride: width, apart: PANEL, accumulate: true };
        self.multiply(weights, &b, &to, e);
    }

    /// Multiplies the tile's rows with a run's panels, which are unpacked first if the rows want that.
    fn multiply(&self, rows: &Rows, b: &Panelled, to: &Products, e: &mut Emitter) {
        let (count, a) = (Count::of(self.rows.clone()), rows.matrix());
        match rows.format {
            Format::I16 => multiply(self.cx, (&count, &self.rows), [&a, &a], b, to, e),
            _ => products(self.cx, &count, &a, b, to, e),
        }
    }

    /// A stored operand's panels in the run, so many of such a format and depth, at the scope's outer coordinates.
    fn panels(
        &self,
        c: &Contraction,
        order: &Order,
        (format, depth, count): (Format, usize, usize),
        scope: &Scope,
        e: &Emitter,
    ) -> Panelled {
        let at = |first: &Expr| e.places[&c.b].address(&self.home_index(first, c, scope));
        let (at, next) = match self.tile.held.place(c.b, order) {
            Some(place) => (Address::new(flat(place), 0), None),
            None => (at(&self.first), self.next.as_ref().map(|next| Next::panel(at(next), format, depth))),
        };
        Panelled { at, format, depth, count, wanted: None, apart: format.panel(depth), next, spread: None }
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
