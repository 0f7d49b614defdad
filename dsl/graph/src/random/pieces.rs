//! Random equations: the pieces of which a graph is put together.

use super::{Generator, LARGE, Operand, Term, VOLUME, WORK};
use crate::builder::Builder;
use crate::graph::*;

impl Generator {
    // ---- equations

    /// An equation over the free axes of `x`, in any order.
    pub(super) fn define(&mut self, name: &str, x: Term) -> Operand {
        let x = self.bounded(x, LARGE);
        let mut axes = self.b.graph().free_axes(x.id);
        self.rng.shuffle(&mut axes);
        let tensor = self.b.define(name, Some(&axes), x.id);
        let operand = Operand { tensor, magnitude: x.magnitude };
        self.values.push(operand.clone());
        operand
    }

    pub(super) fn load(&mut self, x: &Operand) -> Term {
        Term { id: self.b.load(x.tensor), magnitude: x.magnitude }
    }

    /// Rows of a table by the tokens' ids.
    pub(super) fn embedding(&mut self) -> TensorId {
        let axes = self.fixed[..1 + self.rng.below(2)].to_vec();
        let mut of = vec![self.vocabulary];
        of.extend(axes);
        let table = self.b.weight("embed", &of, "embed");
        let id = self.b.load(self.ids);
        let row = self.b.load_at(table, &[(self.vocabulary, id)]);
        self.define("x", Term { id: row, magnitude: 1.0 }).tensor
    }

    /// One or a few equations that belong together, and use `x` or what came later.
    pub(super) fn piece(&mut self, x: TensorId) {
        match self.rng.below(if self.options.states { 10 } else { 6 }) {
            0 => {
                let axes = self.some_axes(2);
                let x = self.term(&axes, 3);
                self.define("m", x);
            }
            1 | 2 => self.contraction(),
            3 => self.norm(x),
            4 => {
                let axis = self.rng.pick(&self.fixed.clone());
                self.softmax(axis, None);
            }
            5 if self.options.routes => match self.rng.below(2) {
                0 => self.route(),
                _ => self.experts(),
            },
            _ => match self.state() {
                Some(state) if self.rng.once_in(4) => self.pool(&state),
                Some(state) => {
                    let axis = self.axes_of(state.tensor)[0];
                    let expanded = if self.rng.once_in(3) { self.expanded(&state, axis) } else { None };
                    self.softmax(axis, Some(expanded.unwrap_or(state)));
                }
                None => self.contraction(),
            },
        }
    }

    /// A reduction of a state along its positions.
    fn pool(&mut self, state: &Operand) {
        let axis = self.axes_of(state.tensor)[0];
        let mut within = self.axes_of(state.tensor);
        within.push(self.tokens);
        let x = self.load(state);
        let factor = self.leaf(&within);
        let x = self.mul(x, factor);
        let mask = self.mask_over(axis, &within);
        let body = self.b.masked(x.id, mask);
        let op = self.rng.pick(&[Reduction::Sum, Reduction::Max, Reduction::Min]);
        let y = match self.rng.below(3) {
            0 => self.b.mean(&[axis], body),
            _ => self.b.reduce(op, &[axis], body),
        };
        let y = Term { id: y, magnitude: x.magnitude * 8.0 };
        self.define("l", y);
    }

    /// A sum of products of 1 to 3 operands, with what follows it.
    pub(super) fn contraction(&mut self) {
        let axes = self.some_axes(2);
        let mut y = self.projection(&axes);
        match self.rng.below(6) {
            0 => {
                let gate = self.projection(&axes);
                let gate = self.activation(gate);
                y = self.mul(y, gate);
            }
            1 => y = self.activation(y),
            2 => {
                let bias = self.leaf(&axes);
                y = self.add(y, bias);
            }
            3 => {
                let more = self.term(&axes, 2);
                y = self.add(y, more);
            }
            4 => {
                // A sum within a sum, as of a low rank.
                let free = self.b.graph().free_axes(y.id);
                y = self.through(y, &free).unwrap_or(y);
            }
            _ => {}
        }
        self.define("y", y);
    }

    /// The sum, along one of its axes, of a value times a weight that has another.
    fn through(&mut self, x: Term, axes: &[AxisId]) -> Option<Term> {
        let along: Vec<AxisId> = axes.iter().copied().filter(|&a| self.b.graph().size(a).is_some()).collect();
        let others: Vec<AxisId> = self.fixed.iter().copied().filter(|axis| !axes.contains(axis)).collect();
        if along.is_empty() || others.is_empty() {
            return None;
        }
        let (from, to) = (self.rng.pick(&along), self.rng.pick(&others));
        let mut of = vec![to, from];
        of.extend(self.some_of(&others).into_iter().filter(|&axis| axis != to).take(1));
        let all: Vec<AxisId> = axes.iter().copied().chain(of.iter().copied().filter(|a| !axes.contains(a))).collect();
        if self.volume(&all) > WORK {
            return None;
        }
        let x = self.bounded(x, 4.0);
        let weight = self.weight(&of);
        let product = self.mul(x, weight);
        let sum = self.b.reduce(Reduction::Sum, &[from], product.id);
        let count = self.size(from) as f64;
        let sum = Term { id: sum, magnitude: product.magnitude * count };
        Some(self.scaled(sum, count.sqrt().recip()))
    }

    /// What each position's row of a state becomes through a weight.
    fn expanded(&mut self, state: &Operand, positions: AxisId) -> Option<Operand> {
        let x = self.load(state);
        let axes: Vec<AxisId> = self.axes_of(state.tensor).into_iter().filter(|&axis| axis != positions).collect();
        let y = self.through(x, &axes)?;
        Some(self.define_hidden("k", y, true))
    }

    /// A contraction of a value, to about these axes.
    pub(super) fn projection(&mut self, axes: &[AxisId]) -> Term {
        let source = self.values[self.values.len() - 1 - self.rng.below(self.values.len().min(3))].clone();
        let mut within: Vec<AxisId> = axes.to_vec();
        let mut over: Vec<AxisId> = Vec::new();
        for axis in self.axes_of(source.tensor) {
            if !within.contains(&axis) && self.b.graph().axis(axis).extent != Extent::Positions {
                // The tokens stay, mostly.
                if axis != self.tokens || self.rng.once_in(6) {
                    over.push(axis);
                }
                within.push(axis);
            }
        }
        if self.volume(&within) > WORK {
            return self.leaf(axes);
        }
        let mut product = self.load(&source);
        let mut of: Vec<AxisId> = within.iter().copied().filter(|&axis| self.b.graph().size(axis).is_some()).collect();
        self.rng.shuffle(&mut of);
        if !self.rng.once_in(6) {
            let weight = self.weight(&of);
            product = self.mul(product, weight);
        }
        if self.rng.once_in(4) {
            let third = self.leaf(&within);
            let third = self.bounded(third, 4.0);
            product = self.mul(product, third);
        }
        let count = self.volume(&over) as f64;
        let free = self.b.graph().free_axes(product.id);
        over.retain(|axis| free.contains(axis));
        if over.is_empty() {
            return product;
        }
        let mut body = product.id;
        if self.rng.once_in(6) {
            let mask = self.mask_over(over[0], &free);
            body = self.b.masked(body, mask);
        }
        let sum = self.b.reduce(Reduction::Sum, &over, body);
        let sum = Term { id: sum, magnitude: product.magnitude * count };
        self.scaled(sum, count.sqrt().recip())
    }

    /// A value divided by its size in some sense, along some of its axes.
    pub(super) fn norm(&mut self, x: TensorId) {
        let latest = self.values[self.values.len() - 1].clone();
        let x = if self.rng.once_in(2) { latest.tensor } else { x };
        let mut over = self.axes_of(x);
        over.retain(|&axis| self.b.graph().size(axis).is_some());
        if over.is_empty() {
            return self.contraction();
        }
        self.rng.shuffle(&mut over);
        over.truncate(1 + self.rng.below(2));
        let mut x = Term { id: self.b.load(x), magnitude: LARGE };
        if self.rng.once_in(2) {
            let mean = Term { id: self.b.mean(&over, x.id), ..x };
            x = self.sub(x, mean);
        }
        let count = self.volume(&over) as f64;
        let mut y = match self.rng.below(3) {
            0 => {
                let magnitude = Term { id: self.b.unary(Unary::Abs, x.id), ..x };
                let largest = Term { id: self.b.reduce(Reduction::Max, &over, magnitude.id), ..x };
                let one = self.float(1.0);
                let below = self.add(one, largest);
                self.div(x, below, 1.0)
            }
            _ => {
                let square = self.mul(x, x);
                let mean = Term { id: self.b.mean(&over, square.id), ..square };
                let eps = self.float(0.01);
                let sum = self.add(mean, eps);
                let scale = self.unary(Unary::Rsqrt, sum, 10.0);
                let y = self.mul(x, scale);
                Term { magnitude: count.sqrt(), ..y }
            }
        };
        if self.rng.once_in(2) {
            let gain = self.weight(&over);
            y = self.mul(y, gain);
        }
        if self.rng.once_in(2) {
            let bias = self.weight(&over);
            y = self.add(y, bias);
        }
        self.define("n", y);
    }

    // ---- softmaxes

    /// A state; a new one, to which rows of a value are appended, or one that is there.
    fn state(&mut self) -> Option<Operand> {
        let with_tokens = |v: &&Operand| {
            let axes = self.axes_of(v.tensor);
            let fixed = axes.iter().all(|&axis| axis == self.tokens || self.b.graph().size(axis).is_some());
            fixed && axes.contains(&self.tokens)
        };
        let rows: Vec<Operand> = self.values.iter().filter(with_tokens).cloned().collect();
        if rows.is_empty() || self.positions.is_empty() {
            return None;
        }
        if self.states.is_empty() || self.rng.once_in(2) {
            let axis = self.rng.pick(&self.positions.clone());
            let Operand { tensor, magnitude } = rows[self.rng.below(rows.len())];
            let tensor = self.b.append(tensor, axis);
            self.states.push(Operand { tensor, magnitude });
        }
        let at = self.rng.below(self.states.len());
        Some(self.states[at].clone())
    }

    /// A cascade along an axis: scores, their largest, exponentials, their sum, weights, a weighted sum.
    pub(super) fn softmax(&mut self, axis: AxisId, keys: Option<Operand>) {
        let mut axes = self.some_axes(1);
        axes.retain(|&a| a != axis);
        if keys.is_some() && !axes.contains(&self.tokens) {
            axes.push(self.tokens);
        }
        let mut within = axes.clone();
        within.push(axis);
        let mut score = match &keys {
            Some(keys) => {
                let rest: Vec<AxisId> = self.axes_of(keys.tensor).into_iter().filter(|&a| a != axis).collect();
                let mut over = rest.clone();
                self.rng.shuffle(&mut over);
                over.truncate(1 + self.rng.below(2));
                for axis in &rest {
                    if !over.contains(axis) && !axes.contains(axis) {
                        axes.push(*axis);
                        within.push(*axis);
                    }
                }
                let mut of: Vec<AxisId> = axes.iter().chain(&over).copied().collect();
                of.sort();
                of.dedup();
                if self.volume(&of) > VOLUME || self.volume(&within) > WORK {
                    return self.contraction();
                }
                let query = self.term(&of, 1);
                let query = self.bounded(query, 4.0);
                let key = self.load(keys);
                let product = self.mul(query, key);
                over.retain(|axis| !axes.contains(axis));
                if over.is_empty() {
                    product
                } else {
                    let sum = self.b.reduce(Reduction::Sum, &over, product.id);
                    let count = self.volume(&over) as f64;
                    let sum = Term { id: sum, magnitude: product.magnitude * count };
                    self.scaled(sum, count.sqrt().recip())
                }
            }
            None => {
                let term = self.term(&within, 2);
                let weight = self.weight(&[axis]);
                self.add(term, weight)
            }
        };
        if self.rng.once_in(3) {
            // Soft-capped.
            let cap = self.rng.pick(&[2.0, 5.0, 30.0]);
            let inner = self.scaled(score, 1.0 / cap);
            let inner = self.unary(Unary::Tanh, inner, 1.0);
            score = self.scaled(inner, cap);
        }
        score = self.bounded(score, LARGE);
        if within.contains(&self.tokens) && self.rng.once_in(3) {
            // Biased by distance.
            let (t, s) = (self.b.coordinate(self.tokens), self.b.coordinate(axis));
            let distance = self.b.binary(Binary::Sub, t, s);
            let distance = self.b.unary(Unary::Abs, distance);
            let distance = Term { id: distance, magnitude: 64.0 };
            let slope = self.rng.pick(&[0.5, 0.125, 0.1]);
            let bias = self.scaled(distance, slope);
            score = self.sub(score, bias);
        }
        let mut e = score.id;
        let free = self.b.graph().free_axes(e);
        if !free.contains(&axis) {
            return self.contraction();
        }
        if self.b.graph().size(axis).is_none() || self.rng.once_in(2) {
            let mask = self.mask_over(axis, &within);
            e = self.b.masked(e, mask);
        }
        self.cascade(axis, e, &within, keys);
    }

    pub(super) fn cascade(&mut self, axis: AxisId, e: ExprId, within: &[AxisId], keys: Option<Operand>) {
        let largest = self.b.reduce(Reduction::Max, &[axis], e);
        let shifted = self.b.binary(Binary::Sub, e, largest);
        let exp = self.b.unary(Unary::Exp, shifted);
        let mut total = self.b.reduce(Reduction::Sum, &[axis], exp);
        if self.rng.once_in(5) {
            // A sink takes its share, and no less than it would of scores that are all low.
            let sink = self.float(0.5);
            let sink = self.b.binary(Binary::Sub, sink.id, largest);
            let most = self.b.float(4.0);
            let sink = self.b.binary(Binary::Min, sink, most);
            let sink = self.b.unary(Unary::Exp, sink);
            total = self.b.binary(Binary::Add, total, sink);
        }
        let mut share = Term { id: self.b.binary(Binary::Div, exp, total), magnitude: 1.0 };
        let positions = self.b.graph().size(axis).is_none();
        if self.rng.once_in(2) {
            let shares = self.define_hidden("p", share, positions);
            share = self.load(&shares);
        }
        let value = match &keys {
            Some(keys) if self.rng.once_in(2) => {
                let axes = self.axes_of(keys.tensor);
                let all: Vec<AxisId> =
                    within.iter().chain(axes.iter().filter(|a| !within.contains(a))).copied().collect();
                let expanded = if self.rng.once_in(3) { self.expanded(keys, axis) } else { None };
                match expanded {
                    Some(value) => self.load(&value),
                    None if self.volume(&all) > 2 * WORK => self.leaf(&[axis]),
                    None => self.load(keys),
                }
            }
            _ => self.leaf(within),
        };
        let product = self.mul(share, value);
        let mut body = product.id;
        if positions && self.rng.once_in(3) {
            let mask = self.mask_over(axis, within);
            body = self.b.masked(body, mask);
        }
        let sum = self.b.reduce(Reduction::Sum, &[axis], body);
        self.define("o", Term { id: sum, magnitude: value.magnitude });
    }

    /// An equation; over positions, one that nothing but what follows at once may use.
    pub(super) fn define_hidden(&mut self, name: &str, x: Term, hidden: bool) -> Operand {
        let operand = self.define(name, x);
        if hidden {
            self.values.pop();
        }
        operand
    }

    // ---- the whole

    /// One to three layers of one or two bodies.
    pub(super) fn layers(&mut self, initial: TensorId) -> TensorId {
        let count = 1 + self.rng.below(3);
        let kinds = 1 + self.rng.below(2.min(count));
        let mut order: Vec<usize> =
            (0..count).map(|layer| if layer < kinds { layer } else { self.rng.below(kinds) }).collect();
        self.rng.shuffle(&mut order);
        let mut outer = std::mem::replace(&mut self.b, Builder::new(""));
        let out = outer.layers(initial, &order, |b, _, carry| {
            std::mem::swap(&mut self.b, b);
            let (values, states) = (self.values.clone(), std::mem::take(&mut self.states));
            self.in_layer = true;
            self.values.push(Operand { tensor: carry, magnitude: LARGE });
            for _ in 0..1 + self.rng.below(self.options.pieces.max(1)) {
                self.piece(carry);
            }
            let result = self.gather(carry);
            self.in_layer = false;
            (self.values, self.states) = (values, states);
            std::mem::swap(&mut self.b, b);
            result
        });
        self.b = outer;
        self.values.push(Operand { tensor: out, magnitude: LARGE });
        out
    }

    /// A value over the axes of `x`: it, and something of every value in view.
    pub(super) fn gather(&mut self, x: TensorId) -> TensorId {
        let axes = self.axes_of(x);
        let mut sum = Term { id: self.b.load(x), magnitude: LARGE };
        sum = self.scaled(sum, 0.5);
        for value in self.values.clone() {
            let free = self.axes_of(value.tensor);
            let over: Vec<AxisId> = free.iter().copied().filter(|axis| !axes.contains(axis)).collect();
            if value.tensor == x || (over.contains(&self.tokens) && self.rng.once_in(2)) {
                continue;
            }
            let mut y = self.load(&value);
            if !over.is_empty() {
                let count = self.volume(&over) as f64;
                let all = self.b.reduce(Reduction::Sum, &over, y.id);
                y = Term { id: all, magnitude: y.magnitude * count };
                y = self.scaled(y, count.sqrt().recip());
            }
            let y = self.bounded(y, 2.0);
            sum = self.add(sum, y);
        }
        let sum = self.bounded(sum, LARGE);
        self.b.define("r", Some(&axes), sum.id)
    }
}
