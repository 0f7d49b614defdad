//! The normal form that the rules work on: every equation has at most one reduction, as its right side's outermost
//! operation; the activation of a contraction is a plain load, its axes in the order rows, batch, depth; every state is
//! appended to by an equation of its own; and whatever is computed is needed.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use einfuse_graph::{AxisId, Expr, ExprId, Graph, Node, Reduction, TensorId, Type};

use super::contraction::{Contraction, factors, is_computed, stored_factor};
use super::edit::{Edit, layout_order};

/// Brings a graph into normal form. The result means the same.
pub(super) fn split(graph: &Graph) -> Graph {
    let mut edit = Edit::new(Graph { nodes: Vec::new(), ..graph.clone() });
    let loaded = |e: &Expr| match e {
        Expr::Load { tensor, .. } => Some(*tensor),
        _ => None,
    };
    let read = Rc::new(graph.exprs.iter().filter_map(loaded).collect());
    let mut outer = Splitter { read, ..Splitter::default() };
    outer.nodes(&mut edit, &graph.nodes);
    let nodes = needed(&edit.graph, outer.done, &mut HashSet::from([graph.output]));
    Graph { nodes, ..edit.graph }
}

/// The nodes without equations that none of the tensors in `wanted`, and no cache, is computed from. What they load is
/// wanted too.
fn needed(graph: &Graph, nodes: Vec<Node>, wanted: &mut HashSet<TensorId>) -> Vec<Node> {
    let mut kept = Vec::new();
    for mut node in nodes.into_iter().rev() {
        match &mut node {
            Node::Equation { out, .. } if !wanted.contains(out) => continue,
            Node::Equation { body, .. } => wanted.extend(graph.loaded(*body)),
            Node::Append { rows, .. } => {
                wanted.insert(*rows);
            }
            Node::Layers(layers) => {
                wanted.insert(layers.initial);
                for body in &mut layers.bodies {
                    wanted.insert(body.result);
                    body.nodes = needed(graph, std::mem::take(&mut body.nodes), wanted);
                }
            }
        }
        kept.push(node);
    }
    kept.reverse();
    kept
}

#[derive(Default, Clone)]
struct Splitter {
    done: Vec<Node>,
    /// What an expression of the original graph has become.
    memo: HashMap<ExprId, ExprId>,
    /// The right sides of masks, which are no tensors in compiled code.
    masks: HashMap<TensorId, ExprId>,
    /// The tensors that activations have become, by what they are and the order of their axes.
    activations: HashMap<(ExprId, Vec<AxisId>), TensorId>,
    /// The tensors that equations load.
    read: Rc<HashSet<TensorId>>,
}

impl Splitter {
    fn nodes(&mut self, edit: &mut Edit, nodes: &[Node]) {
        for node in nodes {
            match node {
                Node::Equation { out, body } => self.equation(edit, *out, *body),
                Node::Append { state, rows } => self.append(edit, *state, *rows),
                Node::Layers(layers) => {
                    let mut layers = layers.clone();
                    for body in &mut layers.bodies {
                        let mut inner = Splitter { done: Vec::new(), ..self.clone() };
                        inner.nodes(edit, &body.nodes);
                        body.nodes = inner.done;
                    }
                    self.done.push(Node::Layers(layers));
                }
            }
        }
    }

    fn equation(&mut self, edit: &mut Edit, out: TensorId, body: ExprId) {
        let name = edit.graph.tensor(out).name.clone();
        if edit.graph.tensor(out).ty == Type::Mask {
            let lifted = self.lift(edit, body, &name);
            self.masks.insert(out, lifted);
            return;
        }
        match edit.graph.expr(body).clone() {
            Expr::Reduce { op, axes, body: inner } if !self.memo.contains_key(&body) => {
                let inner = self.lift(edit, inner, &name);
                self.reduction(edit, out, op, axes, inner);
                let value = edit.load(out);
                self.memo.insert(body, value);
            }
            _ => {
                let lifted = self.lift(edit, body, &name);
                self.done.push(Node::Equation { out, body: lifted });
            }
        }
    }

    fn reduction(&mut self, edit: &mut Edit, out: TensorId, op: Reduction, axes: Vec<AxisId>, inner: ExprId) {
        let inner = match op {
            Reduction::Sum => self.operand(edit, out, &axes, inner),
            _ => inner,
        };
        let body = edit.intern(Expr::Reduce { op, axes, body: inner });
        self.done.push(Node::Equation { out, body });
    }

    /// Gives the activation of a contraction an equation of its own where it is more than a load, or where its rows do not
    /// lie evenly spaced.
    fn operand(&mut self, edit: &mut Edit, out: TensorId, summed: &[AxisId], inner: ExprId) -> ExprId {
        let inner = mask_activation(edit, summed, inner);
        let mut all = factors(&edit.graph, inner);
        let Some(at) = stored_factor(&edit.graph, summed, &all) else { return inner };
        let stored = all.remove(at);
        let activation = edit.product(&all);
        let pair = edit.product(&[activation, stored]);
        let whole = edit.intern(Expr::Reduce { op: Reduction::Sum, axes: summed.to_vec(), body: pair });
        let order = match Contraction::of(&edit.graph, out, whole) {
            Some(c) if c.is_over_positions(&edit.graph) || c.expands_state(&edit.graph) => return pair,
            Some(c)
                if c.activation_order(&edit.graph) == edit.graph.tensor(c.a).axes && is_computed(&edit.graph, c.a) =>
            {
                return pair;
            }
            Some(c) => c.activation_order(&edit.graph),
            None => {
                let stored_axes = edit.graph.free_axes(stored);
                let free = edit.graph.free_axes(activation);
                let part = |a: &AxisId| (summed.contains(a), stored_axes.contains(a));
                let mut order = layout_order(&edit.graph, &free);
                order.sort_by_key(part);
                order
            }
        };
        let known = (activation, order);
        let value = match self.activations.get(&known) {
            Some(&value) => value,
            None => {
                let name = format!("{}.in", edit.graph.tensor(out).name);
                let value = edit.value(&name, known.1.clone(), Type::Float);
                self.done.push(Node::Equation { out: value, body: activation });
                self.activations.insert(known, value);
                value
            }
        };
        let activation = edit.load(value);
        edit.product(&[activation, stored])
    }

    /// The expression with the reductions inside it moved into equations of their own.
    fn lift(&mut self, edit: &mut Edit, id: ExprId, name: &str) -> ExprId {
        if let Some(&done) = self.memo.get(&id) {
            return done;
        }
        let result = match edit.graph.expr(id).clone() {
            Expr::Reduce { op, axes, body } => {
                let inner = self.lift(edit, body, name);
                let free = edit.graph.free_axes(id);
                let ty = edit.graph.type_of(id);
                let of = format!("{name}.{}", format!("{op:?}").to_lowercase());
                let order = layout_order(&edit.graph, &free);
                let out = edit.value(&of, order, ty);
                self.reduction(edit, out, op, axes, inner);
                edit.load(out)
            }
            _ => {
                let mut this = std::mem::take(self);
                let changed = edit.map_children(id, |edit, child| this.lift(edit, child, name));
                *self = this;
                match edit.graph.expr(changed).clone() {
                    Expr::Load { tensor, .. } if self.masks.contains_key(&tensor) => {
                        edit.inline(changed, tensor, self.masks[&tensor])
                    }
                    _ => changed,
                }
            }
        };
        self.memo.insert(id, result);
        result
    }

    /// Keeps one equation per state, whose result lives there and is read nowhere else: other rows are copied first.
    fn append(&mut self, edit: &mut Edit, state: TensorId, rows: TensorId) {
        let read = self.read.contains(&rows);
        let here = self.done.iter().any(|n| matches!(n, Node::Equation { out, .. } if *out == rows));
        let twice = self.done.iter().any(|n| matches!(n, Node::Append { rows: r, .. } if *r == rows));
        let mut rows = rows;
        if !here || twice || read {
            let tensor = edit.graph.tensor(rows).clone();
            let body = edit.load(rows);
            rows = edit.value(&tensor.name, tensor.axes, tensor.ty);
            self.done.push(Node::Equation { out: rows, body });
        }
        self.done.push(Node::Append { state, rows });
    }
}

/// `mask ? a · b : 0` as `(mask ? a : 0) · b`, where `b` can be a contraction's stored operand.
fn mask_activation(edit: &mut Edit, summed: &[AxisId], inner: ExprId) -> ExprId {
    let Expr::Select { mask, then, otherwise } = *edit.graph.expr(inner) else { return inner };
    if !matches!(edit.graph.expr(otherwise), Expr::Float(zero) if zero.0 == 0.0) {
        return inner;
    }
    let mut all = factors(&edit.graph, then);
    let Some(at) = stored_factor(&edit.graph, summed, &all) else { return inner };
    let stored = all.remove(at);
    let activation = edit.product(&all);
    let activation = edit.intern(Expr::Select { mask, then: activation, otherwise });
    edit.product(&[activation, stored])
}
