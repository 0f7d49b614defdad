//! Rule hoist: what is the same in every layer, and does not grow with the positions, is computed once, before the layers.

use std::collections::{HashMap, HashSet};

use einfuse_graph::{Binary, Expr, ExprId, Graph, Kind, Layers, Node, TensorId, Unary};

use super::contraction::is_positions;
use super::edit::{Edit, layout_order};
use super::{Remark, Rule};

/// Moves equations out of the layers, and costly parts of equations.
pub(super) fn apply(graph: Graph, remarks: &mut Vec<Remark>) -> Graph {
    let mut edit = Edit::new(Graph { nodes: Vec::new(), ..graph.clone() });
    let mut nodes = Vec::new();
    for node in graph.nodes {
        match node {
            Node::Layers(layers) => {
                let mut hoist = Hoist {
                    edit: &mut edit,
                    before: Vec::new(),
                    moved: HashMap::new(),
                    remarks,
                    inner: HashSet::new(),
                    costly: HashMap::new(),
                };
                let layers = hoist.layers(layers);
                nodes.extend(hoist.before);
                nodes.push(Node::Layers(layers));
            }
            node => nodes.push(node),
        }
    }
    Graph { nodes, ..edit.graph }
}

struct Hoist<'a> {
    edit: &'a mut Edit,
    before: Vec<Node>,
    /// Expressions that have become tensors before the layers.
    moved: HashMap<ExprId, TensorId>,
    remarks: &'a mut Vec<Remark>,
    /// Tensors that are another in each layer.
    inner: HashSet<TensorId>,
    costly: HashMap<ExprId, bool>,
}

impl Hoist<'_> {
    fn layers(&mut self, mut layers: Layers) -> Layers {
        self.inner.insert(layers.carry);
        for body in &mut layers.bodies {
            for node in &body.nodes {
                match node {
                    Node::Equation { out, .. } => self.inner.insert(*out),
                    Node::Append { state, .. } => self.inner.insert(*state),
                    Node::Layers(_) => false,
                };
            }
        }
        for body in &mut layers.bodies {
            let appended: Vec<TensorId> = body
                .nodes
                .iter()
                .filter_map(|n| match n {
                    Node::Append { rows, .. } => Some(*rows),
                    _ => None,
                })
                .collect();
            let mut nodes = Vec::new();
            for node in std::mem::take(&mut body.nodes) {
                match node {
                    Node::Equation { out, body: right } => {
                        let stays = out == body.result || appended.contains(&out);
                        if !stays && self.is_same(right) && self.mentions_positions(right) {
                            let name = &self.edit.graph.tensor(out).name;
                            self.say(format!("`{name}` is the same in every layer, but grows with the positions"));
                        }
                        if !stays && self.is_invariant(right) {
                            let name = self.edit.graph.tensor(out).name.clone();
                            self.say(format!("`{name}` is computed once, before the layers"));
                            self.inner.remove(&out);
                            self.before.push(Node::Equation { out, body: right });
                        } else {
                            let right = self.extract(right);
                            nodes.push(Node::Equation { out, body: right });
                        }
                    }
                    node => nodes.push(node),
                }
            }
            body.nodes = nodes;
        }
        layers
    }

    fn say(&mut self, text: String) {
        self.remarks.push(Remark { rule: Rule::Hoist, text });
    }

    /// Whether an expression is the same in every layer, and does not grow with the positions.
    fn is_invariant(&self, id: ExprId) -> bool {
        self.is_same(id) && !self.mentions_positions(id)
    }

    /// Whether an expression is the same in every layer.
    fn is_same(&self, id: ExprId) -> bool {
        let graph = &self.edit.graph;
        graph.loaded(id).iter().all(|t| {
            !self.inner.contains(t) && !graph.is_layered(*t) && !matches!(graph.tensor(*t).kind, Kind::State { .. })
        })
    }

    fn mentions_positions(&self, id: ExprId) -> bool {
        let graph = &self.edit.graph;
        let is_one = |at| matches!(graph.expr(at), Expr::Coordinate(axis) if is_positions(graph, *axis));
        graph.reachable(id).into_iter().any(is_one)
    }

    /// Whether it computes a function worth a load.
    fn is_costly(&mut self, id: ExprId) -> bool {
        if let Some(&known) = self.costly.get(&id) {
            return known;
        }
        let expr = self.edit.graph.expr(id).clone();
        let own = match expr {
            Expr::Unary(op, _) => !matches!(op, Unary::Neg | Unary::Not | Unary::Abs | Unary::ToFloat),
            Expr::Binary(op, ..) => op == Binary::Pow,
            _ => false,
        };
        let costly = own || expr.children().into_iter().any(|c| self.is_costly(c));
        self.costly.insert(id, costly);
        costly
    }

    /// The expression with its largest costly invariant parts replaced by loads.
    fn extract(&mut self, id: ExprId) -> ExprId {
        if !self.is_costly(id) {
            return id;
        }
        let is_value = !matches!(self.edit.graph.expr(id), Expr::Reduce { .. } | Expr::Load { .. });
        if is_value && self.edit.graph.type_of(id) == einfuse_graph::Type::Float && self.is_invariant(id) {
            let tensor = match self.moved.get(&id) {
                Some(&tensor) => tensor,
                None => {
                    let free = self.edit.graph.free_axes(id);
                    let axes = layout_order(&self.edit.graph, &free);
                    let name = match self.edit.graph.expr(id) {
                        Expr::Unary(op, _) => format!("{op:?}").to_lowercase(),
                        _ => "table".to_owned(),
                    };
                    let tensor = self.edit.value(&name, axes, einfuse_graph::Type::Float);
                    let (name, axes) = (self.edit.graph.tensor(tensor).name.clone(), self.edit.graph.axes_of(tensor));
                    self.say(format!("`{name}` {axes} is computed once, before the layers"));
                    self.before.push(Node::Equation { out: tensor, body: id });
                    self.moved.insert(id, tensor);
                    tensor
                }
            };
            return self.edit.load(tensor);
        }
        let children = self.edit.graph.expr(id).children();
        let new: HashMap<ExprId, ExprId> = children.into_iter().map(|c| (c, self.extract(c))).collect();
        self.edit.map_children(id, |_, child| new[&child])
    }
}
