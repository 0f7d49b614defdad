//! Random expressions.

use super::{Generator, LARGE, Operand, Term, WORK};
use crate::graph::*;

impl Generator {
    // ---- leaves

    pub(super) fn float(&mut self, value: f64) -> Term {
        Term { id: self.b.float(value), magnitude: value.abs() }
    }

    pub(super) fn weight(&mut self, axes: &[AxisId]) -> Term {
        self.count += 1;
        let place = if self.in_layer { format!("layer.{{l}}.{}", self.count) } else { format!("{}", self.count) };
        let tensor = if self.rng.once_in(6) {
            let count = axes.iter().map(|&axis| self.size(axis)).product();
            let values = (0..count).map(|_| self.rng.unit()).collect();
            self.b.constant("constant", axes, values)
        } else {
            self.b.weight("w", axes, place.as_str())
        };
        Term { id: self.b.load(tensor), magnitude: 1.0 }
    }

    /// An operand whose free axes are among these.
    pub(super) fn leaf(&mut self, axes: &[AxisId]) -> Term {
        match self.rng.below(10) {
            0 => self.coordinate(axes),
            1 => {
                let axes = self.some_of(axes);
                self.weight(&axes)
            }
            2 => {
                let value = self.rng.pick(&[0.5, 0.25, -1.5, 2.0, 0.1, 1.0]);
                self.float(value)
            }
            3 | 4 if self.options.selections => self.selection(axes),
            _ => {
                let fits = |v: &&Operand| self.axes_of(v.tensor).iter().all(|axis| axes.contains(axis));
                let fitting: Vec<Operand> = self.values.iter().filter(fits).cloned().collect();
                if fitting.is_empty() {
                    return self.weight(&self.some_of_fixed(axes));
                }
                // The latest ones more often than those before.
                let back = self.rng.below(fitting.len()).min(self.rng.below(fitting.len()));
                let Operand { tensor, magnitude } = fitting[fitting.len() - 1 - back];
                Term { id: self.b.load(tensor), magnitude }
            }
        }
    }

    pub(super) fn some_of_fixed(&self, axes: &[AxisId]) -> Vec<AxisId> {
        axes.iter().copied().filter(|&axis| self.b.graph().size(axis).is_some()).take(2).collect()
    }

    /// A coordinate as a number of at most about 1.
    pub(super) fn coordinate(&mut self, axes: &[AxisId]) -> Term {
        let Some(&axis) = axes.get(self.rng.below(axes.len().max(1))) else { return self.float(0.5) };
        let at = self.b.coordinate(axis);
        let scale = self.b.float(1.0 / self.size(axis) as f64);
        Term { id: self.b.binary(Binary::Mul, at, scale), magnitude: 4.0 }
    }

    /// A row of a state that an earlier token, or the same, appended.
    fn earlier(&mut self, axes: &[AxisId], state: &Operand) -> Term {
        let (at, back) = (self.b.coordinate(self.tokens), self.b.int(self.rng.below(3) as i64));
        let (back, first) = (self.b.binary(Binary::Sub, at, back), self.b.int(0));
        let at = self.b.binary(Binary::Max, back, first);
        let mut selected = Vec::new();
        for axis in self.axes_of(state.tensor) {
            if self.b.graph().size(axis).is_none() {
                selected.push((axis, at));
            } else if !axes.contains(&axis) {
                selected.push((axis, self.index(axis, axes)));
            }
        }
        Term { id: self.b.load_at(state.tensor, &selected), magnitude: state.magnitude }
    }

    /// A tensor indexed by something else than its own axes.
    pub(super) fn selection(&mut self, axes: &[AxisId]) -> Term {
        // What keeps a window is read along its positions only.
        let whole = |v: &&Operand| matches!(self.b.graph().tensor(v.tensor).kind, Kind::State { window: None });
        let states: Vec<Operand> = self.states.iter().filter(whole).cloned().collect();
        if axes.contains(&self.tokens) && !states.is_empty() && self.rng.once_in(3) {
            let state = &states[self.rng.below(states.len())];
            return self.earlier(axes, state);
        }
        let is_open = |axis: &AxisId| !axes.contains(axis);
        let fits = |v: &&Operand| {
            let of = self.axes_of(v.tensor);
            let indexed = of.iter().all(|axis| axes.contains(axis) || self.b.graph().size(*axis).is_some());
            indexed && of.iter().filter(|axis| is_open(axis)).count() <= 2
        };
        let fitting: Vec<Operand> = self.values.iter().filter(fits).cloned().collect();
        let Operand { tensor, magnitude } = if fitting.is_empty() || self.rng.once_in(3) {
            let mut of = vec![self.vocabulary];
            of.extend(self.some_of_fixed(axes).into_iter().filter(|&axis| axis != self.vocabulary));
            self.count += 1;
            let tensor = self.b.weight("table", &of, format!("{}", self.count).as_str());
            Operand { tensor, magnitude: 1.0 }
        } else {
            fitting[self.rng.below(fitting.len())].clone()
        };
        let (mut selected, mut inside) = (Vec::new(), None);
        for axis in self.axes_of(tensor) {
            let fixed = self.b.graph().size(axis).is_some();
            if fixed && inside.is_none() && axes.contains(&axis) && self.rng.once_in(6) {
                let (index, mask) = self.beside(axis, axes);
                selected.push((axis, index));
                inside = Some(mask);
            } else if !axes.contains(&axis) || (fixed && self.rng.once_in(2)) {
                selected.push((axis, self.index(axis, axes)));
            }
        }
        let id = self.b.load_at(tensor, &selected);
        let id = match inside {
            Some(mask) => {
                let none = self.b.float(0.0);
                self.b.select(mask, id, none)
            }
            None => id,
        };
        Term { id, magnitude }
    }

    /// A place beside that of an axis, and where it is one.
    fn beside(&mut self, axis: AxisId, axes: &[AxisId]) -> (ExprId, ExprId) {
        let size = self.size(axis) as i64;
        let by = self.rng.pick(axes);
        let (own, by) = (self.b.coordinate(axis), self.b.coordinate(by));
        let shift = self.b.int(self.rng.below(size as usize + 1) as i64);
        let sum = self.b.binary(Binary::Add, own, by);
        let index = self.b.binary(Binary::Sub, sum, shift);
        let (first, end) = (self.b.int(0), self.b.int(size));
        let (low, high) = (self.b.binary(Binary::Ge, index, first), self.b.binary(Binary::Lt, index, end));
        (index, self.b.binary(Binary::And, low, high))
    }

    /// An integer expression of some of `axes` that is a coordinate of `axis`.
    pub(super) fn index(&mut self, axis: AxisId, axes: &[AxisId]) -> ExprId {
        let size = self.size(axis);
        let extent = self.b.int(size as i64);
        let has_tokens = axes.contains(&self.tokens);
        if has_tokens && (axis == self.vocabulary || self.rng.once_in(3)) {
            let id = self.b.load(self.ids);
            return if axis == self.vocabulary { id } else { self.b.binary(Binary::Rem, id, extent) };
        }
        if axes.is_empty() || self.rng.once_in(4) {
            return self.b.int(self.rng.below(size) as i64);
        }
        let by = self.rng.pick(axes);
        let other = if axes.contains(&axis) { axis } else { by };
        let (own, by) = (self.b.coordinate(other), self.b.coordinate(by));
        let shift = self.b.int(self.rng.below(size + 1) as i64);
        match self.rng.below(5) {
            0 if other == axis => {
                let last = self.b.int(size as i64 - 1);
                self.b.binary(Binary::Sub, last, own)
            }
            1 => {
                let sum = self.b.binary(Binary::Add, own, by);
                self.b.binary(Binary::Rem, sum, extent)
            }
            2 => {
                let half = self.b.int(2);
                let half = self.b.binary(Binary::Div, own, half);
                self.b.binary(Binary::Rem, half, extent)
            }
            3 => {
                let divisor = self.b.binary(Binary::Sub, by, shift);
                let op = self.rng.pick(&[Binary::Div, Binary::Rem]);
                let part = self.b.binary(op, own, divisor);
                self.b.binary(Binary::Rem, part, extent)
            }
            _ => {
                let sum = self.b.binary(Binary::Sub, own, shift);
                self.b.binary(Binary::Rem, sum, extent)
            }
        }
    }

    // ---- functions, with what they do to magnitudes

    pub(super) fn unary(&mut self, op: Unary, x: Term, magnitude: f64) -> Term {
        Term { id: self.b.unary(op, x.id), magnitude }
    }

    pub(super) fn add(&mut self, a: Term, b: Term) -> Term {
        Term { id: self.b.binary(Binary::Add, a.id, b.id), magnitude: a.magnitude + b.magnitude }
    }

    pub(super) fn sub(&mut self, a: Term, b: Term) -> Term {
        Term { id: self.b.binary(Binary::Sub, a.id, b.id), magnitude: a.magnitude + b.magnitude }
    }

    pub(super) fn mul(&mut self, a: Term, b: Term) -> Term {
        Term { id: self.b.binary(Binary::Mul, a.id, b.id), magnitude: a.magnitude * b.magnitude }
    }

    /// `b` is at least 1 in magnitude, or makes the quotient at most `magnitude`.
    pub(super) fn div(&mut self, a: Term, b: Term, magnitude: f64) -> Term {
        Term { id: self.b.binary(Binary::Div, a.id, b.id), magnitude }
    }

    pub(super) fn scaled(&mut self, x: Term, by: f64) -> Term {
        let by = self.float(by);
        self.mul(x, by)
    }

    /// Something of `x` that is at most `most`: capped softly, or scaled.
    pub(super) fn bounded(&mut self, x: Term, most: f64) -> Term {
        if x.magnitude <= most {
            return x;
        }
        if self.rng.once_in(2) {
            return self.scaled(x, most / x.magnitude);
        }
        let x = self.scaled(x, 1.0 / most);
        let x = self.unary(Unary::Tanh, x, 1.0);
        self.scaled(x, most)
    }

    /// At least `least`, by a function of `x`.
    pub(super) fn positive(&mut self, x: Term, least: f64) -> Term {
        let x = self.bounded(x, LARGE);
        let least = self.float(least);
        let x = if self.rng.once_in(2) {
            self.unary(Unary::Abs, x, x.magnitude)
        } else {
            let small = self.bounded(x, 3.0);
            self.mul(small, small)
        };
        self.add(x, least)
    }

    pub(super) fn activation(&mut self, x: Term) -> Term {
        match self.rng.below(5) {
            0 => {
                let zero = self.float(0.0);
                Term { id: self.b.binary(Binary::Max, x.id, zero.id), magnitude: x.magnitude }
            }
            1 => {
                // silu
                let x = self.bounded(x, 12.0);
                let minus = self.unary(Unary::Neg, x, x.magnitude);
                let exp = self.unary(Unary::Exp, minus, x.magnitude.exp());
                let one = self.float(1.0);
                let below = self.add(one, exp);
                self.div(x, below, x.magnitude)
            }
            2 => {
                // gelu
                let inner = self.scaled(x, std::f64::consts::FRAC_1_SQRT_2);
                let erf = self.unary(Unary::Erf, inner, 1.0);
                let one = self.float(1.0);
                let sum = self.add(one, erf);
                let half = self.scaled(x, 0.5);
                let product = self.mul(half, sum);
                Term { magnitude: x.magnitude, ..product }
            }
            3 => self.unary(Unary::Tanh, x, 1.0),
            _ => {
                // squared
                let x = self.bounded(x, 4.0);
                self.mul(x, x)
            }
        }
    }

    /// A random expression whose free axes are among these.
    pub(super) fn term(&mut self, axes: &[AxisId], depth: usize) -> Term {
        if depth == 0 {
            return self.leaf(axes);
        }
        let x = self.term(axes, depth - 1);
        match self.rng.below(14) {
            0 => self.activation(x),
            1 => {
                let op = self.rng.pick(&[Unary::Sin, Unary::Cos]);
                self.unary(op, x, 1.0)
            }
            2 => {
                let x = self.bounded(x, 2.5);
                self.unary(Unary::Exp, x, x.magnitude.exp())
            }
            3 => {
                let y = self.term(axes, depth - 1);
                let y = self.positive(y, 1.0);
                self.div(x, y, x.magnitude)
            }
            4 => {
                let x = self.positive(x, 0.5);
                match self.rng.below(4) {
                    0 => self.unary(Unary::Log, x, x.magnitude.ln().max(1.0)),
                    1 => self.unary(Unary::Sqrt, x, x.magnitude.sqrt()),
                    2 => self.unary(Unary::Rsqrt, x, 1.5),
                    _ => {
                        let power = self.rng.pick(&[-0.5, 0.75, 1.5, 2.0]);
                        let by = self.float(power);
                        let magnitude = x.magnitude.powf(power).max(0.5f64.powf(power));
                        Term { id: self.b.binary(Binary::Pow, x.id, by.id), magnitude }
                    }
                }
            }
            5 => {
                let y = self.leaf(axes);
                let op = self.rng.pick(&[Binary::Min, Binary::Max]);
                Term { id: self.b.binary(op, x.id, y.id), magnitude: x.magnitude.max(y.magnitude) }
            }
            6 => {
                let y = self.leaf(axes);
                let Some(mask) = self.mask(axes) else { return y };
                Term { id: self.b.select(mask, x.id, y.id), magnitude: x.magnitude.max(y.magnitude) }
            }
            7 | 8 => self.inner_reduction(axes, depth),
            9 | 10 => {
                let y = self.leaf(axes);
                let (x, y) = (self.bounded(x, 8.0), self.bounded(y, 8.0));
                self.mul(x, y)
            }
            11 => {
                let y = self.term(axes, depth - 1);
                self.sub(x, y)
            }
            _ => {
                let y = self.leaf(axes);
                self.add(x, y)
            }
        }
    }

    /// A reduction over an axis that is not among these.
    pub(super) fn inner_reduction(&mut self, axes: &[AxisId], depth: usize) -> Term {
        let mut all: Vec<AxisId> = self.fixed.clone();
        all.push(self.vocabulary);
        all.retain(|axis| !axes.contains(axis));
        self.rng.shuffle(&mut all);
        let mut within = axes.to_vec();
        let mut over = Vec::new();
        for axis in all.into_iter().take(1 + self.rng.below(2)) {
            within.push(axis);
            if self.volume(&within) > WORK {
                within.pop();
            } else {
                over.push(axis);
            }
        }
        let x = self.term(&within, depth - 1);
        self.reduce(&over, x)
    }

    /// A reduction of `x` over those of the axes that it has.
    pub(super) fn reduce(&mut self, over: &[AxisId], x: Term) -> Term {
        let free = self.b.graph().free_axes(x.id);
        let over: Vec<AxisId> = over.iter().copied().filter(|axis| free.contains(axis)).collect();
        let Some(&first) = over.first() else { return x };
        let op = self.rng.pick(&[Reduction::Sum, Reduction::Sum, Reduction::Max, Reduction::Min]);
        let mut body = x.id;
        if self.rng.once_in(3) {
            let mask = self.mask_over(first, &free);
            body = self.b.masked(body, mask);
        }
        let fixed = over.iter().all(|&axis| self.b.graph().size(axis).is_some());
        if fixed && self.rng.once_in(4) {
            return Term { id: self.b.mean(&over, body), magnitude: x.magnitude };
        }
        let reduced = Term { id: self.b.reduce(op, &over, body), magnitude: x.magnitude };
        match op {
            Reduction::Sum => {
                let count = self.volume(&over) as f64;
                let sum = Term { magnitude: x.magnitude * count, ..reduced };
                self.scaled(sum, count.sqrt().recip())
            }
            _ => reduced,
        }
    }

    // ---- masks

    pub(super) fn compare(&mut self, op: Binary, axis: AxisId, with: i64) -> ExprId {
        let (at, with) = (self.b.coordinate(axis), self.b.int(with));
        self.b.binary(op, at, with)
    }

    /// A mask of coordinates among these axes.
    pub(super) fn mask(&mut self, axes: &[AxisId]) -> Option<ExprId> {
        let axis = *axes.get(self.rng.below(axes.len().max(1)))?;
        let size = self.size(axis) as i64;
        let with = self.rng.below(size as usize) as i64;
        let op = self.rng.pick(&[Binary::Lt, Binary::Le, Binary::Gt, Binary::Ge, Binary::Eq, Binary::Ne]);
        let mask = self.compare(op, axis, with);
        Some(match self.rng.below(5) {
            0 => self.b.unary(Unary::Not, mask),
            1 => {
                let x = self.leaf(axes);
                let limit = self.b.float(0.3);
                let other = self.b.binary(Binary::Lt, x.id, limit);
                self.b.binary(Binary::And, mask, other)
            }
            2 => {
                let other = self.rng.pick(axes);
                let (a, b) = (self.b.coordinate(axis), self.b.coordinate(other));
                let (sum, two) = (self.b.binary(Binary::Add, a, b), self.b.int(2));
                let parity = self.b.binary(Binary::Rem, sum, two);
                let one = self.b.int(1);
                let odd = self.b.binary(Binary::Eq, parity, one);
                self.b.binary(Binary::Or, mask, odd)
            }
            3 => {
                let other = self.rng.pick(axes);
                let (other, far) = (self.b.coordinate(other), self.b.int(1 << 32));
                let wide = self.b.binary(Binary::Sub, other, far);
                let at = self.b.coordinate(axis);
                let other = self.b.binary(Binary::Gt, at, wide);
                self.b.binary(Binary::And, mask, other)
            }
            _ => mask,
        })
    }

    /// A mask along an axis that leaves at least one coordinate: the first, or along positions the token's own.
    pub(super) fn mask_over(&mut self, axis: AxisId, axes: &[AxisId]) -> ExprId {
        if self.b.graph().size(axis).is_some() || !axes.contains(&self.tokens) {
            let first = self.compare(Binary::Eq, axis, 0);
            return match self.mask(axes) {
                Some(mask) => self.b.binary(Binary::Or, mask, first),
                None => first,
            };
        }
        let (s, t) = (self.b.coordinate(axis), self.b.coordinate(self.tokens));
        let causal = self.b.binary(Binary::Le, s, t);
        match self.rng.below(4) {
            0 => {
                let window = self.b.int(1 + self.rng.below(5) as i64);
                let oldest = self.b.binary(Binary::Sub, t, window);
                let inside = self.b.binary(Binary::Gt, s, oldest);
                self.b.binary(Binary::And, causal, inside)
            }
            1 => {
                let three = self.b.int(3);
                let sum = self.b.binary(Binary::Add, s, t);
                let (rest, one) = (self.b.binary(Binary::Rem, sum, three), self.b.int(1));
                let apart = self.b.binary(Binary::Ne, rest, one);
                let own = self.b.binary(Binary::Eq, s, t);
                let seen = self.b.binary(Binary::Or, apart, own);
                self.b.binary(Binary::And, causal, seen)
            }
            _ => causal,
        }
    }
}
