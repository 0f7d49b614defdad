//! Writing loops: expressions of the graph as expressions of the loop language, equations as loop nests.

use std::collections::{BTreeMap, HashMap, HashSet};

use einfuse_graph as graph;
use einfuse_graph::{AxisId, Extent, Graph, Reduction, TensorId, Type};

use super::layout::Step;
use super::place::Place;
use super::segments::{Affine, fits_lanes};
use crate::format::Elem;
use crate::fuse::{Bounds, Plan};
use crate::loops::{Arg, Buffer, Expr, Fold, LANES, Share, Spread, Stmt, Ty, Var};

type GExpr = graph::ExprId;

/// A range of coordinates of one axis. For a tokens axis they count from the step's first token.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) from: Expr,
    pub(crate) to: Expr,
    /// Whether `from` is a multiple of the number of lanes.
    pub(crate) aligned: bool,
    /// `to - from`, where it is known.
    pub(crate) len: Option<usize>,
}

impl Span {
    pub(crate) fn whole(size: usize) -> Span {
        Span { from: Expr::Int(0), to: Expr::from(size), aligned: true, len: Some(size) }
    }
}

/// An expression with as many lanes as its coordinates want.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) expr: Expr,
    pub(crate) vector: bool,
}

/// What is known where code is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// The coordinates of axes that are bound: of a tokens axis counted from the step's first token.
    pub(crate) at: BTreeMap<AxisId, Expr>,
    /// The axis along which lanes are neighbours; its entry in `at` is the first lane's.
    vector: Option<(AxisId, bool)>,
    /// Integers that are affine in one coordinate here.
    pub(super) affine: HashMap<GExpr, Affine>,
    /// Masks that are known here.
    pub(super) truth: HashMap<GExpr, bool>,
}

impl Scope {
    /// The same without lanes: at the first.
    fn scalar(&self) -> Scope {
        Scope { vector: None, ..self.clone() }
    }

    /// Four neighbours along an axis, the first at a multiple of four.
    pub(crate) fn with_lanes(mut self, axis: AxisId, first: Expr) -> Scope {
        self.at.insert(axis, first);
        self.vector = Some((axis, true));
        self
    }

    pub(crate) fn with(mut self, axis: AxisId, at: Expr) -> Scope {
        self.at.insert(axis, at);
        self
    }
}

/// How deep an expression may nest before what is within gets a variable. Loops nest deeper than what they come from.
const MOST_NESTED: usize = 32;

/// Writes one kernel.
pub(crate) struct Emitter<'a> {
    pub(crate) graph: &'a Graph,
    /// Which positions a token needs of what is reduced over them.
    bounds: &'a HashMap<TensorId, (AxisId, Bounds)>,
    /// Where tensors are read.
    pub(crate) places: HashMap<TensorId, Place>,
    /// The ranges of axes that are not visited whole.
    pub(crate) spans: HashMap<AxisId, Span>,
    pub(crate) vars: Vec<Ty>,
    pub(crate) scratch: usize,
    peak: usize,
    blocks: Vec<Vec<Stmt>>,
    memo: HashMap<GExpr, Value>,
    uses: HashMap<GExpr, usize>,
    /// How deep the expression at hand lies in others.
    level: usize,
    free: HashMap<GExpr, Vec<AxisId>>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(plan: &'a Plan, places: HashMap<TensorId, Place>) -> Emitter<'a> {
        Emitter {
            graph: &plan.graph,
            bounds: &plan.bounds,
            places,
            spans: HashMap::new(),
            vars: Vec::new(),
            scratch: 0,
            peak: 0,
            blocks: vec![Vec::new()],
            memo: HashMap::new(),
            uses: HashMap::new(),
            level: 0,
            free: HashMap::new(),
        }
    }

    pub(crate) fn finish(mut self) -> (Vec<Ty>, usize, Vec<Stmt>) {
        (self.vars, self.peak.max(self.scratch), self.blocks.pop().unwrap_or_default())
    }

    /// Lets what follows use the private memory from here on again.
    pub(crate) fn release(&mut self, from: usize) {
        self.peak = self.peak.max(self.scratch);
        self.scratch = from;
    }

    // ---- statements

    pub(crate) fn push(&mut self, stmt: Stmt) {
        if let Some(block) = self.blocks.last_mut() {
            block.push(stmt);
        }
    }

    pub(crate) fn var(&mut self, ty: Ty) -> Var {
        self.vars.push(ty);
        Var(self.vars.len() as u32 - 1)
    }

    pub(crate) fn bind(&mut self, ty: Ty, expr: Expr) -> Var {
        let var = self.var(ty);
        self.push(Stmt::Let(var, expr));
        var
    }

    /// An integer that is used more than once: a variable, unless it is one or a constant already.
    pub(crate) fn int(&mut self, expr: Expr) -> Expr {
        match expr {
            Expr::Int(_) | Expr::Var(_) | Expr::Arg(_) => expr,
            expr => self.bind(Ty::Int, expr).into(),
        }
    }

    pub(crate) fn block(&mut self, f: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.blocks.push(Vec::new());
        f(self);
        self.blocks.pop().unwrap_or_default()
    }

    pub(crate) fn repeat(&mut self, from: Expr, to: Expr, step: usize, f: impl FnOnce(&mut Self, Expr)) {
        if let (Some(a), Some(b)) = (from.as_int(), to.as_int())
            && b - a <= step as i64
        {
            if b > a {
                f(self, from);
            }
            return;
        }
        let var = self.var(Ty::Int);
        let body = self.block(|e| f(e, var.into()));
        self.push(Stmt::For { var, from, to, step: step as i64, body });
    }

    pub(crate) fn parallel(&mut self, count: Expr, share: Share, f: impl FnOnce(&mut Self, Expr)) {
        let var = self.var(Ty::Int);
        let body = self.block(|e| f(e, var.into()));
        self.push(Stmt::Parallel { var, count, share, body });
    }

    /// Rounds of turns, balanced among the workers.
    pub(crate) fn balanced(&mut self, rounds: Expr, turns: usize, f: impl FnOnce(&mut Self, Expr, Expr)) {
        self.parallel(rounds * turns, Share::Balanced(turns), |e, at| {
            let (round, turn) = (e.int(at.clone().div(turns)), e.int(at.rem(turns)));
            f(e, round, turn);
        });
    }

    pub(crate) fn when(&mut self, mask: Expr, f: impl FnOnce(&mut Self)) {
        let then = self.block(f);
        self.push(Stmt::If { mask, then, otherwise: Vec::new() });
    }

    pub(crate) fn note(&mut self, text: String) {
        self.push(Stmt::Note(text));
    }

    /// Private memory for so many floats.
    pub(crate) fn floats(&mut self, count: usize) -> Buffer {
        self.memory(count, Elem::F32)
    }

    /// Private memory for so many elements.
    pub(crate) fn memory(&mut self, count: usize, elem: Elem) -> Buffer {
        let at = self.scratch;
        self.scratch += (count * elem.bytes()).next_multiple_of(64);
        Buffer::Scratch(at)
    }

    pub(crate) fn span(&self, axis: AxisId) -> Span {
        if let Some(span) = self.spans.get(&axis) {
            return span.clone();
        }
        match self.graph.axis(axis).extent {
            Extent::Fixed(size) => Span::whole(size),
            Extent::Tokens => Span { from: Expr::Int(0), to: Arg::Tokens.into(), aligned: true, len: None },
            Extent::Positions => Span { from: Expr::Int(0), to: end_of_positions(), aligned: true, len: None },
        }
    }

    // ---- equations

    /// Loops over the axes that are not bound yet and stores each element of `out = body` at `to`.
    pub(crate) fn equation(&mut self, scope: &Scope, out: TensorId, body: GExpr, to: &Place) {
        let axes: Vec<AxisId> =
            self.graph.tensor(out).axes.iter().filter(|a| !scope.at.contains_key(a)).copied().collect();
        self.note(format!("{} = {}", graph_name(self.graph, out), graph::print_expr(self.graph, body)));
        self.nest(scope.clone(), &axes, out, body, to);
    }

    fn nest(&mut self, scope: Scope, axes: &[AxisId], out: TensorId, body: GExpr, to: &Place) {
        match axes {
            [] => self.element(&scope, out, body, to),
            [axis] => self.innermost(scope, *axis, out, body, to),
            [axis, rest @ ..] => {
                let span = self.span(*axis);
                self.repeat(span.from, span.to, 1, |e, at| {
                    let mut scope = scope;
                    scope.at.insert(*axis, at);
                    e.nest(scope, rest, out, body, to);
                });
            }
        }
    }

    fn innermost(&mut self, scope: Scope, axis: AxisId, out: TensorId, body: GExpr, to: &Place) {
        let term = match self.graph.expr(body) {
            graph::Expr::Reduce { op: Reduction::ArgMax, .. } => None,
            graph::Expr::Reduce { body, .. } => Some(*body),
            _ => Some(body),
        };
        let span = self.span(axis);
        for (scope, span) in self.segments(scope, axis, span, body) {
            let dims = self.steps(out, axis, span.aligned);
            let vector = (to.elem == Elem::F32 && to.is_contiguous(&dims) || to.spread(&dims).is_some())
                && span.len.is_none_or(|n| n >= LANES)
                && term.is_some_and(|t| self.has_lanes(&scope, axis, t))
                && !self.prefers_depth(body, axis);
            self.lanes(&scope, axis, &span, vector, |e, scope| e.element(scope, out, body, to));
        }
    }

    /// How coordinates of a tensor change from lane to lane along an axis.
    fn steps(&self, of: TensorId, axis: AxisId, aligned: bool) -> Vec<Step> {
        let step = |&a: &AxisId| if a == axis { Step::One { aligned } } else { Step::Still };
        self.graph.tensor(of).axes.iter().map(step).collect()
    }

    /// Whether a reduction is better vectorised along what it sums: nothing it loads runs along `axis`, which would only
    /// hold copies, or everything would have to be gathered.
    fn prefers_depth(&mut self, body: GExpr, axis: AxisId) -> bool {
        let graph::Expr::Reduce { body: inner, axes, .. } = self.graph.expr(body).clone() else { return false };
        let Some(&last) = axes.last() else { return false };
        let (mut along_axis, mut along_depth) = (false, false);
        for tensor in self.graph.loaded(inner) {
            let Some(place) = self.places.get(&tensor) else { continue };
            along_axis |= place.is_contiguous(&self.steps(tensor, axis, true));
            along_depth |= place.is_contiguous(&self.steps(tensor, last, true));
        }
        along_depth && !along_axis
    }

    /// Visits a span four coordinates at a time, where there are lanes, and the rest one by one.
    fn lanes(&mut self, scope: &Scope, axis: AxisId, span: &Span, vector: bool, mut f: impl FnMut(&mut Self, &Scope)) {
        let mut from = span.from.clone();
        if vector {
            let to = match span.len {
                Some(len) => span.from.clone() + len / LANES * LANES,
                None => {
                    let len = span.to.clone() - span.from.clone();
                    self.int(span.from.clone() + len.div(LANES) * LANES)
                }
            };
            self.repeat(from, to.clone(), LANES, |e, at| {
                let mut scope = scope.clone();
                scope.at.insert(axis, at);
                scope.vector = Some((axis, span.aligned));
                f(e, &scope);
            });
            if span.len.is_some_and(|n| n % LANES == 0) {
                return;
            }
            from = to;
        }
        self.repeat(from, span.to.clone(), 1, |e, at| {
            let mut scope = scope.clone();
            scope.at.insert(axis, at);
            f(e, &scope);
        });
    }

    /// The positions that a token needs of what is reduced over them.
    fn needed(&mut self, scope: &Scope, out: TensorId) -> Option<(AxisId, Span)> {
        let &(s, bounds) = self.bounds.get(&out)?;
        let mut axes = self.graph.tensor(out).axes.iter();
        let t = *axes.find(|&&a| self.graph.axis(a).extent == Extent::Tokens)?;
        let first = scope.at.get(&t)?.clone() + Arg::Past;
        let last = match scope.vector {
            Some((axis, _)) if axis == t => first.clone() + (LANES - 1),
            _ => first.clone(),
        };
        let (low, to) = positions_within(bounds, first, last, end_of_positions());
        let from = self.int(low.div(LANES) * LANES);
        let to = self.int(to.max(from.clone()));
        Some((s, Span { from, to, aligned: true, len: None }))
    }

    fn element(&mut self, scope: &Scope, out: TensorId, body: GExpr, to: &Place) {
        let needed = self.needed(scope, out).map(|(s, span)| (s, self.spans.insert(s, span)));
        let value = match self.graph.expr(body).clone() {
            graph::Expr::Reduce { op: Reduction::ArgMax, axes, body } => self.argmax(scope, axes[0], body),
            graph::Expr::Reduce { op, axes, body } => self.reduction(scope, op, &axes, body),
            _ => self.value(scope, body),
        };
        match needed {
            Some((s, Some(before))) => _ = self.spans.insert(s, before),
            Some((s, None)) => _ = self.spans.remove(&s),
            None => {}
        }
        let axes = self.graph.tensor(out).axes.clone();
        let index: Vec<Expr> = axes.iter().map(|a| scope.at[a].clone()).collect();
        let at = to.address(&index);
        let Some((axis, aligned)) = scope.vector else {
            return self.push(Stmt::Store { elem: to.elem, at, value: value.expr });
        };
        let value = widen(value);
        self.push(match to.spread(&self.steps(out, axis, aligned)) {
            Some((together, apart)) if together != apart => Stmt::Spread(Spread { at, together, apart, value }),
            _ => Stmt::Store { elem: to.elem, at, value },
        });
    }

    /// A reduction at the coordinates of the scope, with lanes along the scope's vector axis, or else along the last of
    /// the reduced axes.
    fn reduction(&mut self, scope: &Scope, op: Reduction, axes: &[AxisId], body: GExpr) -> Value {
        let neutral = Expr::Float(op.neutral() as f32);
        if scope.vector.is_some() {
            let sum = self.bind(Ty::Floats, neutral.splat());
            self.over(scope.clone(), axes, &mut |e, scope| {
                let (value, product) = e.terms(&scope, op, body);
                e.push(Stmt::Set(sum, combine(op, sum.into(), value, product)));
            });
            return Value { expr: sum.into(), vector: true };
        }
        let [outer @ .., last] = axes else { return Value { expr: neutral, vector: false } };
        let total = self.bind(Ty::Float, neutral.clone());
        let wide = self.bind(Ty::Floats, neutral.splat());
        let mut used = false;
        let (scope, last) = (scope.clone(), *last);
        self.over(scope, outer, &mut |e, scope| {
            let span = e.span(last);
            for (scope, span) in e.segments(scope, last, span, body) {
                let vector = span.len.is_none_or(|n| n >= LANES) && e.has_lanes(&scope, last, body);
                used |= vector;
                e.lanes(&scope, last, &span, vector, |e, scope| {
                    let (value, product) = e.terms(scope, op, body);
                    let sum = if scope.vector.is_some() { wide } else { total };
                    e.push(Stmt::Set(sum, combine(op, sum.into(), value, product)));
                });
            }
        });
        if !used {
            return Value { expr: total.into(), vector: false };
        }
        let fold = match op {
            Reduction::Sum => Fold::Sum,
            Reduction::Min => Fold::Min,
            Reduction::Max | Reduction::ArgMax => Fold::Max,
        };
        let expr = combine(op, total.into(), Expr::from(wide).fold(fold), None);
        Value { expr: self.bind(Ty::Float, expr).into(), vector: false }
    }

    /// What a reduction combines next: a value, or for a sum of products its two factors.
    fn terms(&mut self, scope: &Scope, op: Reduction, body: GExpr) -> (Expr, Option<Expr>) {
        let wide = |v: Value| if scope.vector.is_some() { widen(v) } else { v.expr };
        self.begin(body);
        match *self.graph.expr(body) {
            graph::Expr::Binary(graph::Binary::Mul, a, b) if op == Reduction::Sum => {
                let (a, b) = (self.inner(scope, a), self.inner(scope, b));
                (wide(a), Some(wide(b)))
            }
            _ => {
                let value = self.inner(scope, body);
                (wide(value), None)
            }
        }
    }

    /// Loops over some axes.
    pub(super) fn over(&mut self, scope: Scope, axes: &[AxisId], f: &mut dyn FnMut(&mut Self, Scope)) {
        match axes {
            [] => f(self, scope),
            [axis, rest @ ..] => {
                let span = self.span(*axis);
                self.repeat(span.from, span.to, 1, |e, at| e.over(scope.with(*axis, at), rest, f));
            }
        }
    }

    fn argmax(&mut self, scope: &Scope, axis: AxisId, body: GExpr) -> Value {
        let best = self.bind(Ty::Float, Expr::Float(f32::NEG_INFINITY));
        let at = self.bind(Ty::Int, Expr::Int(0));
        self.over(scope.clone(), &[axis], &mut |e, scope| {
            let value = e.value(&scope, body).expr;
            let value = e.bind(Ty::Float, value);
            e.when(Expr::from(value).gt(best), |e| {
                e.push(Stmt::Set(best, value.into()));
                e.push(Stmt::Set(at, scope.at[&axis].clone()));
            });
        });
        Value { expr: at.into(), vector: false }
    }

    // ---- expressions

    /// The value of an expression at the scope's coordinates.
    pub(crate) fn value(&mut self, scope: &Scope, id: GExpr) -> Value {
        self.begin(id);
        self.inner(scope, id)
    }

    /// Forgets what was computed for another expression, and counts uses, so that what is used twice is computed once.
    fn begin(&mut self, id: GExpr) {
        self.memo.clear();
        self.uses.clear();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let uses = self.uses.entry(id).or_insert(0);
            *uses += 1;
            if *uses == 1 {
                stack.extend(self.graph.expr(id).children());
            }
        }
    }

    fn inner(&mut self, scope: &Scope, id: GExpr) -> Value {
        if let Some(value) = self.memo.get(&id) {
            return value.clone();
        }
        self.level += 1;
        let mut value = self.fresh(scope, id);
        self.level -= 1;
        let again = self.uses.get(&id).is_some_and(|&n| n > 1);
        if (again || self.level % MOST_NESTED == MOST_NESTED - 1)
            && !matches!(value.expr, Expr::Int(_) | Expr::Float(_) | Expr::Var(_) | Expr::Arg(_))
        {
            let ty = ty(self.graph.type_of(id), value.vector);
            value.expr = self.bind(ty, value.expr).into();
        }
        if again {
            self.memo.insert(id, value.clone());
        }
        value
    }

    fn fresh(&mut self, scope: &Scope, id: GExpr) -> Value {
        if let Some(&Affine { axis, slope, offset, .. }) = scope.affine.get(&id) {
            let at = scope.at[&axis].clone();
            let moves = slope != 0 && scope.vector.is_some_and(|(v, _)| v == axis);
            return match (moves, slope) {
                (true, 1) => Value { expr: (at + offset).iota(), vector: true },
                (true, _) => {
                    let lanes = at.iota() * Expr::Int(slope).splat() + Expr::Int(offset).splat();
                    Value { expr: lanes, vector: true }
                }
                (false, _) => Value { expr: at * slope + offset, vector: false },
            };
        }
        if let Some(&truth) = scope.truth.get(&id) {
            return Value { expr: Expr::Int(truth.into()).equals(1), vector: false };
        }
        if let Some((axis, _)) = scope.vector
            && self.is_of_integers(id)
            && !self.has_lanes(scope, axis, id)
        {
            return self.lane_by_lane(scope, id);
        }
        match self.graph.expr(id).clone() {
            graph::Expr::Float(x) => Value { expr: Expr::Float(x.0 as f32), vector: false },
            graph::Expr::Int(x) => Value { expr: Expr::Int(x), vector: false },
            graph::Expr::Coordinate(axis) => {
                let mut expr = scope.at[&axis].clone();
                if self.graph.axis(axis).extent == Extent::Tokens {
                    expr = expr + Arg::Past;
                }
                match scope.vector {
                    Some((v, _)) if v == axis => Value { expr: expr.iota(), vector: true },
                    _ => Value { expr, vector: false },
                }
            }
            graph::Expr::Load { tensor, index } => self.load(scope, tensor, &index),
            graph::Expr::Unary(op, x) => {
                let x = self.inner(scope, x);
                Value { expr: x.expr.unary(op), vector: x.vector }
            }
            graph::Expr::Binary(op, a, b) => {
                let (a, b) = (self.inner(scope, a), self.inner(scope, b));
                let vector = a.vector || b.vector;
                let (a, b) = if vector { (widen(a), widen(b)) } else { (a.expr, b.expr) };
                Value { expr: crate::loops::binary(op, a, b), vector }
            }
            graph::Expr::Select { mask, then, otherwise } => {
                if let Some(&truth) = scope.truth.get(&mask) {
                    return self.inner(scope, if truth { then } else { otherwise });
                }
                let mask = self.inner(scope, mask);
                let (then, otherwise) = (self.inner(scope, then), self.inner(scope, otherwise));
                let vector = mask.vector || then.vector || otherwise.vector;
                let all = [mask, then, otherwise].map(|v| if vector { widen(v) } else { v.expr });
                let [mask, then, otherwise] = all;
                Value { expr: mask.select(then, otherwise), vector }
            }
            // Reductions stand only outermost, in `element`.
            graph::Expr::Reduce { .. } => Value { expr: Expr::Float(f32::NAN), vector: false },
        }
    }

    fn load(&mut self, scope: &Scope, tensor: TensorId, index: &[GExpr]) -> Value {
        let place = self.places[&tensor].clone();
        let axes = self.graph.tensor(tensor).axes.clone();
        let steps = self.steps_along(scope, &axes, index);
        if steps.iter().all(|s| *s == Step::Still) {
            let index = self.indices(scope, &axes, index);
            return Value { expr: place.load(&index), vector: false };
        }
        if place.is_contiguous(&steps) {
            let first = scope.scalar();
            let index = self.apart(|e| e.indices(&first, &axes, index));
            return Value { expr: place.address(&index).load4(place.elem), vector: true };
        }
        let lanes = self.each_lane(scope, |e, one| place.load(&e.indices(one, &axes, index)));
        Value { expr: Expr::Gather(Box::new(lanes)), vector: true }
    }

    /// Whether an expression makes a real number or a mask of integers, which lanes may not hold.
    fn is_of_integers(&self, id: GExpr) -> bool {
        match *self.graph.expr(id) {
            graph::Expr::Unary(graph::Unary::ToFloat, _) => true,
            graph::Expr::Binary(_, a, _) => self.graph.type_of(a) == Type::Int && self.graph.type_of(id) == Type::Mask,
            _ => false,
        }
    }

    /// A real number or a mask that is computed for each of four neighbours alone.
    fn lane_by_lane(&mut self, scope: &Scope, id: GExpr) -> Value {
        let is_mask = self.graph.type_of(id) == Type::Mask;
        let lanes = self.each_lane(scope, |e, one| match is_mask {
            true => e.inner(one, id).expr.select(Expr::Float(1.0), Expr::Float(0.0)),
            false => e.inner(one, id).expr,
        });
        let expr = Expr::Gather(Box::new(lanes));
        Value { expr: if is_mask { Expr::Float(0.0).splat().lt(expr) } else { expr }, vector: true }
    }

    /// What is computed at each of four neighbours.
    fn each_lane(&mut self, scope: &Scope, mut f: impl FnMut(&mut Self, &Scope) -> Expr) -> [Expr; LANES] {
        std::array::from_fn(|lane| {
            let mut one = scope.scalar();
            if let Some((axis, _)) = scope.vector {
                let first = one.at[&axis].clone();
                one.at.insert(axis, first + lane);
            }
            self.apart(|e| f(e, &one))
        })
    }

    /// Computes something whose parts are not those of the expression at hand.
    fn apart<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let (memo, uses) = (std::mem::take(&mut self.memo), std::mem::take(&mut self.uses));
        let result = f(self);
        (self.memo, self.uses) = (memo, uses);
        result
    }

    fn indices(&mut self, scope: &Scope, axes: &[AxisId], index: &[GExpr]) -> Vec<Expr> {
        axes.iter().zip(index).map(|(&axis, &i)| self.index(scope, axis, i)).collect()
    }

    /// A coordinate of `axis` as a scalar, kept within the axis where it might leave it.
    fn index(&mut self, scope: &Scope, axis: AxisId, id: GExpr) -> Expr {
        if *self.graph.expr(id) == graph::Expr::Coordinate(axis) {
            return scope.at[&axis].clone();
        }
        let at = self.inner(scope, id).expr;
        match self.graph.axis(axis).extent {
            Extent::Tokens => (at - Arg::Past).max(0).min(Expr::from(Arg::Tokens) - 1),
            Extent::Positions => at.max(0).min(end_of_positions() - 1),
            Extent::Fixed(_) if self.is_within(scope, axis, id) => at,
            Extent::Fixed(size) => at.max(0).min(size as i64 - 1),
        }
    }

    /// Whether an index is known to stay within its axis.
    fn is_within(&mut self, scope: &Scope, axis: AxisId, id: GExpr) -> bool {
        *self.graph.expr(id) == graph::Expr::Coordinate(axis)
            || self
                .graph
                .size(axis)
                .zip(self.range(scope, id))
                .is_some_and(|(size, (low, high))| low >= 0 && high < size as i64)
    }

    /// How the indices of such axes change from lane to lane. One that might leave its axis is kept within for each lane alone.
    fn steps_along(&mut self, scope: &Scope, axes: &[AxisId], index: &[GExpr]) -> Vec<Step> {
        let step = |(&axis, &id)| match self.step(scope, id) {
            Step::One { .. } if !self.is_within(scope, axis, id) => Step::Other,
            step => step,
        };
        axes.iter().zip(index).map(step).collect()
    }

    pub(super) fn free(&mut self, id: GExpr) -> &[AxisId] {
        let graph = self.graph;
        self.free.entry(id).or_insert_with(|| graph.free_axes(id))
    }

    /// The digits of a number that counts so many of each, the last the fastest. The first goes on.
    pub(super) fn digits(&mut self, number: Expr, counts: &[usize]) -> Vec<Expr> {
        let mut rest = number;
        let mut digits = Vec::new();
        for (nth, &count) in counts.iter().enumerate().rev() {
            let digit = if nth == 0 { rest.clone() } else { rest.clone().rem(count) };
            rest = rest.div(count);
            digits.push(self.int(digit));
        }
        digits.reverse();
        digits
    }

    /// How an index changes from lane to lane.
    fn step(&mut self, scope: &Scope, id: GExpr) -> Step {
        let Some((axis, aligned)) = scope.vector else { return Step::Still };
        if !self.free(id).contains(&axis) {
            return Step::Still;
        }
        if let Some(&Affine { slope, offset, .. }) = scope.affine.get(&id) {
            return match slope {
                0 => Step::Still,
                1 => Step::One { aligned: aligned && offset % LANES as i64 == 0 },
                _ => Step::Other,
            };
        }
        match *self.graph.expr(id) {
            graph::Expr::Coordinate(_) => Step::One { aligned },
            graph::Expr::Binary(graph::Binary::Add, a, b) => match (self.step(scope, a), self.step(scope, b)) {
                (Step::One { .. }, Step::Still) | (Step::Still, Step::One { .. }) => Step::One { aligned: false },
                _ => Step::Other,
            },
            graph::Expr::Binary(graph::Binary::Sub, a, b) => match (self.step(scope, a), self.step(scope, b)) {
                (Step::One { .. }, Step::Still) => Step::One { aligned: false },
                _ => Step::Other,
            },
            _ => Step::Other,
        }
    }

    /// Whether an expression can be computed for four neighbours along `axis` at once.
    pub(crate) fn has_lanes(&mut self, scope: &Scope, axis: AxisId, id: GExpr) -> bool {
        let mut seen = HashSet::new();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            if !seen.insert(id) || scope.affine.contains_key(&id) || scope.truth.contains_key(&id) {
                continue;
            }
            let expr = self.graph.expr(id);
            if !self.free(id).contains(&axis) {
                if self.graph.type_of(id) == Type::Int && !self.range(scope, id).is_some_and(fits_lanes) {
                    return false;
                }
                continue;
            }
            let fine = match (self.graph.type_of(id), expr) {
                (Type::Int, graph::Expr::Coordinate(_)) => true,
                (Type::Int, graph::Expr::Unary(..)) => self.range(scope, id).is_some_and(fits_lanes),
                (Type::Int, graph::Expr::Binary(op, ..)) => {
                    matches!(op, graph::Binary::Add | graph::Binary::Sub | graph::Binary::Mul)
                        && self.range(scope, id).is_some_and(fits_lanes)
                }
                (Type::Int, graph::Expr::Load { tensor, index }) => {
                    let steps = self.steps_along(scope, &self.graph.tensor(*tensor).axes, index);
                    self.places[tensor].is_contiguous(&steps)
                }
                (Type::Int, _) => false,
                _ => true,
            };
            if !fine {
                return false;
            }
            // An index is evaluated lane by lane where it is not a plain step.
            if !matches!(expr, graph::Expr::Load { .. }) {
                stack.extend(expr.children());
            }
        }
        true
    }
}

/// The first of the positions that tokens need, which are at positions from `first` to `last`, and what is behind the last.
pub(super) fn positions_within(bounds: Bounds, first: Expr, last: Expr, end: Expr) -> (Expr, Expr) {
    let low = bounds.lower.map_or(Expr::Int(0), |lower| (first + lower).max(0));
    let to = match bounds.upper {
        Some(upper) => (last + (upper + 1)).min(end).max(0),
        None => end,
    };
    (low, to)
}

/// The number of positions after this step.
pub(crate) fn end_of_positions() -> Expr {
    Expr::from(Arg::Past) + Arg::Tokens
}

pub(crate) fn widen(value: Value) -> Expr {
    if value.vector { value.expr } else { value.expr.splat() }
}

fn combine(op: Reduction, sum: Expr, value: Expr, product: Option<Expr>) -> Expr {
    match (op, product) {
        (Reduction::Sum, Some(factor)) => value.fma(factor, sum),
        (Reduction::Sum, None) => sum + value,
        (Reduction::Min, _) => sum.min(value),
        (Reduction::Max | Reduction::ArgMax, _) => sum.max(value),
    }
}

fn ty(ty: Type, vector: bool) -> Ty {
    match (ty, vector) {
        (Type::Float, false) => Ty::Float,
        (Type::Int, false) => Ty::Int,
        (Type::Mask, false) => Ty::Mask,
        (Type::Float, true) => Ty::Floats,
        (Type::Int, true) => Ty::Ints,
        (Type::Mask, true) => Ty::Masks,
    }
}

/// `name[its axes]`, for notes.
pub(crate) fn graph_name(graph: &Graph, tensor: TensorId) -> String {
    format!("{}{}", graph.tensor(tensor).name, graph.axes_of(tensor))
}
