//! A second evaluator, as naive as can be: every element from the definitions alone, nothing kept, each operation rounded
//! by a given function. With no rounding it must agree with the interpreter; with that of `f32`, within its bounds.

use std::collections::HashMap;

use einfuse_graph::*;

pub(crate) struct Naive<'g> {
    graph: &'g Graph,
    round: fn(f64) -> f64,
    tokens: usize,
    values: HashMap<(TensorId, Option<usize>), Vec<f64>>,
    layer: Option<usize>,
}

/// How many operations it takes: too many to try where reductions nest deep.
pub(crate) fn cost(graph: &Graph, tokens: usize) -> f64 {
    let length = |axes: &[AxisId]| axes.iter().map(|&a| graph.size(a).unwrap_or(tokens)).product::<usize>() as f64;
    let mut costs: Vec<f64> = Vec::new();
    for expr in &graph.exprs {
        let inner: f64 = expr.children().iter().map(|child| costs[child.index()]).sum();
        costs.push(1.0 + if let Expr::Reduce { axes, .. } = expr { inner * length(axes) } else { inner });
    }
    let of = |node: &Node| match node {
        Node::Equation { out, body } => length(&graph.tensor(*out).axes) * costs[body.index()],
        _ => 0.0,
    };
    let layers =
        |layers: &Layers| -> f64 { layers.order.iter().flat_map(|&body| &layers.bodies[body].nodes).map(of).sum() };
    graph.nodes.iter().map(|node| if let Node::Layers(stack) = node { layers(stack) } else { of(node) }).sum()
}

impl<'g> Naive<'g> {
    /// Runs one step from the beginning of a sequence, and returns the output.
    pub(crate) fn run(
        graph: &'g Graph,
        round: fn(f64) -> f64,
        tokens: usize,
        inputs: &[(String, Vec<i64>)],
    ) -> Vec<f64> {
        let mut naive = Naive { graph, round, tokens, values: HashMap::new(), layer: None };
        for (at, tensor) in graph.tensors.iter().enumerate() {
            if let Some((_, values)) = inputs.iter().find(|(name, _)| *name == tensor.name) {
                naive.values.insert((TensorId(at as u32), None), values.iter().map(|&v| v as f64).collect());
            }
        }
        for node in &graph.nodes {
            naive.node(node);
        }
        naive.values.remove(&(graph.output, None)).unwrap()
    }

    fn length(&self, axis: AxisId) -> usize {
        self.graph.size(axis).unwrap_or(self.tokens)
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Equation { out, body } => {
                let axes = &self.graph.tensor(*out).axes;
                let mut values = Vec::new();
                self.each(axes, &mut HashMap::new(), &mut |at| values.push(self.eval(*body, at)));
                self.values.insert((*out, self.layer), values);
            }
            Node::Append { state, rows } => {
                let rows = self.data(*rows);
                self.values.insert((*state, self.layer), rows);
            }
            Node::Layers(layers) => {
                let mut carry = self.data(layers.initial);
                for (layer, &body) in layers.order.iter().enumerate() {
                    self.layer = Some(layer);
                    self.values.insert((layers.carry, self.layer), carry);
                    layers.bodies[body].nodes.iter().for_each(|node| self.node(node));
                    carry = self.data(layers.bodies[body].result);
                }
                self.layer = None;
                self.values.insert((layers.out, None), carry);
            }
        }
    }

    fn each(
        &self,
        axes: &[AxisId],
        at: &mut HashMap<AxisId, usize>,
        visit: &mut dyn FnMut(&mut HashMap<AxisId, usize>),
    ) {
        let Some((&first, rest)) = axes.split_first() else { return visit(at) };
        let outer = at.get(&first).copied();
        for i in 0..self.length(first) {
            at.insert(first, i);
            self.each(rest, at, visit);
        }
        match outer {
            Some(outer) => at.insert(first, outer),
            None => at.remove(&first),
        };
    }

    fn data(&self, tensor: TensorId) -> Vec<f64> {
        let of_layer = self.values.get(&(tensor, self.layer));
        if let Some(values) = of_layer.or_else(|| self.values.get(&(tensor, None))) {
            return values.clone();
        }
        let declared = self.graph.tensor(tensor);
        let values = match &declared.kind {
            Kind::Constant(values) => values.clone(),
            _ => {
                let layer = self.layer.filter(|_| self.graph.is_layered(tensor));
                random::random_weights(declared, layer, self.graph).unwrap()
            }
        };
        values.into_iter().map(f64::from).collect()
    }

    fn element(&self, tensor: TensorId, index: &[usize]) -> f64 {
        let axes = &self.graph.tensor(tensor).axes;
        let flat = axes.iter().zip(index).fold(0, |flat, (&axis, &at)| flat * self.length(axis) + at);
        let of_layer = self.values.get(&(tensor, self.layer));
        match of_layer.or_else(|| self.values.get(&(tensor, None))) {
            Some(values) => values[flat],
            None => self.data(tensor)[flat],
        }
    }

    fn eval(&self, id: ExprId, at: &mut HashMap<AxisId, usize>) -> f64 {
        let mask = |holds: bool| holds as u8 as f64;
        match self.graph.expr(id) {
            Expr::Float(Real(value)) => (self.round)(*value),
            Expr::Int(value) => *value as f64,
            Expr::Coordinate(axis) => at[axis] as f64,
            Expr::Load { tensor, index } => {
                let index: Vec<usize> = index.iter().map(|&i| self.eval(i, at) as usize).collect();
                self.element(*tensor, &index)
            }
            Expr::Unary(Unary::Not, x) => 1.0 - self.eval(*x, at),
            Expr::Unary(op, x) => (self.round)(op.of(self.eval(*x, at))),
            Expr::Binary(op, a, b) => {
                let (x, y) = (self.eval(*a, at), self.eval(*b, at));
                match op {
                    Binary::And => x * y,
                    Binary::Or => x.max(y),
                    Binary::Lt => mask(x < y),
                    Binary::Le => mask(x <= y),
                    Binary::Gt => mask(x > y),
                    Binary::Ge => mask(x >= y),
                    Binary::Eq => mask(x == y),
                    Binary::Ne => mask(x != y),
                    _ if self.graph.type_of(*a) == Type::Int => op.of_ints(x as i64, y as i64).unwrap() as f64,
                    _ => (self.round)(op.of(x, y)),
                }
            }
            Expr::Select { mask, then, otherwise } => {
                let chosen = if self.eval(*mask, at) != 0.0 { then } else { otherwise };
                self.eval(*chosen, at)
            }
            Expr::Reduce { op, axes, body } => {
                let mut all = op.neutral();
                let mut best = 0;
                let axis = axes[0];
                self.each(axes, at, &mut |at| {
                    let x = self.eval(*body, at);
                    match op {
                        Reduction::Sum => all = (self.round)(all + x),
                        Reduction::Min => all = all.min(x),
                        Reduction::Max => all = all.max(x),
                        Reduction::ArgMax if x > all => (all, best) = (x, at[&axis]),
                        Reduction::ArgMax => {}
                    }
                });
                if *op == Reduction::ArgMax { best as f64 } else { all }
            }
        }
    }
}
