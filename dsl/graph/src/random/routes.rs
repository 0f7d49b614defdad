//! Random routes: tables and weights of which computed integers choose a part.

use super::{Generator, Operand, Term, WORK};
use crate::graph::*;

impl Generator {
    /// Rows of a table, chosen by integers that an equation computes.
    pub(super) fn route(&mut self) {
        let table_axis = self.rng.pick(&self.fixed.clone());
        let mut axes = self.some_axes(1);
        axes.retain(|&axis| axis != table_axis);
        let extent = self.b.int(self.size(table_axis) as i64);
        let choice = if self.rng.once_in(2) {
            let mut within = axes.clone();
            within.push(table_axis);
            let score = self.term(&within, 1);
            let weight = self.weight(&[table_axis]);
            let score = self.add(score, weight);
            self.b.reduce(Reduction::ArgMax, &[table_axis], score.id)
        } else {
            let (id, one) = (self.b.load(self.ids), self.b.int(1));
            let next = self.b.binary(Binary::Add, id, one);
            self.b.binary(Binary::Rem, next, extent)
        };
        let choice = self.b.define("i", None, choice);
        let choice = self.b.load(choice);
        let mut of = vec![table_axis];
        let mut others: Vec<AxisId> = self.fixed.iter().copied().filter(|&axis| axis != table_axis).collect();
        self.rng.shuffle(&mut others);
        of.extend(others.into_iter().take(1));
        let Term { id: table, .. } = self.weight(&of);
        let Expr::Load { tensor, .. } = *self.b.graph().expr(table) else { return };
        let row = Term { id: self.b.load_at(tensor, &[(table_axis, choice)]), magnitude: 1.0 };
        let other = self.leaf(&axes);
        let product = self.mul(row, other);
        self.define("z", product);
    }

    /// A mixture: each token goes through the weights that have the largest scores, and the results are summed up.
    pub(super) fn experts(&mut self) {
        let choices = self.rng.pick(&self.fixed.clone());
        let is_source = |v: &&Operand| {
            let axes = self.axes_of(v.tensor);
            let sizes = axes.iter().all(|&axis| axis == self.tokens || self.b.graph().size(axis).is_some());
            sizes && axes.contains(&self.tokens) && axes.len() > 1 && !axes.contains(&choices)
        };
        let sources: Vec<Operand> = self.values.iter().filter(is_source).cloned().collect();
        let Some(source) = sources.last().cloned() else { return self.contraction() };
        let within = self.axes_of(source.tensor);
        let mut depth: Vec<AxisId> = within.iter().copied().filter(|&axis| axis != self.tokens).collect();
        self.rng.shuffle(&mut depth);
        depth.truncate(1 + self.rng.below(depth.len()));
        let is_free = |axis: &AxisId| *axis != choices && !within.contains(axis);
        let mut columns: Vec<AxisId> = self.fixed.iter().copied().filter(is_free).collect();
        self.rng.shuffle(&mut columns);
        columns.truncate(1 + self.rng.below(2));
        let all: Vec<AxisId> = within.iter().chain(&columns).copied().collect();
        if columns.is_empty() || self.volume(&all) > WORK / 4 {
            return self.contraction();
        }
        let score = self.scores(&source, choices);
        let most = self.size(choices).min(3);
        let rank = self.b.axis("j", 1 + self.rng.below(most));
        let (w, i) = self.b.top(("w", "i"), None, score.id, choices, rank);
        let (w, i) = (self.b.load(w), self.b.load(i));
        let mut sums = Vec::new();
        for _ in 0..1 + self.rng.below(2) {
            let mut of: Vec<AxisId> = depth.iter().chain(&columns).chain([&choices]).copied().collect();
            self.rng.shuffle(&mut of);
            let weight = self.weight(&of);
            let Expr::Load { tensor, .. } = *self.b.graph().expr(weight.id) else { return };
            let weight = Term { id: self.b.load_at(tensor, &[(choices, i)]), ..weight };
            let x = self.load(&source);
            let product = self.mul(x, weight);
            let count = self.volume(&depth) as f64;
            let sum = Term { id: self.b.reduce(Reduction::Sum, &depth, product.id), magnitude: x.magnitude * count };
            sums.push(self.scaled(sum, count.sqrt().recip()));
        }
        let mut z = sums[0];
        if let Some(&up) = sums.get(1) {
            let gate = self.activation(z);
            let (gate, up) = (self.bounded(gate, 4.0), self.bounded(up, 4.0));
            z = self.mul(gate, up);
        }
        if self.rng.once_in(3) {
            self.define("z", z);
            return;
        }
        let share = Term { id: w, magnitude: score.magnitude };
        let product = self.mul(share, z);
        let sum = self.b.reduce(Reduction::Sum, &[rank], product.id);
        self.define("y", Term { id: sum, magnitude: product.magnitude * 3.0 });
    }

    /// A score of each choice for each token.
    fn scores(&mut self, source: &Operand, choices: AxisId) -> Term {
        let over: Vec<AxisId> = self.axes_of(source.tensor).into_iter().filter(|&axis| axis != self.tokens).collect();
        let mut of = over.clone();
        of.push(choices);
        let (x, router) = (self.load(source), self.weight(&of));
        let product = self.mul(x, router);
        let count = self.volume(&over) as f64;
        let sum = Term { id: self.b.reduce(Reduction::Sum, &over, product.id), magnitude: x.magnitude * count };
        let score = self.scaled(sum, count.recip());
        // Rows that are alike in all else still differ in this.
        let bias = self.weight(&[choices]);
        self.add(score, bias)
    }
}
