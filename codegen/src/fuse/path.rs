//! Rule path: the order of a product of three or more operands, where sums are nested.
//!
//! In `y = Σ_c q · k` with `k = Σ_r x · w`, the sums may be taken in any order: `Σ_r (Σ_c q · w) · x` is the same. Which takes
//! the fewest multiplications depends on the sizes, and on how many tokens there are: a weight between a cache and the
//! queries is better multiplied with the few queries of a decoded token, and with the cache for the many of a prompt. So a plan
//! is made for a step of some size. (Contracting pairs in the best order is the matrix chain problem of many axes; here one
//! pair at a time is exchanged for another while that is cheaper.)
//!
//! The condition: the inner sum is read by the outer alone, at its own coordinates, as a factor. Then it works on the
//! equations as they are declared, before anything else does.

use std::collections::HashMap;

use einfuse_graph::{AxisId, Expr, ExprId, Extent, Graph, Node, Reduction, TensorId};

use super::contraction::factors;
use super::edit::{Edit, is_identity};
use super::{Remark, Rule};

/// The step that a plan is made for, where one order is better for few tokens and another for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typical {
    /// How many tokens it has.
    pub tokens: usize,
    /// How many positions its sequence has, with these.
    pub positions: usize,
}

impl Typical {
    /// One token of a sequence of 2048.
    pub const DECODE: Typical = Typical { tokens: 1, positions: 2048 };
}

/// Takes nested sums in the order that is cheapest in such a step.
pub(super) fn apply(graph: &Graph, step: Typical, remarks: &mut Vec<Remark>) -> Graph {
    let mut path = Path {
        uses: uses(graph),
        edit: Edit::new(Graph { nodes: Vec::new(), ..graph.clone() }),
        step,
        inner: HashMap::new(),
        done: HashMap::new(),
        remarks,
    };
    let nodes = path.nodes(&graph.nodes);
    Graph { nodes, ..path.edit.graph }
}

/// The multiplications of a graph's sums, by whether their number grows with a step's tokens and with its positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Multiplications {
    /// Of each token.
    tokens: f64,
    /// Of each position.
    positions: f64,
    /// Of each token at each position.
    both: f64,
}

impl Multiplications {
    /// What a graph takes whose sums are in such an order: all that something needs.
    pub fn of(graph: &Graph) -> Multiplications {
        fn bodies(nodes: &[Node], times: f64, all: &mut Vec<(ExprId, TensorId, f64)>) {
            for node in nodes {
                match node {
                    Node::Equation { out, body } => all.push((*body, *out, times)),
                    Node::Append { .. } => {}
                    Node::Layers(layers) => {
                        for (at, body) in layers.bodies.iter().enumerate() {
                            let layers = layers.order.iter().filter(|&&own| own == at).count();
                            bodies(&body.nodes, times * layers as f64, all);
                        }
                    }
                }
            }
        }
        let mut all = Vec::new();
        bodies(&graph.nodes, 1.0, &mut all);
        let mut sum = Multiplications::default();
        let uses = uses(graph);
        for (body, out, times) in all.into_iter().filter(|(_, out, _)| uses.tensors.contains_key(out)) {
            for expr in graph.reachable(body) {
                let Expr::Reduce { op: Reduction::Sum, body: inner, .. } = graph.expr(expr) else { continue };
                let mut axes = graph.free_axes(*inner);
                if expr == body {
                    axes.extend(&graph.tensor(out).axes);
                }
                axes.sort_unstable();
                axes.dedup();
                let each = axes.iter().filter_map(|&axis| graph.size(axis)).product::<usize>() as f64 * times;
                let has = |extent| axes.iter().any(|&axis| graph.axis(axis).extent == extent);
                match (has(Extent::Tokens), has(Extent::Positions)) {
                    (true, true) => sum.both += each,
                    (true, false) => sum.tokens += each,
                    (false, true) => sum.positions += each,
                    (false, false) => {}
                }
            }
        }
        sum
    }

    /// Those of a step, of which what is computed of each position is computed anew for so many tokens.
    pub fn in_step(&self, step: Typical, anew: usize) -> f64 {
        let (tokens, positions) = (step.tokens as f64, step.positions as f64);
        let times = step.tokens.div_ceil(anew) as f64;
        self.tokens * tokens + self.positions * positions * times + self.both * tokens * positions
    }
}

/// How often each expression is part of another or an equation's right side, and each tensor is needed.
struct Uses {
    exprs: HashMap<ExprId, usize>,
    tensors: HashMap<TensorId, usize>,
}

fn uses(graph: &Graph) -> Uses {
    fn count(nodes: &[Node], roots: &mut Vec<ExprId>, tensors: &mut Vec<TensorId>) {
        for node in nodes {
            match node {
                Node::Equation { body, .. } => roots.push(*body),
                Node::Append { rows, .. } => tensors.push(*rows),
                Node::Layers(layers) => {
                    tensors.push(layers.initial);
                    for body in &layers.bodies {
                        tensors.push(body.result);
                        count(&body.nodes, roots, tensors);
                    }
                }
            }
        }
    }
    let (mut roots, mut needed) = (Vec::new(), vec![graph.output]);
    count(&graph.nodes, &mut roots, &mut needed);
    let mut uses = Uses { exprs: HashMap::new(), tensors: HashMap::new() };
    let mut open = roots.clone();
    for root in roots {
        *uses.exprs.entry(root).or_default() += 1;
    }
    let mut seen = std::collections::HashSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        for child in graph.expr(id).children() {
            *uses.exprs.entry(child).or_default() += 1;
            open.push(child);
        }
    }
    // An expression that is used twice is loaded from twice.
    for id in seen {
        if let Expr::Load { tensor, .. } = graph.expr(id) {
            needed.extend(vec![*tensor; uses.exprs[&id]]);
        }
    }
    for tensor in needed {
        *uses.tensors.entry(tensor).or_default() += 1;
    }
    uses
}

struct Path<'a> {
    uses: Uses,
    edit: Edit,
    step: Typical,
    /// The sums that a single factor reads: the axes and what is summed.
    inner: HashMap<TensorId, (Vec<AxisId>, ExprId)>,
    done: HashMap<ExprId, ExprId>,
    remarks: &'a mut Vec<Remark>,
}

/// A way to take a sum of sums: `Σ outer (Σ inner  first) · rest`.
struct Way {
    inner: Vec<AxisId>,
    first: Vec<ExprId>,
    outer: Vec<AxisId>,
    rest: Vec<ExprId>,
}

impl Path<'_> {
    fn nodes(&mut self, nodes: &[Node]) -> Vec<Node> {
        let mut all = Vec::new();
        for node in nodes {
            all.push(match node {
                Node::Equation { out, body } => {
                    let name = self.edit.graph.tensor(*out).name.clone();
                    let body = self.rewrite(*body, &name);
                    if let Expr::Reduce { op: Reduction::Sum, axes, body } = self.edit.graph.expr(body)
                        && self.uses.tensors.get(out) == Some(&1)
                    {
                        self.inner.insert(*out, (axes.clone(), *body));
                    }
                    Node::Equation { out: *out, body }
                }
                Node::Append { .. } => node.clone(),
                Node::Layers(layers) => {
                    let mut layers = layers.clone();
                    // What is summed once, before the layers, stays there.
                    let before = std::mem::take(&mut self.inner);
                    for body in &mut layers.bodies {
                        body.nodes = self.nodes(&body.nodes);
                    }
                    self.inner = before;
                    Node::Layers(layers)
                }
            });
        }
        all
    }

    /// The expression with its sums in the best order, the inner ones first.
    fn rewrite(&mut self, id: ExprId, name: &str) -> ExprId {
        if let Some(&done) = self.done.get(&id) {
            return done;
        }
        let children = self.edit.graph.expr(id).children();
        let once = self.uses.exprs.get(&id) == Some(&1);
        let new: HashMap<ExprId, ExprId> = children.into_iter().map(|c| (c, self.rewrite(c, name))).collect();
        let mut result = self.edit.map_children(id, |_, child| new[&child]);
        if let Expr::Reduce { op: Reduction::Sum, axes, body } = self.edit.graph.expr(result).clone()
            && let Some(better) = self.reorder(&axes, body, name)
        {
            result = better;
        }
        if once {
            self.uses.exprs.entry(result).or_insert(1);
        }
        self.done.insert(id, result);
        result
    }

    /// `Σ axes body` in a better order than it is in, if there is one.
    fn reorder(&mut self, axes: &[AxisId], body: ExprId, name: &str) -> Option<ExprId> {
        let all = factors(&self.edit.graph, body);
        let mut better: Option<(f64, Way, String)> = None;
        for at in 0..all.len() {
            let Some((declared, best)) = self.ways(axes, &all, at) else { continue };
            let costs = |tokens: usize| {
                let step = Typical { tokens, ..self.step };
                (self.cost(&best, step), self.cost(&declared, step))
            };
            let Typical { tokens, positions } = self.step;
            let (cost, as_declared) = costs(tokens);
            // Where it stays, that is of interest if another number of tokens would have it the other way round.
            let is_near = || [1, positions].into_iter().map(costs).any(|(cost, as_declared)| cost < as_declared);
            let is_better = cost < as_declared;
            if !is_better && !is_near() {
                continue;
            }
            let (mut first, mut then) = (self.names(&best.first), self.names(&declared.first));
            if !is_better {
                std::mem::swap(&mut first, &mut then);
            }
            let (fewer, more) = (scaled(cost.min(as_declared)), scaled(cost.max(as_declared)));
            let tokens = if tokens == 1 { "one token".to_owned() } else { format!("{tokens} tokens") };
            let text = format!(
                "`{name}` sums {first} before {then}: {fewer} multiplications, not {more}, for {tokens} at {positions} positions"
            );
            if !is_better {
                self.remarks.push(Remark { rule: Rule::Path, text });
            } else if better.as_ref().is_none_or(|(saved, ..)| as_declared - cost > *saved) {
                better = Some((as_declared - cost, best, text));
            }
        }
        let (_, Way { inner, mut first, outer, rest }, text) = better?;
        self.remarks.push(Remark { rule: Rule::Path, text });
        let product = self.edit.product(&first);
        first = vec![self.edit.intern(Expr::Reduce { op: Reduction::Sum, axes: inner, body: product })];
        first.extend(rest);
        let body = self.edit.product(&first);
        Some(self.edit.intern(Expr::Reduce { op: Reduction::Sum, axes: outer, body }))
    }

    /// How a sum of products is declared, one factor of which is a sum itself, and the cheapest other way.
    fn ways(&self, axes: &[AxisId], all: &[ExprId], at: usize) -> Option<(Way, Way)> {
        let graph = &self.edit.graph;
        let (summed, inner) = self.sum(all[at])?;
        let mut others = all.to_vec();
        others.remove(at);
        let parts = factors(graph, inner);
        // The inner sum's axes are its own.
        let clash = |axis: &AxisId| axes.contains(axis) || others.iter().any(|&o| graph.free_axes(o).contains(axis));
        if summed.iter().any(clash) {
            return None;
        }
        let both: Vec<AxisId> = axes.iter().chain(&summed).copied().collect();
        let best = (1..(1usize << parts.len().min(8)) - 1)
            .filter_map(|chosen| {
                let (with, rest): (Vec<_>, Vec<_>) = (0..parts.len()).partition(|i| chosen >> i & 1 == 1);
                let first: Vec<ExprId> = others.iter().copied().chain(with.into_iter().map(|i| parts[i])).collect();
                let rest: Vec<ExprId> = rest.into_iter().map(|i| parts[i]).collect();
                let free = |axis: &AxisId| rest.iter().any(|&r| graph.free_axes(r).contains(axis));
                let (outer, inner): (Vec<AxisId>, Vec<AxisId>) = both.iter().partition(|axis| free(axis));
                (!inner.is_empty() && !outer.is_empty()).then_some(Way { inner, first, outer, rest })
            })
            .min_by(|a, b| self.cost(a, self.step).total_cmp(&self.cost(b, self.step)))?;
        Some((Way { inner: summed, first: parts, outer: axes.to_vec(), rest: others }, best))
    }

    /// The sum that a factor is, if nothing else reads it.
    fn sum(&self, factor: ExprId) -> Option<(Vec<AxisId>, ExprId)> {
        let graph = &self.edit.graph;
        match graph.expr(factor) {
            Expr::Reduce { op: Reduction::Sum, axes, body } if self.uses.exprs.get(&factor) == Some(&1) => {
                Some((axes.clone(), *body))
            }
            Expr::Load { tensor, index } if is_identity(graph, *tensor, index) => self.inner.get(tensor).cloned(),
            _ => None,
        }
    }

    /// Multiplications, each factor's own arithmetic aside.
    fn cost(&self, way: &Way, step: Typical) -> f64 {
        let graph = &self.edit.graph;
        let over = |factors: &[ExprId]| -> Vec<AxisId> {
            let mut axes: Vec<AxisId> = factors.iter().flat_map(|&f| graph.free_axes(f)).collect();
            axes.sort_unstable();
            axes.dedup();
            axes
        };
        let size = |axis: &AxisId| match graph.axis(*axis).extent {
            Extent::Fixed(size) => size as f64,
            Extent::Tokens => step.tokens as f64,
            Extent::Positions => step.positions as f64,
        };
        let inner = over(&way.first);
        let mut outer = over(&way.rest);
        outer.extend(inner.iter().filter(|axis| !way.inner.contains(axis)));
        outer.sort_unstable();
        outer.dedup();
        inner.iter().map(size).product::<f64>() + outer.iter().map(size).product::<f64>()
    }

    /// What a product reads.
    fn names(&self, factors: &[ExprId]) -> String {
        let graph = &self.edit.graph;
        let tensors = factors.iter().flat_map(|&factor| graph.loaded(factor));
        let mut names: Vec<String> = Vec::new();
        for tensor in tensors {
            let name = format!("`{}`", graph.tensor(tensor).name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(" with ")
    }
}

/// `1.25 M`, `310 k`.
fn scaled(count: f64) -> String {
    match count {
        1e9.. => format!("{:.3} G", count / 1e9),
        1e6.. => format!("{:.3} M", count / 1e6),
        1e3.. => format!("{:.3} k", count / 1e3),
        _ => format!("{count}"),
    }
}
